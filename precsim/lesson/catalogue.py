"""The lessons on the disk, and what the head of each says about it.

A lesson begins with a markdown cell::

    # # 09 - The loss-scale plateau: why one number works for so many models
    #
    # **One idea.** A loss scale has two edges. ...
    #
    # *You will* train ... *You learn* what each edge is made of ...
    #
    # *Needs:* lesson 08.  *Runtime:* about 40 s, one CPU core.
    # *Paper:* Micikevicius et al. 2018, section 3.2.
    # *Writes:* `figures/09_loss_scale_plateau.png` (The loss over the loss scale.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PATTERN = "[0-9][0-9]_*.py"

FIELDS = re.compile(r"\*(Needs|Runtime|Paper|Writes):\*\s*(.*?)(?=\s*\*\w+:\*|\n\n|\Z)", re.DOTALL)


class LessonHeadError(ValueError):
    """A lesson's head lacks a field; the message says which and how it is written."""


class NoLessonsError(ValueError):
    """There are no lessons where they were looked for, or none of that number."""


@dataclass(frozen=True)
class Head:
    """What a lesson says about itself; `runtime` in seconds, `writes` figure -> what it shows."""

    path: Path
    number: str
    title: str
    idea: str
    learn: str
    needs: str
    runtime: float
    paper: str
    writes: dict[str, str]


def find(start: Path) -> Path | None:
    """Return the first lessons/ with lessons in it, in `start` or in a folder around it."""
    for folder in (start, *start.parents):
        for candidate in (folder / "lessons", folder):
            if candidate.name == "lessons" and any(candidate.glob(PATTERN)):
                return candidate
    return None


def lessons_folder(start: Path | None = None) -> Path:
    """Return the folder of the lessons: around the current folder, or in the repository of precsim.

    Raises `NoLessonsError`, which says where it looked.
    """
    here = start or Path.cwd()
    package = Path(__file__).resolve().parents[2]
    found = find(here) or find(package)
    if found is None:
        msg = (
            f"no lessons/ in {here}, above it, or in {package}: the lessons are in precsim's "
            "repository and in its source distribution; go into that folder and try again"
        )
        raise NoLessonsError(msg)
    return found


def lessons(folder: Path) -> list[Head]:
    """Return the heads of all lessons, by number.  Raises `LessonHeadError`."""
    return [read(path) for path in sorted(folder.glob(PATTERN))]


def lesson(folder: Path, number: str) -> Head:
    """Return the head of lesson "09" or "9"; raise `NoLessonsError` where there is none."""
    wanted = number.zfill(2)
    known = {path.name[:2]: path for path in sorted(folder.glob(PATTERN))}
    if not number or wanted not in known:
        msg = f"no lesson {number!r} in {folder}: expected one of {', '.join(known)}"
        raise NoLessonsError(msg)
    return read(known[wanted])


def read(path: Path) -> Head:
    """Return what the first cell of a lesson says.  Raises `LessonHeadError` for a missing field."""
    text = "\n".join(_first_cell(path))
    fields = {name: " ".join(value.split()) for name, value in FIELDS.findall(text)}
    title = re.match(r"# (\d\d) - (.+)", text)
    idea = re.search(r"\*\*One idea\.\*\* (.+?)\n\n", text, re.DOTALL)
    learn = re.search(r"\*You learn\* (.+?)(?=\n\n|\Z)", text, re.DOTALL)
    runtime = re.search(r"about ([\d.]+) s\b", fields.get("Runtime", ""))
    writes = dict(_figures(fields.get("Writes", "")))
    required = {
        "a title '# 09 - ...'": title,
        "'**One idea.** ...' and an empty line": idea,
        "'*You learn* ...'": learn,
        "'*Needs:* ...'": fields.get("Needs"),
        "'*Runtime:* about 5 s'": runtime,
        "'*Paper:* ...'": fields.get("Paper"),
        "'*Writes:* `figures/NAME.png`'": writes,
    }
    for what, found in required.items():
        if not found:
            msg = f"{path.name}: the first cell lacks {what}"
            raise LessonHeadError(msg)
    assert title is not None
    assert idea is not None
    assert learn is not None
    assert runtime is not None
    return Head(
        path=path,
        number=title[1],
        title=title[2].strip(),
        idea=" ".join(idea[1].split()),
        learn=" ".join(learn[1].split()),
        needs=fields["Needs"],
        runtime=float(runtime[1]),
        paper=fields["Paper"],
        writes=writes,
    )


def _first_cell(path: Path) -> Iterator[str]:
    """Yield the lines of the first markdown cell, without "# "."""
    lines = path.read_text(encoding="utf-8").splitlines()
    for line in lines[1:] if lines and lines[0].startswith("# %% [markdown]") else []:
        if line.startswith("# %%") or not line.startswith("#"):
            return
        yield line[2:]


def _figures(text: str) -> Iterator[tuple[str, str]]:
    """Yield each figure's name, and the sentence in brackets behind it."""
    yield from re.findall(r"`figures/(\w+)\.png`(?:\s*\(([^)]*)\))?", text)
