"""`fym motionbench`: the data set, the score of a pair of clips, the certificate of a metric."""

from __future__ import annotations

import json
import math

import click

from fym.console import Console
from fym.errors import UserError
from fym.motionbench.cli_data import list_cases, render
from fym.motionbench.cli_report import report
from fym.motionbench.cli_run import run


@click.group()
def motionbench() -> None:
    """Measure how well a clip moves like another, and what the measures see."""


motionbench.add_command(list_cases)
motionbench.add_command(render)
motionbench.add_command(run)
motionbench.add_command(report)


@motionbench.command()
@click.argument("reference", metavar="REFERENCE")
@click.argument("clip", metavar="CLIP")
@click.option("--prompt", default="", help="what CLIP was made from")
@click.option("--reference-prompt", default="", help="what REFERENCE shows")
@click.option(
    "--tracker", default="lk", show_default=True, help="lk, dis, cotracker:CHECKPOINT or tapir:CHECKPOINT"
)
@click.option("--clip-model", metavar="FOLDER", help="of CLIP, for text alignment and temporal consistency")
@click.option("--json", "as_json", is_flag=True, help="for programs")
def score(
    reference: str,
    clip: str,
    prompt: str,
    reference_prompt: str,
    tracker: str,
    clip_model: str | None,
    as_json: bool,
) -> None:
    """Score CLIP against REFERENCE with every metric."""
    from fym.motionbench.embeddings import LAYOUT, load_clip
    from fym.motionbench.pair import Pair
    from fym.motionbench.score import score as score_pair
    from fym.motionbench.trackers import find_tracker
    from fym.video import read_clip

    follow = find_tracker(tracker)
    embedder = load_clip(clip_model) if clip_model else LAYOUT
    pair = Pair(
        read_clip(reference).frames,
        read_clip(clip).frames,
        prompt=prompt,
        reference_prompt=reference_prompt,
        tracker=follow,
        embedder=embedder,
    )
    scores = score_pair(pair)
    if as_json:
        click.echo(json.dumps({one.metric.name: one.as_dict() for one in scores}, indent=2))
        return
    tables: dict[str, list[tuple[str, str]]] = {}
    for one in scores:
        metric, measured = one.metric, one.measured
        unmeasured = math.isnan(measured.value)
        shown = (
            measured.note if unmeasured else f"{measured.value:.3f}  (best {metric.best:g}, {metric.unit})"
        )
        title = "not measured" if unmeasured else measured.backend
        tables.setdefault(title, []).append((f"{metric.name} v{metric.version}", shown))
    for title, rows in tables.items():
        Console().table(title, rows)


@motionbench.command()
@click.argument("names", metavar="[METRIC]...", nargs=-1)
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="motions and looks each")
@click.option("--first-seed", type=click.IntRange(0), default=0, show_default=True, help="and those after")
@click.option("--tracker", default="lk", show_default=True, help="as for score")
@click.option("--json", "as_json", is_flag=True, help="for programs")
def certify(names: tuple[str, ...], seeds: int, first_seed: int, tracker: str, as_json: bool) -> int:
    """Say which known defects METRIC sees (every metric if none is named).

    Exit code 0 only if each named metric sees all it claims to see in every seed, calls no faithful clip
    wrong, and scores a clip against itself as perfect.
    """
    from fym.motionbench import table
    from fym.motionbench.certify import examine, judge
    from fym.motionbench.metrics import METRICS
    from fym.motionbench.trackers import find_tracker

    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise UserError(f"there is no metric {unknown[0]!r}", f"known are {', '.join(METRICS)}", "Name one")
    chosen = [METRICS[name] for name in names or METRICS]
    tried = range(first_seed, first_seed + seeds)
    verdicts = judge(examine(chosen, seeds=tried, tracker=find_tracker(tracker)))
    if as_json:
        click.echo(json.dumps({one.metric.name: one.as_dict() for one in verdicts}, indent=2))
    else:
        click.echo(table.defect_table(verdicts))
        click.echo(f"\n{table.error_table(verdicts)}")
    for one in verdicts:
        for reason in one.reasons:
            click.echo(f"{one.metric.name}: {reason}", err=True)
    return 0 if all(one.passed for one in verdicts) else 1
