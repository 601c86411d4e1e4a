"""What the page can do, without the page: each call checks its input, writes it down and starts a command.

A run is a name; its folder lies directly in the root. Nothing that comes from the page is ever a path.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fym import checks
from fym.config import Config
from fym.config_file import load_config, to_toml
from fym.errors import UserError
from fym.files import write_file
from fym.ui import jobs
from fym.video import read_clip, write_clip

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LONGEST = 257  # frames kept of an upload; models take 49 to 81
# Set by the page itself: with these a text field could name any file of the machine.
OWN = ("output", "clip.path", "clip.start", "model.path", "generate.motion", "generate.output")


@dataclass(frozen=True)
class Crop:
    """What is cut off at each edge, in percent of height or width."""

    left: float = 0
    top: float = 0
    right: float = 0
    bottom: float = 0

    def slices(self, height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns that stay."""
        if self.left + self.right > 90 or self.top + self.bottom > 90 or min(self.edges) < 0:
            raise UserError(
                "The crop leaves nothing", "less than a tenth of the picture would stay", "Crop less"
            )
        rows = slice(round(height * self.top / 100), height - round(height * self.bottom / 100))
        return rows, slice(round(width * self.left / 100), width - round(width * self.right / 100))

    @property
    def edges(self) -> tuple[float, float, float, float]:
        return self.left, self.top, self.right, self.bottom


def begun(folder: Path) -> bool:
    """Whether a run has checkpoints, so that it can be resumed."""
    return any((folder / "checkpoints").glob("*"))


