"""The rows of `fym bench`: what is measured, and what it must reach (design: kernels at Wan 2.1 1.3B width).

Ratios: "× naive" and "× compile" are how many times longer those take; "of the copy" is the share of the copy
bandwidth that is reached on the fewest bytes; "× floor" is how many times longer than the floor we take.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from fym.bench import cases, shapes, tuning
from fym.bench.cases import Case
from fym.bench.computed import block_bytes, step_flops
from fym.bench.measure import Call, extra_rss, interleave
from fym.bench.shapes import Grid, Width, tokens
from fym.bench.table import Goal, Row

RANK = 16
CLIPS = 4  # in the batch of motion_loss: one alone would stay in the cache, where no memory bandwidth shows


@dataclass(frozen=True)
class Options:
    """rounds: samples of each side. quick: small shapes, to see that it works; its figures mean nothing.
    stock_malloc: glibc's as it comes, see measure.keep_freed_memory.
    """

    rounds: int = 10
    quick: bool = False
    with_compile: bool = True
    stock_malloc: bool = False
    block_frames: int = shapes.BLOCK[0]
    dtype: torch.dtype = torch.bfloat16

    @property
    def width(self) -> Width:
        return shapes.SMALL if self.quick else shapes.WAN_1_3B

    def grid(self, grid: Grid) -> Grid:
        return (min(grid[0], 5), 6, 8) if self.quick else grid

    @property
    def block_grid(self) -> Grid:
        return self.grid((self.block_frames, *shapes.BLOCK[1:]))


def time_case(
    case: Case,
    mode: str,
    options: Options,
    what: str,
    goals: list[Goal],
    more: dict[str, Call] | None = None,
) -> Row:
    """All sides of a case in one go, and their ratios; `more` is timed along and kept as detail."""
    timings = interleave({**case.calls(mode), **(more or {})}, options.rounds)
    extra = {name: timings.pop(name) for name in more or {}}
    factor = case.floor_factor(mode)
    seconds = {name: timing.median * (factor if name == "floor" else 1) for name, timing in timings.items()}
    ratios = {
        f"× {name}": seconds[name] / seconds["ours"] for name in ("naive", "compile") if name in seconds
    }
    if "floor" in seconds:
        share = seconds["floor"] / seconds["ours"]
        ratios |= {"of the copy": share} if case.bound == "copy" else {"× floor": 1 / share}
    detail: dict[str, object] = {name: timing.as_dict() for name, timing in timings.items()}
    detail |= {name: timing.as_dict() for name, timing in extra.items()}
    detail |= {"tokens": case.num_tokens, "floor_factor": factor}
    detail["tokens_per_second"] = {name: case.num_tokens / value for name, value in seconds.items()}
    sides = {name: value * 1e3 for name, value in seconds.items()}
    return Row(case.name, what, "ms", sides, ratios, goals, detail=detail)


def qk_norm_rope(options: Options) -> list[Row]:
    case = cases.qk_norm_rope(
        options.width, options.grid(shapes.OPS), options.dtype, with_compile=options.with_compile
    )
    goals = [Goal("of the copy", ">=", 0.70, 0.85), Goal("× naive", ">=", 30), Goal("× compile", ">=", 10)]
    both = [Goal("of the copy", ">=", 0.60, 0.80), Goal("× naive", ">=", 15)]
    return [
        time_case(case, "forward", options, "qk_norm_rope forward", goals),
        time_case(case, "step", options, "qk_norm_rope forward + backward", both),
    ]


def elementwise(options: Options) -> list[Row]:
    grid, with_compile = options.grid(shapes.OPS), options.with_compile
    made = (
        lambda: cases.modulated_norm(options.width, grid, options.dtype, with_compile=with_compile),
        lambda: cases.gated_residual(options.width, grid, options.dtype, with_compile=with_compile),
        lambda: cases.gelu(options.width, grid, options.dtype, with_compile=with_compile),
        lambda: cases.motion_loss(options.grid(shapes.CLIP_480), CLIPS, with_compile=with_compile),
    )
    rows = []
    for make in made:
        case = make()
        goals = [Goal("of the copy", ">=", 0.60, 0.80)]
        rows.append(time_case(case, "step", options, f"{case.name} forward + backward", goals))
    return rows


def lora(options: Options) -> list[Row]:
    rows = []
    for rank, must, aim in ((16, 1.08, 1.05), (128, 1.25, 1.15)):
        case = cases.lora_qkv(
            options.width,
            options.grid(shapes.OPS),
            options.dtype,
            rank,
            with_compile=options.with_compile,
        )
        what = f"lora_qkv forward + backward, r {rank}, half the heads"
        rows.append(time_case(case, "step", options, what, [Goal("× floor", "<=", must, aim)]))
    for side, of in (("out", "query"), ("in", "output")):
        case = cases.lora_linear(
            options.width,
            options.grid(shapes.OPS),
            options.dtype,
            RANK,
            side,
            with_compile=options.with_compile,
        )
        what = f"lora_linear of the {of} projection forward + backward, r {RANK}, half the heads"
        rows.append(time_case(case, "step", options, what, []))
    return rows


def head_scores(options: Options) -> list[Row]:
    case = cases.head_scores(options.width, options.grid(shapes.OPS), options.dtype)
    goals = [Goal("× floor", "<=", 1.2, 0.8), Goal("MiB extra", "<=", 64)]
    row = time_case(case, "forward", options, "head_scores, all rows, of one SDPA forward", goals)
    row.ratios["MiB extra"] = extra_rss(case.sides["ours"].call("forward"))
    return [row]


def head_attention(options: Options) -> list[Row]:
    grid = options.grid(shapes.SPARSE_FULL)
    case = cases.head_attention(options.width, grid, options.dtype)
    goals = [Goal("× full", ">=", 6, 10)]
    row = time_case(case, "step", options, "head_attention, half spatial, half temporal, of full SDPA", goals)
    row.ratios = {"× full": 1 / row.ratios["× floor"]}
    limit = 2 / (1 / grid[0] + 1 / (grid[1] * grid[2]))
    row.note = f"the FLOP ratio, which is the limit, is {limit:.1f}"
    return [row]


def saved(options: Options) -> list[Row]:
    """Computed, not timed: what the graph of one block keeps, per token."""
    grid, width = options.grid(shapes.OPS), options.width
    base = block_bytes(width, grid, RANK, options.dtype)
    rows = []
    for name, goal, block_options in saving_options():
        kept = block_bytes(width, grid, RANK, options.dtype, ours_options=block_options)
        sides = {"ours": kept / tokens(grid) / 1e3, "naive": base / tokens(grid) / 1e3}
        row = Row(
            "saved bytes",
            f"saved for backward per token, Wan block{name}",
            "KB",
            sides,
            {"of naive": kept / base},
        )
        row.goals = [goal]
        row.note = f"ours {kept / tokens(grid) / width.d / 2:.1f} d × 2 bytes, naive " + (
            f"{base / tokens(grid) / width.d / 2:.1f}; computed from shapes"
        )
        rows.append(row)
    return rows


def saving_options() -> list[tuple[str, Goal, dict[str, object]]]:
    """Ways to run our block: label, goal on its saved bytes, and options of ours.Block."""
    return [
        ("", Goal("of naive", "<=", 0.62, 0.58), {}),
        (", FFN recomputed", Goal("of naive", "<=", 0.38, 0.33), {"recompute_ffn": True}),
    ]


def block(options: Options) -> list[Row]:
    width, grid, dtype = options.width, options.block_grid, options.dtype
    case = cases.block(width, grid, dtype, RANK, with_compile=options.with_compile)
    again = cases.block(width, grid, dtype, RANK, with_naive=False, with_floor=False, recompute_ffn=True)
    goals = [Goal("× naive", ">=", 1.5), Goal("× floor", "<=", 1.15, 1.08)]
    what = f"training step of a Wan block, S = {case.num_tokens}"
    recomputed = again.sides["ours"].call("step")
    row = time_case(case, "step", options, what, goals, {"recomputed": recomputed})
    if "naive" in row.sides:
        most = row.sides["naive"] / row.sides["floor"]
        row.note = (
            f"naive takes {most:.2f} times the floor, so nothing could be more than that many times faster"
        )
    row.detail["extra_rss_mib"] = {name: extra_rss(work.call("step")) for name, work in case.sides.items()}
    row.detail["extra_rss_mib"]["recomputed"] = extra_rss(recomputed)
    taken = row.detail["recomputed"]
    ratios = {"longer": taken["median_s"] * 1e3 / row.sides["ours"] - 1}
    cost = Row(
        "block, FFN recomputed",
        f"the same with the FFN recomputed, S = {case.num_tokens}",
        "ms",
        {"ours": taken["median_s"] * 1e3},
        ratios,
        [Goal("longer", "<=", 0.12)],
        detail={"ours": taken},
    )
    return [row, cost]


def sparse_clip(options: Options) -> list[Row]:
    """Stage 3 on 17 picked frames and on all 81, one block of the model."""
    grids = {"all": options.grid(shapes.CLIP_FULL), "ours": options.grid(shapes.CLIP_SPARSE)}
    if options.quick:
        grids = {"all": (5, 6, 8), "ours": (2, 6, 8)}
    calls = {
        name: cases.block(options.width, grid, options.dtype, RANK, with_naive=False, with_floor=False)
        .sides["ours"]
        .call("step")
        for name, grid in grids.items()
    }
    timings = interleave(calls, options.rounds)
    ratio = timings["all"].median / timings["ours"].median
    flops = {name: step_flops(options.width, grid, RANK, options.dtype) for name, grid in grids.items()}
    row = Row(
        "sparse clip",
        "stage 3, 17 of 81 frames of 240 × 416, training step of a Wan block",
        "ms",
        {"ours": timings["ours"].median * 1e3},
        {"× all frames": ratio},
        [Goal("× all frames", ">=", 6)],
        note=f"all 81 frames take {timings['all'].median * 1e3:.4g} ms; "
        f"the FLOP ratio is {flops['all'] / flops['ours']:.1f}",
        detail={name: timing.as_dict() for name, timing in timings.items()},
    )
    return [row]


def embedded(options: Options) -> list[Row]:
    """Whole steps of stage 3 on the embedded model: ours on picked frames, naive on picked and on all."""
    return tuning.rows(options.rounds, options.with_compile)


GROUPS: dict[str, Callable[[Options], list[Row]]] = {
    "qk_norm_rope": qk_norm_rope,
    "elementwise": elementwise,
    "lora": lora,
    "head_scores": head_scores,
    "head_attention": head_attention,
    "saved": saved,
    "block": block,
    "sparse": sparse_clip,
    "embedded": embedded,
}
