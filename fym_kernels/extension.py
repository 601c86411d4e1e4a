"""Loads the compiled extensions this install has. It never raises: without them the references run."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch

from fym_kernels import backend

CPU_ISAS = ("plain C++", "AVX2", "AVX-512", "AVX-512 with bf16")


def _load(stem: str, what: str, needs: str) -> str:
    """Load `stem`*.so from this folder; empty on success, else why not."""
    folder = Path(__file__).parent
    found = sorted(itertools.chain(folder.glob(f"{stem}.*so"), folder.glob(f"{stem}.*pyd")))
    if not found:
        return f"{what} is not in this install (pip install . with {needs} builds it)"
    try:
        torch.ops.load_library(str(found[0]))
    except OSError as error:
        reason = str(error).splitlines()[0].replace(str(folder), folder.name)
        return f"{what} does not load into torch {torch.__version__}: {reason}"
    return ""


_problem = _load("_C", "the C++ extension", "a C++ compiler")
CPU_LOADED = not _problem
if _problem:
    backend.mark_absent("cpu", _problem)
elif torch.version.cuda is None:
    _problem = (
        f"torch {torch.__version__} is built without CUDA (install a CUDA build, then this package again)"
    )
else:
    _problem = _load("_C_cuda", "the CUDA extension", "nvcc and a CUDA build of torch")
CUDA_LOADED = not _problem  # never without _C, which has the schemas
if _problem:
    backend.mark_absent("cuda", _problem)


def cpu_isa() -> str:
    """The instruction set the C++ kernels use on this processor; empty without the extension."""
    return CPU_ISAS[torch.ops.fym_kernels.cpu_isa()] if CPU_LOADED else ""
