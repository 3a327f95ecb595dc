"""Views of recorded runs: `report`, one HTML file to send to somebody; `watch`, beside a training.

Exit codes: 0 fine, 1 a finding (the run that was watched did not come to its end), 2 bad usage or
bad input, 130 interrupted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from rich.live import Live

from precsim.cli_shared import consoles, fail, print_line, tell
from precsim.report.write import DRIFT, names
from precsim.report.write import report as write
from precsim.runs.follow import Follower, State
from precsim.runs.lines import dump
from precsim.show import terminal, watching
from precsim.show.progress import Bars

Folders = Annotated[list[Path], typer.Argument(metavar="DIR...", help="Where runs were recorded.")]


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command(rich_help_panel="A whole run")(report)
    epilog = "Exits with 1 where the run did not come to its end."
    app.command(rich_help_panel="Recorded runs", epilog=epilog)(watch)


def report(
    folders: Folders,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE.html", help="The file to write.")
    ] = Path("report.html"),
    drift: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Checkpoints (of a short run: steps) at which gradients are compared.",
        ),
    ] = DRIFT,
    twin: Annotated[
        bool,
        typer.Option("--twin", help="Train again beside a float64 twin: three times as long."),
    ] = False,
) -> None:
    """Write recorded runs into one HTML page, with a step player.

    Curves, loss scale, drift, and every op of the steps.  The page loads nothing and can be read
    without scripts.  The first run is what the others are compared with.  Of a long run it holds a
    choice of steps, and says so.
    """
    from precsim.report.page import library

    _, err = consoles()
    with ExitStack() as stack:
        bars: list[Bars] = []

        def progress(done: int, steps: int, loss: float) -> None:
            if not bars:
                shown = Bars(err, {"runs": ("beside a float64 twin", "")}, steps)
                bars.append(stack.enter_context(shown))
            bars[0]("runs", done, loss)

        write(folders, output, drift=drift, twin=twin, on_step=progress)
    size, charts = output.stat().st_size / 1e6, len(library()) / 1e6
    tell(f"wrote {output} ({size:.1f} MB, {charts:.1f} MB of it Plotly.js)")


def watch(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where a run is being recorded.")],
    every: Annotated[
        float, typer.Option(min=0.05, metavar="SECONDS", help="Time between two looks.")
    ] = 1.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print each step as a line of JSON.")
    ] = False,
) -> None:
    """Watch a run that another process trains, until it ends.

    Its curves and its worst ops.  Only reads, so it can be started, stopped and repeated at any
    time.  Where there is no terminal it prints lines.
    """
    run, (out, err) = Follower(folder), consoles()
    if as_json or not out.is_terminal or out.is_dumb_terminal:
        for line in _lines(run, every, as_json=as_json):
            print_line(line)
    else:
        title, fmt, speed = names([folder])[0], terminal.format_of(run.config), watching.Speed()
        with Live(console=out, auto_refresh=False) as live:
            for _ in run.until_end(every):
                speed.see(run.reached)
                live.update(watching.page(run, speed, title, fmt, out), refresh=True)
    if run.state in (State.DIVERGED, State.KILLED):
        fail(watching.ending(run), 1)
    err.print(watching.ending(run))


def _lines(run: Follower, every: float, *, as_json: bool) -> Iterator[str]:
    """Yield a line for each step in JSON, else for some of them; none twice after a rewind."""
    told = restarts = 0
    for new in run.until_end(every):
        if run.restarts > restarts:
            told, restarts = min(told, run.reached), run.restarts
        for record in (r for r in new if r.step >= told):
            if as_json:
                yield dump(record.to_dict())
            elif record.skipped or watching.worth_a_line(record, run.config.steps):
                yield watching.line(record, run.config.steps)
        told = max(told, run.reached)
