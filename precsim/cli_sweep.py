"""`precsim sweep`: the same training over a grid of recipes, values and seeds.

Exit codes: 0 fine, 1 a finding (a run diverged), 2 bad usage or bad input, 130 interrupted, and
resumable.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from precsim.cli_runs import Device
from precsim.cli_shared import (
    Assignments,
    Json,
    TextFile,
    consoles,
    fail,
    prepare_figure,
    print_line,
    reading_input,
    tell_written,
)
from precsim.runs import config as configs
from precsim.runs.grid import RECIPE, parse_over, parse_seeds
from precsim.runs.lines import dump
from precsim.runs.sweep import SweepInterrupted
from precsim.runs.sweep import sweep as run_sweep
from precsim.runs.sweep_results import Sweep
from precsim.show.progress import SweepLine
from precsim.show.sweep_table import sweep_table

NAMED = 3
"""Runs that diverged that a sentence names."""


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    epilog = "Exits with 1 where a run diverged, and names the first."
    app.command(rich_help_panel="A whole run", epilog=epilog)(sweep)


def sweep(
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="A directory for the runs.")
    ],
    config_file: Annotated[
        Path | None, typer.Argument(metavar="CONFIG.toml", help="Lines like: steps = 200")
    ] = None,
    recipe: Annotated[
        list[str] | None, typer.Option(metavar="A,B", help="Recipes to compare (precsim recipes).")
    ] = None,
    over: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=V1,V2", help="Values to try, e.g. lr=1e-3,3e-3; repeatable."),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="0-2", help="Seeds to average over: 0-2, or 0,1,7.")
    ] = None,
    assignments: Assignments = None,
    text: TextFile = None,
    steps: Annotated[int | None, typer.Option(help="Number of training steps of each run.")] = None,
    observe: Annotated[
        str | None,
        typer.Option(metavar="LEVEL", help="How closely runs are watched; off unless it is said."),
    ] = None,
    figure: Annotated[
        Path | None,
        typer.Option("-f", "--figure", metavar="FILE", help="Draw it: .png, .svg or .pdf."),
    ] = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Train over a grid: recipes, values, seeds; which format holds where.

    Each cell is a recorded run in DIR, for show, diff, report and the others.  After Ctrl-C, or any
    end, the same command goes on, and so does -o DIR alone; a larger grid uses the runs that are
    there.  Later sources win: the file, the recipe, --set and the other options, --over.

    Runs are recorded at observe=off, which takes no time; any step can be replayed with its ops.
    """
    prepare_figure(figure)
    with reading_input():
        entries = configs.read(config_file) if config_file else {}
        fixed = configs.parse_assignments(assignments or [])
        named = {"data": text, "steps": steps, "observe": observe}
        fixed |= {name: value for name, value in named.items() if value is not None}
        lists = _lists(recipe, over)
        asked: dict[str, Any] = {}
        if entries or fixed or lists or seeds is not None:
            config = configs.TrainConfig().change(**{**entries, **fixed})
            chosen = None if seeds is None else parse_seeds(seeds)
            level = entries.get("observe", "off")
            asked = {"config": config, "over": lists, "seeds": chosen, "fixed": fixed,
                     "observe": level}  # fmt: skip
    out, err = consoles()
    try:
        with SweepLine(err, quiet=as_json) as line:
            found = run_sweep(**asked, out=output, on_progress=line)
    except SweepInterrupted as error:
        again = ["precsim", "sweep", "-o", str(output)]
        again += ["--device", device] * (device != "cpu")
        again += ["-f", str(figure)] if figure is not None else []
        fail(f"{error.where}; continue with `{shlex.join(again)}`", 130)
    if as_json:
        print_line(dump(found.to_dict()))
    else:
        out.print(sweep_table(found, out.width))
    if figure is not None:
        from precsim.show import gallery

        with reading_input():
            paths = gallery.save("sweep", gallery.collect("sweep", found), figure)
        tell_written(paths)
    _report(found)


def _lists(recipe: list[str] | None, over: list[str] | None) -> dict[str, list[Any]]:
    """Return what is swept over, recipes first."""
    lists = parse_over(over or [])
    if recipe:
        if RECIPE in lists:
            msg = "--recipe and --over recipe: expected one of the two"
            raise ValueError(msg)
        lists = parse_over([f"{RECIPE}={','.join(recipe)}"]) | lists
    return lists


def _report(found: Sweep) -> None:
    """Exit with 1 where runs diverged, naming the first."""
    lost = found.diverged
    if lost:
        named = "; ".join(cell.title for cell in lost[:NAMED])
        more = f"; and {len(lost) - NAMED} more" if len(lost) > NAMED else ""
        first = found.path / lost[0].name
        look = f"`precsim diff {shlex.quote(str(first))} --step {_last_step(found, lost[0].name)}` looks into the first"
        fail(f"{len(lost)} of {len(found.outcomes)} runs diverged: {named}{more}; {look}", 1)


def _last_step(found: Sweep, name: str) -> int:
    """Return the step at which a run ended."""
    outcome = found.outcomes[name]
    return outcome.steps - 1 if outcome.died_at is None else outcome.died_at
