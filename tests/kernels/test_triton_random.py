"""Every op on Triton at random small shapes: odd, empty, one frame, one head, forty heads, far positions."""

from __future__ import annotations

from typing import Any

import cases
import parity
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from interpreter import FACTORS, interpreted, poisoned_memory  # noqa: F401

pytestmark = interpreted()

SIZE = st.integers(1, 3)
GRID = st.tuples(SIZE, SIZE, SIZE)
BATCH = st.integers(1, 3)
SEED = st.integers(0, 1 << 30)


@st.composite
def active_heads(draw: st.DrawFn) -> dict[str, Any]:
    """heads and which are active: none, some or all."""
    heads = draw(st.integers(1, 5))
    active = draw(st.sets(st.integers(0, heads - 1)))
    return {"heads": heads, "active": tuple(sorted(active)), "head_dim": draw(st.sampled_from((4, 6, 16)))}


@st.composite
def rope(draw: st.DrawFn) -> dict[str, Any]:
    values = {
        "grid": draw(GRID),
        "axes_dim": draw(st.sampled_from(((4, 2, 2), (2, 0, 4), (4, 4, 4)))),
        "norm": draw(st.sampled_from(("across_heads", "per_head", None))),
        "text": (draw(st.integers(0, 1)), draw(st.integers(0, 2))),
        "farthest": draw(st.sampled_from((1.0, 30.0, 1e5))),
        **{name: draw(st.booleans()) for name in ("weighted", "interleaved", "time_per_sample")},
        "batch": draw(BATCH),
        "seed": draw(SEED),
    }
    few = values["grid"][0] * values["grid"][1] * values["grid"][2] * values["batch"] <= 6
    return {**values, "heads": draw(st.integers(1, 40 if few else 3))}


@st.composite
def lora(draw: st.DrawFn, **more: Any) -> dict[str, Any]:
    values = {name: draw(strategy) for name, strategy in more.items()}
    shape = {"rank": draw(st.integers(1, 18)), "tokens": draw(st.integers(0, 9)), "batch": draw(BATCH)}
    return {**draw(active_heads()), **shape, **values, "bias": draw(st.booleans()), "seed": draw(SEED)}


STRATEGIES: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "qk_norm_rope": rope(),
    "modulated_norm": st.fixed_dictionaries(
        {
            # of a few channels the gradient is all cancellation
            "shape": st.tuples(st.integers(0, 3), st.integers(0, 7), st.integers(8, 70)),
            "scale_per_token": st.booleans(),
            "shift_per_token": st.booleans(),
            "seed": SEED,
        }
    ),
    "gated_residual": st.fixed_dictionaries(
        {
            "shape": st.tuples(st.integers(0, 3), st.integers(0, 40), st.integers(0, 70)),
            "per_token": st.booleans(),
            "seed": SEED,
        }
    ),
    "gelu": st.fixed_dictionaries(
        {
            "shape": st.lists(st.integers(0, 20), max_size=3).map(tuple),
            "size": st.sampled_from((0.1, 3.0, 30.0)),
            "seed": SEED,
        }
    ),
    "motion_loss": st.fixed_dictionaries(
        {
            "shape": st.tuples(BATCH, SIZE, st.integers(1, 18), SIZE, st.integers(1, 9)),
            "weighted": st.booleans(),
            "motion_weight": st.sampled_from((0.0, 0.5, 3.0)),
            "seed": SEED,
        }
    ),
    "lora_qkv": lora(d_in=st.integers(1, 70)),
    "lora_linear": lora(other=st.integers(1, 70), side=st.sampled_from(("in", "out"))),
    "head_attention": st.fixed_dictionaries(
        {
            "kinds": st.lists(st.integers(0, 2), min_size=1, max_size=3).map(tuple),
            "grid": st.tuples(st.integers(1, 5), SIZE, SIZE),
            "dim": st.sampled_from((4, 12, 20)),
            "batch": st.integers(1, 2),
            "frame_window": st.integers(0, 2),
            "location_window": st.integers(0, 2),
            "first_frame_sink": st.booleans(),
            "seed": SEED,
        }
    ),
    "head_scores": st.fixed_dictionaries(
        {
            "grid": st.tuples(st.integers(1, 5), SIZE, SIZE),
            "heads": SIZE,
            "dim": st.sampled_from((4, 12, 20)),
            "band": st.sampled_from((0.3, 1.0, 1.7)),
            "batch": st.integers(1, 2),
            "seed": SEED,
        }
    ),
}


@pytest.mark.parametrize("op", STRATEGIES)
@settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
@given(data=st.data())
def test_random_shapes(op: str, data: st.DataObject) -> None:
    values = data.draw(STRATEGIES[op])
    parity.assert_parity(
        cases.Case(op, str(values), values), torch.float64, "triton", factor=FACTORS.get(op, 1.5)
    )


def test_what_cancels_to_nothing() -> None:
    """Attention to a single key: the gradients of query and key are roundings and no more."""
    values = {"kinds": (0,), "grid": (1, 1, 1), "dim": 4, "batch": 1, "frame_window": 0, "location_window": 0}
    values |= {"first_frame_sink": False, "seed": 0}
    parity.assert_parity(cases.Case("head_attention", "one key", values), torch.float64, "triton")
