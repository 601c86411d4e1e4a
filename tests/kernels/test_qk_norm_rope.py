"""qk_norm_rope: equal to its definition, and to torch and diffusers bit for bit."""

from __future__ import annotations

import pytest
import torch
import truth

from fym_kernels import qk_norm_rope

GRID = (3, 2, 4)
CASES = {  # axes_dim, norm, rotate_from, text tokens at the end, interleaved
    "wan": ((4, 4, 4), "across_heads", 0, 0, True),
    "uneven axes": ((8, 4, 2), "across_heads", 0, 0, True),
    "no time axis": ((0, 6, 6), "across_heads", 0, 0, True),
    "hunyuan: latent then text": ((4, 4, 4), "per_head", 0, 5, True),
    "cogvideox: text then latent": ((4, 4, 4), "per_head", 5, 0, True),
    "half split": ((4, 4, 6), "across_heads", 2, 3, False),
    "rotation only": ((4, 4, 4), None, 0, 0, True),
}


def make(axes_dim, norm, before, after, *, batch=2, heads=3, dtype=torch.float64, per_sample=False):
    dim = sum(axes_dim)
    tokens = before + GRID[0] * GRID[1] * GRID[2] + after
    query, key = (torch.randn(batch, tokens, heads, dim).to(dtype) for _ in range(2))
    width = {"across_heads": heads * dim, "per_head": dim, None: 0}[norm]
    weights = [torch.rand(width, dtype=torch.float64).to(dtype) + 0.5 if norm else None for _ in range(2)]
    time = torch.rand(*((batch,) if per_sample else ()), GRID[0], dtype=torch.float64) * 30
    positions = (time, torch.arange(GRID[1]), torch.linspace(-1, 5, GRID[2], dtype=torch.float64))
    return query, key, weights, positions


def naive(query, key, weights, positions, axes_dim, norm, before, interleaved):
    return tuple(
        truth.rotated(x, w, positions, axes_dim, 100.0, 1e-6, norm, before, interleaved)
        for x, w in zip((query, key), weights, strict=True)
    )


