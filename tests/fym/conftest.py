"""Fixtures of the tests of fym."""

from __future__ import annotations

from pathlib import Path

import pytest
from recordings import numbered, write_video


@pytest.fixture
def clip_file(tmp_path: Path) -> Path:
    return write_video(tmp_path / "clip.mp4", numbered(30))
