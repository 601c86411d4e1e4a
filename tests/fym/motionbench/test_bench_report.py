"""The benchmark's report: figures checked by hand, paired and honest, on a page that needs nothing else."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from pages import CHROMIUM, Page, assert_self_contained, browse

from fym.cli import cli
from fym.errors import UserError
from fym.motionbench.bootstrap import interval
from fym.motionbench.methods import METHODS
from fym.motionbench.report import tables
from fym.motionbench.report.examples import chosen
from fym.motionbench.report.page import page
from fym.motionbench.report.scores import SCORES
from fym.motionbench.report.summary import ABLATIONS, CONTROL_ROWS, SHUFFLED, Summary, summarise
from fym.motionbench.results import Results, Row
from fym.motionbench.suite import cases
from fym.video import write_clip

TESTS = [case for case in cases(part="synthetic", split="test") if case.category != "camera"]
CONTROLS = ("reference", "frozen", "reversed")
Value = Callable[[int, int, int], float]  # of the number of the case, target and seed


def row(method: str, number: int, target: int, seed: int, value: float, **changes: Any) -> Row:
    case = TESTS[number]
    made: Row = {
        "method": method,
        "case": case.name,
        "category": case.category,
        "part": case.part,
        "split": case.split,
        "target": target,
        "prompt": case.targets[target].prompt,
        "seed": seed,
        "settings": f"key of {method}",
        "code": "code",
        "model": "" if method in CONTROLS else "model",
        "reference": case.name,
        "exact": {
            "cosine": value,
            "right": {"shape": 1.0, "colour": 0.0},
            "leaked": {"shape": 0.0},
            "one_piece": 1.0,
        },
        "metrics": {"motion_fidelity/local": value, "speed_ratio": 2.0, "text_alignment": 0.5},
        "shuffled": {"direction": 0.1, "motion_fidelity/two_way": 0.2, "cosine": value / 10},
        "cost": {"spatial": [3.0, 2.0, 500.0], "temporal": [20.0, 10.0, 700.0], "sample": [2.0, 1.0, 600.0]},
    }
    return made | changes


def fill(folder: Path, values: dict[str, Value], numbers: Sequence[int] = range(8), seeds: int = 2) -> Path:
    for method, value in values.items():
        single = method in CONTROLS
        lines = [
            row(method, n, t, s, value(n, t, s))
            for n in numbers
            for t in range(3)
            for s in range(1 if single else seeds)
        ]
        if single:
            lines = [line | {"cost": {}} for line in lines]
        folder.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(line) + "\n" for line in lines)
        with Results(folder).path(method).open("a") as file:
            file.write(text)
    return folder


def mixed(n: int, t: int, s: int) -> float:
    return 0.5 + 0.05 * n + 0.02 * t - 0.02 * s


VALUES: dict[str, Value] = {
    "fym": mixed,
    "lora": lambda n, t, s: mixed(n, t, s) - 0.2 + 0.01 * (n % 3),
    "two-stage": lambda n, t, s: mixed(n, t, s) + (0.1 if n % 2 else -0.1),
    "no-motion-loss": lambda n, t, s: mixed(n, t, s) + 0.05,
    "base": lambda n, t, s: 0.0,
    "reference": lambda n, t, s: 1.0,
    "frozen": lambda n, t, s: 0.0,
    "reversed": lambda n, t, s: -1.0,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("results"), VALUES)


@pytest.fixture(scope="module")
def summary(folder: Path) -> Summary:
    return summarise(folder)


# ------------------------------------------------------------------------ intervals
def test_an_interval_is_that_of_the_plain_procedure() -> None:
    """Against drawing cases, then clips of each, one by one: equal within the noise of 2000 draws."""
    rng = np.random.default_rng(1)
    values = [rng.normal(rng.normal(0, 0.3), 0.2, size) for size in (6, 6, 3, 6, 1, 6, 2, 6)]
    means = []
    for _ in range(4000):
        drawn = rng.integers(len(values), size=len(values))
        means.append(np.mean([rng.choice(values[c], len(values[c])).mean() for c in drawn]))
    noise = 0.1 * np.std(means)  # of a 2.5 % quantile: about sqrt(p (1 - p) / 2000) / density, 0.06 of sigma
    assert interval(values) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=noise)
    assert interval(values) == interval([v.copy() for v in values]) != interval(values, seed=1)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """300 made-up runs of 20 cases and 6 clips: 95 % intervals, which few cases make a little too narrow."""
    rng = np.random.default_rng(2)
    inside = 0
    for _ in range(300):
        low, high = interval([rng.normal(rng.normal(0, 0.2), 0.2, 6) for _ in range(20)])
        inside += low <= 0 <= high
    assert 0.90 <= inside / 300 <= 0.98


# ------------------------------------------------------------------------ figures
def test_means_differences_and_verdicts(summary: Summary) -> None:
    """By hand: mean of fym 0.5 + 0.175 + 0.02 - 0.01; lora 0.19 below it; the others as they were made."""
    group = summary.groups[0]
    figures = {line.method: line.figures["cosine"] for line in group.lines}
    assert group.cases == 8 and group.clips == 48 and not group.category
    assert figures["fym"].mean == pytest.approx(0.685) and figures["fym"].difference is None
    verdicts = {m: f.difference.verdict for m, f in figures.items() if f.difference}
    assert verdicts == {
        "lora": "worse",
        "two-stage": "tie",
        "no-motion-loss": "better",
        "base": "worse",
        "reference": "better",
        "frozen": "worse",
        "reversed": "worse",
        "shuffled": "worse",
    }
    lora = figures["lora"].difference
    assert lora is not None and lora.mean == pytest.approx(-0.2 + 0.01 * 7 / 8)
    assert lora.low <= lora.mean <= lora.high < 0
    constant = figures["no-motion-loss"].difference
    assert constant is not None and (constant.low, constant.high) == pytest.approx((0.05, 0.05))


def test_less_is_better_where_it_is(tmp_path: Path) -> None:
    """A leak, a speed error: the method with more of it is the worse one; a frozen clip counts 4."""
    fill(tmp_path, {"fym": mixed, "lora": mixed, "frozen": mixed})
    changed = []
    for line in Results(tmp_path).read("lora"):
        line["exact"]["leaked"], line["metrics"]["speed_ratio"] = {"shape": 0.5}, 0.25
        changed.append(json.dumps(line))
    Results(tmp_path).path("lora").write_text("\n".join(changed) + "\n")
    frozen = Results(tmp_path).path("frozen")
    frozen.write_text(frozen.read_text().replace('"speed_ratio": 2.0', '"speed_ratio": 0.0'))
    group = summarise(tmp_path).groups[0]
    for name, value in (("leaked", 0.5), ("speed_error", 2.0)):
        figure = group.line("lora").figures[name]
        assert figure.mean == value and figure.difference and figure.difference.verdict == "worse"
    assert group.line("frozen").figures["speed_error"].mean == 4.0
    assert group.line("fym").figures["speed_error"].mean == 1.0


def test_a_run_under_way_is_compared_on_common_clips(tmp_path: Path) -> None:
    """lora has the six hard cases only, and one clip less: its mean is low, its difference is not."""
    fill(tmp_path, {"fym": mixed})
    fill(tmp_path, {"lora": lambda n, t, s: mixed(n, t, s) + 0.01}, numbers=range(6))
    path = Results(tmp_path).path("lora")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    summary = summarise(tmp_path)
    line = summary.groups[0].line("lora")
    figure = line.figures["cosine"]
    assert figure.mean < summary.groups[0].line("fym").figures["cosine"].mean
    assert figure.difference is not None and figure.difference.mean == pytest.approx(0.01)
    assert (figure.difference.cases, figure.difference.clips) == (6, 35)
    assert (line.missing_cases, line.missing_clips, line.complete) == (2, 13, False)
    text = page(summary, tmp_path, None)
    assert "incomplete: 2 cases, 13 clips missing" in text and "The run is not complete" in text


def test_few_cases_decide_nothing(tmp_path: Path) -> None:
    """Four cases, each far better: no verdict, in words nowhere either."""
    fill(tmp_path, {"fym": mixed, "lora": lambda n, t, s: -1.0}, numbers=range(4))
    summary = summarise(tmp_path)
    difference = summary.groups[0].line("lora").figures["cosine"].difference
    assert difference is not None and difference.verdict == "few"
    assert "too few common cases" in page(summary, tmp_path, None)
    assert "worse" not in tables.as_markdown(summary).split("Second figure")[0]


def test_costs_are_medians_and_the_ratio_is_paired(tmp_path: Path) -> None:
    """Processor time of the tuning is 12 s; lora takes three times as much on the cases it has."""
    fill(tmp_path, {"fym": mixed})
    fill(tmp_path, {"lora": mixed}, numbers=range(3))
    path = Results(tmp_path).path("lora")
    text = path.read_text().replace("[20.0, 10.0, 700.0]", "[50.0, 34.0, 900.0]")
    lines = text.splitlines(keepends=True)
    lines[:6] = [line.replace("900.0", "9000.0") for line in lines[:6]]  # of a process that holds more
    path.write_text("".join(lines))
    group = summarise(tmp_path).groups[0]
    fym, lora = group.line("fym").cost, group.line("lora").cost
    assert (fym.tuning, fym.tuning_cpu, fym.sampling_cpu, fym.peak_mib, fym.ratio) == (23, 12, 1, 700, 1)
    assert (lora.tuning_cpu, lora.ratio, lora.peak_mib, lora.first_clip) == (36, 3, 900, 37)
    assert set(lora.stages) == {"spatial", "temporal", "sample"}


def test_control_rows_are_always_there(tmp_path: Path) -> None:
    """In their order, with or without results; "shuffled" is made of fym's own lines."""
    summary = summarise(fill(tmp_path, {"fym": mixed}))
    lines = [line for line in summary.groups[0].lines if line.kind == "control"]
    assert [line.method for line in lines] == ["reference", "frozen", "reversed", "shuffled", "base"]
    assert [line.clips for line in lines] == [0, 0, 0, 48, 0]
    assert lines[3].figures["cosine"].mean == pytest.approx(0.0685)
    assert lines[3].figures["motion_fidelity/two_way"].mean == pytest.approx(0.2)
    assert page(summary, tmp_path, None).count("no results yet") == 4 * len(summary.groups) * 2


