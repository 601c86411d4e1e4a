"""Which backend runs, how to ask for another one, and that importing never fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fym_kernels
from fym_kernels import BackendError, extension, gated_residual, motion_loss, use_backend

X = torch.ones(1, 2, 3)
GATE = torch.ones(1, 3)
needs_extension = pytest.mark.skipif(not extension.CPU_LOADED, reason="the C++ extension is not built")


def python(code: str, **environment: str) -> str:
    """stdout of `code` in a new interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_op_has_a_public_function_and_a_reference_with_the_same_arguments() -> None:
    import inspect

    for op in fym_kernels.backend.OPS:
        public = inspect.signature(getattr(fym_kernels, op)).parameters
        oracle = inspect.signature(getattr(fym_kernels.reference, op)).parameters
        assert [p for p in public if p != "backend"] == list(oracle)
        assert public["backend"].default is None


def test_asking_for_what_is_not_there_raises_one_sentence_that_says_what_to_do() -> None:
    said = r"motion_loss cannot run on backend 'cuda' .*: .+; backend 'auto' takes the fastest one that can"
    with pytest.raises(BackendError, match=said) as e:
        motion_loss(torch.ones(1, 1, 2, 1, 1), torch.ones(1, 1, 2, 1, 1), backend="cuda")
    assert "\n" not in str(e.value)
    with pytest.raises(ValueError, match="backend must be auto, reference, cpu, triton, cuda, got 'gpu'"):
        gated_residual(X, X, GATE, backend="gpu")
    with pytest.raises(BackendError, match="got 'fast'"), use_backend("fast"):
        pass


@needs_extension
def test_a_kernel_is_not_taken_for_a_dtype_it_does_not_know() -> None:
    x, gate = X.double(), GATE.double()
    assert gated_residual(x, x, gate).dtype == torch.float64
    with pytest.raises(BackendError, match="the cpu kernel takes float32, bfloat16, float16, got float64"):
        gated_residual(x, x, gate, backend="cpu")


def test_use_backend_holds_inside_the_block_only_and_an_argument_beats_it() -> None:
    def chosen() -> str:
        return next(row.backend for row in fym_kernels.explain("cpu") if row.op == "gated_residual")

    before = chosen()
    with use_backend("reference"):
        assert chosen() == "reference"
        with pytest.raises(BackendError, match="asked for by backend"):
            gated_residual(X, X, GATE, backend="cuda")
        with use_backend("auto"):
            assert chosen() == before
    assert chosen() == before
    with pytest.raises(RuntimeError, match="inside"), use_backend("reference"):
        raise RuntimeError("inside")
    assert chosen() == before


def test_explain_has_a_reason_for_every_op_and_prints_as_a_table() -> None:
    rows = fym_kernels.explain("cpu", (torch.float32, torch.float64))
    assert {row.op for row in rows} == set(fym_kernels.backend.OPS)
    assert all(row.reason for row in rows)
    assert len(str(rows).splitlines()) == 1 + len(rows)
    assert all(row.backend == "reference" for row in rows if row.dtype == "float64")


def test_the_environment_variable_decides_and_a_wrong_one_is_told_at_first_use() -> None:
    code = "import fym_kernels as f; print({r.backend for r in f.explain('cpu')}, f.explain('cpu')[0].reason)"
    told = python(code, FYM_KERNELS_BACKEND="reference")
    assert told.startswith("{'reference'} asked for by FYM_KERNELS_BACKEND")
    told = python(code, FYM_KERNELS_BACKEND="nonsense")
    assert told.startswith("{'none'} FYM_KERNELS_BACKEND must be auto, reference")


@pytest.mark.parametrize("library", [None, b"not a library"], ids=["not built", "broken"])
def test_without_a_working_extension_import_works_and_explain_says_why(tmp_path: Path, library) -> None:
    source = Path(fym_kernels.__file__).parent
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(source, tmp_path / "fym_kernels", ignore=ignore)
    if library:
        (tmp_path / "fym_kernels/_C.abi3.so").write_bytes(library)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import torch, fym_kernels as f; x = torch.ones(1, 2, 3)\n"
        "assert f.gated_residual(x, x, torch.ones(1, 3)).sum() == 12\n"
        "try: f.gated_residual(x, x, torch.ones(1, 3), backend='cpu'); raise SystemExit('it ran')\n"
        "except f.BackendError as e: assert 'C++ extension' in str(e) and 'auto' in str(e), e\n"
        "print([r.reason for r in f.explain('cpu') if r.op == 'gated_residual'][0])"
    )
    told = python(code).strip()
    assert told.startswith(
        "the C++ extension does not load into torch" if library else "the C++ extension is not"
    )
    assert str(tmp_path) not in told


@needs_extension
def test_ops_trace_without_a_graph_break() -> None:
    """torch.compile goes through the choice of backend, the checks and the C++ op in one graph."""

    def step(x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        return gated_residual(x, 2 * x, gate).sum()

    x, gate = torch.randn(2, 5, 7, requires_grad=True), torch.randn(2, 7, requires_grad=True)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, gate), step(x, gate))
    got = torch.autograd.grad(compiled(x, gate), (x, gate))
    torch.testing.assert_close(got, torch.autograd.grad(step(x, gate), (x, gate)))
