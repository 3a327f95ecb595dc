"""`precsim cost`: what one training step would cost in each recipe's formats.

Exit codes: 0 fine, 2 bad usage or bad input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from precsim.cli_shared import (
    Assignments,
    Json,
    consoles,
    prepare_figure,
    print_line,
    reading_input,
    tell_written,
)
from precsim.recipes import RECIPES, recipe
from precsim.runs import config as configs
from precsim.runs import data
from precsim.runs.config import TrainConfig
from precsim.runs.lines import dump, plain
from precsim.show.terminal import format_of

if TYPE_CHECKING:
    from precsim.show.cost_table import Priced

SHOWN = ("fp32", "bf16_master", "te_current", "te_mxfp8", "te_nvfp4", "int8")
"""The recipes that are priced if none is named."""

REFERENCE = "fp32"
MEMORY = "sram_1m"
FORMATS = ("policy", "loss_scale")
"""Entries of a config that say in which formats it runs."""


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command(rich_help_panel="Formats and recipes")(cost)


def cost(
    config_file: Annotated[
        Path | None, typer.Argument(metavar="CONFIG.toml", help="Sizes of the model and batch.")
    ] = None,
    recipes: Annotated[
        str | None, typer.Option("--recipe", metavar="A,B,...", help="Recipes, comma between them.")
    ] = None,
    assignments: Assignments = None,
    by: Annotated[
        str | None, typer.Option(metavar="op|format|phase", help="What each cost is made of.")
    ] = None,
    memory: Annotated[
        str, typer.Option(metavar="NAME", help="Where operands come from: a memory of the table.")
    ] = MEMORY,
    prices: Annotated[
        Path | None, typer.Option("--table", metavar="FILE.toml", help="Other prices.")
    ] = None,
    print_table: Annotated[
        bool, typer.Option("--print-table", help="Print the table of prices, to edit it.")
    ] = False,
    figure: Annotated[
        Path | None,
        typer.Option("-f", "--figure", metavar="FILE", help=".png, .svg, .pdf; no ending: both."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what a training step would cost in each recipe: a model.

    One step is run; its multiply-accumulates and the bytes that its ops read and write are counted
    at the width of their formats, and priced by a small table: what it would take on hardware that
    has these formats.  A model, not a measurement.
    """
    from precsim.analyse import prices as pricing

    if print_table:
        print_line(pricing.FILE.read_text(encoding="utf-8").rstrip("\n"))
        return
    prepare_figure(figure)
    with reading_input():
        table = pricing.read_prices(prices)
        table.traffic(0, memory)
        entries = configs.read(config_file) if config_file else {}
        chosen, reference = _configs(config_file, recipes, entries, assignments or [])
        rows = _priced(chosen, reference, table)
        parts = {name: row.cost.by(by) for name, row in rows.items()} if by else {}
    if as_json:
        facts = {
            name: row.cost.to_dict()
            | {"of_fp32": _relative(row)}
            | ({f"by_{by}": {n: asdict(line) for n, line in parts[name].items()}} if by else {})
            for name, row in rows.items()
        }
        print_line(dump(plain(facts)))
    else:
        _print(rows, next(iter(chosen.values())), by, memory)
    if figure is not None:
        _draw(rows, memory, figure)


def _print(rows: Mapping[str, Priced], first: TrainConfig, by: str | None, memory: str) -> None:
    from precsim.show import cost_table as shown

    out, _ = consoles()
    macs = next(iter(rows.values())).cost.macs.total()
    out.print(
        f"One step ({first.layers} layers, width {first.width}, {first.batch} x {first.context} "
        f"bytes): {shown.count(macs)} multiply-accumulates (MACs)",
        end="\n\n",
    )
    drawn = (
        shown.parts_table(rows, by, memory, out.width)
        if by
        else shown.costs_table(rows, memory, out.width)
    )
    out.print(drawn)


def _configs(
    file: Path | None, names: str | None, entries: dict[str, Any], assignments: list[str]
) -> tuple[dict[str, TrainConfig], TrainConfig]:
    """Return the configs to price by name, and the same step in fp32; --set wins, as in `train`."""
    given = configs.parse_assignments(assignments)
    own = any(name in entries | given for name in FORMATS)
    listed = [name.strip() for name in (names or "").split(",") if name.strip()]
    if not listed and not own:
        listed = list(SHOWN)
    base = TrainConfig().change(**entries)
    found = {n: base.change(**{**recipe(n).settings(), **given}) for n in listed}
    if not listed:
        found = {file.stem if file else "config": base.change(**given)}
    sizes = {name: value for name, value in given.items() if name not in FORMATS}
    return found, base.change(**{**recipe(REFERENCE).settings(), **sizes})


def _priced(
    chosen: Mapping[str, TrainConfig], reference: TrainConfig, table: Any
) -> dict[str, Priced]:
    """Run a step of each config, and one in fp32, and price them."""
    from precsim.analyse.cost import cost as cost_of
    from precsim.show.cost_table import Priced

    corpus = data.load(reference.data)
    known = {reference: cost_of(config=reference, prices=table, corpus=corpus)}
    for config in chosen.values():
        if config not in known:
            known[config] = cost_of(config=config, prices=table, corpus=corpus)
    return {
        name: Priced(
            known[config],
            known[reference],
            RECIPES[name].format if name in RECIPES else format_of(config),
        )
        for name, config in chosen.items()
    }


def _draw(rows: Mapping[str, Priced], memory: str, path: Path) -> None:
    from precsim.show import cost_plot

    reference = next(iter(rows.values())).reference
    costs = {name: row.cost for name, row in rows.items()}
    paths = cost_plot.save(cost_plot.cost_bars_data(costs, reference, memory), path)
    tell_written(paths)


def _relative(row: Priced) -> dict[str, float]:
    from precsim.show.cost_table import ratio

    own, other = row.cost, row.reference
    return {
        "arithmetic": ratio(own.arithmetic, other.arithmetic),
        "moved": ratio(own.moved, other.moved),
    }
