"""Predictions: the reader guesses first, and then sees what was measured.

What has been read cannot be guessed any more, and what a lesson prints after a prediction answers it.
So a lesson waits for the guess: on a terminal it asks, elsewhere it ends there.
"""

from __future__ import annotations

import ast
import sys
from typing import Any

import numpy as np

from precsim.lesson.session import current, in_a_notebook, in_a_session, say, shown, unbroken

SHOW = "?"
"""The guess of a reader who would rather see the answer."""


class NoGuess(Exception):
    """A lesson has come to a prediction that nobody has made."""

    def _render_traceback_(self) -> list[str]:
        """Return what a notebook shows in place of a traceback: nothing is wrong."""
        return [str(self)]


def predict(
    question: str, guess: Any, answer: Any, tol: float | None = None, unit: str = ""
) -> None:
    """Print the reader's guess beside what was measured.

    Nobody sees the answer before they have guessed.  A guess of None is asked for where there is a
    terminal; elsewhere the lesson ends here, unless its session gives all answers.  "?" is the guess
    of who wants to see this one.  So nothing that tells the answer may be printed before.

    No guess is an error, of whatever type it is.  Numbers are right within `tol` (None: 5 % of the
    answer; whole numbers exactly); anything else is right if it is equal, where a tuple is a list,
    and a word alone is a list of one.
    """
    if guess is None and not current().answers:
        guess = _asked_for(question, answer, unit)
    unit = f" {unit}" if unit else ""
    if guess is None or (isinstance(guess, str) and guess.strip() == SHOW):
        current().predictions[question] = None
        told, style = f"{shown(answer)}{unit}  {unbroken('(no guess)')}", "dim"
    else:
        right = _right(guess, answer, tol)
        current().predictions[question] = right
        verdict, style = ("right", "green") if right else ("look again", "yellow")
        said = (
            repr(guess) if isinstance(guess, str) and not isinstance(answer, str) else shown(guess)
        )
        told = f"you said {said}{unit}, measured {shown(answer)}{unit}  {unbroken(f'({verdict})')}"
    say("predict  ", f"{question}: {told}", style)


def _asked_for(question: str, answer: Any, unit: str) -> Any:
    """Return the guess that a reader types; where nobody can be asked, raise what ends the lesson."""
    if sys.stdin and sys.stdin.isatty() and sys.stdout.isatty():
        return _typed(f"{question} ({unit or _kind(answer)}; Enter shows it)", _kind(answer))
    current().predictions[question] = None
    every = "%env PRECSIM_ANSWERS=1 in the first cell" if in_a_notebook() else "--answers"
    say("predict  ", f"{question}: what is your guess?", "yellow")
    for line in (
        "Write it in place of the None of `my_guess`, and run again.",
        f"'{SHOW}' in its place shows this answer; {every} shows all.",
    ):
        say("         ", line)
    if not (in_a_session() or in_a_notebook()):
        raise SystemExit  # a plain script; a traceback would look like a fault
    msg = f"The lesson waits for a guess: {question}."
    raise NoGuess(msg)


def _kind(answer: Any) -> str:
    found = np.asarray(answer)
    if found.dtype.kind not in "iuf":
        return "words, with ; between them"
    return "a number" if found.size == 1 else f"{found.size} numbers, with , between them"


def _typed(prompt: str, kind: str) -> Any:
    """Return what is typed, as Python reads it, or else as words; nothing is `SHOW`."""
    say("predict  ", prompt, "yellow")
    while True:
        try:
            text = input("         your guess: ").strip()
        except EOFError:
            say("", "")
            return SHOW
        if text in ("", SHOW):
            return SHOW
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            if kind.startswith("words"):
                return [word.strip() for word in text.split(";")]
        say("         ", f"{text!r} is not {kind}; try again, or press Enter.")


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
