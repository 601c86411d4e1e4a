"""Files that are whole or not there: everything is written under a temporary name, synced and renamed."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fym.errors import UserError


def write_file(path: Path, data: bytes | str) -> None:
    """Writes a file in one step: after a crash there is the old content or the new, never a part of it.

    Missing folders are made. Raises UserError where the folder cannot be written or the disk is full.
    """
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data.encode() if isinstance(data, str) else data)
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
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
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


def check_writable(folder: Path) -> None:
    """UserError unless files can be made in `folder` (it need not exist yet); leaves nothing behind."""
    nearest = folder
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    with _explained(folder):
        if not nearest.is_dir():
            raise NotADirectoryError(20, f"{nearest} is a file, not a folder")
        tempfile.TemporaryFile(dir=nearest).close()


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        advice = (
            "Free some space"
            if error.errno == 28
            else "Choose another place with -o, or give write permission"
        )
        raise UserError(f"{path} cannot be written", reason, advice) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
