"""When memory or disk runs out: what lowers the need, and by how much."""

from __future__ import annotations

import errno
import gc
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fym.checkpoint import progress
from fym.config import Config
from fym.errors import UserError
from fym.files import DISK_FULL, DiskFullError

NO_MEMORY = re.compile(
    r"out of memory|can(?:'t|not) allocate|not enough memory|insufficient memory|failed to allocate|"
    r"ALLOC_FAILED|bad allocation|bad_alloc",
    re.IGNORECASE,
)
ASKED = re.compile(r"allocate ([\d.]+) ?(bytes|[KMGT]i?B)", re.IGNORECASE)
FRAMES = "fewer or smaller frames (--frames, --height, --width)"


def explain(error: BaseException) -> UserError | None:
    """What any command says where memory or disk ran out; None for other errors."""
    if out_of_memory(error):
        advice = f"Take {FRAMES}, or --set model.vae=tiled; free memory that other programs hold"
        return UserError("Out of memory", _asked(error), advice)
    if disk_full(error):
        place = getattr(error, "filename", None) or "A file"
        return DiskFullError(f"{place} cannot be written", "the disk is full", "Free some space")
    return None


def out_of_memory(error: BaseException) -> bool:
    """Of the machine or of a GPU, whichever library tells."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return not isinstance(error, UserError) and bool(NO_MEMORY.search(str(error)))


def disk_full(error: BaseException) -> bool:
    return isinstance(error, DiskFullError) or (isinstance(error, OSError) and error.errno in DISK_FULL)


@contextmanager
def advising(config: Config, run_dir: Path) -> Iterator[None]:
    """A tuning run in the block that runs out of memory or disk ends in a UserError that names the settings
    to change and what each of them saves."""
    try:
        yield
    except Exception as error:
        if out_of_memory(error):
            why = _asked(error)
            traceback.clear_frames(error.__traceback__)  # they hold every tensor
            gc.collect()
            raise _less_memory(why, config, run_dir) from error
        if disk_full(error):
            raise _less_disk(error, config, run_dir) from error
        raise


def _asked(error: BaseException) -> str:
    size = ASKED.search(str(error))
    if size is None:
        return "there is no more to be had"
    number, unit = size.groups()
    if unit == "bytes":
        return f"{_size(float(number))} more were asked for"
    return f"{number} {unit} more were asked for"


def _less_memory(why: str, config: Config, run_dir: Path) -> UserError:
    try:
        lines = _computed(config)
    except Exception:  # memory is short, and no advice may hide what happened
        lines = [
            "tune.recompute=block: about a third of the activations, a third more time",
            "model.vae=tiled: encoding and clips take tiles",
        ]
    lines.append(f"{FRAMES}, --sparse-frames: in proportion")
    batches = [f"{s}.batch_size" for s in ("spatial", "temporal") if getattr(config, s).batch_size > 1]
    lines += [f"{name}=1: the activations of one sample" for name in batches]
    if config.model.device in ("auto", "cpu"):
        lines.append("MALLOC_MMAP_THRESHOLD_=65536 before the command: on a CPU, what is freed is given back")
    return UserError(
        f"Out of memory, {why}; this lowers the peak",
        "\n".join(f"  - {line}" for line in lines),
        f"Add one with --set; with tune.recompute and model.offload the run goes on {progress(run_dir)}, "
        "with others it needs --fresh; --dry-run shows the peak of every phase",
    )


def _computed(config: Config) -> list[str]:
    """The settings with a lower peak than the run's own, as the planner computes it."""
    from fym.families.loading import default_dtype
    from fym.families.skeleton import skeleton
    from fym.fit import as_configured, target, ways
    from fym.material import read_references
    from fym.ranks import launched

    dtype = config.model.dtype if config.model.dtype != "auto" else default_dtype(config.model.device)
    family = skeleton(config.model.path, dtype)
    clips = read_references(config.clip, family)
    frames, height, width = max(tuple(clip.frames.shape[:3]) for clip in clips)
    found = ways(family, config, (frames, height, width), target(None, config.model.device, launched().size))
    now = as_configured(found, config).worst.peak
    return [
        " ".join(f"{name}={value}" for name, value in fit.options.items())
        + f": {_size(fit.worst.peak)} instead of {_size(now)}, as computed"
        for fit in found
        if fit.worst.peak < 0.98 * now
    ]


def _less_disk(error: BaseException, config: Config, run_dir: Path) -> DiskFullError:
    known = error if isinstance(error, DiskFullError) else explain(error)
    assert isinstance(known, DiskFullError)
    checkpoints = [path.stat().st_size for path in (run_dir / "checkpoints").glob("*.safetensors")]
    lines = []
    if checkpoints and config.tune.keep > 1:
        saved = (config.tune.keep - 1) * max(checkpoints)
        lines.append(f"--set tune.keep=1: {_size(saved)} less for checkpoints")
    if config.tune.sample_every:
        lines.append("--set tune.sample_every=0: no sample clips but the last ones")
    if (run_dir / "cache").is_dir():
        size = sum(path.stat().st_size for path in (run_dir / "cache").iterdir())
        lines.append(f"rm -r {run_dir / 'cache'}: {_size(size)}, made again when the run goes on")
    lines.append("room on the disk")
    return DiskFullError(
        f"{known.what}, {known.why}; this helps",
        "\n".join(f"  - {line}" for line in lines),
        f"Then the same command goes on {progress(run_dir)}",
    )


def _size(count: float) -> str:
    """Bytes as people say them."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} bytes"
