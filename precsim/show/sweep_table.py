"""A sweep on the terminal: a row for each recipe and combination of values, and a verdict on each."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from precsim.recipes import RECIPES
from precsim.runs.grid import RECIPE, Cell, shown
from precsim.runs.sweep_results import Sweep
from precsim.show.terminal import Cells, Column, format_of, ink, sentences, table


def format_of_cell(cell: Cell) -> str:
    """Return the format whose hue a cell has: its recipe's, or that of its activations."""
    return RECIPES[cell.recipe].format if cell.recipe else format_of(cell.config)


def sweep_table(found: Sweep, width: int) -> RenderableType:
    """Return the table of a sweep, what it says, and a sentence for each recipe."""
    swept, several = found.grid.swept, len(found.grid.seeds) > 1
    columns = [
        *([Column(RECIPE, justify="left")] if found.grid.recipes != [""] else []),
        *(Column(name) for name in swept),
        Column("valid.\nloss"),
        *([Column("min to max", 2)] if several else []),
        Column("diverged", 1),
    ]
    drawn = table(columns, _rows(found, several=several), width)
    what = ", the mean of the seeds that did not diverge" * several
    key = f"loss: at the end of a run{what}\n*: the best of its recipe; diverged: no longer finite"
    formats = {cell.recipe: format_of_cell(cell) for cell in found.grid.cells}
    said = [(name, formats[name], sentence) for name, sentence in found.sentences()]
    verdict = sentences(said) if columns[0].heading == RECIPE else Text(said[0][2])
    return Group(drawn, Text(), Text(key, style="dim"), Text(), verdict)


def _rows(found: Sweep, *, several: bool) -> Iterator[Cells]:
    cells = {(c.recipe, *c.values.values()): format_of_cell(c) for c in found.grid.cells}
    for row in found.rows:
        values = [row[name] for name in found.grid.swept]
        style = ink(cells[row["recipe"], *values])
        yield [
            *([Text(row["recipe"], style=style)] if row["recipe"] else []),
            *map(shown, values),
            f"{_loss(row['loss'])} {'*' if row['best'] else ' '}",
            *([_range(row)] if several else []),
            f"{row['diverged']} of {row['seeds']}" if row["diverged"] else "-",
        ]


def _loss(value: float) -> str:
    if not isfinite(value):
        return "-"
    return f"{value:.3f}" if value < 100 else f"{value:.3g}"


def _range(row: dict[str, Any]) -> str:
    if row["seeds"] - row["diverged"] < 2:
        return "-"
    return f"{_loss(row['low'])} to {_loss(row['high'])}"
