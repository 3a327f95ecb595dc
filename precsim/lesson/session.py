"""One run of a lesson: how much it computes, what it found, and what its lines look like."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.text import Text

from precsim.show.terminal import console

Mode = Literal["quick", "normal", "full"]
"""quick: for tests, shorter sweeps, same logic.  normal: one seed.  full: every seed."""


class LessonError(AssertionError):
    """A claim of a lesson does not hold; the message names it and what was measured."""


@dataclass(frozen=True)
class Check:
    """A claim, where it comes from, what was measured, and whether it holds."""

    claim: str
    source: str
    measured: Any
    holds: bool


@dataclass(frozen=True)
class Exercise:
    """An exercise as the lesson poses it; `state` is that of the reader's function.

    `judge` compares any other function with the specification.
    """

    name: str
    state: str
    judge: Callable[[Callable[..., Any]], Any] = field(repr=False)


@dataclass
class Session:
    """A lesson that runs: its mode, where its figures go (None: beside it), and what it found.

    `answers`: a prediction that nobody has made is answered all the same; otherwise it comes first.
    """

    mode: Mode = "normal"
    figures: Path | None = None
    answers: bool = False
    checks: list[Check] = field(default_factory=list)
    predictions: dict[str, bool | None] = field(default_factory=dict)
    exercises: list[Exercise] = field(default_factory=list)
    saved: list[Path] = field(default_factory=list)


_running: ContextVar[Session | None] = ContextVar("lesson", default=None)


@contextmanager
def running(session: Session) -> Iterator[Session]:
    """Let what lessons call in this block go to `session`."""
    token = _running.set(session)
    try:
        yield session
    finally:
        _running.reset(token)


def current() -> Session:
    """Return the session of the lesson that runs; that of the process, if it is a plain script."""
    return _running.get() or _script()


@cache
def _script() -> Session:
    # A notebook that a program executes is a process of its own: no context reaches into it.
    mode: Mode = "quick" if os.environ.get("PRECSIM_QUICK") == "1" else "normal"
    answers = os.environ.get("PRECSIM_ANSWERS") == "1" or "--answers" in sys.argv[1:]
    return Session(mode, answers=answers)


def in_a_session() -> bool:
    """Return whether a program runs the lesson, which can be told how it ended."""
    return _running.get() is not None


def in_a_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    return "ipykernel" in sys.modules


def quick() -> bool:
    """Return whether this is a test run: then a lesson shortens its sweeps, never its logic."""
    return current().mode == "quick"


def seeds(n: int = 3) -> list[int]:
    """Return the seeds to run: 0, and in full mode 0 to n - 1.

    Figures are drawn from the first, so that every mode but quick draws the same.  Raises
    `ValueError` for fewer than one.
    """
    if n < 1:
        msg = f"seeds({n}): expected at least one"
        raise ValueError(msg)
    return list(range(n if current().mode == "full" else 1))


def check(claim: str, holds: Any, measured: Any = None, source: str = "") -> None:
    """Print whether a claim holds, and remember it; raise `LessonError` where it does not.

    An array holds if all of it does; NaN compares false, and so does not hold.  `measured` is shown
    beside the claim; `source` says who made it: "Wang et al. 2018, figure 3b".
    """
    good = bool(np.all(holds))
    current().checks.append(Check(claim, source, measured, good))
    told = "" if measured is None else f"  {unbroken(f'(measured {shown(measured)})')}"
    say("holds    " if good else "FAILS    ", f"{claim}{told}", "green" if good else "bold red")
    if not good:
        found = "" if measured is None else f"; measured: {shown(measured)}"
        msg = (
            f"this claim does not hold: {claim}{found}.  If you changed the lesson, that may be "
            "what you wanted to find out; if not, please report it"
        )
        raise LessonError(msg)


def shown(value: Any) -> str:
    """Return a value as a lesson prints it: four digits of a number, eight numbers of an array."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        parts = [shown(one) for one in value[:8]] + ["..."] * (len(value) > 8)
        return ", ".join(parts)
    return str(value)


def say(label: str, text: str, style: str = "") -> None:
    """Print a line that starts with a coloured word; what has no room goes on below its text."""
    out = console(sys.stdout, os.environ)
    room = max(out.width - len(label), 20)
    lines = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False)
    rest = f"\n{' ' * len(label)}".join(lines)
    out.print(Text.assemble((label, style), rest.replace("\xa0", " ")), soft_wrap=True)


def unbroken(text: str) -> str:
    """Return a few words that `say` keeps on one line."""
    return text.replace(" ", "\xa0") if len(text) < 40 else text
