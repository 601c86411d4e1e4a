"""Runs the parity tests of the Triton kernels, on the CPU, in a process where triton interprets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this process interprets already")
@pytest.mark.timeout(1800)
def test_every_kernel_under_the_interpreter() -> None:
    """Forward values and every gradient of every op agree with the float64 reference."""
    here = Path(__file__).parent
    tests = set(here.glob("test_triton_*.py")) - {Path(__file__)}
    files = sorted(path for path in tests if "= interpreted()" in path.read_text())
    assert len(files) == 5
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, files)],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=here.parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
