"""What is checked of a motion file before its tensors are read: the file, its header, and fym's record in it.

A file may come from anywhere. Time and memory are bounded by the sizes below, and nothing is ever unpickled.
"""

from __future__ import annotations

import itertools
import json
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeGuard

from fym.errors import UserError

FORMAT = 1
LARGEST_HEADER = (
    8 << 20
)  # bytes; that of a 14B model at all heads takes 100 kB, safetensors would take 100 MB
LARGEST_FILE = 8 << 30  # ten times a 14B model at rank 128 in float32
MOST_LAYERS = 1000
LARGEST_NUMBER = 1e30
PICKLES = ("PK\x03\x04", *(f"\x80{chr(protocol)}" for protocol in range(1, 6)))  # zip of torch.save; plain


def refuse(path: Path, why: str, error: BaseException | None = None) -> NoReturn:
    advice = "Use another copy of it, or make it again with fym train"
    raise UserError(f"{path} is not a motion file", why, advice) from error


def check_container(path: Path) -> None:
    """UserError for what can be told before the safetensors library parses the file."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            refuse(path, "it is a folder" if stat.S_ISDIR(status.st_mode) else "it is not an ordinary file")
        with path.open("rb") as file:
            start = file.read(9)
            length = int.from_bytes(start[:8], "little")
            if len(start) < 9 or start[8:] != b"{" or length > LARGEST_HEADER:
                refuse(path, _instead(start, length))
            header = start[8:] + file.read(length - 1)
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError)
        why = "there is no such file" if missing else getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path} cannot be read", why, "fym train writes motion files") from error
    if status.st_size > LARGEST_FILE:
        refuse(path, f"it takes {status.st_size >> 30} GiB, more than any motion file")
    if len(header) < length:
        refuse(path, "it is cut off within its header")
    try:
        json.loads(header.decode(), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        refuse(path, f"its header is damaged ({error})", error)


def _instead(start: bytes, length: int) -> str:
    if not start:
        return "it is empty"
    if start.decode("latin1").startswith(PICKLES):
        return "it is a pickle or a zip file; fym opens none, because a pickle can run any program"
    if start[8:] == b"{":
        return f"its header claims {length} bytes, more than any motion file's"
    return "it is not a safetensors file"


def _no_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("it names something twice")
    return found


def parse_record(text: str | None) -> dict[str, Any]:
    """fym's record out of a header; ValueError for one whose fields are missing or of the wrong kind."""
    if text is None:
        raise ValueError("its header has no record of fym, so the head map and the model are unknown")
    record = json.loads(text, object_pairs_hook=_no_duplicates)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError("its header is not one of this version of fym")
    for name in ("num_heads", "head_dim", "rank"):
        if type(record.get(name)) is not int or record[name] < 1:
            raise ValueError(f"{name} in its header is {record.get(name)!r:.40}, not a whole number above 0")
    alpha = record.get("alpha")
    if not _is_number(alpha) or alpha < 0:
        raise ValueError(f"alpha in its header is {alpha!r:.40}, not a number from 0 up")
    if record.get("targets") not in ("qkv", "qkvo"):
        raise ValueError(f'targets in its header is {record.get("targets")!r:.40}, not "qkv" or "qkvo"')
    heads = record.get("heads")
    if (
        not isinstance(heads, list)
        or len(heads) > MOST_LAYERS
        or not all(_is_head_list(some, record["num_heads"]) for some in heads)
    ):
        raise ValueError("the head map in its header is not a sorted list of head numbers for each layer")
    if not isinstance(record.get("family", ""), str):
        raise ValueError("family in its header is not a text")
    if not _are_groups(record.get("layer_groups", [len(heads)]), len(heads)):
        raise ValueError("the kinds of layers in its header do not add up to its head map")
    for name in ("kind", "model_id", "model_hash", "pair"):
        if not isinstance(record.get(name), str):
            raise ValueError(f"{name} in its header is missing or not a text")
    if not _is_level(record.get("lowest_noise", 0.0)):
        raise ValueError("lowest_noise in its header is not a number from 0 to 1")
    if not _is_guidance(record.get("guidance_scale", 0.0)):
        raise ValueError("guidance_scale in its header is not a number from 0 up")
    parts = record.get("parts", [])
    if not isinstance(parts, list) or not all(map(_is_part, parts)):
        raise ValueError("the parts in its header are not a list of ranks and noise levels")
    if parts and sum(part["rank"] for part in parts) != record["rank"]:
        raise ValueError("the ranks of the parts in its header do not add up")
    return record


def _is_head_list(heads: Any, num_heads: int) -> bool:
    return (
        isinstance(heads, list)
        and all(type(head) is int and 0 <= head < num_heads for head in heads)
        and all(one < other for one, other in itertools.pairwise(heads))
    )


def _are_groups(groups: Any, layers: int) -> bool:
    return (
        isinstance(groups, list)
        and all(type(count) is int and count >= 0 for count in groups)
        and sum(groups) == layers
    )


def _is_level(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _is_guidance(value: Any) -> bool:
    return _is_number(value) and value >= 0


def _is_number(value: Any) -> TypeGuard[float]:
    return type(value) in (int, float) and abs(value) < LARGEST_NUMBER  # which NaN is not


def _is_part(part: Any) -> bool:
    return (
        isinstance(part, dict)
        and type(part.get("rank")) is int
        and part["rank"] >= 1
        and _is_level(part.get("lowest_noise"))
        and _is_number(part.get("scale", 1.0))
        and _is_guidance(part.get("guidance_scale", 0.0))
    )
