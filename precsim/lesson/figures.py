"""A lesson's figure becomes three files: .png, .svg, and .json with the numbers that it shows."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from precsim.lesson.catalogue import find
from precsim.lesson.session import current, say
from precsim.runs.lines import dump

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DIGITS = 6
"""Significant digits of the numbers beside a figure: what a picture shows, and every machine has."""


def save(fig: Figure, name: str, data: Mapping[str, Any]) -> None:
    """Write ``figures/NAME.png``, ``.svg`` and ``.json``, and say where they are.

    `data` are the plotted arrays; they are written with six significant digits, NaN and infinities
    as text.  The same figure gives the same bytes, whatever the day and the version of matplotlib's
    name tag.  figures/ is the repository's, wherever the lesson is started from; in a notebook
    outside a repository it is made in the current folder.

    Raises `ValueError` for a name with a suffix or a folder in it, `OSError` where it cannot write.
    """
    from precsim.show.canvas import write

    if Path(name).name != name or Path(name).suffix or not name:
        msg = f"save: expected a name like '09_plateau', without folder or suffix; got {name!r}"
        raise ValueError(msg)
    folder = current().figures or _folder()
    folder.mkdir(parents=True, exist_ok=True)
    paths = write(fig, folder / name)
    beside = folder / f"{name}.json"
    text = dump({"figure": name, "data": rounded(data)})
    beside.write_text(text + "\n", encoding="utf-8", newline="\n")
    paths.append(beside)
    current().saved.extend(paths)
    say("figure   ", f"{_told(paths[0])} (and .svg, and its data as .json)", "cyan")


def _told(path: Path) -> Path:
    """Return a path as one would type it here; of a figure that went elsewhere, its name."""
    if current().figures:
        return Path(path.name)
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _folder() -> Path:
    """Return figures/ beside the lessons that the script which runs is one of, or those around us.

    A translated lesson is a folder deeper than the others.
    """
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    for folder in Path(script).resolve().parents[:2] if script else ():
        if folder.name == "lessons":
            return folder.parent / "figures"
    lessons = find(Path.cwd())
    return lessons.parent / "figures" if lessons else Path.cwd() / "figures"


def rounded(value: Any) -> Any:
    """Return plain lists and numbers with `DIGITS` significant digits; text and None stay."""
    if isinstance(value, np.ndarray | np.generic):
        return rounded(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): rounded(inner) for key, inner in value.items()}
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, str) or not isinstance(value, Iterable):
        return value
    return [rounded(inner) for inner in value]
