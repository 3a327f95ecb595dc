"""How far a reader has come: a small file beside the lessons, which nothing depends on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from precsim.lesson.course import Outcome
from precsim.runs.files import RunError, write_file

NAME = ".progress.json"


def entry(outcome: Outcome) -> dict[str, Any]:
    """Return what is kept of a lesson that ran."""
    session = outcome.session
    return {
        "holds": not outcome.failed,
        "waits": outcome.waits,
        "predicted": sum(right is True for right in session.predictions.values()),
        "predictions": len(session.predictions),
        "solved": sum(exercise.state == "right" for exercise in session.exercises),
        "exercises": len(session.exercises),
    }


def note(folder: Path, outcome: Outcome) -> None:
    """Keep what became of a lesson; a folder that cannot be written keeps nothing."""
    known = progress(folder) | {outcome.head.number: entry(outcome)}
    try:
        write_file(folder / NAME, json.dumps(known, indent=1).encode())
    except (OSError, RunError):
        return


def progress(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what is known by lesson number; nothing where the file is missing or unreadable."""
    try:
        known = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def told(known: dict[str, Any] | None) -> str:
    """Return a reader's progress in a lesson in a few words; "" where they have not begun."""
    if not known:
        return ""
    if not known.get("holds"):
        return "stopped: a claim does not hold"
    predicted = f"{known.get('predicted')} of {known.get('predictions')} guesses right"
    if known.get("waits"):
        return f"begun: {predicted} so far, and it waits for the next"
    done = known.get("solved") == known.get("exercises")
    solved = f"{known.get('solved')} of {known.get('exercises')} exercises solved"
    return f"{'done' if done else 'run'}: {predicted}, {solved}"