def test_settings_models_and_codes_that_are_mixed_are_told(tmp_path: Path) -> None:
    """Two models, two versions, a case half of other settings, and nothing of it for clean results."""
    assert not summarise(fill(tmp_path / "clean", VALUES)).warnings
    fill(tmp_path, {"fym": mixed})
    with Results(tmp_path).path("fym").open("a") as file:
        file.write(json.dumps(row("fym", 0, 0, 0, 0.1, settings="new", model="other", code="new")) + "\n")
    told = " ".join(summarise(tmp_path).warnings)
    assert "2 models: model, other" in told and "2 versions" in told and "clips of 1 cases" in told


def test_failures_are_of_cases_without_a_result(tmp_path: Path) -> None:
    """The latest attempt tells; a case that was done in the end is not listed."""
    results = Results(fill(tmp_path, {"fym": mixed, "lora": mixed}, numbers=range(5)))
    for number in (0, 6, 6):
        record = {"method": "lora", "case": TESTS[number].name, "error": "RuntimeError: <no> memory"}
        results.add_failure({**record, "traceback": ["tune.py:1 train"]})
    summary = summarise(tmp_path)
    assert [(f.method, f.case, f.attempts) for f in summary.failures] == [("lora", TESTS[6].name, 2)]
    assert "RuntimeError: &lt;no&gt; memory" in page(summary, tmp_path, None)


