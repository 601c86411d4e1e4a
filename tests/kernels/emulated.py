"""The CUDA kernels and their bindings, as they are, on the CPU: compiled against tests/emulator.

They become ops of the namespace `fym_emulated` with the schemas of csrc/library.cpp, and get the fake kernels
and gradients every native backend gets. Inside `as_cuda(op)` they are what `backend="cuda"` runs.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import torch
from torch.utils import cpp_extension

from fym_kernels import backend as backends
from fym_kernels.ops import native

ROOT = Path(__file__).parents[2]
EMULATOR = ROOT / "tests/emulator"
CACHE = ROOT / "build/emulator"
OPS = ("gated_residual", "modulated_norm", "qk_norm_rope", "motion_loss")
NAMESPACE = "fym_emulated"
COMPILER = shutil.which(os.environ.get("CXX", "").split(" ")[0] or "g++")
FLAGS = (
    "-std=c++17", "-O1", "-g0", "-fPIC", "-shared", "-fvisibility=hidden",
    "-U_FORTIFY_SOURCE",  # whose longjmp refuses to change stacks
    "-fno-strict-aliasing",  # as nvcc
    "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-unused-parameter",
)  # fmt: skip


def compile_shared(source: Path, *, with_torch: bool = True) -> Path:
    """A shared library of `source` and the emulator, compiled once for each state of its files."""
    files = [*EMULATOR.rglob("*.*"), *(ROOT / "csrc/cuda").iterdir()]
    others = [file for file in files if file.suffix not in (".cu", ".cpp") and file.stem not in OPS]
    others.append(source.with_suffix(".cuh"))
    others = [file for file in others if file.is_file()]
    content = b"".join(file.read_bytes() for file in sorted(others))
    content += source.read_bytes() + (EMULATOR / "cuda_emulator.cpp").read_bytes()
    content += f"{FLAGS} {COMPILER} {torch.__version__}".encode()
    library = CACHE / f"{source.stem}-{hashlib.sha256(content).hexdigest()[:16]}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        unfinished = library.with_suffix(f".{os.getpid()}")
        include = [EMULATOR / "include", ROOT / "csrc/cuda"]
        system = cpp_extension.include_paths() if with_torch else []
        libraries = [f"-L{folder}" for folder in cpp_extension.library_paths()] if with_torch else []
        libraries += ["-ltorch", "-ltorch_cpu"] if with_torch else []
        command = [
            str(COMPILER), *FLAGS, "-DTORCH_TARGET_VERSION=0x020a000000000000", "-DTORCH_STABLE_ONLY",
            *(f"-I{folder}" for folder in include),
            *(part for folder in system for part in ("-isystem", folder)),
            "-x", "c++", str(source), str(EMULATOR / "cuda_emulator.cpp"), "-o", str(unfinished), *libraries,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "warning" not in done.stderr, done.stderr
        unfinished.rename(library)
    return library


@lru_cache
def schemas() -> dict[str, str]:
    """Every op's schema by name, from csrc/library.cpp."""
    text = (ROOT / "csrc/library.cpp").read_text()
    found = {}
    for definition in re.findall(r'library\.def\(\s*((?:"[^"]*"\s*)+)\)', text):
        schema = "".join(re.findall(r'"([^"]*)"', definition))
        found[schema.split("(")[0]] = schema
    return found


_library = torch.library.Library(NAMESPACE, "FRAGMENT")
native.NAMESPACES["emulated"] = NAMESPACE


@lru_cache
def load(op: str) -> tuple[ctypes.CDLL, backends.Kernel]:
    """The library with the emulated `op`, and the kernel as a backend has it."""
    for name in (op, f"{op}_backward"):
        _library.define(schemas()[name])
    path = compile_shared(ROOT / f"csrc/cuda/{op}.cu")
    torch.ops.load_library(str(path))
    native.attach(op, "emulated", devices=("cpu",))
    kernel = backends._kernels[op].pop("emulated")  # nobody else is to see it
    return ctypes.CDLL(str(path)), kernel._replace(limit=native._descriptions[op].limits.get("cuda"))


@contextmanager
def as_cuda(op: str) -> Iterator[None]:
    """Backend "cuda" of `op` is the emulator's; the order of threads and blocks follows torch's seed."""
    library, kernel = load(op)
    library.emulator_seed(ctypes.c_uint64(int(torch.randint(1 << 62, ()))))
    before = dict(backends._kernels[op])
    backends._kernels[op]["cuda"] = kernel
    try:
        yield
    finally:
        backends._kernels[op] = before
