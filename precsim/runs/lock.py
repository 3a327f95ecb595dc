"""One writer for each run directory: the LOCK file says who it is, and the system who still lives.

The lock is the kernel's (flock), so it ends with its process, however that ends.  The file's one
line (pid, host) is for people, for readers, and for what the kernel cannot decide: another machine.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from precsim.runs.files import DamagedError, RunError, explained, make_folder, remove
from precsim.runs.interrupt import Interrupted
from precsim.runs.lines import decode_line, encode_line

try:
    import fcntl
except ImportError:  # Windows: that the file exists is the lock
    fcntl = None  # type: ignore[assignment]

NAME = "LOCK"


class Lock:
    """Holds a run directory for this process, from `with` on to its end; makes the directory.

    Raises `RunError` where another process holds it, or the directory cannot be written.  A lock
    left by a process that is gone (kill -9, power cut) is taken over if it was on this machine.
    Once `writing` is set, an error leaves the file behind too, as a sign that the run was not closed.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self.writing = False
        self._file = -1

    def __enter__(self) -> Self:
        make_folder(self.path.parent)
        with explained(self.path):
            while not self._acquire():
                pass
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None or not self.writing or issubclass(kind, Interrupted):
                remove(self.path)
        finally:
            os.close(self._file)

    def _acquire(self) -> bool:
        """Take the lock; False if the file was another's who removed it at that moment."""
        held = owner(self.path)
        elsewhere = held is not None and held.get("host", _here()) != _here()
        if elsewhere or (held is not None and fcntl is None):
            raise RunError(self._refusal(held))
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if fcntl is not None:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self._is_current():
                os.ftruncate(self._file, 0)
                line = {"pid": os.getpid(), "host": _here()}
                os.write(self._file, encode_line(line))
                return True
        except BlockingIOError:
            os.close(self._file)
            raise RunError(self._refusal(owner(self.path))) from None
        except BaseException:
            os.close(self._file)
            raise
        os.close(self._file)
        return False

    def _is_current(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file), self.path.stat())
        except FileNotFoundError:
            return False

    def _refusal(self, held: dict[str, Any] | None) -> str:
        who = f"process {held['pid']} on {held['host']}" if held else "another process"
        return (
            f"{self.path.parent} is being written by {who}: wait for it, or write elsewhere "
            f"(if that process is gone, remove {self.path})"
        )


def owner(path: Path) -> dict[str, Any] | None:
    """Return who signed a LOCK file: {} if it cannot be read, None where there is no file."""
    try:
        signed = decode_line(path.read_bytes().removesuffix(b"\n"))
    except FileNotFoundError:
        return None
    except (OSError, DamagedError):
        return {}
    return signed if isinstance(signed.get("pid"), int) and "host" in signed else {}


def is_held(folder: Path) -> bool:
    """Return whether a run directory is being written, as far as its LOCK file tells.

    A process on another machine counts as alive; so does any on Windows.
    """
    held = owner(folder / NAME)
    if not held:
        return False
    if fcntl is None or held["host"] != _here():
        return True
    try:
        os.kill(held["pid"], 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True


def _here() -> str:
    return socket.gethostname()
