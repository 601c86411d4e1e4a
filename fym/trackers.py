"""TensorBoard as a second reader of what a run writes: its steps (train.jsonl) and its sample clips."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fym.config import TuneConfig
from fym.errors import UserError
from fym.video import encode_gif

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"
SAMPLES = "samples"


def check_tracker(config: TuneConfig) -> None:
    """UserError where TensorBoard is wanted and not installed."""
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UserError(
            "tune.tensorboard cannot be followed",
            "the package tensorboard is not installed",
            "pip install 'fym[tensorboard]', or leave it out: train.jsonl has the same figures",
        )


def open_tracker(config: TuneConfig, run_dir: Path) -> TensorBoard | None:
    """The run's tracker, if it is to have one."""
    check_tracker(config)
    return TensorBoard(run_dir / FOLDER) if config.tensorboard else None


class TensorBoard:
    """A curve of every figure for each stage, at the stage's own steps, and the sample clips."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writers: dict[str, SummaryWriter] = {}

    def replay(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Begins the curves again with `rows`: those of a killed process may lack some or have too many."""
        for path in self.folder.glob("*"):
            if path.name != SAMPLES:
                shutil.rmtree(path, ignore_errors=True)
        for row in rows:
            self.write(row)

    def write(self, row: Mapping[str, Any]) -> None:
        """A row of train.jsonl."""
        writer = self._writers.get(row["stage"])
        if writer is None:
            writer = self._writers[row["stage"]] = _writer(self.folder / row["stage"])
        for name, value in row.items():
            if name not in ("stage", "step"):
                writer.add_scalar(name, value, row["step"])

    def clip(self, name: str, frames: Tensor, fps: float, step: int) -> None:
        """A sample, (F,H,W,3) uint8, as an animation among the pictures."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        height, width = frames.shape[1:3]
        gif = encode_gif(frames.cpu().numpy(), fps)
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=gif)
        with _writer(self.folder / SAMPLES) as writer:
            summary = Summary(value=[Summary.Value(tag=name, image=image)])
            writer._get_file_writer().add_summary(summary, step)

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()


def _writer(folder: Path) -> SummaryWriter:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))
