"""`precsim plot`: a figure about recorded runs, with its data beside it.

Exit codes: 0 fine, 2 bad usage or bad input.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from precsim.cli_shared import consoles, prepare_figure, print_line, reading_input, tell_written
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
    asked = {"op": op, "tolerance": tolerance, "update": update}
    asked |= {} if step is None else {"step": step}
    prepare_figure(output)
    with reading_input():
        with err.status(f"collecting {figure}"):
            data = gallery.collect(figure, [open_run(place) for place in places], **asked)
        name = places[0].resolve().name
        told = _title(figure, name, step, alone=len(places) == 1) if title is None else title
        data = {**data, "title": told}
        if as_json:
            print_line(dump(data))
        if output is not None or not as_json:
            file = output or Path(f"{name}-{figure}.png")
            paths = gallery.save(figure, data, file)
            tell_written(paths)


def _title(figure: str, name: str, step: int | None, *, alone: bool) -> str:
    """Return what a figure is called, and whose it is, if it is of one run."""
    from precsim.show import gallery

    kind = gallery.KINDS[figure]
    if kind.of == gallery.STEP:
        return f"{kind.title}: {name}, step {step}"
    return f"{kind.title}: {name}" if alone else kind.title