def test_what_cannot_be_reported_on_is_the_users_to_mend(tmp_path: Path) -> None:
    """No folder, another split, no method to compare with."""
    with pytest.raises(UserError, match="has no results"):
        summarise(tmp_path / "nowhere")
    fill(tmp_path, {"lora": mixed}, numbers=range(2))
    with pytest.raises(UserError, match="--split test"):
        summarise(tmp_path, split="development")
    with pytest.raises(UserError, match="--against"):
        summarise(tmp_path)
    assert summarise(tmp_path, against="lora").groups[0].line("lora").kind == "compared"


def test_named_methods_are_reported_on_their_common_cases(tmp_path: Path) -> None:
    """Control rows stay, on the same cases; other methods go."""
    fill(tmp_path, {name: VALUES[name] for name in ("fym", "base", "no-motion-loss")})
    fill(tmp_path, {"lora": VALUES["lora"]}, numbers=(1, 2, 5))
    group = summarise(tmp_path, methods=["lora"]).groups[0]
    assert {line.method for line in group.lines} == {"fym", "lora", *CONTROL_ROWS}
    assert [group.line(name).cases for name in ("fym", "lora", "base", SHUFFLED)] == [3] * 4
    only = fill(tmp_path / "only", {name: VALUES[name] for name in ("fym", "lora")}, numbers=(1, 2, 5))
    ours, theirs = group.line("lora"), summarise(only).groups[0].line("lora")
    assert ours.figures == theirs.figures and ours.complete
    fill(tmp_path, {"two-stage": mixed}, numbers=(3,))
    with pytest.raises(UserError, match="No case has results of all of fym, lora, two-stage"):
        summarise(tmp_path, methods=["lora", "two-stage"])


