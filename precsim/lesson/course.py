"""Running lessons: one or all, and the two pages that say what they found and drew."""

from __future__ import annotations

import re
import runpy
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from precsim.lesson.catalogue import Head
from precsim.lesson.predictions import NoGuess
from precsim.lesson.session import Check, LessonError, Mode, Session, running, shown

SEED = re.compile(r"seed \d+: ")


@dataclass(frozen=True)
class Outcome:
    """A lesson that ran: what it found, in how many seconds, and the claim that failed ("": none).

    `waits`: it has ended at a prediction that nobody has made.
    """

    head: Head
    session: Session
    seconds: float
    failed: str = ""
    waits: bool = False


def study(
    head: Head, mode: Mode = "normal", figures: Path | None = None, *, answers: bool = False
) -> Outcome:
    """Run a lesson as a script, with its figures drawn into `figures` (None: the repository's).

    A claim that does not hold ends the lesson; it is in the outcome.  So does a prediction that the
    reader has not made, unless `answers` are wanted all the same.  Whatever else goes wrong in a
    lesson is raised as it is.
    """
    import matplotlib
    from matplotlib import pyplot

    before, start = matplotlib.get_backend(), time.perf_counter()
    failed, waits = "", False
    matplotlib.use("Agg")
    try:
        with running(Session(mode, figures, answers)) as session:
            try:
                runpy.run_path(str(head.path), run_name="__main__")
            except LessonError as error:
                failed = str(error)
            except NoGuess:
                waits = True
    finally:
        pyplot.close("all")
        matplotlib.use(before)
    return Outcome(head, session, time.perf_counter() - start, failed, waits)


def claims(outcomes: Iterable[Outcome]) -> str:
    """Return a Markdown table of every claim: its source, what was measured, whether it holds.

    A claim that was checked for several seeds is one row, with what each seed gave.
    """
    lines = ["| lesson | claim | source | measured | holds |", "|---|---|---|---|---|"]
    for outcome in outcomes:
        for claim, checks in by_claim(outcome.session.checks).items():
            measured = "; ".join(shown(c.measured) for c in checks if c.measured is not None)
            source = next((c.source for c in checks if c.source), "")
            holds = "yes" if all(c.holds for c in checks) else "**no**"
            lines.append(_row(outcome.head.number, claim, source, measured, holds))
    return "\n".join(lines)


def by_claim(checks: Sequence[Check]) -> dict[str, list[Check]]:
    """Return checks by their claim, the seed in front of it left out, in the order of the lesson."""
    found: dict[str, list[Check]] = {}
    for check in checks:
        found.setdefault(SEED.sub("", check.claim), []).append(check)
    return found


def gallery(heads: Iterable[Head]) -> str:
    """Return the Markdown of all figures that lessons draw, with a sentence for each."""
    parts = []
    for head in heads:
        for name, sentence in head.writes.items():
            parts.append(
                f"### {head.number} - {head.title}\n\n{sentence or head.idea}\n\n"
                f"![{sentence or head.title}]({name}.png)\n\n"
                f"[lesson](../lessons/{head.path.name}) · [svg]({name}.svg) · [data]({name}.json)"
            )
    return "\n\n".join(parts)


def syllabus(heads: Iterable[Head]) -> str:
    """Return the Markdown table of lessons: idea, needs, runtime."""
    lines = ["| | lesson | one idea | needs | runtime |", "|---|---|---|---|---|"]
    for head in heads:
        link = f"[{head.title}]({head.path.name})"
        lines.append(_row(head.number, link, head.idea, head.needs, f"{head.runtime:g} s"))
    return "\n".join(lines)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def write_parts(path: Path, parts: Mapping[str, str]) -> None:
    """Replace what a page has between ``<!-- NAME -->`` and ``<!-- /NAME -->``, for each name.

    Raises `ValueError` where a page lacks a mark: nothing is written then.
    """
    text = path.read_text(encoding="utf-8")
    for name, part in parts.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if begin not in text or end not in text:
            msg = f"{path}: expected a line {begin} and a line {end}, to write between them"
            raise ValueError(msg)
        head, rest = text.split(begin, 1)
        text = f"{head}{begin}\n{part}\n{end}{rest.split(end, 1)[1]}"
    path.write_text(text, encoding="utf-8", newline="\n")
