"""The clips a run makes with its own motion file, and the list of them that the report reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fym.config import GenerateConfig
from fym.families.base import Family
from fym.files import write_file
from fym.generate import one_clip
from fym.motion_file import MotionFile
from fym.trackers import TensorBoard
from fym.video import write_clip


class Samples:
    """samples/ of a run: one clip per prompt, seed and step, listed in samples.json."""

    def __init__(
        self,
        run_dir: Path,
        config: GenerateConfig,
        captions: list[str],
        tracker: TensorBoard | None = None,
        *,
        writes: bool = True,
    ) -> None:
        """writes: False for processes that only help to make the clips."""
        self.writes = writes
        self.folder, self.config, self.tracker = run_dir / "samples", config, tracker
        self.prompts = config.prompts or list(dict.fromkeys(captions))
        self._list = self.folder / "samples.json"

    def encode(self, family: Family) -> None:
        """What `make` needs of the text encoders, which may be freed then."""
        family.encode_prompts([*self.prompts, self.config.negative_prompt])

    def make(self, family: Family, motion: MotionFile, step: int) -> None:
        """Generates what is not there yet, the way `fym generate` does."""
        config = self.config
        rows = self._rows()
        for index, prompt in enumerate(self.prompts):
            for seed in config.seeds:
                wanted = {"prompt": prompt, "seed": seed, "kind": "motion", "step": step}
                if any(
                    wanted.items() <= row.items() and (self.folder / row["file"]).exists() for row in rows
                ):
                    continue
                frames = one_clip(family, config, prompt, seed, motion=motion)
                if not self.writes:
                    continue
                name = f"step-{step:06d}-{index}-s{seed}.mp4"
                write_clip(self.folder / name, frames, family.default_fps)
                rows = [row for row in rows if row["file"] != name] + [{"file": name, **wanted}]
                write_file(self._list, json.dumps(rows, indent=1) + "\n")
                if self.tracker is not None:
                    self.tracker.clip(f"{prompt}, seed {seed}", frames, family.default_fps, step)

    def _rows(self) -> list[dict[str, Any]]:
        try:
            return json.loads(self._list.read_text("utf-8"))
        except (OSError, ValueError):
            return []
