"""On what a run is made: the machine, the versions, the kernels. Each go of a run is recorded."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import fym_kernels
from fym import __version__
from fym.files import write_file
from fym.machine import cores, cpu_name, installed, memory_bytes

PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "safetensors",
    "numpy",
    "av",
    "opencv-python-headless",
    "triton",
    "bitsandbytes",
)
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
SETTINGS = ("FYM_KERNELS_BACKEND", "TRITON_INTERPRET", "OMP_NUM_THREADS", CUBLAS)


def environment(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What the bits of a result depend on beside its settings; a model runs on `device` in `dtype`."""
    found: dict[str, Any] = {
        "system": platform.platform(),
        "cpu": cpu_name(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(memory_bytes() / (1 << 30), 1),
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "python": platform.python_version(),
        "versions": {"fym": __version__} | {name: installed(name) for name in PACKAGES},
        "kernels": {choice.op: choice.backend for choice in fym_kernels.explain(device.type, (dtype,))},
        "settings": {name: os.environ[name] for name in SETTINGS if name in os.environ},
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
        found["cuda"] = torch.version.cuda
    return found


def record(run_dir: Path, device: torch.device, dtype: torch.dtype) -> list[str]:
    """Writes environment.json, a list: an entry for each go of a run in surroundings unlike the one before.

    Returns how they differ, a line each, where a run goes on in other ones.
    """
    path, now = run_dir / "environment.json", environment(device, dtype)
    try:
        goes = list(json.loads(path.read_text("utf-8")))
        before = {name: value for name, value in goes[-1].items() if name != "date"}
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        goes, before = [], now
    if not goes or before != now:
        goes.append({"date": datetime.now(timezone.utc).isoformat(timespec="seconds"), **now})
        write_file(path, json.dumps(goes, indent=1) + "\n")
    had, has = _flat(before), _flat(now)
    return [
        f"{name}: {had.get(name)} then, {has.get(name)} now"
        for name in sorted(had.keys() | has.keys())
        if had.get(name) != has.get(name)
    ]


@contextmanager
def deterministic(on: bool) -> Iterator[None]:
    """On a GPU, only algorithms that give the same bits each time; PyTorch warns where it has none.

    On the CPU the same environment gives the same bits anyway.
    """
    if not on:
        yield
        return
    before = torch.get_deterministic_debug_mode()
    asked = os.environ.get(CUBLAS)
    os.environ.setdefault(CUBLAS, ":4096:8")  # else cuBLAS may sum in another order
    torch.set_deterministic_debug_mode("warn")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)
        if asked is None:
            del os.environ[CUBLAS]


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in table.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