def test_every_ablation_is_a_method() -> None:
    """Whose help says so; all other methods are baselines."""
    assert set(ABLATIONS) == {name for name, m in METHODS.items() if m.help.startswith("fym ")}
    assert len({score.name for score in SCORES}) == len(SCORES)


# ------------------------------------------------------------------------ tables
def test_csv_and_json_hold_every_figure(summary: Summary) -> None:
    """The same numbers in both, with their counts; null, never NaN."""
    record = json.loads(tables.as_json(summary))
    lines = list(csv.DictReader(io.StringIO(tables.as_csv(summary))))
    [line] = [
        line
        for line in lines
        if (line["category"], line["method"], line["score"]) == ("all", "lora", "cosine")
    ]
    figure = record["groups"][0]["methods"]["lora"]["figures"]["cosine"]
    assert float(line["mean"]) == figure["mean"] == pytest.approx(0.49375, abs=1e-4)
    assert float(line["difference_low"]) == figure["difference"]["low"]
    assert (line["common_cases"], line["common_clips"], line["verdict"]) == ("8", "48", "worse")
    assert record["groups"][0]["methods"]["base"]["cost"]["tuning_cpu"] == 12
    assert {line["category"] for line in lines} == {"all", "object"}


def test_markdown_and_latex_mark_what_is_no_win(summary: Summary) -> None:
    """A tie says so, a method that is better too; LaTeX has balanced tabulars of equal columns."""
    text = tables.as_markdown(summary)
    rows = {line.split(" | ")[0][2:]: line for line in text.splitlines() if line.startswith("| ")}
    assert "tie" in rows["two-stage"] and "better" in rows["no-motion-loss"]
    assert "tie" not in rows["lora"].replace("attributes", "") or "+0.00" in rows["lora"]
    latex = tables.as_latex(summary)
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 2
    for block in latex.split(r"\begin{tabular}{")[1:]:
        columns = len(block[: block.index("}")])
        body = block[block.index(r"\toprule") : block.index(r"\bottomrule")]
        lines = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert lines and all(line.replace(r"\&", "").count("&") == columns - 1 for line in lines)
    assert "−" not in latex and "↑" not in latex


# ------------------------------------------------------------------------ the page
def test_examples_are_chosen_by_rule(summary: Summary) -> None:
    """Best, median and worst by fym's score, each case once."""
    group = summary.groups[1]
    ranked = [(rank, round(value, 3)) for _, rank, value in chosen(group, "fym", "cosine")]
    assert ranked == [("best", 0.86), ("median", 0.66), ("worst", 0.51)]


