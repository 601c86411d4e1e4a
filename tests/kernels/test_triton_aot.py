"""Every Triton kernel compiles for the GPUs it is meant for, without spills and with wide loads."""

from __future__ import annotations

import os
from collections.abc import Iterable

import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("compiling needs TRITON_INTERPRET unset", allow_module_level=True)

import torch

from fym_kernels.triton import OPS, aot, aot_cases
from fym_kernels.triton.aot_cases import MODELS


def check(variants: Iterable[aot.Variant]) -> None:
    wrong = []
    for variant in variants:
        built = aot.build(variant)
        wrong += [f"{built.name}: {problem}" for problem in aot.problems(built)]
    assert not wrong, "\n".join(wrong)


def test_every_op_has_cases() -> None:
    assert set(aot_cases.RUNNERS) == set(OPS)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("op", OPS)
def test_first_configuration_on_sm_90(op: str) -> None:
    """No spills, tensor cores where there are dots, 16-byte loads where memory is the bound."""
    cases = [case for case in aot_cases.cases(("wan-1.3b",)) if case.op == op]
    check(aot.variants(cases, all_configs=False))


def test_sizes_of_one_compile() -> None:
    """A size or stride of 1 becomes a constant of the kernel, which compiles along other paths."""
    smallest = aot_cases.Model(1, 16, (1, 1, 1), (4, 6, 6))
    for op, run in aot_cases.RUNNERS.items():
        case = aot_cases.Case(op, "smallest", torch.bfloat16, lambda run=run: run(smallest, torch.bfloat16))
        for variant in aot.variants([case], all_configs=False):
            assert aot.build(variant).registers > 0, variant.label


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("model", MODELS)
def test_every_configuration_on_every_architecture(op: str, model: str) -> None:
    dtypes = (torch.bfloat16, torch.float16, torch.float32)
    cases = [case for case in aot_cases.cases((model,), dtypes) if case.op == op]
    for architecture in aot.ARCHITECTURES:
        check(aot.variants(cases, architecture=architecture))
