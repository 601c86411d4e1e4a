"""Every op alone: forward, backward and both, ours against naive, compiled and the floor."""

import pytest

from fym.bench import cases, shapes
from fym.bench.cases import MODES

SIDES = ("ours", "naive", "compile", "floor")
ALL = {
    "qk_norm_rope": lambda o: cases.qk_norm_rope(
        o.width, o.grid(shapes.OPS), o.dtype, with_compile=o.with_compile
    ),
    "modulated_norm": lambda o: cases.modulated_norm(
        o.width, o.grid(shapes.OPS), o.dtype, with_compile=o.with_compile
    ),
    "gated_residual": lambda o: cases.gated_residual(
        o.width, o.grid(shapes.OPS), o.dtype, with_compile=o.with_compile
    ),
    "gelu": lambda o: cases.gelu(o.width, o.grid(shapes.OPS), o.dtype, with_compile=o.with_compile),
    "motion_loss": lambda o: cases.motion_loss(o.grid(shapes.CLIP_480), 4, with_compile=o.with_compile),
    "lora_qkv_r16": lambda o: cases.lora_qkv(
        o.width, o.grid(shapes.OPS), o.dtype, 16, with_compile=o.with_compile
    ),
    "lora_qkv_r128": lambda o: cases.lora_qkv(
        o.width, o.grid(shapes.OPS), o.dtype, 128, with_compile=o.with_compile
    ),
    "lora_linear_out": lambda o: cases.lora_linear(
        o.width, o.grid(shapes.OPS), o.dtype, 16, "out", with_compile=o.with_compile
    ),
    "lora_linear_in": lambda o: cases.lora_linear(
        o.width, o.grid(shapes.OPS), o.dtype, 16, "in", with_compile=o.with_compile
    ),
}


@pytest.fixture(scope="module", params=ALL)
def case(request, options):
    return ALL[request.param](options)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("mode", MODES)
def test_op(case, mode, side, run):
    run(case, side, mode)


@pytest.mark.parametrize("side", ["ours", "floor"])
def test_head_scores(options, side, run):
    run(cases.head_scores(options.width, options.grid(shapes.OPS), options.dtype), side, "forward")


@pytest.mark.parametrize("side", ["ours", "floor"])
def test_head_attention(options, side, run):
    run(cases.head_attention(options.width, options.grid(shapes.SPARSE_FULL), options.dtype), side, "step")
