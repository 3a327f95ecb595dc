"""What the verbs share: words that mean the same to all of them, and how they speak and end."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from precsim.runs.files import RunError, make_folder
from precsim.show import terminal

Json = Annotated[bool, typer.Option("--json", help="Print JSON for a program.")]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Where a run was recorded.")]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set an entry of the config; repeatable."),
]
TextFile = Annotated[
    str | None, typer.Option("--text", metavar="FILE", help="Train on this file, byte by byte.")
]

NO_OP = "no op of that step matches {!r}: {} (--op '*' shows all)"


class BadInput(Exception):
    """What the user gave cannot be used; the message is one sentence for them."""


@contextmanager
def reading_input() -> Iterator[None]:
    """Turn the errors that bad input causes in this block into `BadInput`.

    Those about a run's directory, and a reader who has left, stay what they are: the command line
    ends in its own way for each.
    """
    try:
        yield
    except (RunError, BrokenPipeError):
        raise
    except ValueError as error:
        raise BadInput(str(error)) from error
    except OSError as error:
        msg = f"cannot read or write {error.filename}: {error.strerror}"
        raise BadInput(msg) from error


def prepare_figure(path: Path | None) -> None:
    """Make the folder that a figure goes to; where it cannot be written, one hears it before the work."""
    if path is None:
        return
    from precsim.show.canvas import check_name

    with reading_input():
        check_name(path)
        make_folder(path.parent)
        if not os.access(path.parent, os.W_OK):
            msg = f"cannot write {path}: Permission denied; try a directory that you may write to"
            raise BadInput(msg)


def consoles() -> tuple[Console, Console]:
    """Return consoles on stdout and stderr as they are now."""
    return (
        terminal.console(sys.stdout, os.environ),
        terminal.console(sys.stderr, os.environ),
    )


def print_line(text: str) -> None:
    """Print to stdout as it is, without wrapping or colour."""
    typer.echo(text)


def tell(text: str) -> None:
    """Say a sentence on stderr."""
    typer.echo(f"precsim: {text}", err=True)


def tell_written(paths: Iterable[Path]) -> None:
    """Say on stderr what was written; a path is not broken, however long, so that it can be copied."""
    typer.echo(f"wrote {', '.join(map(str, paths))}", err=True)


def fail(message: str, code: int) -> NoReturn:
    """End with a sentence on stderr and an exit code."""
    tell(message)
    raise typer.Exit(code)
