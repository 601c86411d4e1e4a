"""What each part of the method is worth: `python -m benchmarks.ablation --set test --table`.

Variants x unseen motions x 3 prompts x 3 seeds on the embedded model. One clip is tuned for each variant and
motion, and shared by its prompts and seeds. Every clip's result is a file of its own, written whole or not at
all: run it again after any interruption, or twice at the same time to share the work. A variant may also be
made up on the command line, to choose settings: `--set development --variants full temporal.rank=16`
(several settings: joined by commas).

Columns: velocity cosine; share of the prompt's attributes (shape, colour, background) that the clip shows;
appearance leak, the share of attributes in which the clip shows the reference's value instead of its own
prompt's; seconds of tuning (processor time of one thread). Intervals: paired bootstrap of the difference to
`full`, motions drawn first, then clips of each, 95 %.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.transfer import cosine_with, run_config, score, targets, tuned
from fym.config import to_toml
from fym.embedded.scenes import DEVELOPMENT, FPS, TEST, render, unseen_scene
from fym.families import Family, load_family
from fym.files import write_file
from fym.generate import generate
from fym.motion_file import load_motion_file
from fym.video import write_clip

ALL_FRAMES = {"temporal.sparse_frames": 49, "temporal.picking": "uniform", "temporal.latents": "encode"}
VARIANTS: dict[str, dict[str, Any] | None] = {
    "full": {},
    "no decoupling": {"heads.grouping": "all"},
    "no adaptive RoPE": {"temporal.positions": "none"},
    "no sparse sampling": ALL_FRAMES,
    "no motion loss": {"temporal.motion_weight": 0.0},
    "no spatial stage": {"spatial.steps": 0},
    "random heads": {"heads.grouping": "random"},
    "naive two-stage": {
        **ALL_FRAMES,
        "heads.grouping": "all",
        "temporal.positions": "none",
        "temporal.motion_weight": 0.0,
        "temporal.lowest_noise": 0.0,
    },
    "base model": None,  # not tuned
}
SETS = {"development": DEVELOPMENT, "test": TEST}
SEEDS = (0, 1, 2)
RESAMPLES = 2000


def variant_of(name: str) -> tuple[dict[str, Any] | None, list[str]]:
    """(overrides or None for no tuning, "a.b=c" texts) of a variant by its name or its settings."""
    if name in VARIANTS:
        return VARIANTS[name], []
    if "=" not in name:
        raise SystemExit(
            f"unknown variant {name!r}; known: {', '.join(VARIANTS)}, or settings such as temporal.rank=16"
        )
    return {}, name.split(",")


class Work:
    """The cases of one model, and where their results lie."""

    def __init__(self, out: Path, model: str, extra: list[str]) -> None:
        self.out, self.extra = out, extra
        self.family: Family = load_family(model)
        self.overrides = {"model.path": model}

    def folder(self, variant: str, motion: str) -> Path:
        """Of a variant and motion; another model or other settings have another folder."""
        overrides, assignments = variant_of(variant)
        settings = ""
        if overrides is not None:
            config = run_config(motion, Path("x"), self.overrides | overrides, [*self.extra, *assignments])
            config.model.path = ""
            settings = to_toml(config)
        key = hashlib.sha256(f"{self.family.model_hash} {settings}".encode()).hexdigest()[:10]
        return self.out / f"{variant} {key}".replace(" ", "_").replace("/", "_") / motion.replace(" ", "_")

    def cases(self, motion: str) -> list[tuple[int, int]]:
        return [(prompt, seed) for prompt in range(len(targets(unseen_scene(motion)))) for seed in SEEDS]

    def run(self, variant: str, motion: str) -> None:
        """Everything of a variant and motion that is not there yet, unless another process is at it."""
        folder = self.folder(variant, motion)
        missing = [c for c in self.cases(motion) if not self.result(folder, *c).exists()]
        if not missing:
            return
        with claimed(folder) as mine:
            if not mine:
                return
            overrides, assignments = variant_of(variant)
            file = None
            if overrides is not None:
                settings = self.overrides | overrides
                record = tuned(motion, folder, settings, [*self.extra, *assignments])
                file = load_motion_file(folder / record["motion_file"])
                for part in ("checkpoints", "cache"):
                    shutil.rmtree(folder / "run" / part, ignore_errors=True)
            scene = unseen_scene(motion)
            for prompt, seed in missing:
                target = targets(scene)[prompt]
                [clip] = generate(self.family, [target.prompt], motion=file, seeds=[seed])
                write_clip(folder / f"p{prompt}-s{seed}.mp4", clip, FPS)
                row = score(clip, scene, target)
                write_file(self.result(folder, prompt, seed), json.dumps(row) + "\n")
            print(variant, motion, _line(self.rows(variant, motion)), flush=True)

    def rows(self, variant: str, motion: str) -> list[dict[str, Any]]:
        """The results there are, with which case each is."""
        folder = self.folder(variant, motion)
        found = []
        for prompt, seed in self.cases(motion):
            path = self.result(folder, prompt, seed)
            if path.exists():
                found.append({"prompt": prompt, "seed": seed, **json.loads(path.read_text("utf-8"))})
        return found

    def seconds(self, variant: str, motion: str) -> float:
        """Processor time of the tuning, NaN without one."""
        path = self.folder(variant, motion) / "tuned.json"
        return json.loads(path.read_text("utf-8"))["cpu_seconds"] if path.exists() else float("nan")

    @staticmethod
    def result(folder: Path, prompt: int, seed: int) -> Path:
        return folder / f"p{prompt}-s{seed}.json"


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Whether this process may work in the folder; the claim ends with the process, however that ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


# --------------------------------------------------------------------------- figures
def figures(row: dict[str, Any]) -> dict[str, float]:
    """A clip's cosine, share of attributes right and leaked."""
    return {
        "cosine": row["cosine"],
        "right": float(np.mean(list(row["right"].values()))),
        "leaked": float(np.mean(list(row["leaked"].values()))),
    }


