"""Every Triton kernel compiles for the GPUs it is meant for, without spills and with wide loads."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace

import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("compiling needs TRITON_INTERPRET unset", allow_module_level=True)

import torch
import triton

from fym_kernels.triton import OPS, aot, aot_cases
from fym_kernels.triton.aot_cases import MODELS

OWN_FLOAT32 = ("head_attention", "head_scores")


def check(variants: Iterable[aot.Variant]) -> None:
    wrong = []
    for variant in variants:
        built = aot.build(variant)
        wrong += [f"{built.name}: {problem}" for problem in aot.problems(built)]
    assert not wrong, "\n".join(wrong)


def test_every_op_has_cases() -> None:
    assert set(aot_cases.RUNNERS) == set(OPS)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("architecture", aot.ARCHITECTURES)
def test_every_configuration_at_its_hardest(architecture: int) -> None:
    """Every kernel of every op in every configuration it may run in, at its largest tiles and most heads.

    No spills, shared memory within the limit, tensor cores where there are dots, 16-byte loads where memory
    is the bound. bfloat16; on sm_80, whose registers are the scarcest, also float32 where that has
    configurations of its own.
    """
    own = [case for case in aot_cases.cases(("wan-14b",), (torch.float32,)) if case.op in OWN_FLOAT32]
    chosen = [*aot_cases.cases(), *(own if architecture == 80 else ())]
    check(aot.hardest(aot.variants(chosen, architecture=architecture)))


def test_the_hardest_leave_no_configuration_out() -> None:
    everything = list(aot.variants(architecture=90))
    hardest = aot.hardest(everything)
    assert len(hardest) < len(everything)
    for of in (lambda v: v.call.kernel, lambda v: str(v.config)):
        assert {of(v) for v in hardest} == {of(v) for v in everything}


@pytest.mark.parametrize("architecture", aot.ARCHITECTURES)
def test_head_attention_has_every_configuration_with_and_without_the_first_frame_sink(architecture) -> None:
    """The sink is an argument of 0 or 1, and with 1 other code: the sweep must see both."""
    seen: dict[bool, set[tuple[str, str]]] = {False: set(), True: set()}
    cases = [case for case in aot_cases.cases() if case.op == "head_attention"]
    for variant in aot.variants(cases, architecture=architecture):
        names = variant.call.kernel.arg_names
        if "sink" in names:
            with_sink = bool(variant.call.args[names.index("sink")])
            seen[with_sink].add((variant.kernel, str(variant.config)))
    assert seen[True] == seen[False]
    assert {kernel for kernel, _ in seen[True]} == {"_forward_kernel", "_query_kernel", "_key_kernel"}


def test_a_spill_and_a_narrow_load_would_be_found() -> None:
    """The checks can fail: on a kernel squeezed into 16 registers, and on float32 tiles of odd stride."""
    variant = next(v for v in aot.variants(aot_cases.cases(("wan-14b",))) if v.op == "qk_norm_rope")
    squeezed = triton.Config({}, num_warps=1, maxnreg=24)
    found = " ".join(aot.problems(aot.build(replace(variant, config=squeezed))))
    assert "spills" in found
    odd = aot_cases.MODELS["wan-1.3b"]._replace(heads=3, head_dim=7)
    case = aot_cases.Case(
        "gated_residual",
        "odd",
        torch.bfloat16,
        lambda: aot_cases.RUNNERS["gated_residual"](odd, torch.bfloat16),
    )
    found = " ".join(aot.problems(aot.build(next(iter(aot.variants([case]))))))
    assert "no 16-byte global load" in found


def test_sizes_of_one_compile() -> None:
    """A size or stride of 1 becomes a constant of the kernel, which compiles along other paths."""
    smallest = aot_cases.Model(1, 16, (1, 1, 1), (4, 6, 6))
    seen = set()
    for op, run in aot_cases.RUNNERS.items():
        case = aot_cases.Case(op, "smallest", torch.bfloat16, lambda run=run: run(smallest, torch.bfloat16))
        for variant in aot.variants([case], all_configs=False):
            if variant.call.kernel not in seen:  # ops share some
                seen.add(variant.call.kernel)
                assert aot.build(variant).registers > 0, variant.label


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("model", MODELS)
def test_every_variant_on_every_architecture(op: str, model: str) -> None:
    cases = [case for case in aot_cases.cases((model,), aot_cases.DTYPES) if case.op == op]
    for architecture in aot.ARCHITECTURES:
        check(aot.variants(cases, architecture=architecture))
