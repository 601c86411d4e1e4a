"""What the Triton kernels need and how fast they could be, worked out without a GPU.

`python -m fym_kernels.report` prints two tables. Roofline: the fewest bytes and the FLOPs of one call at a
video model's shapes, and the time the published peaks of a device allow for them; nothing is measured.
Resources: registers, shared memory, spills and occupancy of each kernel's first configuration, read from the
binary compiled ahead of time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NamedTuple

import fym_kernels.triton as kernels

BYTES = 2  # of a bfloat16 activation
FLOAT32 = 4


class Device(NamedTuple):
    """Published peaks: bytes/s of device memory, dense bfloat16 FLOP/s (data sheets, SXM boards)."""

    name: str
    architecture: int
    bandwidth: float
    flops: float


DEVICES = (
    Device("A100 80GB", 80, 2.039e12, 312e12),
    Device("H100", 90, 3.35e12, 989e12),
    Device("B200", 100, 8.0e12, 2250e12),
)
# per multiprocessor: shared memory in bytes. All three: 64 warps, 32 blocks, 65536 registers.
SHARED_PER_PROCESSOR = {80: 164 << 10, 90: 228 << 10, 100: 228 << 10}
SHARED_RESERVED = 1 << 10  # by the system, per block
MOST_WARPS, MOST_BLOCKS, REGISTERS = 64, 32, 65536


class Shape(NamedTuple):
    """tokens S = frames * locations, width d = heads * head_dim, elements of one latent clip."""

    frames: int
    locations: int
    heads: int
    head_dim: int
    latent: int

    @property
    def tokens(self) -> int:
        return self.frames * self.locations

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


SHAPES = {
    "wan-1.3b": Shape(21, 30 * 52, 12, 128, 16 * 21 * 60 * 104),  # 81 frames of 480 x 832
    "wan-14b": Shape(21, 45 * 80, 40, 128, 16 * 21 * 90 * 160),  # 81 frames of 720 x 1280
}


class Work(NamedTuple):
    """One call: the fewest bytes between memory and chip, and the floating-point operations of our kernels.

    The attention backward works out the logits and their gradient in both of its kernels: 7 products, where 5
    would do with sums in no fixed order. A product of bfloat16 with a float32 factor or s counts three times,
    as it is three bfloat16 products.
    """

    call: str
    bytes: float
    flops: float

    def seconds(self, device: Device) -> float:
        return max(self.bytes / device.bandwidth, self.flops / device.flops)

    def bound_by(self, device: Device) -> str:
        return "memory" if self.bytes / device.bandwidth >= self.flops / device.flops else "compute"


def work(shape: Shape, rank: int = 16) -> list[Work]:
    """Every op at `shape`, bfloat16, B = 1; LoRA of `rank` on half the heads, base GEMMs left out."""
    tokens, width = shape.tokens, shape.width
    row = tokens * width * BYTES  # one pass over an activation
    clip = shape.latent * BYTES
    half = row / 2  # the active heads' columns
    narrow = tokens * rank * FLOAT32  # x A^T of one projection
    product = 2.0 * tokens * width * rank  # all columns; the active ones are half of them
    spatial, temporal = tokens * shape.locations, tokens * shape.frames  # query-key pairs of one head
    sparse = (spatial + temporal) * shape.heads / 2 * shape.head_dim
    full = float(tokens) ** 2 * width
    lse = tokens * shape.heads * FLOAT32
    return [
        Work("gated_residual forward", 3 * row, 2.0 * tokens * width),
        Work("gated_residual backward", 3 * row, 3.0 * tokens * width),
        Work("gelu forward, 4 d columns", 8 * row, 48.0 * tokens * width),
        Work("gelu backward, 4 d columns", 12 * row, 80.0 * tokens * width),
        Work("modulated_norm forward", 2 * row, 8.0 * tokens * width),
        Work("modulated_norm backward (x)", 3 * row, 12.0 * tokens * width),
        Work("qk_norm_rope forward", 4 * row, 20.0 * tokens * width),
        Work("qk_norm_rope backward", 6 * row, 30.0 * tokens * width),
        Work("motion_loss forward", 2 * clip, 12.0 * shape.latent),
        Work("motion_loss backward", 3 * clip, 16.0 * shape.latent),
        Work(f"lora_qkv r={rank} forward update", row + 6 * half + 6 * narrow, (3 * 3 + 1.5) * product),
        # dS and dB each read the active columns of three gradients, dA reads x, dX is updated in place
        Work(f"lora_qkv r={rank} backward update", 6 * half + 3 * row + 12 * narrow, (9 + 9 + 3) * product),
        # of the active columns of the input, to all columns of the output
        Work(f"lora_linear r={rank} forward update", half + 2 * row + 2 * narrow, (1.5 + 1) * product),
        Work(f"lora_linear r={rank} backward update", 2 * row + 3 * half + 4 * narrow, (6 + 2) * product),
        Work("head_scores", 2 * row, 2 * full),
        Work("head_attention full, forward", 4 * row + lse, 4 * full),
        Work("head_attention full, backward", 8 * row + 2 * lse, 14 * full),
        Work("head_attention half spatial, half temporal, forward", 4 * row + lse, 4 * sparse),
        Work("head_attention half spatial, half temporal, backward", 8 * row + 2 * lse, 14 * sparse),
    ]


def occupancy(registers: int, shared: int, warps: int, architecture: int) -> float:
    """Share of a multiprocessor's 64 warps that can be resident, by registers, shared memory and blocks."""
    per_warp = -(-registers * 32 // 256) * 256  # registers are handed out 256 at a time
    by_registers = REGISTERS // per_warp // warps if registers else MOST_BLOCKS
    by_shared = SHARED_PER_PROCESSOR[architecture] // (shared + SHARED_RESERVED)
    return min(by_registers, by_shared, MOST_BLOCKS, MOST_WARPS // warps) * warps / MOST_WARPS


def roofline_table(model: str) -> str:
    shape = SHAPES[model]
    rows = [("call", "MB", "GFLOP", *(f"{d.name} us" for d in DEVICES), "bound by (H100)")]
    for item in work(shape):
        times = (f"{item.seconds(device) * 1e6:.0f}" for device in DEVICES)
        amount = (f"{item.bytes / 1e6:.1f}", f"{item.flops / 1e9:.1f}")
        rows.append((item.call, *amount, *times, item.bound_by(DEVICES[1])))
    title = (
        f"Roofline, predicted from published peaks: {model}, "
        f"S = {shape.tokens}, d = {shape.width}, bfloat16, one layer, B = 1"
    )
    return f"{title}\n{_table(rows)}"


def resource_table(model: str, architectures: Sequence[int]) -> str:
    """Compiles each kernel at `model`: a second or two per kernel and architecture."""
    from fym_kernels.triton import aot, aot_cases

    rows: list[tuple[str, ...]] = [
        ("op", "kernel", "arch", "registers", "shared B", "spill B", "warps", "occupancy", "check")
    ]
    for architecture in architectures:
        for variant in aot.variants(aot_cases.cases((model,)), architecture=architecture, all_configs=False):
            built = aot.build(variant)
            warps = variant.config.num_warps
            share = occupancy(built.registers, built.shared, warps, architecture)
            name = variant.kernel.strip("_").removesuffix("_kernel")
            check = "; ".join(aot.problems(built)) or "ok"
            numbers = (built.registers, built.shared, built.local, warps)
            place = (variant.op, name, f"sm_{architecture}")
            rows.append((*place, *map(str, numbers), f"{share:.0%}", check))
    return f"Resources, from binaries compiled ahead of time: {model}, bfloat16\n{_table(rows)}"


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fym_kernels.report", description=__doc__)
    parser.add_argument("--model", choices=sorted(SHAPES), action="append", help="default: all")
    parser.add_argument("--arch", type=int, choices=[d.architecture for d in DEVICES], action="append")
    parser.add_argument("--no-compile", action="store_true", help="only the roofline table")
    options = parser.parse_args(arguments)
    for model in options.model or sorted(SHAPES):
        print(roofline_table(model), end="\n\n", flush=True)
        if options.no_compile:
            continue
        missing = kernels.problem()
        if missing:
            print(f"No table of resources: {missing}", file=sys.stderr)
            continue
        architectures = options.arch or [d.architecture for d in DEVICES]
        print(resource_table(model, architectures), end="\n\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
