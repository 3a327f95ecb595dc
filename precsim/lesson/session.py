"""One run of a lesson: how much it computes, what it found, and what the reader guessed."""

from __future__ import annotations

import os
import sys
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
    """A lesson that runs: its mode, where its figures go (None: beside it), and what it found."""

    mode: Mode = "normal"
    figures: Path | None = None
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
    return Session("quick" if os.environ.get("PRECSIM_QUICK") == "1" else "normal")


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
    told = "" if measured is None else f"  (measured {shown(measured)})"
    say("holds    " if good else "FAILS    ", f"{claim}{told}", "green" if good else "bold red")
    if not good:
        found = "" if measured is None else f"; measured: {shown(measured)}"
        msg = (
            f"this claim does not hold: {claim}{found}.  If you changed the lesson, that may be "
            "what you wanted to find out; if not, please report it"
        )
        raise LessonError(msg)


def predict(
    question: str, guess: Any, answer: Any, tol: float | None = None, unit: str = ""
) -> None:
    """Print the reader's guess beside what was measured.

    A guess of None is "not attempted", and no guess is an error, of whatever type it is.  Numbers
    are right within `tol` (None: 5 % of the answer; whole numbers exactly); anything else is right
    if it is equal, where a tuple is a list, and a word alone is a list of one.
    """
    unit = f" {unit}" if unit else ""
    if guess is None:
        current().predictions[question] = None
        told, style = f"{shown(answer)}{unit}  (not attempted: guess, and run again)", "dim"
    else:
        right = _right(guess, answer, tol)
        current().predictions[question] = right
        verdict, style = ("right", "green") if right else ("look again", "yellow")
        said = (
            repr(guess) if isinstance(guess, str) and not isinstance(answer, str) else shown(guess)
        )
        told = f"you said {said}{unit}, measured {shown(answer)}{unit}  ({verdict})"
    say("predict  ", f"{question}: {told}", style)


def _right(guess: Any, answer: Any, tol: float | None) -> bool:
    try:
        if tol is None:
            tol = 0.0 if np.asarray(answer).dtype.kind in "iub" else 0.05 * abs(answer)
        return bool(np.all(np.abs(np.asarray(guess) - np.asarray(answer)) <= tol))
    except (TypeError, ValueError):  # not numbers
        if isinstance(answer, list | tuple):
            return _listed(guess) == _listed(answer)
        return bool(np.all(guess == answer))


def _listed(value: Any) -> list[Any]:
    value = value.tolist() if isinstance(value, np.ndarray) else value
    return list(value) if isinstance(value, list | tuple) else [value]


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
    """Print a line that starts with a coloured word."""
    console(sys.stdout, os.environ).print(Text.assemble((label, style), text), soft_wrap=True)
