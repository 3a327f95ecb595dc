"""Views of recorded runs: `precsim report`, one HTML file to send to somebody.

Exit codes: 0 fine, 2 bad usage or bad input.
"""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from precsim.cli_runs import consoles, fail
from precsim.runs.files import write_file
from precsim.runs.run import open_run

MOST_RUNS = 8

Folders = Annotated[list[Path], typer.Argument(metavar="DIR...", help="Where runs were recorded.")]


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command()(report)


def report(
    folders: Folders,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE.html", help="The file to write.")
    ] = Path("report.html"),
    drift: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Checkpoints at which gradients are compared."),
    ] = 6,
) -> None:
    """Write recorded runs into one HTML file: curves, loss scale, drift, and a player of their steps.

    It loads nothing and can be read without scripts.  The first run is what the others are compared
    with.  Of a long run it holds a choice of steps, and says so.
    """
    from precsim.report.collect import collect
    from precsim.report.page import render, require
    from precsim.report.player import MOST_ROWS

    require()
    if len(folders) > MOST_RUNS:
        fail(f"expected at most {MOST_RUNS} runs in one report; got {len(folders)}", 2)
    runs = [open_run(folder) for folder in folders]
    _, err = consoles()
    found = []
    for run, name in zip(runs, names(folders), strict=True):
        with err.status(f"reading {name}"):
            found.append(collect(run, name, rows=MOST_ROWS // len(runs), points=drift))
    words = ["precsim", "report", *map(str, folders), "-o", str(output)]
    words += [] if drift == 6 else ["--drift", str(drift)]
    page = render(found, shlex.join(words)).encode()
    write_file(output, page)
    typer.echo(f"precsim: wrote {output} ({len(page) / 1e6:.1f} MB, of which the charts' "
               "library takes 1.9 MB)", err=True)  # fmt: skip


def names(folders: list[Path]) -> list[str]:
    """Return a name for each run: its folder's, with the folders above it where that is not enough."""
    paths = [folder.resolve() for folder in folders]
    for parts in range(1, 1 + max(len(path.parts) for path in paths)):
        found = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(found)) == len(set(paths)):
            break
    seen: Counter[str] = Counter()
    unique = []
    for name in found:
        seen[name] += 1
        unique.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return unique
