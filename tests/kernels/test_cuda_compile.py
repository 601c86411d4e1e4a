"""nvcc compiles every CUDA kernel for the GPUs it is meant for, without spills and with wide loads.

No GPU and no CUDA build of torch is needed: nvcc, the stable headers of any torch, and cuobjdump.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from collections import Counter
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "csrc/cuda"
OPS = ("gated_residual", "modulated_norm", "qk_norm_rope", "motion_loss")
ARCHITECTURES = ("80", "90a", "100a")
NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
pytestmark = pytest.mark.skipif(NVCC is None, reason="no nvcc on the PATH or in /usr/local/cuda/bin")

SMALL = ("sum_parts_kernel", "motion_finish_kernel")  # a few KB: the width of their loads does not matter


def run(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@lru_cache
def compiled(op: str) -> tuple[Path, str]:
    """(object file, what the assembler reports), compiled once for each state of the sources."""
    flags = [
        "-std=c++17", "-O3", "-Xptxas", "-v", "-c", "-DUSE_CUDA", "-DTORCH_STABLE_ONLY",
        "-DTORCH_TARGET_VERSION=0x020a000000000000",
        *(f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES),
    ]  # fmt: skip
    files = sorted(path for path in SOURCES.iterdir() if path.stem == op or path.stem not in OPS)
    content = b"".join(path.read_bytes() for path in files)
    content += f"{flags} {torch.__version__} {run(NVCC, '--version')}".encode()
    made = ROOT / "build/nvcc" / f"{op}-{hashlib.sha256(content).hexdigest()[:16]}.o"
    report = made.with_suffix(".txt")
    if not report.exists():
        made.parent.mkdir(parents=True, exist_ok=True)
        folders = (f"-I{folder}" for folder in (SOURCES, *cpp_extension.include_paths()))
        report.write_text(run(NVCC, *flags, *folders, SOURCES / f"{op}.cu", "-o", made))
    return made, report.read_text()


def cuobjdump() -> str | None:
    """From the toolkit, else from the triton wheel."""
    found = shutil.which("cuobjdump") or shutil.which(Path(str(NVCC)).resolve().parent / "cuobjdump")
    try:
        import triton

        return found or shutil.which(Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump")
    except ImportError:
        return found


def kernels_of(report: str) -> list[tuple[str, str, int, int]]:
    """(mangled name, architecture, bytes of stack and spills, registers) of each kernel."""
    pattern = (
        r"Compiling entry function '(\w+)' for 'sm_(\w+)'.*?(\d+) bytes stack frame, "
        r"(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers"
    )
    found = re.findall(pattern, report, re.DOTALL)
    return [(name, arch, sum(map(int, local)), int(used)) for name, arch, *local, used in found]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("op", OPS)
def test_no_kernel_spills(op: str) -> None:
    _, report = compiled(op)
    kernels = kernels_of(report)
    names = {name for name, *_ in kernels}
    assert {(n, a) for n, a, *_ in kernels} == {(n, a) for n in names for a in ARCHITECTURES}
    assert len(names) >= 5
    spilling = [f"{name} sm_{arch}: {local} bytes" for name, arch, local, _ in kernels if local]
    assert not spilling, "\n".join(spilling)
    assert "warning" not in report, report


@pytest.mark.timeout(900)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("op", OPS)
def test_aligned_kernels_load_and_store_16_bytes(op: str, architecture: str) -> None:
    """Of a kernel's two variants the one for aligned rows has no 2-byte access to global memory."""
    tool = cuobjdump()
    if tool is None:
        pytest.skip("no cuobjdump in the toolkit, and no triton wheel, which has one")
    made, _ = compiled(op)
    listing = run(tool, "-sass", "-arch", f"sm_{architecture}", made)
    sections = re.split(r"Function : (\w+)", listing)[1:]
    checked = 0
    for name, body in zip(sections[::2], sections[1::2], strict=True):
        opcodes = Counter(re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)", body))
        if any(small in name for small in SMALL) or not wide(name):
            continue
        checked += 1
        for access in ("LDG",) if "motion_statistics" in name else ("LDG", "STG"):  # which writes a few sums
            widths = {code: n for code, n in opcodes.items() if code.startswith(f"{access}.E")}
            assert any(code.endswith(".128") or ".128." in code for code in widths), f"{name}: {widths}"
            assert not any(".U16" in code or ".S16" in code or code.endswith(".U8") for code in widths), (
                f"{name}: {widths}"
            )
    assert checked >= 6


def wide(mangled: str) -> bool:
    """The template argument Wide: the last one, but for the Sums of modulated_norm's backward pass."""
    flags = re.findall(r"Lb([01])E", mangled)
    return flags[-2 if "modulated_norm_backward" in mangled else -1] == "1"
