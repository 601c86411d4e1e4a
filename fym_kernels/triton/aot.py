"""Compile every kernel ahead of time, for GPUs that are not there, and look at what came out.

`variants` records the launches of aot_cases (no GPU, no data) and lists each distinct kernel, argument types
and configuration; `build` compiles one for sm_80, sm_90 or sm_100 and reads registers, shared memory and
instructions from the binary; `problems` says what is wrong. `python -m fym_kernels.triton.aot` does it all.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from fym_kernels.triton.aot_cases import DTYPES, Case, cases
from fym_kernels.triton.common import INTERPRETED, Call, recording

ARCHITECTURES = (80, 90, 100)
# bytes of shared memory one block may ask for: 163 KiB, then 227 KiB
SHARED_LIMIT = {80: 166912, 90: 232448, 100: 232448}
MEMORY_BOUND = ("gated_residual", "gelu", "modulated_norm", "qk_norm_rope", "motion_loss")
# kernels over a few KB, or one number a row: the width of their loads does not matter
SMALL = ("_finish_kernel", "_sum_partials_kernel")


@dataclass(frozen=True)
class Variant:
    """One kernel with its argument types and constants, in one configuration."""

    op: str
    label: str
    architecture: int
    call: Call
    config: triton.Config

    @property
    def kernel(self) -> str:
        return str(self.call.kernel.__name__)


@dataclass(frozen=True)
class Built:
    """A compiled variant. shared, local: bytes; opcodes: instruction counts."""

    variant: Variant
    registers: int
    shared: int
    local: int
    opcodes: Counter[str]
    has_dot: bool
    tensor_memory: bool

    @property
    def name(self) -> str:
        variant = self.variant
        return f"{variant.label} {variant.kernel} [{variant.config}] sm_{variant.architecture}"


def variants(
    of: Iterable[Case] | None = None, *, architecture: int = 90, all_configs: bool = True
) -> Iterator[Variant]:
    """Each distinct compilation the cases lead to on sm_<architecture>."""
    seen = set()
    for case in cases() if of is None else of:
        with recording(architecture) as calls:
            case.run()
        for call in calls:
            for config in call.configs if all_configs else call.configs[:1]:
                variant = Variant(case.op, case.label, architecture, call, config)
                _, signature, constants, attributes = _specialize(variant)
                key = (call.kernel, str(signature), str(constants), str(attributes), str(config))
                if key not in seen:
                    seen.add(key)
                    yield variant


def hardest(of: Iterable[Variant]) -> list[Variant]:
    """One variant of each kernel, configuration and head dim: that with the largest constants.

    Constants are tiles, ranks, heads and channels: what registers and shared memory grow with.
    """
    chosen: dict[Any, tuple[int, Variant]] = {}
    for variant in of:
        constants = variant.call.constants
        key = (variant.call.kernel, str(variant.config), variant.architecture, constants.get("BLOCK_D"))
        size = sum(value for value in constants.values() if isinstance(value, int))
        if key not in chosen or size > chosen[key][0]:
            chosen[key] = size, variant
    return [variant for _, variant in chosen.values()]


def _specialize(variant: Variant) -> tuple[Any, Any, Any, Any]:
    """(options, signature, constants, attributes), exactly as the first launch with these arguments would."""
    kernel, call = variant.call.kernel, variant.call
    backend = make_backend(GPUTarget("cuda", variant.architecture, 32))
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    keywords = {**call.constants, **variant.config.all_kwargs()}
    bound, specialization, options = bind(*call.args, **keywords)
    packed = kernel._pack_args(backend, keywords, bound, specialization, options)
    return packed[0], packed[1], packed[2], packed[3]


def build(variant: Variant) -> Built:
    """Compile for the variant's architecture and read the binary with the tools in the triton wheel."""
    if INTERPRETED:
        raise RuntimeError("ahead-of-time compilation needs TRITON_INTERPRET unset")
    options, signature, constants, attributes = _specialize(variant)
    compiled = triton.compile(
        ASTSource(variant.call.kernel, signature, constants, attributes),
        target=GPUTarget("cuda", variant.architecture, 32),
        options=options.__dict__,
    )
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as binary:
        binary.write(compiled.asm["cubin"])
        binary.flush()
        usage = _run(tools / "cuobjdump", "--dump-resource-usage", binary.name)
        listing = _run(tools / "nvdisasm", "-ndf", "-c", binary.name)  # no data flow: faster
    numbers = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    # an instruction line: /*0130*/  @P0 LDG.E.128 R16, ...
    opcodes = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)", listing)
    return Built(
        variant=variant,
        registers=numbers["REG"],
        shared=compiled.metadata.shared,
        local=max(numbers["LOCAL"], numbers["STACK"]),
        opcodes=Counter(opcodes),
        has_dot="tt.dot" in compiled.asm["ttir"],
        tensor_memory="tcgen05.mma" in compiled.asm["ptx"],
    )


def _run(*command: Any) -> str:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout


def count(built: Built, pattern: str) -> int:
    """Instructions whose opcode matches `pattern` from its start."""
    return sum(n for opcode, n in built.opcodes.items() if re.match(pattern, opcode))


def problems(built: Built) -> list[str]:
    """What is wrong: spills, too much shared memory, idle tensor cores, narrow loads."""
    found = []
    architecture = built.variant.architecture
    if built.local or count(built, r"LDL|STL"):
        found.append(f"spills: {built.local} bytes of local memory")
    if built.shared > SHARED_LIMIT[architecture]:
        found.append(f"{built.shared} bytes of shared memory, the limit is {SHARED_LIMIT[architecture]}")
    if built.has_dot:
        half_precision = "bfloat16" in built.variant.label or "float16" in built.variant.label
        if architecture == 90 and half_precision:
            fast = count(built, "HGMMA") > 0
        elif architecture == 100 and half_precision:
            fast = built.tensor_memory
        else:
            fast = built.tensor_memory or count(built, "HMMA|HGMMA") > 0
        if not fast:
            found.append("no tensor-core instruction")
    if built.variant.op in MEMORY_BOUND and built.variant.kernel not in SMALL:
        if not count(built, r"LDG\.E.*\.128"):
            found.append("no 16-byte global load")
        narrow = count(built, r"LDG\.E.*\.U16")
        if narrow:
            found.append(f"{narrow} global loads of 2 bytes")
    return found


def main(arguments: list[str]) -> int:
    """Compile everything (or the ops named) in every dtype for every architecture; 1 if anything is wrong."""
    wanted = set(arguments)
    failed = 0
    chosen = [case for case in cases(dtypes=DTYPES) if not wanted or case.op in wanted]
    for architecture in ARCHITECTURES:
        for variant in variants(chosen, architecture=architecture):
            built = build(variant)
            wrong = problems(built)
            failed += bool(wrong)
            print(
                f"{'FAIL' if wrong else 'ok':4} {built.name}: {built.registers} registers, "
                f"{built.shared} B shared{'; ' if wrong else ''}{'; '.join(wrong)}",
                flush=True,
            )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
