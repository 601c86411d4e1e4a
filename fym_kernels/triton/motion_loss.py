# mypy: disable-error-code="no-untyped-def"
"""motion_loss on Triton: weighted squared error plus the direction error of adjacent frame differences.

forward(pred, target, weight, motion_weight) -> loss (), coefficients (B,3,T), error_scale (B,)
backward(grad_loss, pred, target, coefficients, error_scale, side) -> gradient of "pred" or "target"

coefficients: what a frame pair's own difference, the other tensor's and, for the target, its own difference
is multiplied with in the gradient. error_scale: 2 weight / (B C T h w). The weight gets no gradient.
pred, target (B,C,T,h,w), any strides (copied only if the pixels of a frame are not dense). The gradient
needs the frame cosines, which are known only after everything has been read. So forward keeps 3 numbers a
frame pair instead of a gradient; backward reads both tensors again and writes the gradient, times grad_loss.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fym_kernels.triton.common import (
    INTERPRETED,
    accumulation,
    accumulation_torch,
    ceil_div,
    config,
    launch,
    power_of_two,
    sum_partials,
)

SMALLEST_NORM = 1e-8  # as in the reference: a pair of equal frames has no direction


@triton.jit
def _statistics_kernel(
    p_ptr, t_ptr, partials_ptr, frames, pixels,
    p_batch, p_channel, p_frame, t_batch, t_channel, t_frame,
    UNIT: tl.constexpr, FRAMES: tl.constexpr, PIXELS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    # partial sums (B, parts, 4, T): squared error, and of the pair (t-1, t): a.b, a.a, b.b
    pixels *= UNIT
    p_frame *= UNIT
    t_frame *= UNIT
    batch = tl.program_id(2).to(tl.int64)
    tiles = tl.cdiv(frames, FRAMES)
    channel = (tl.program_id(1) // tiles).to(tl.int64)
    frame = ((tl.program_id(1) % tiles) * FRAMES + tl.arange(0, FRAMES)).to(tl.int64)
    pixel = (tl.program_id(0) * PIXELS + tl.arange(0, PIXELS))[None, :]
    inside = (frame < frames)[:, None] & (pixel < pixels)
    paired = inside & (frame > 0)[:, None]  # the row before comes from the cache
    p_ptr += (batch * p_batch + channel * p_channel) * UNIT + frame[:, None] * p_frame + pixel
    t_ptr += (batch * t_batch + channel * t_channel) * UNIT + frame[:, None] * t_frame + pixel
    p = tl.load(p_ptr, mask=inside, other=0).to(ACC)
    t = tl.load(t_ptr, mask=inside, other=0).to(ACC)
    a = tl.where(paired, p - tl.load(p_ptr - p_frame, mask=paired, other=0).to(ACC), 0)
    b = tl.where(paired, t - tl.load(t_ptr - t_frame, mask=paired, other=0).to(ACC), 0)
    part = (batch * (tl.num_programs(1) // tiles) + channel) * tl.num_programs(0) + tl.program_id(0)
    partials_ptr += part * 4 * frames + frame
    tl.store(partials_ptr, tl.sum((p - t) * (p - t), 1), mask=frame < frames)
    tl.store(partials_ptr + frames, tl.sum(a * b, 1), mask=frame < frames)
    tl.store(partials_ptr + 2 * frames, tl.sum(a * a, 1), mask=frame < frames)
    tl.store(partials_ptr + 3 * frames, tl.sum(b * b, 1), mask=frame < frames)


@triton.jit
def _finish_kernel(
    sums_ptr, error_scale_ptr, loss_ptr, coefficients_ptr, samples, frames,
    PAIR_WEIGHT: tl.constexpr, SMALLEST: tl.constexpr, FRAMES: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    # one program: B x T numbers, summed in order
    frame = tl.arange(0, FRAMES)
    inside = frame < frames
    paired = inside & (frame > 0)
    loss = tl.zeros([FRAMES], ACC)
    for sample in range(samples):
        at = sums_ptr + sample * 4 * frames + frame
        error = tl.load(at, mask=inside, other=0)
        ab = tl.load(at + frames, mask=paired, other=0)
        aa = tl.load(at + 2 * frames, mask=paired, other=1)
        bb = tl.load(at + 3 * frames, mask=paired, other=1)
        norm_a = tl.maximum(tl.sqrt(aa), SMALLEST)
        norm_b = tl.maximum(tl.sqrt(bb), SMALLEST)
        cosine = ab / (norm_a * norm_b)
        loss += 0.5 * tl.load(error_scale_ptr + sample) * error
        loss += tl.where(paired, PAIR_WEIGHT * (1 - cosine), 0)
        # d(-cosine)/da = cosine a / |a|^2 - b / (|a| |b|); a clamped norm is a constant
        own_a = tl.where(norm_a > SMALLEST, PAIR_WEIGHT * cosine / (norm_a * norm_a), 0)
        own_b = tl.where(norm_b > SMALLEST, PAIR_WEIGHT * cosine / (norm_b * norm_b), 0)
        out = coefficients_ptr + sample * 3 * frames + frame
        tl.store(out, tl.where(paired, own_a, 0), mask=inside)
        tl.store(out + frames, tl.where(paired, -PAIR_WEIGHT / (norm_a * norm_b), 0), mask=inside)
        tl.store(out + 2 * frames, tl.where(paired, own_b, 0), mask=inside)
    tl.store(loss_ptr, tl.sum(loss, 0))


def _dense_frames(x: Tensor) -> Tensor:
    """`x` (B,C,T,h,w) itself when the pixels of a frame are dense and in order, else a contiguous copy."""
    height, width = x.shape[-2:]
    dense = (width <= 1 or x.stride(-1) == 1) and (height <= 1 or x.stride(-2) == width)
    return x if dense else x.contiguous()


def _tile(frames: int, pixels: int) -> tuple[int, int]:
    frame_rows = min(power_of_two(frames), 16)
    return frame_rows, min(power_of_two(pixels), 16 if INTERPRETED else 1024 // frame_rows)


def _in_units(pixels: int, *tensors: Tensor) -> tuple[int, list[int]]:
    """(unit, [pixels, strides of the tensors] counted in units).

    The compiler knows of divisibility by 16 only, and the frames of many models are a multiple of 8 pixels,
    60 x 90 say. Counting in eights tells it, and keeps 16-byte loads.
    """
    numbers = [pixels, *(stride for x in tensors for stride in x.stride()[:3])]
    unit = 8 if all(n % 8 == 0 for n in numbers) else 1
    return unit, [n // unit for n in numbers]


def forward(
    pred: Tensor, target: Tensor, weight: Tensor | None, motion_weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels, frames, height, width = pred.shape
    assert target.shape == pred.shape and pred.numel() > 0
    pred, target = _dense_frames(pred), _dense_frames(target)
    acc, pixels, device = accumulation_torch(pred.dtype), height * width, pred.device
    rows, columns = _tile(frames, pixels)
    pixel_tiles = ceil_div(pixels, columns)
    partials = torch.empty(batch, channels * pixel_tiles, 4 * frames, dtype=acc, device=device)
    unit, numbers = _in_units(pixels, pred, target)
    launch(
        _statistics_kernel,
        (pixel_tiles, channels * ceil_div(frames, rows), batch),
        pred, target, partials, frames, *numbers,
        configs=(config(4, FRAMES=rows, PIXELS=columns),),
        UNIT=unit,
        ACC=accumulation(pred.dtype),
    )  # fmt: skip
    sums = sum_partials(partials, acc).view(batch, 4, frames)
    elements = channels * frames * pixels
    error_scale = torch.full((batch,), 2 / (elements * batch), dtype=acc, device=device)
    if weight is not None:
        error_scale *= weight
    loss = torch.empty((), dtype=acc, device=device)
    coefficients = torch.empty(batch, 3, frames, dtype=acc, device=device)
    launch(
        _finish_kernel,
        (1,),
        sums, error_scale, loss, coefficients, batch, frames,
        configs=(config(1),),
        PAIR_WEIGHT=motion_weight / (batch * (frames - 1)) if frames > 1 else 0.0,
        SMALLEST=SMALLEST_NORM,
        FRAMES=power_of_two(frames),
        ACC=accumulation(pred.dtype),
    )  # fmt: skip
    return loss, coefficients, error_scale


@triton.jit
def _gradient_kernel(
    p_ptr, t_ptr, coefficients_ptr, error_scale_ptr, grad_loss_ptr, out_ptr, frames, pixels,
    p_batch, p_channel, p_frame, t_batch, t_channel, t_frame,
    OWN: tl.constexpr, UNIT: tl.constexpr, FRAMES: tl.constexpr, PIXELS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    # With the pair gradient g_t = own_t (p_t - p_t-1) + other_t (t_t - t_t-1): frame t gets g_t - g_t+1
    pixels *= UNIT
    p_frame *= UNIT
    t_frame *= UNIT
    batch = tl.program_id(2).to(tl.int64)
    tiles = tl.cdiv(frames, FRAMES)
    channels = tl.num_programs(1) // tiles
    channel = (tl.program_id(1) // tiles).to(tl.int64)
    frame = ((tl.program_id(1) % tiles) * FRAMES + tl.arange(0, FRAMES)).to(tl.int64)[:, None]
    pixel = (tl.program_id(0) * PIXELS + tl.arange(0, PIXELS))[None, :]
    inside = (frame < frames) & (pixel < pixels)
    has_before = inside & (frame > 0)
    has_after = inside & (frame + 1 < frames)
    p_ptr += (batch * p_batch + channel * p_channel) * UNIT + frame * p_frame + pixel
    t_ptr += (batch * t_batch + channel * t_channel) * UNIT + frame * t_frame + pixel
    p = tl.load(p_ptr, mask=inside, other=0).to(ACC)
    t = tl.load(t_ptr, mask=inside, other=0).to(ACC)
    own = coefficients_ptr + batch * 3 * frames + OWN * frames + frame
    other = coefficients_ptr + batch * 3 * frames + frames + frame
    grad = tl.load(error_scale_ptr + batch) * (p - t)
    before_p = tl.load(p_ptr - p_frame, mask=has_before, other=0).to(ACC)
    before_t = tl.load(t_ptr - t_frame, mask=has_before, other=0).to(ACC)
    grad += tl.load(own, mask=frame < frames, other=0) * (p - before_p)  # both factors 0 at frame 0
    grad += tl.load(other, mask=frame < frames, other=0) * (t - before_t)
    after_p = tl.load(p_ptr + p_frame, mask=has_after, other=0).to(ACC)
    after_t = tl.load(t_ptr + t_frame, mask=has_after, other=0).to(ACC)
    grad -= tl.load(own + 1, mask=frame + 1 < frames, other=0) * (after_p - p)
    grad -= tl.load(other + 1, mask=frame + 1 < frames, other=0) * (after_t - t)
    grad *= tl.load(grad_loss_ptr)
    offset = ((batch * channels + channel) * frames + frame) * pixels + pixel
    tl.store(out_ptr + offset, grad.to(out_ptr.dtype.element_ty), mask=inside)


def backward(
    grad_loss: Tensor, pred: Tensor, target: Tensor, coefficients: Tensor, error_scale: Tensor, side: str
) -> Tensor:
    assert side in ("pred", "target") and grad_loss.numel() == 1
    # the loss is symmetric in its tensors, but for the weight of each one's own difference
    own, other = (pred, target) if side == "pred" else (target, pred)
    batch, channels, frames, height, width = own.shape
    out = torch.empty(own.shape, dtype=own.dtype, device=own.device)
    own, other = _dense_frames(own), _dense_frames(other)
    rows, columns = _tile(frames, height * width)
    unit, numbers = _in_units(height * width, own, other)
    most_registers = 64 if own.dtype == torch.bfloat16 else 80
    launch(
        _gradient_kernel,
        (ceil_div(height * width, columns), channels * ceil_div(frames, rows), batch),
        own, other, coefficients, error_scale, grad_loss, out, frames, *numbers,
        # told what it may use, the assembler stops spilling 8 bytes to fit one more block
        configs=(config(4, most_registers=most_registers, FRAMES=rows, PIXELS=columns),),
        UNIT=unit,
        OWN=0 if side == "pred" else 2,
        ACC=accumulation(own.dtype),
    )  # fmt: skip
    return out
