"""Triton kernels are found by op, with a clear word where triton is missing; the report is arithmetic."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fym_kernels.triton as kernels
from fym_kernels import report
from fym_kernels.triton import library


def test_the_package_imports_without_triton() -> None:
    """In a process where triton cannot be imported: the package imports, `load` says what is missing."""
    code = """
import sys
sys.modules["triton"] = None
import fym_kernels.triton as kernels
assert "not installed" in kernels.problem()
try:
    kernels.load("gated_residual")
except kernels.TritonMissingError as error:
    assert "gated_residual" in str(error) and "pip install triton" in str(error)
else:
    raise SystemExit("loaded without triton")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_op() -> None:
    with pytest.raises(KeyError, match="no Triton kernel for 'nothing'"):
        kernels.load("nothing")


def test_every_op_loads_with_its_launchers() -> None:
    pytest.importorskip("triton")
    for op in kernels.OPS:
        module = kernels.load(op)
        assert callable(module.forward)
        assert op == "head_scores" or callable(module.backward)


def test_schemas_are_those_of_the_native_ops() -> None:
    """The one source of the schemas is csrc/library.cpp; names of returns are documentation."""
    source = (Path(__file__).parents[2] / "csrc" / "library.cpp").read_text()
    strings = re.findall(r'library\.def\(((?:\s*"[^"]*")+)\s*\)', source)
    native = dict("".join(re.findall(r'"([^"]*)"', s)).partition("(")[::2] for s in strings)
    pytest.importorskip("triton")
    for name, schema in library.SCHEMAS.items():
        assert "(" + native[name] == schema, name
        op = getattr(getattr(torch.ops, library.NAMESPACE), name).default
        assert op._schema.name == f"{library.NAMESPACE}::{name}"


def test_roofline_of_a_memory_bound_call() -> None:
    """Wan 1.3B, 81 frames: q and k read and written once are 402 MB, 0.12 ms at 3.35 TB/s."""
    shape = report.SHAPES["wan-1.3b"]
    assert (shape.tokens, shape.width) == (32760, 1536)
    rope = next(item for item in report.work(shape) if item.call == "qk_norm_rope forward")
    assert rope.bytes == 8 * 32760 * 1536
    assert rope.seconds(report.DEVICES[1]) == pytest.approx(0.120e-3, rel=0.01)
    assert rope.bound_by(report.DEVICES[1]) == "memory"
    assert "predicted" in report.roofline_table("wan-1.3b")


def test_roofline_of_a_compute_bound_call() -> None:
    """Wan 14B, full attention: 4 S^2 d = 4 * 75600^2 * 5120 FLOP = 117 TFLOP, 0.118 s at 989 TFLOP/s."""
    full = next(w for w in report.work(report.SHAPES["wan-14b"]) if w.call == "head_attention full, forward")
    assert full.flops == 4 * 75600**2 * 5120
    assert full.seconds(report.DEVICES[1]) == pytest.approx(0.1184, rel=0.001)
    assert full.bound_by(report.DEVICES[1]) == "compute"


def test_every_op_is_in_the_roofline_and_the_low_rank_counts_add_up() -> None:
    work = {item.call: item for item in report.work(report.SHAPES["wan-1.3b"], rank=16)}
    assert {call.split()[0] for call in work} == set(kernels.OPS)
    tokens, width, rank, active = 32760, 1536, 16, 768

    def product(columns: int) -> int:
        return 2 * tokens * columns * rank

    # x A^T of three projections, with float32 factors; s B^T into the active columns, in bfloat16
    forward = 3 * 3 * product(width) + 3 * product(active)
    assert work["lora_qkv r=16 forward update"].flops == forward
    # dS and dB of three gradients' active columns, dA of x, dX
    backward = 3 * 3 * 2 * product(active) + 3 * 3 * product(width) + 3 * product(width)
    assert work["lora_qkv r=16 backward update"].flops == backward
    # to_out: the active half of the input is read, the whole output is read and written, s written and read
    moved = tokens * (2 * active + 2 * 2 * width + 2 * 4 * rank)
    assert work["lora_linear r=16 forward update"].bytes == moved
    assert work["lora_linear r=16 forward update"].flops == 3 * product(active) + product(width)
    grads = tokens * (2 * 2 * width + 2 * active + 2 * 2 * active + 4 * 4 * rank)
    assert work["lora_linear r=16 backward update"].bytes == grads


@pytest.mark.skipif(library.INTERPRETED, reason="compiling needs TRITON_INTERPRET unset")
def test_resources_come_from_the_binary(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from fym_kernels.triton import aot_cases

    gated = [case for case in aot_cases.cases(("wan-1.3b",)) if case.op == "gated_residual"]
    monkeypatch.setattr(aot_cases, "cases", lambda models: gated)
    _, _, *rows = report.resource_table("wan-1.3b", (90,)).splitlines()
    assert [row.split()[1] for row in rows] == ["forward", "backward", "sum_partials"]
    for row in rows:
        registers, _, spills = map(int, row.split()[3:6])
        assert 8 <= registers <= 255 and spills == 0 and row.endswith("ok")


def test_occupancy() -> None:
    assert report.occupancy(32, 0, 4, 80) == 1.0
    assert report.occupancy(255, 0, 8, 90) == 0.125  # one block of 8 warps
    assert report.occupancy(32, 100 << 10, 4, 80) == 4 / 64  # one block's shared memory
