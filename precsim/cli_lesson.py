"""The course on the command line: `precsim lesson list`, `run` and `notebook`.

Exit codes: 0 fine, 1 a claim does not hold, 2 bad usage or input.
"""

from __future__ import annotations

import tempfile
import traceback
from pathlib import Path
from typing import Annotated

import typer
from rich.padding import Padding
from rich.text import Text

from precsim.cli_shared import Json, consoles, fail, print_line
from precsim.lesson import course
from precsim.lesson.catalogue import (
    Head,
    LessonHeadError,
    NoLessonsError,
    lesson,
    lessons,
    lessons_folder,
)
from precsim.lesson.course import Outcome
from precsim.lesson.notebook import NotebookError, to_notebook
from precsim.lesson.progress import entry, note, progress, told
from precsim.lesson.session import Mode, say
from precsim.runs.lines import dump

INDENT = (0, 0, 0, 4)

Numbers = Annotated[
    list[str] | None, typer.Argument(metavar="NUMBER...", help="Lessons, as in 09 or 9.")
]
All = Annotated[bool, typer.Option("--all", help="All lessons.")]

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="The course: list its lessons, run one, open it in Jupyter.",
)


def register(root: typer.Typer) -> None:
    """Add the verb to the command line."""
    root.add_typer(app, name="lesson", rich_help_panel="Start here")


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List the lessons: idea, runtime, how far you have come."""
    folder, heads = _course()
    known = progress(folder)
    if as_json:
        facts = [
            {"number": h.number, "title": h.title, "idea": h.idea, "learn": h.learn,
             "needs": h.needs, "runtime_s": h.runtime, "figures": h.writes, "progress": known.get(h.number)}
            for h in heads
        ]  # fmt: skip
        print_line(dump(facts))
        return
    out, _ = consoles()
    for head in heads:
        title = Text.assemble((f"{head.number}  {head.title}", "bold"), f"  ({head.runtime:g} s)")
        out.print(title)
        out.print(Padding(Text(head.idea, "dim"), INDENT))
        if status := told(known.get(head.number)):
            style = "green" if status.startswith("done") else "yellow"
            out.print(Padding(Text(status, style), INDENT))


@app.command()
def run(
    numbers: Numbers = None,
    every: All = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Short sweeps; no figure of the course is replaced.")
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Three seeds; with --all the tables are written anew.")
    ] = False,
    answers: Annotated[
        bool, typer.Option("--answers", help="Answers without a guess; so do --all and --full.")
    ] = False,
) -> None:
    """Run lessons; their figures are drawn into figures/.

    A lesson asks for your guess before it shows what was measured.
    """
    if quick and full:
        fail("--quick and --full are opposites: choose one", 2)
    mode: Mode = "quick" if quick else "full" if full else "normal"
    folder, heads = _chosen(numbers, every=every)
    outcomes = []
    with tempfile.TemporaryDirectory() as scratch:
        for head in heads:
            print_line(f"\n=== {head.number} - {head.title}")
            figures = Path(scratch) if quick else None
            outcome = _study(head, mode, figures, answers=answers or every or full)
            outcomes.append(outcome)
            note(folder, outcome)
            print_line(_ending(outcome))
            if quick:
                print_line(
                    "    Quick: its figures are not kept, and numbers differ from the text's."
                )
    if every and not quick:
        _write_pages(folder, outcomes, full=full)
    if failed := [outcome for outcome in outcomes if outcome.failed]:
        for outcome in failed:
            say(f"{outcome.head.number}: ", outcome.failed)
        fail(f"{len(failed)} of {len(outcomes)} lessons have a claim that does not hold", 1)


@app.command()
def notebook(
    numbers: Numbers = None,
    every: All = False,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Where the notebooks go.")
    ] = Path(),
) -> None:
    """Write lessons as Jupyter notebooks."""
    _, heads = _chosen(numbers, every=every)
    for head in heads:
        try:
            print_line(f"wrote {to_notebook(head.path, output)}")
        except NotebookError as error:
            fail(str(error), 2)
        except OSError as error:
            fail(f"cannot write into {output}: {error.strerror}", 2)


def _course() -> tuple[Path, list[Head]]:
    try:
        folder = lessons_folder()
        return folder, lessons(folder)
    except (NoLessonsError, LessonHeadError) as error:
        fail(str(error), 2)


def _chosen(numbers: list[str] | None, *, every: bool) -> tuple[Path, list[Head]]:
    folder, heads = _course()
    if every:
        return folder, heads
    if not numbers:
        fail("which lesson? Give its number, as in `precsim lesson run 09`, or --all", 2)
    try:
        return folder, [lesson(folder, number) for number in numbers]
    except NoLessonsError as error:
        fail(str(error), 2)


def _study(head: Head, mode: Mode, figures: Path | None, *, answers: bool) -> Outcome:
    """Run a lesson; where it stops with an error, which may be the reader's own, show the place."""
    try:
        return course.study(head, mode, figures, answers=answers)
    except Exception as error:  # noqa: BLE001 - a reader may have written anything
        lines = [
            f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(head.path)
        ]
        name = head.path.name
        if isinstance(error, SyntaxError) and error.filename == str(head.path):
            line = (error.text or "").strip()
            fail(f"{name} does not start: line {error.lineno}: {line} ({error.msg})", 1)
        place = (
            f"at line {lines[-1].lineno}: {lines[-1].line}" if lines else "before its first line"
        )
        fail(f"{name} stopped {place} ({type(error).__name__}: {error})", 1)


def _ending(outcome: Outcome) -> str:
    checks = outcome.session.checks
    held = sum(check.holds for check in checks)
    if outcome.failed:
        return f"--- {held} claims hold, {outcome.seconds:.0f} s.  The lesson ends at one that does not."
    if outcome.waits:
        return f"--- {held} claims hold so far, {outcome.seconds:.0f} s.  The lesson waits for you."
    you = told(entry(outcome)).partition(": ")[2]
    return f"--- {held} of {len(checks)} claims hold, {outcome.seconds:.0f} s.\n    You: {you}."


def _write_pages(folder: Path, outcomes: list[Outcome], *, full: bool) -> None:
    """Write the parts of two pages that come from the lessons themselves."""
    heads = [outcome.head for outcome in outcomes]
    readme = {"syllabus": course.syllabus(heads)}
    if full:
        readme["claims"] = course.claims(outcomes)
    pages = {folder / "README.md": readme,
             folder.parent / "figures" / "README.md": {"gallery": course.gallery(heads)}}  # fmt: skip
    for path, parts in pages.items():
        try:
            course.write_parts(path, parts)
        except (OSError, ValueError) as error:
            fail(f"the page was not written: {error}", 2)
        print_line(f"wrote {path}")