@pytest.mark.parametrize("per_sample", [False, True], ids=["shared time", "time per sample"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_equals_the_definition(case, per_sample: bool) -> None:
    axes_dim, norm, before, after, interleaved = case
    query, key, weights, positions = make(axes_dim, norm, before, after, per_sample=per_sample)
    options = {"axes_dim": axes_dim, "theta": 100.0, "norm": norm, "rotate_from": before}
    got = qk_norm_rope(query, key, *weights, positions, interleaved=interleaved, **options)
    wanted = naive(query, key, weights, positions, axes_dim, norm, before, interleaved)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", truth.LOW_DTYPES, ids=str)
def test_low_precision_is_no_worse_than_naive(dtype: torch.dtype) -> None:
    query, key, weights, positions = make((4, 4, 4), "across_heads", 0, 0, dtype=dtype, heads=40)
    got = qk_norm_rope(query, key, *weights, positions, axes_dim=(4, 4, 4), theta=100.0)

    def definition(query, key, weights):
        return naive(query, key, weights, positions, (4, 4, 4), "across_heads", 0, True)

    truth.assert_as_good_as_naive(got, definition, (query, key, tuple(weights)), dtype)


@pytest.mark.parametrize("head_dim", [12, 32, 64, 128])
def test_whole_positions_equal_torch_and_diffusers_bit_for_bit(head_dim: int) -> None:
    """Against diffusers' rotary module, torch's RMSNorm and the arithmetic of Wan's processor, in float32."""
    transformer_wan = pytest.importorskip("diffusers.models.transformers.transformer_wan")
    heads, (frames, height, width) = 3, (7, 5, 3)
    side = 2 * (head_dim // 6)
    rope = transformer_wan.WanRotaryPosEmbed(head_dim, (1, 1, 1), 32)
    cos, sin = rope(torch.zeros(1, 1, frames, height, width))
    norm = torch.nn.RMSNorm(heads * head_dim, eps=1e-6)
    norm.weight.data.uniform_(0.5, 1.5)

    hidden = torch.randn(2, frames * height * width, heads * head_dim)
    one, two = norm(hidden).unflatten(2, (heads, -1)).unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    wanted = torch.stack((one * cos - two * sin, one * sin + two * cos), dim=-1).flatten(-2)

    split = hidden.unflatten(2, (heads, -1))
    positions = (torch.arange(frames), torch.arange(height), torch.arange(width))
    axes_dim = (head_dim - 2 * side, side, side)
    query, key = qk_norm_rope(
        split, split, norm.weight, norm.weight, positions, axes_dim=axes_dim, backend="reference"
    )
    assert torch.equal(query, wanted)
    assert torch.equal(key, wanted)


def test_only_differences_of_time_positions_matter() -> None:
    """Attention logits stay when every time position moves by the same amount, whole or not."""
    query, key, weights, (time, row, column) = make((4, 4, 4), "across_heads", 0, 0)

    def logits(shift: float) -> torch.Tensor:
        q, k = qk_norm_rope(query, key, *weights, (time + shift, row, column), axes_dim=(4, 4, 4))
        return torch.einsum("bihd,bjhd->bhij", q, k)

    torch.testing.assert_close(logits(3.25), logits(0), rtol=0, atol=1e-12)


def test_strided_views_need_no_copy_first() -> None:
    """Slices of one fused QKV buffer, and heads that come transposed."""
    fused = torch.randn(2, 24, 3, 3, 12, dtype=torch.float64)
    views = fused[:, :, 0], fused[:, :, 1]
    positions = tuple(torch.arange(n) for n in GRID)
    weights = torch.rand(36, dtype=torch.float64), torch.rand(36, dtype=torch.float64)
    wanted = qk_norm_rope(*(v.contiguous() for v in views), *weights, positions, axes_dim=(4, 4, 4))
    for version in (views, tuple(v.transpose(1, 2).contiguous().transpose(1, 2) for v in views)):
        got = qk_norm_rope(*version, *weights, positions, axes_dim=(4, 4, 4))
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)
    got = qk_norm_rope(*views, None, None, positions, axes_dim=(4, 4, 4), norm=None)
    wanted = qk_norm_rope(
        *(v.contiguous() for v in views), None, None, positions, axes_dim=(4, 4, 4), norm=None
    )
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("norm", ["across_heads", "per_head", None])
def test_gradients(norm: str | None) -> None:
    """Of query, key, both weights and the time positions."""
    axes_dim = (2, 2, 2)
    query, key, weights, positions = make(axes_dim, norm, 1, 1, batch=1, heads=2)
    time, row, column = positions
    tensors = [query, key, time, *(w for w in weights if w is not None)]

    def run(query, key, time, *weights):
        pair = weights or (None, None)
        return qk_norm_rope(
            query, key, *pair, (time, row, column), axes_dim=axes_dim, norm=norm, rotate_from=1
        )

    assert torch.autograd.gradcheck(run, [t.requires_grad_() for t in tensors])


@pytest.mark.parametrize(("batch", "frames", "heads"), [(0, 3, 3), (2, 0, 3), (2, 3, 0)])
def test_empty_sizes(batch: int, frames: int, heads: int) -> None:
    query = torch.randn(batch, frames * 8, heads, 12)
    weight = torch.ones(heads * 12)
    positions = tuple(torch.arange(n) for n in (frames, 2, 4))
    q, k = qk_norm_rope(query, query, weight, weight, positions, axes_dim=(4, 4, 4))
    assert q.shape == k.shape == query.shape


BAD = {
    "query must have 4 dimensions": {"query": torch.zeros(2, 24, 36)},
    "query must be float32": {"query": torch.zeros(2, 24, 3, 12, dtype=torch.int64)},
    "key must have shape": {"key": torch.zeros(2, 24, 2, 12)},
    "key must have the dtype of query": {"key": torch.zeros(2, 24, 3, 12, dtype=torch.float64)},
    "query_weight must have shape": {"query_weight": torch.ones(12)},
    "key_weight must be None": {"norm": None, "query_weight": None},
    "norm must be": {"norm": "rms"},
    "axes_dim must be three even": {"axes_dim": (4, 4, 2)},
    "positions must be three": {"positions": (torch.arange(3), torch.arange(8))},
    r"positions\[0\] must be a float64.* got bfloat16": {
        "positions": (torch.arange(3).bfloat16(), torch.arange(2), torch.arange(4))
    },
    r"positions\[1\] must be 1-D": {"positions": (torch.arange(3), torch.zeros(2, 2), torch.arange(4))},
    "positions span 32 tokens from rotate_from=0, but query has 24": {
        "positions": (torch.arange(4), torch.arange(2), torch.arange(4))
    },
    "eps must be": {"eps": -1.0},
}


@pytest.mark.parametrize(("message", "change"), BAD.items(), ids=BAD.keys())
def test_bad_input_names_the_argument(message: str, change: dict) -> None:
    arguments = {
        "query": torch.zeros(2, 24, 3, 12),
        "key": torch.zeros(2, 24, 3, 12),
        "query_weight": torch.ones(36),
        "key_weight": torch.ones(36),
        "positions": tuple(torch.arange(n) for n in GRID),
        "axes_dim": (4, 4, 4),
    } | change
    with pytest.raises(ValueError, match=message):
        qk_norm_rope(**arguments)
