"""`precsim drift`: a recorded run beside a float64 twin, and a control that tells chaos apart.

Exit codes: 0 fine, 1 a finding (values that are not finite, in a step that was not skipped), 2 bad
usage or bad input.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from precsim.analyse.twins import drifts
from precsim.cli_shared import (
    Folder,
    Json,
    consoles,
    fail,
    prepare_figure,
    print_line,
    reading_input,
    tell_written,
)
from precsim.runs.lines import dump
from precsim.runs.run import open_run
from precsim.show import drift_table
from precsim.show.progress import Bars

WORST = 6
"""Parameters that are shown."""


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    epilog = "Exits with 1 where a step that was not skipped has values that are not finite."
    app.command(rich_help_panel="A whole run", epilog=epilog)(drift)


def drift(
    folder: Folder,
    every: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Measure every so many steps; else 16 to 32 in all."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Draws the control twin's perturbation.")] = 0,
    figure: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Draw it: .png, .svg or .pdf."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a run beside a float64 twin: how far rounding took it.

    It takes two to three times as long as the run.
    """
    prepare_figure(figure)
    run = open_run(folder)
    out, err = consoles()
    name = folder.resolve().name
    with Bars(err, {"run": (name, "")}, len(run.records), quiet=as_json) as bars:
        found = drifts(run, every, seed=seed, on_step=lambda done, loss: bars("run", done, loss))
    if as_json:
        print_line(dump(asdict(found) | {"bias": found.bias, "verdict": found.verdict}))
    else:
        print_line(f"{name} beside its float64 twin; u is that of {found.format}")
        out.print(drift_table.steps_table(found, out.width))
        out.print()
        for line in drift_table.sentences(found):
            out.print(line)
        out.print()
        last = found.points[-1]
        print_line(f"step {last.step}, the parameters whose updates are furthest off:")
        out.print(drift_table.parameters_table(last, WORST, out.width))
        out.print()
        for line in drift_table.KEY:
            out.print(line, style="dim")
    if figure is not None:
        from precsim.show import plot
        from precsim.show.drift_plot import drift as draw
        from precsim.show.drift_plot import drift_data

        data = {"run": drift_data(found, name), "title": f"Drift of {name}: {found.verdict}"}
        with reading_input():
            paths = plot.save("drift", data, figure, {"drift": draw})
        tell_written(paths)
    for point in found.points:
        if point.undefined and not point.skipped:
            fail(f"drift is undefined from step {point.step} on: {point.undefined}", 1)