@pytest.fixture(scope="module")
def written(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command's page with clips of the best case, written by a run of some settings."""
    place = tmp_path_factory.mktemp("page")
    best = TESTS[7]
    frames = best.clip()[0]
    made = {"reference": frames, "fym": frames, "lora": frames.flip(0), "two-stage": frames * 0}
    for method, clip in made.items():
        target = place / "clips" / f"{method}-0123456789" / best.file_name
        target.mkdir(parents=True)
        write_clip(target / "t0-s0.mp4", clip, 16)
    out = place / "report.html"
    options = ["--clips", str(place / "clips"), "-o", str(out), "--csv", str(place / "t.csv")]
    done = CliRunner().invoke(cli, ["motionbench", "report", str(folder), *options])
    assert done.exit_code == 0, done.output
    assert (place / "t.csv").read_text().startswith("part,category,method")
    return out


def test_the_page_is_one_well_formed_offline_file(written: Path) -> None:
    """Every section, a video for each example, methods without clips named, figures in words."""
    found = Page(written)
    assert_self_contained(found)
    assert sum(address.startswith("data:video") for address in found.addresses) == 1
    assert (
        "No clip of: base." in found.text
        and "No clip of: reference, fym, lora" in found.text
        and found.tags.count("svg") == 2
    )
    parts = ("How to read it", "Control rows", "by category", "time and memory", "every case")
    assert all(words in found.text for words in (*parts, "fym motionbench run"))
    assert "velocity cosine: fym is better than lora, base; a tie with two-stage." in found.text
    assert "Ablations, velocity cosine: fym is worse than no-motion-loss." in found.text


def test_names_are_escaped(tmp_path: Path) -> None:
    """A method's settings and a prompt are text."""
    name = 'fym generate.x="<script>alert(1)</script>"'
    fill(tmp_path, {"fym": mixed, name: mixed}, numbers=range(2))
    path = tmp_path / "page.html"
    path.write_text(page(summarise(tmp_path), tmp_path, None))
    assert Page(path).tags.count("script") == 1


def test_the_same_results_make_the_same_page(folder: Path) -> None:
    assert page(summarise(folder), folder, None) == page(summarise(folder), folder, None)


@pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed")
def test_a_browser_renders_plays_and_sorts(written: Path, tmp_path: Path) -> None:
    """Chromium paints the page, decodes its videos, has no error, and a click sorts the cases both ways."""
    probe = """<script>
      window.onerror = (message) => document.body.setAttribute('data-error', message);
      const table = document.querySelector('table.sortable'), head = table.rows[0].cells[1];
      const column = () => [...table.rows].slice(1).map((r) => r.cells[1].textContent).join(' ');
      head.click(); document.body.setAttribute('data-down', column());
      head.click(); document.body.setAttribute('data-up', column());
      setTimeout(() => document.body.setAttribute('data-videos',
        [...document.querySelectorAll('video')].map((v) => v.videoWidth).join(' ')), 1500);
    </script>"""
    copy = tmp_path / "page.html"
    copy.write_text(written.read_text("utf-8").replace("</body>", probe + "</body>"), "utf-8")
    told = browse(copy, tmp_path, "--virtual-time-budget=4000", "--dump-dom")
    body = told[told.index("<body") :].split(">")[0]
    falling = [f"{0.51 + 0.05 * n:.2f}" for n in range(7, -1, -1)]
    assert f'data-down="{" ".join(falling)}"' in body and f'data-up="{" ".join(falling[::-1])}"' in body
    assert "data-error" not in body and 'data-videos="594"' in body
    picture = tmp_path / "page.png"
    browse(written, tmp_path, "--window-size=1280,3000", f"--screenshot={picture}")
    image = cv2.imread(str(picture))
    assert image is not None and image.shape[1] == 1280 and image.std() > 10
