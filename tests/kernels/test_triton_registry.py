"""Triton kernels are found by op, with a clear word where triton is missing; the report is arithmetic."""

from __future__ import annotations

import subprocess
import sys

import pytest

import fym_kernels.triton as kernels
from fym_kernels import report


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


def test_roofline_of_a_memory_bound_call() -> None:
    """Wan 1.3B, 81 frames: q and k read and written once are 402 MB, 0.12 ms at 3.35 TB/s."""
    shape = report.SHAPES["wan-1.3b"]
    assert (shape.tokens, shape.width) == (32760, 1536)
    rope = next(item for item in report.work(shape) if item.call == "qk_norm_rope forward")
    assert rope.bytes == 8 * 32760 * 1536
    assert rope.seconds(report.DEVICES[1]) == pytest.approx(0.120e-3, rel=0.01)
    assert rope.bound_by(report.DEVICES[1]) == "memory"
    assert "predicted" in report.roofline_table("wan-1.3b")


def test_occupancy() -> None:
    assert report.occupancy(32, 0, 4, 80) == 1.0
    assert report.occupancy(255, 0, 8, 90) == 0.125  # one block of 8 warps
    assert report.occupancy(32, 100 << 10, 4, 80) == 4 / 64  # one block's shared memory
