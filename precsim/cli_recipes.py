"""Recipes on the command line: the table, what two of them do differently, and what each comes to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from precsim.cli_shared import Json, TextFile, consoles, fail, print_line, reading_input
from precsim.recipes import RECIPES, Recipe, recipe, table
from precsim.runs import data
from precsim.runs.lines import dump, plain
from precsim.show import recipes as shown
from precsim.show.progress import Bars
from precsim.show.terminal import ink

if TYPE_CHECKING:
    from precsim.demo import Outcome
    from precsim.runs.config import TrainConfig

STEPS = 200
"""Steps that a recipe is trained for, if nobody says otherwise."""


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(rich_help_panel="Formats and recipes")(recipes)


def recipes(
    question: Annotated[
        list[str] | None,
        typer.Argument(metavar="diff A B | NAME...", help="Two recipes, or those to measure."),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Train each on the same text; minutes for all.")
    ] = False,
    steps: Annotated[int, typer.Option(help="Training steps of --measure.")] = STEPS,
    text: TextFile = None,
    seed: Annotated[int, typer.Option(help="Seed of weights, batches and rounding.")] = 0,
    as_json: Json = False,
) -> None:
    """Show the recipes: what lives in which format, by name.

    --measure trains each of them, or those that are named, as the demo does, and counts the bytes
    that it would take on hardware that has its formats.
    """
    out, _ = consoles()
    if measure:
        _measure(question or list(RECIPES), steps, text, seed, as_json=as_json)
        return
    with reading_input():
        match question or []:
            case []:
                rows = table.rows(RECIPES.values())
                facts: Any = {row.name: table.facts(row) for row in rows}
                drawn: Any = shown.rows_table(rows, out.width)
            case ["diff", a, b]:
                found = table.diff(a, b)
                facts = [asdict(one) for one in found]
                drawn = shown.differences(a, b, found, out.width)
            case words:
                msg = (
                    f"expected nothing, or `diff A B` with two recipes; got {' '.join(words)} "
                    "(with --measure, names of recipes)"
                )
                raise ValueError(msg)
    if as_json:
        print_line(dump(facts))
    else:
        out.print(drawn)


def _measure(
    names: Sequence[str], steps: int, text: str | None, seed: int, *, as_json: bool
) -> None:
    """Train the recipes side by side, and print what each came to and what it takes."""
    from precsim import demo
    from precsim.analyse.first import first_gradient
    from precsim.analyse.memory import memory

    with reading_input():
        chosen = {name: recipe(name) for name in names}
    config = demo.configure(steps, text, seed)
    corpus = data.load(config.data)
    demo.check(config, corpus)
    outcomes = _train(chosen, config, corpus, quiet=as_json)
    configs = {n: config.change(**one.settings()) for n, one in chosen.items()}
    taken = {n: memory(each, corpus) for n, each in configs.items()}
    errors = {n: first_gradient(each, corpus).rho for n, each in configs.items()}
    if as_json:
        facts = {
            name: {
                "summary": outcome.summary.to_dict(),
                "memory": taken[name].to_dict(),
                "gradient_error": errors[name],
                "seconds": outcome.seconds,
            }
            for name, outcome in outcomes.items()
        }
        print_line(dump(plain(facts)))
        return
    rows = {
        n: shown.Measured(chosen[n].format, o.summary, taken[n], errors[n])
        for n, o in outcomes.items()
    }
    out, _ = consoles()
    out.print(shown.measured_table(rows, out.width))


def _train(
    chosen: Mapping[str, Recipe], config: TrainConfig, corpus: data.Corpus, *, quiet: bool
) -> dict[str, Outcome]:
    """Train the recipes, with what is going on on stderr unless `quiet`."""
    from precsim import demo

    _, err = consoles()
    if not quiet:
        for line in demo.describe(config, corpus):
            err.print(line)
    titles = {name: (name, ink(one.format)) for name, one in chosen.items()}
    try:
        with Bars(err, titles, config.steps, quiet=quiet) as bars:
            return demo.run_all(
                config, corpus, lambda p: bars(p.recipe, p.done, p.loss), recipes=tuple(chosen)
            )
    except demo.DemoError as error:
        fail(str(error), 3)