class Runs:
    """The run directories in `root`, and the base model that their commands use."""

    def __init__(self, root: Path, model: str = "embedded") -> None:
        self.root, self.model = root.resolve(), model
        self.root.mkdir(parents=True, exist_ok=True)

    def names(self) -> list[str]:
        """The runs, the one at work first, then the newest."""
        found = []
        for folder in self.root.iterdir():
            if self._is_run(folder):
                job = jobs.current(folder)
                found.append((job is not None and job.running, folder.stat().st_mtime, folder.name))
        return [name for _, _, name in sorted(found, reverse=True)]

    def _is_run(self, folder: Path) -> bool:
        return bool(
            NAME.fullmatch(folder.name)
            and folder.is_dir()
            and folder.resolve().parent == self.root
            and any((folder / name).is_file() for name in ("config.toml", "clip.mp4"))
        )

    def folder(self, name: str) -> Path:
        """The run's folder, which need not exist; UserError for a name that leads anywhere else."""
        folder = self.root / name
        if not NAME.fullmatch(name) or folder.resolve() != folder:
            raise UserError(
                f'"{name}" is no name for a run',
                "it becomes a folder's name",
                "Use letters, digits, dots, dashes and underscores",
            )
        return folder

    def existing(self, name: str | None) -> Path:
        """The folder of a run that has a clip."""
        if not name:
            raise UserError("No run is chosen", "it is where all results go", "Take a clip first (step 1)")
        folder = self.folder(name)
        if not self._is_run(folder):
            raise UserError(f"{name} is not there", "it has no clip yet", "Take a clip first (step 1)")
        return folder

    def file(self, folder: Path, path: Path) -> Path | None:
        """`path`, if it is a file that truly lies in the run's folder, wherever links lead."""
        true = path.resolve()
        return true if true.is_relative_to(folder.resolve()) and true.is_file() else None

    def take_clip(
        self, name: str, upload: Path, *, start: int = 0, frames: int = 0, crop: Crop | None = None
    ) -> Path:
        """Decodes an upload and keeps the part that was chosen as clip.mp4 of the run; returns that path.

        frames = 0 takes all from `start` on, at most LONGEST. What cannot be decoded is refused, whatever
        its name says.
        """
        folder = self.folder(name.strip())
        if begun(folder):
            raise UserError(
                f"{name} has learned from another clip", "a run has one clip", "Give this one a new name"
            )
        try:
            clip = read_clip(upload, start=start, frames=frames, at_most=LONGEST)
        except UserError as error:  # the user knows the file by its name only
            raise UserError(error.what.replace(str(upload), upload.name), error.why, error.fix) from None
        rows, columns = (crop or Crop()).slices(*clip.frames.shape[1:3])
        target = folder / "clip.mp4"
        write_clip(target, clip.frames[:, rows, columns], clip.fps)
        return target

    def settings(self, folder: Path, prompt: str, preset: str, lines: str) -> Config:
        """The configuration of a run from the page's fields; lines: "a.b = c", one setting a line."""
        assignments = [line.strip() for line in lines.splitlines() if line.strip()]
        for assignment in assignments:
            if (own := assignment.partition("=")[0].strip()) in OWN:
                raise UserError(f"{own} cannot be set here", "the page sets it itself", "Leave that line out")
        given = {
            "output": str(folder),
            "clip.path": str(folder / "clip.mp4"),
            "clip.prompt": prompt,
            "preset": preset,
            "model.path": self.model,
        }
        return load_config(None, given, assignments)

    def classify(self, name: str | None, prompt: str, preset: str, lines: str) -> jobs.Job:
        """Stage 1 alone, for a look at the head map."""
        folder = self._idle(name)
        self._not_begun(folder)
        config = self.settings(folder, prompt, preset, lines)
        checks.check_clip(config)
        return self._start(folder, "classify", config)

    def train(
        self, name: str | None, prompt: str, preset: str, lines: str, *, fresh: bool = False
    ) -> jobs.Job:
        """Starts the tuning with the page's settings; fresh: over again, what was learned is dropped."""
        folder = self._idle(name)
        if not fresh:
            self._not_begun(folder)
        config = self.settings(folder, prompt, preset, lines)
        checks.check_training(config)
        return self._start(folder, "train", config, *(["--fresh"] if fresh else []))

    def resume(self, name: str | None) -> jobs.Job:
        """Goes on where a stopped tuning is, with the settings it was started with."""
        folder = self._idle(name)
        return jobs.start(folder, "train", ["--config", str(folder / "config.toml"), "--output", str(folder)])

    def stop(self, name: str | None) -> None:
        """Ctrl-C for the run's job."""
        jobs.stop(self.existing(name))

    def generate(
        self, name: str | None, prompts: str, seeds: Sequence[int], scale: float, spatial_scale: float
    ) -> jobs.Job:
        """A clip for each prompt (one a line) and seed, into generated/ of the run."""
        folder = self._idle(name)
        motion = self.file(folder, folder / "motion.safetensors")
        if motion is None:
            raise UserError(f"{name} has no motion file yet", "tuning writes it at its end", "Tune first")
        given = {
            "generate.motion": [str(motion)],
            "generate.prompts": [line.strip() for line in prompts.splitlines() if line.strip()],
            "generate.seeds": list(seeds),
            "generate.temporal_scale": [scale],
            "generate.spatial_scale": [spatial_scale],
            "generate.output": str(folder / "generated" / "{index}-{prompt}-s{seed}.mp4"),
        }
        config = load_config(folder / "config.toml", given)
        checks.plan_generation(config)
        return self._start(folder, "generate", config)

    def generated(self, folder: Path) -> list[checks.Job]:
        """The clips asked for last, those first whose file is there."""
        try:
            planned = checks.plan_generation(load_config(folder / "generate.toml"))
        except UserError:
            return []
        return [job for job in planned if self.file(folder, job.path) is not None]

    def _idle(self, name: str | None) -> Path:
        """The run's folder, if nothing is at work in the root: two jobs would share one machine's memory."""
        folder = self.existing(name)
        for other in self.names():
            job = jobs.current(self.root / other)
            if job is not None and job.running:
                raise UserError(
                    f"{other} is busy", f"{job.kind} is at work, one job at a time", "Wait for it or stop it"
                )
        return folder

    def _not_begun(self, folder: Path) -> None:
        if begun(folder):
            raise UserError(
                f"{folder.name} has begun already",
                "starting again would drop what it has learned",
                "Press Resume, tick Start over, or take the clip under a new name",
            )

    def _start(self, folder: Path, kind: str, config: Config, *more: str) -> jobs.Job:
        file = folder / ("generate.toml" if kind == "generate" else "config.toml")
        write_file(file, to_toml(config))
        return jobs.start(folder, kind, ["--config", str(file), *more])
