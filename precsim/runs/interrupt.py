"""Ctrl-C during a run that is recorded: the first finishes the step, the second stops now."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Self


class Interrupted(KeyboardInterrupt):
    """A run stopped on request, with a checkpoint to continue from; the message says how."""

    def __init__(self, folder: Path, step: int) -> None:
        super().__init__(f"stopped before step {step}; continue with `precsim resume {folder}`")
        self.folder = folder
        self.step = step


class Interruption:
    """While it is entered, and if `active`, the first Ctrl-C only sets `requested`.

    One that is entered within another tells that one, too.  Elsewhere than in the main thread, and
    where Ctrl-C is ignored (nohup), it changes nothing.
    """

    def __init__(self, *, active: bool) -> None:
        self.requested = False
        self._active = active

    def __enter__(self) -> Self:
        self._before = signal.getsignal(signal.SIGINT)
        main = threading.current_thread() is threading.main_thread()
        self._installed = self._active and main and callable(self._before)
        if self._installed:
            signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, self._before)
        around = getattr(self._before, "__self__", None)
        if isinstance(around, Interruption):  # of several runs in a row, they are over, too
            around._note(number, frame)
