"""Files that are whole or not there: everything is written under a temporary name, synced and renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fym.errors import UserError

PART = ".part"  # how the names of unfinished files end
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class DiskFullError(UserError):
    """There is no room for a file, on the disk or in the user's quota of it."""


def write_file(path: Path, data: bytes | str) -> None:
    """Writes a file in one step: after a crash there is the old content or the new, never a part of it.

    Missing folders are made. Raises UserError where the folder cannot be written, DiskFullError where there
    is no room.
    """
    data = data.encode() if isinstance(data, str) else data
    with explained(path, len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(PART, f".{path.name}.", path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes private files
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to fill; it takes the place of `path` when the block ends without an exception."""
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(PART, f".{path.name}.", path.parent))
        try:
            os.chmod(temporary, 0o777 & ~_umask())
            yield temporary
            old = temporary.with_name(temporary.name + ".old")
            if path.exists():
                os.replace(path, old)
            os.replace(temporary, path)
            shutil.rmtree(old, ignore_errors=True)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def remove_parts(folder: Path) -> None:
    """Removes what killed processes left unfinished in `folder` and below it; none may be writing there."""
    for path in list(folder.rglob(f".*{PART}")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """UserError unless files can be made in `folder` (it need not exist yet); leaves nothing behind."""
    nearest = folder
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    with explained(folder):
        if not nearest.is_dir():
            raise NotADirectoryError(20, f"{nearest} is a file, not a folder")
        tempfile.TemporaryFile(dir=nearest).close()


@contextlib.contextmanager
def explained(path: Path, size: int = 0) -> Iterator[None]:
    """Errors of the system, in the block, as UserErrors about `path`, for which `size` bytes are needed."""
    try:
        yield
    except OSError as error:
        reason, what = error.strerror or str(error), f"{path} cannot be written"
        if error.errno in DISK_FULL:
            if size:
                reason += f", it takes {size / 1e6:.2f} MB"
            raise DiskFullError(what, reason, "Free some space, or choose another place with -o") from error
        raise UserError(what, reason, "Choose another place with -o, or give write permission") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
