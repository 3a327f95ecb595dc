"""The only code that changes a run's directory: whole files at once, or one line at the end.

A file is written beside its place, brought to the disk (fsync), and renamed: whoever looks sees the
old one, the new one, or none, never a part.  A line is appended with one write; a crash can leave a
part of the last one, which has no newline.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TEMPORARY = ".tmp"
"""Ending of a file that is being written; one that is left over is a crash's, and of no use."""


class RunError(ValueError):
    """A run's directory cannot be made, read or continued; the message says why, and what to try."""


class DamagedError(RunError):
    """A file is not what was written; nothing of it was used."""


class UnreadableError(RunError):
    """A file or a folder is there and cannot be read; it may be whole, so it counts as no damage."""


class DiskFullError(RunError):
    """There is no room for a file; what was written before is whole."""


def make_folder(path: Path) -> None:
    """Make a folder and those above it; one that exists is fine."""
    with explained(path):
        path.mkdir(parents=True, exist_ok=True)


def write_file(path: Path, data: bytes) -> None:
    """Make `data` the content of a file, or leave it as it was and raise `RunError`."""
    temporary = path.with_name(path.name + TEMPORARY)
    with explained(path):
        try:
            file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            try:
                _write(file, data)
                os.fsync(file)
            finally:
                os.close(file)
            os.replace(temporary, path)
        except OSError:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        sync_folder(path.parent)


class Appender:
    """A file of lines that grows at its end.  Raises `RunError` where it cannot."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with explained(path):
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            sync_folder(path.parent)

    def append(self, line: bytes, *, sync: bool = False) -> None:
        """Add a line, wholly or not at all; `sync` brings it to the disk before returning.

        Without `sync` it survives the end of this process, but not that of the machine.
        """
        with explained(self.path):
            size = os.fstat(self._file).st_size
            try:
                _write(self._file, line)
                if sync:
                    os.fsync(self._file)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(self._file, size)
                raise

    def sync(self) -> None:
        """Bring what was appended to the disk."""
        with explained(self.path):
            os.fsync(self._file)

    def close(self) -> None:
        """Give the file back."""
        os.close(self._file)


def remove(path: Path) -> None:
    """Remove a file; one that is gone is fine."""
    with explained(path), suppress(FileNotFoundError):
        os.unlink(path)


def sync_folder(path: Path) -> None:
    """Bring a folder's list of names to the disk, where the system has a way to."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows
        return
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_file(path: Path, limit: int) -> bytes:
    """Return a file's content.

    Raises `DamagedError` if it is missing, no regular file, or longer than `limit`, and
    `UnreadableError` if it is there and the system does not let it be read.
    """
    where = f"{path.parent.name}/{path.name}"
    with readable(path):
        try:
            found = path.stat()
            if not stat.S_ISREG(found.st_mode):
                msg = f"{where} is not a regular file"
                raise DamagedError(msg)
            if found.st_size > limit:
                msg = f"{where} has {found.st_size} bytes: expected at most {limit}"
                raise DamagedError(msg)
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):  # also: gone since its size was asked for
            msg = f"{where} is missing"
            raise DamagedError(msg) from None


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn the system's errors in reading into one sentence."""
    try:
        yield
    except OSError as error:
        msg = f"{path.parent.name}/{path.name} cannot be read: {error.strerror}"
        raise UnreadableError(msg) from error


def _write(file: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(file, left) :]


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the system's errors into one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            msg = f"no room on the disk for {path}"
            raise DiskFullError(msg) from error
        msg = f"cannot write {path}: {error.strerror}; try a directory that you may write to"
        raise RunError(msg) from error
