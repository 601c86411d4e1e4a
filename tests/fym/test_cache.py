"""The cache returns what was made, makes it once, and never trusts a broken file."""

from __future__ import annotations

import os

import pytest
import torch

from fym.cache import describe, get_or_make
from fym.errors import UserError

KEY = {"clip": "ab12", "frames": [0, 4, 8], "size": (48, 48), "dtype": "float32"}


class Maker:
    """Counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> dict[str, torch.Tensor]:
        self.calls += 1
        base = torch.arange(24.0).reshape(4, 6)
        return {
            "latents": base.t(),  # not contiguous
            "half": base[:2].to(torch.bfloat16),
            "one": torch.tensor(self.calls),
            "alias": base,  # shares its memory with another
        }


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def test_made_once_and_the_same_bits_later(tmp_path):
    make = Maker()
    first = get_or_make(tmp_path / "new" / "cache", KEY, make)
    second = get_or_make(tmp_path / "new" / "cache", dict(reversed(KEY.items())), make)
    assert make.calls == 1 and same(first, second)


def test_every_part_of_the_key_counts(tmp_path):
    make = Maker()
    get_or_make(tmp_path, KEY, make)
    for change in ({"clip": "ab13"}, {"frames": [0, 4, 9]}, {"dtype": "bfloat16"}, {"extra": None}):
        get_or_make(tmp_path, KEY | change, make)
    assert make.calls == 5 and len(os.listdir(tmp_path)) == 5


@pytest.mark.parametrize("damage", [b"", b"\x08\0\0\0\0\0\0\0garbage!", "half"])
def test_broken_file_is_made_again(tmp_path, damage):
    make = Maker()
    first = get_or_make(tmp_path, KEY, make)
    file = next(tmp_path.iterdir())
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2] if damage == "half" else damage)
    again = get_or_make(tmp_path, KEY, make)
    assert make.calls == 2 and torch.equal(again["latents"], first["latents"])
    get_or_make(tmp_path, KEY, make)
    assert make.calls == 2  # the repaired file is used


def test_file_of_another_key_is_not_used(tmp_path):
    """A file renamed or a hash collision: the key inside decides."""
    make = Maker()
    get_or_make(tmp_path, KEY, make)
    file = next(tmp_path.iterdir())
    data = file.read_bytes()
    get_or_make(tmp_path, KEY | {"clip": "other"}, make)
    other = next(f for f in tmp_path.iterdir() if f != file)
    other.write_bytes(data)
    assert get_or_make(tmp_path, KEY | {"clip": "other"}, make)["one"] == 3


def test_failed_make_stores_nothing(tmp_path):
    def fail():
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError):
        get_or_make(tmp_path, KEY, fail)
    assert os.listdir(tmp_path) == []


def test_key_and_folder_that_cannot_be(tmp_path):
    with pytest.raises(TypeError):
        describe({"tensor": torch.zeros(2)})
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written"):
        get_or_make(tmp_path / "file", KEY, Maker())