def _line(rows: list[dict[str, Any]]) -> str:
    means = {name: np.mean([figures(row)[name] for row in rows]) for name in ("cosine", "right", "leaked")}
    return ", ".join(f"{name} {value:.2f}" for name, value in means.items())


def interval(differences: list[np.ndarray], *, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of paired differences, one array of clips for each motion."""
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(RESAMPLES):
        motions = rng.integers(len(differences), size=len(differences))
        means.append(np.mean([rng.choice(differences[m], len(differences[m])).mean() for m in motions]))
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def groups(motions: list[str]) -> dict[str, list[str]]:
    """Motions of objects and of the camera apart; a group without motions is left out."""
    split = {"objects": [m for m in motions if unseen_scene(m).things]}
    split["camera"] = [m for m in motions if m not in split["objects"]]
    return {name: group for name, group in split.items() if group}


def summary(work: Work, variants: list[str], motions: list[str]) -> dict[str, Any]:
    """Of each variant: means over motions, intervals of the difference to `full`, per motion cosines."""
    out: dict[str, Any] = {}
    full = {m: work.rows("full", m) for m in motions}
    for variant in variants:
        rows = {m: found for m in motions if (found := work.rows(variant, m))}
        if not rows:
            continue
        every = [row for found in rows.values() for row in found]
        entry: dict[str, Any] = {"clips": len(every), "motions": len(rows)}
        for name in ("cosine", "right", "leaked"):
            entry[name] = float(np.mean([figures(row)[name] for row in every]))
            paired = [pairs for m in rows if (pairs := _paired(rows[m], full[m], name)).size]
            if variant != "full" and paired:
                entry[f"{name}_minus_full"] = float(np.mean([p.mean() for p in paired]))
                entry[f"{name}_interval"] = interval(paired)
        for attribute in ("shape", "colour", "background"):
            shown = [row["right"][attribute] for row in every if attribute in row["right"]]
            entry[attribute] = float(np.mean(shown)) if shown else float("nan")
        entry["another_motion"] = float(np.mean([_shuffled(found, m, motions) for m, found in rows.items()]))
        spent = [seconds for m in rows if not np.isnan(seconds := work.seconds(variant, m))]
        entry["tuning_seconds"] = float(np.median(spent)) if spent else float("nan")
        entry["by_motion"] = {m: float(np.mean([r["cosine"] for r in found])) for m, found in rows.items()}
        out[variant] = entry
    return out


def _paired(rows: list[dict[str, Any]], full: list[dict[str, Any]], name: str) -> np.ndarray:
    reference = {(row["prompt"], row["seed"]): figures(row)[name] for row in full}
    keys = [(row["prompt"], row["seed"]) for row in rows]
    return np.array(
        [figures(row)[name] - reference[key] for row, key in zip(rows, keys, strict=True) if key in reference]
    )


def _shuffled(rows: list[dict[str, Any]], motion: str, motions: list[str]) -> float:
    """Mean cosine of clips with the other motions of the same kind: what is no transfer."""
    kind = bool(unseen_scene(motion).things)
    others = [s for m in motions if m != motion and bool((s := unseen_scene(m)).things) == kind]
    return float(np.mean([cosine_with(row, s) for row in rows for s in others])) if others else float("nan")


def ceilings(motions: list[str]) -> dict[str, float]:
    """What the checker gives the reference clip itself and its frozen first frame."""
    itself, frozen = [], []
    for motion in motions:
        scene = unseen_scene(motion)
        frames, target = render(scene), targets(scene)[0]
        itself.append(score(frames, scene, target)["cosine"])
        frozen.append(score(frames[:1].expand_as(frames), scene, target)["cosine"])
    return {"reference itself": float(np.mean(itself)), "frozen frame": float(np.mean(frozen))}


def table(record: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "| variant | velocity cosine | minus full | attributes right | minus full "
        "| appearance leak | tuning, s | clips |",
        "|---" * 8 + "|",
    ]
    for name, entry in record["variants"].items():
        seconds = entry["tuning_seconds"]
        cells = [
            f"{entry['cosine']:.2f}",
            _difference(entry, "cosine", 1, ""),
            f"{100 * entry['right']:.0f} %",
            _difference(entry, "right", 100, " %"),
            f"{100 * entry['leaked']:.0f} %",
            "" if np.isnan(seconds) else f"{seconds:.0f}",
            str(entry["clips"]),
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [f"| {name} | {value:.2f} |" + "  |" * 6 for name, value in record["ceilings"].items()]
    return "\n".join(lines)


def _difference(entry: dict[str, Any], name: str, factor: float, unit: str) -> str:
    if f"{name}_minus_full" not in entry:
        return ""
    digits = 2 if factor == 1 else 0
    values = [factor * v for v in (entry[f"{name}_minus_full"], *entry[f"{name}_interval"])]
    mean, low, high = (f"{v:+.{digits}f}" for v in values)
    return f"{mean}{unit} ({low} to {high})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--set", choices=list(SETS), default="test", help="which motions")
    parser.add_argument("--motions", nargs="*", help="only these")
    parser.add_argument(
        "--variants", nargs="*", default=list(VARIANTS), help="names, or settings a.b=c,d.e=f"
    )
    parser.add_argument("--model", default="embedded")
    parser.add_argument(
        "--config", action="append", default=[], metavar="A.B=C", help="a setting of every variant"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument(
        "--results", type=Path, help="default: benchmarks/results/ablation.json for the test set"
    )
    parser.add_argument("--table", action="store_true", help="only print the table of what is there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    motions = args.motions or list(SETS[args.set])
    unknown = sorted(set(motions) - set(SETS[args.set]))
    if unknown:
        parser.error(f"not in the {args.set} set: {', '.join(unknown)}; it has: {', '.join(SETS[args.set])}")
    work = Work(args.out, args.model, args.config)
    if not args.table:
        for motion in motions:
            for variant in args.variants:
                work.run(variant, motion)
    record: dict[str, Any] = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, one thread",
        "set": args.set,
        "model": work.family.model_hash,
        "settings": args.config,
        "groups": {
            name: {"variants": summary(work, args.variants, group), "ceilings": ceilings(group)}
            for name, group in groups(motions).items()
        },
    }
    results = args.results or (Path("benchmarks/results/ablation.json") if args.set == "test" else None)
    if results:
        write_file(results, json.dumps(record, indent=1) + "\n")
    for name, group in record["groups"].items():
        print(f"{name}\n\n{table(group)}\n")


if __name__ == "__main__":
    main()
