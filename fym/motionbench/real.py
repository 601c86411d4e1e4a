"""The real part: clips that were filmed, from a manifest or from a folder in another benchmark's layout.

Three layouts are known:

- ours: `manifest.json` {"dataset", "version", "cases": [...]}; of each case "name", "file" (a video or a
  folder of pictures, relative to the manifest), "prompt" and three or more "targets"; optional are
  "category", "split", "sha256", "licence", "attribution", "start", "frames" and "fps".
- DAVIS: `JPEGImages/480p/NAME/*.jpg` (or another resolution). The fifty sequences of DAVIS 2016 have
  categories, captions and prompts here; others are listed without prompts.
- MTBench: a folder for each case with `videos.txt`, `prompts.txt` and `eval_prompts.txt`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from fym.errors import UserError
from fym.motionbench.case import Case, Source, Target
from fym.motionbench.categories import CATEGORIES, SPLITS, UNSORTED

HERE = Path(__file__).parent
PACKAGED = HERE / "clips"
DAVIS_TEXTS = HERE / "davis.json"
DAVIS_FPS = 24.0
MANIFEST = "manifest.json"
FEWEST_TARGETS = 3


@lru_cache(maxsize=1)
def packaged() -> tuple[Case, ...]:
    """The clips that ship with the package; `clips/README.md` has their licences."""
    return tuple(replace(case, name=f"real/{case.name}") for case in _from_manifest(PACKAGED / MANIFEST))


def read_folder(folder: Path) -> list[Case]:
    """The cases of a folder, named `FOLDER/CASE`. Raises UserError where it has none of the known layouts."""
    if not folder.is_dir():
        raise UserError(f"{folder} cannot be read", "there is no such folder", "Check the path after --real")
    if (folder / MANIFEST).is_file():
        found = list(_from_manifest(folder / MANIFEST))
    elif (folder / "JPEGImages").is_dir():
        found = list(_from_davis(folder / "JPEGImages"))
    else:
        found = list(_from_mtbench(folder))
    if not found:
        raise UserError(
            f"{folder} holds no cases",
            f"it has neither a {MANIFEST}, nor JPEGImages/480p/NAME/*.jpg (DAVIS), "
            "nor NAME/videos.txt (MTBench)",
            "Write a manifest, see docs/motionbench.md",
        )
    name = folder.resolve().name
    return [replace(case, name=f"{name}/{case.name}") for case in found]


# --------------------------------------------------------------------------- our manifest
def _from_manifest(path: Path) -> Iterator[Case]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise _wrong(path, str(error)) from None
    entries = content.get("cases") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise _wrong(path, 'it has no list "cases"')
    names = set()
    for number, entry in enumerate(entries):
        case = _manifest_case(path, entry, f"case {number + 1}")
        if case.name in names:
            raise _wrong(path, f"two cases are called {case.name!r}")
        names.add(case.name)
        yield case


def _manifest_case(path: Path, entry: Any, where: str) -> Case:
    if not isinstance(entry, dict):
        raise _wrong(path, f"{where} is no object")
    missing = [key for key in ("name", "file", "prompt", "targets") if not entry.get(key)]
    if missing:
        raise _wrong(path, f"{where} has no {', '.join(missing)}")
    category, split = entry.get("category", UNSORTED), entry.get("split", "test")
    for key, value, known in (("category", category, (*CATEGORIES, UNSORTED)), ("split", split, SPLITS)):
        if value not in known:
            raise _wrong(path, f"{where} has the {key} {value!r}, known are {', '.join(known)}")
    numbers = [entry.get(key, 0) for key in ("start", "frames", "fps")]
    if not all(isinstance(n, (int, float)) and n >= 0 for n in numbers):
        raise _wrong(path, f"{where}: start, frames and fps must be numbers from 0 up")
    source = Source(
        path.parent / entry["file"],
        entry.get("sha256", ""),
        entry.get("licence", "unknown"),
        entry.get("attribution", ""),
        start=int(numbers[0]),
        frames=int(numbers[1]),
        fps=float(numbers[2]),
    )
    targets = _targets(path, where, entry["targets"])
    return Case(entry["name"], category, "real", split, entry["prompt"], targets, source=source)


def _targets(path: Path, where: str, prompts: list[str]) -> tuple[Target, ...]:
    if len(prompts) < FEWEST_TARGETS or not all(isinstance(p, str) and p.strip() for p in prompts):
        raise _wrong(path, f"{where} has not {FEWEST_TARGETS} target prompts or more")
    return tuple(Target(prompt.strip()) for prompt in prompts)


def _wrong(path: Path, why: str) -> UserError:
    return UserError(f"{path} cannot be used", why, "Correct it, see docs/motionbench.md")


# --------------------------------------------------------------------------- other benchmarks' folders
def _from_davis(pictures: Path) -> Iterator[Case]:
    texts = json.loads(DAVIS_TEXTS.read_text("utf-8"))
    resolutions = sorted(f for f in pictures.iterdir() if f.is_dir())
    root = next((f for f in resolutions if f.name == "480p"), resolutions[0] if resolutions else pictures)
    for folder in sorted(f for f in root.iterdir() if f.is_dir()):
        known = texts.get(folder.name, {})
        yield Case(
            folder.name,
            known.get("category", UNSORTED),
            part="real",
            split="test",
            prompt=known.get("prompt", folder.name.replace("-", " ")),
            targets=tuple(map(Target, known.get("targets", ()))),
            source=Source(folder, attribution="DAVIS, davischallenge.org", fps=DAVIS_FPS),
        )


def _from_mtbench(root: Path) -> Iterator[Case]:
    """`root` holds cases, or is one."""
    for folder in (root, *sorted(f for f in root.iterdir() if f.is_dir())):
        if not (folder / "videos.txt").is_file():
            continue
        [video, *_], [prompt, *_] = _lines(folder / "videos.txt"), _lines(folder / "prompts.txt")
        targets = _targets(folder / "eval_prompts.txt", "it", _lines(folder / "eval_prompts.txt"))
        source = Source(folder / video)
        yield Case(folder.name, UNSORTED, "real", "test", prompt, targets, source=source)


def _lines(path: Path) -> list[str]:
    try:
        found = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise _wrong(path, str(error.strerror)) from None
    if not found:
        raise _wrong(path, "it is empty")
    return found
