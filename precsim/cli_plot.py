"""`precsim plot`: a figure about recorded runs, with its data beside it.

Exit codes: 0 fine, 2 bad usage or bad input.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from precsim.cli_shared import consoles, fail, print_line, reading_input
from precsim.runs.files import make_folder
from precsim.runs.lines import dump
from precsim.runs.run import open_run
from precsim.show.terminal import Column, table

COLUMNS = (Column("figure", justify="left"), Column("of", 1, "left"), Column("what", 0, "left"))


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command(rich_help_panel="A whole run")(plot)


def plot(
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="DIR...", help="Where runs were recorded.")
    ] = None,
    figure: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which figure; without: a list of them.")
    ] = None,
    step: Annotated[
        int | None, typer.Option(metavar="K", help="The step, where a figure is of one.")
    ] = None,
    op: Annotated[str | None, typer.Option("--op", metavar="GLOB", help="These ops only.")] = None,
    tolerance: Annotated[
        float, typer.Option("--tol", metavar="X", help="Of the search behind the figure pareto.")
    ] = 0.1,
    update: Annotated[
        bool, typer.Option("--update", help="Blame, pareto and drift_map: of the weights' update.")
    ] = False,
    title: Annotated[str | None, typer.Option(help="A title of your own.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help=".png, .svg, .pdf; no ending: both."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the data, or the list.")] = False,
) -> None:
    """Draw a figure about recorded runs, with its data beside it."""
    from precsim.show import gallery

    out, err = consoles()
    if figure is None:
        if as_json:
            print_line(dump({name: kind.about for name, kind in gallery.KINDS.items()}))
        else:
            rows = [[name, kind.of, kind.about] for name, kind in gallery.KINDS.items()]
            out.print(table(COLUMNS, rows, out.width))
        return
    places = folders or []
    _check(figure, places, step)
    with reading_input():
        with err.status(f"collecting {figure}"):
            data = gallery.collect(
                figure,
                [open_run(f) for f in places],
                step=step or 0,
                op=op,
                tolerance=tolerance,
                update=update,
            )
        name = places[0].resolve().name
        told = _title(figure, name, step, alone=len(places) == 1) if title is None else title
        data = {**data, "title": told}
        if as_json:
            print_line(dump(data))
        if output is not None or not as_json:
            file = output or Path(f"{name}-{figure}.png")
            make_folder(file.parent)
            paths = gallery.save(figure, data, file)
            err.print(f"wrote {', '.join(map(str, paths))}")


def _check(figure: str, folders: list[Path], step: int | None) -> None:
    """Exit with 2 where there is no such figure, or not what it is of."""
    from precsim.show import gallery

    if figure not in gallery.KINDS:
        fail(f"no figure {figure!r}: expected one of {', '.join(gallery.KINDS)}", 2)
    if not folders:
        fail(f"the figure {figure} is of {gallery.KINDS[figure].of}: say where it was recorded", 2)
    of = gallery.KINDS[figure].of
    if of == gallery.STEP and step is None:
        fail(f"the figure {figure} is of one step: say --step K", 2)
    if of != gallery.MANY and len(folders) > 1:
        fail(f"the figure {figure} is of {of}; got {len(folders)} runs", 2)


def _title(figure: str, name: str, step: int | None, *, alone: bool) -> str:
    """Return what a figure is called, and whose it is, if it is of one run."""
    from precsim.show import gallery

    kind = gallery.KINDS[figure]
    if kind.of == gallery.STEP:
        return f"{kind.title}: {name}, step {step}"
    return f"{kind.title}: {name}" if alone else kind.title
