"""TensorBoard shows what train.jsonl holds, also after a run was killed, and the sample clips."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image

from fym.config_file import load_config
from fym.errors import UserError
from fym.runlog import StepLog
from fym.trackers import TensorBoard, check_tracker, open_tracker

WANTED = load_config(None, {"tune.tensorboard": True}).tune


def row(stage, step):
    return {"stage": stage, "step": step, "loss": step / 4, "seconds": 0.5}


def curve(folder, stage, tag="loss"):
    """(step, value) of every event of a curve, in the order of the files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    seen = EventAccumulator(str(folder / stage))
    seen.Reload()
    return [(event.step, event.value) for event in seen.Scalars(tag)]


def test_curves_are_those_of_the_log_after_a_kill_too(tmp_path):
    board = TensorBoard(tmp_path / "tensorboard")
    log = StepLog(tmp_path / "train.jsonl", tracker=board)
    for stage in ("spatial", "temporal"):
        for step in range(1, 5):
            log.write(row(stage, step))
    log.close()
    # Resumed after step 2 of the temporal stage: what was there beyond it is written again, once.
    log = StepLog(tmp_path / "train.jsonl", "temporal", 2, TensorBoard(tmp_path / "tensorboard"))
    log.write(row("temporal", 3))
    log.close()
    assert curve(board.folder, "spatial") == [(step, step / 4) for step in range(1, 5)]
    assert curve(board.folder, "temporal") == [(step, step / 4) for step in range(1, 4)]
    assert curve(board.folder, "temporal", "seconds") == [(step, 0.5) for step in range(1, 4)]


def test_samples_move(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoard(tmp_path)
    frames = torch.arange(5, dtype=torch.uint8).mul(40)[:, None, None, None].expand(5, 16, 24, 3)
    board.clip("a ball, seed 3", frames, 8, step=100)
    board.replay([row("spatial", 1)])
    seen = EventAccumulator(str(tmp_path / "samples"))
    seen.Reload()
    [picture] = seen.Images("a ball, seed 3")
    assert (picture.step, picture.width, picture.height) == (100, 24, 16)
    assert Image.open(io.BytesIO(picture.encoded_image_string)).n_frames == 5


def test_it_is_optional(tmp_path, monkeypatch):
    assert open_tracker(load_config().tune, tmp_path) is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_tracker(load_config().tune)
    with pytest.raises(UserError, match=r"tensorboard is not installed\. pip install 'fym\[tensorboard\]'"):
        check_tracker(WANTED)
