"""The heat map of a run: what happened in each op at each step."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from precsim.runs.columns import OpTable
from precsim.show.canvas import RC, Data, new_axes, step_axis
from precsim.show.style import share

MOST_ROWS, MOST_COLUMNS = 40, 200

LABELS = {
    "flushed_share": "flushed, of nonzero",
    "swamped_share": "updates lost",
    "err_u": "own error in u",
}
"""Columns of ops that can be drawn, with what they are called."""

OTHERS = {"gradient_error": "error of the gradient", "update_error": "error of the update"}
"""What else can be drawn, of parameters."""


def heat_map_data(table: OpTable, column: str = "flushed_share") -> Data:
    """Return a column of recorded ops, a row for each path and a column for each step.

    Of many ops those with the largest values stay, in the order in which they ran; of many steps
    every so many.  Ops whose value is never above zero are left out.  NaN where there is nothing.
    Raises `ValueError` for a column that this figure does not show.
    """
    if column not in LABELS:
        msg = f"the heat map shows {', '.join(LABELS)}; got {column!r}"
        raise ValueError(msg)
    steps = np.unique(table["step"])
    steps = steps[:: -(-len(steps) // MOST_COLUMNS) or 1]
    keep = np.isin(table["step"], steps)
    paths, values = table["path"][keep], table[column][keep]
    names = list(dict.fromkeys(paths.tolist()))
    rows = {name: row for row, name in enumerate(names)}
    grid = np.full((len(names), len(steps)), np.nan)
    where = (np.array([rows[p] for p in paths.tolist()], np.int64),
             np.searchsorted(steps, table["step"][keep]))  # fmt: skip
    np.fmax.at(grid, where, values)
    worst = np.where(np.isfinite(grid), grid, 0.0).max(axis=1, initial=0.0)
    order = [int(i) for i in np.argsort(-worst, kind="stable") if worst[i] > 0][:MOST_ROWS]
    return {
        "column": column,
        "paths": [names[i] for i in sorted(order)],
        "steps": steps.tolist(),
        "values": grid[sorted(order)].tolist(),
        "left_out": int(np.count_nonzero(worst)) - len(order),
    }


def heat_map(
    axes: Axes | None = None, *, column: str, paths: Sequence[str], steps: Sequence[int],
    values: Sequence[Sequence[Any]], left_out: int = 0, title: str = "",
) -> Axes:  # fmt: skip
    """Draw a value for each op and step, darker where it is larger, on a logarithmic scale.

    White is zero; grey is no number.  Shares go from a thousandth to one, and smaller ones look like
    it; errors go from their least.
    """
    grid = np.array([[float(v) for v in row] for row in values]).reshape(len(paths), len(steps))
    parts = column.endswith("_share")
    with rc_context(RC):
        axes = axes or new_axes(1.9 + 0.19 * max(len(paths), 6))
        figure = axes.figure
        assert isinstance(figure, Figure)
        shown = np.where(grid > 0, grid, np.nan)
        low, high = (1e-3, 1.0) if parts else _limits(shown)
        colours = colormaps["viridis_r"].with_extremes(under="white", bad="#d0d0d0")
        seen = np.where(grid > 0, np.maximum(grid, low), np.where(grid == 0, low / 2, np.nan))
        mesh = axes.pcolormesh(
            _edges(steps), np.arange(len(paths) + 1) - 0.5, np.ma.masked_invalid(seen),
            norm=LogNorm(low, high), cmap=colours,
        )  # fmt: skip
        bar = figure.colorbar(mesh, ax=axes, aspect=30, pad=0.02)
        if high < 30 * low:  # there may be no power of ten between
            bar.ax.yaxis.set_major_locator(LogLocator(10, subs=(1, 1.5, 2, 3, 5, 7)))
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: _level(v, low, parts=parts)))
        bar.ax.yaxis.set_minor_formatter(NullFormatter())
        bar.set_label((LABELS | OTHERS)[column], fontsize=11)
        axes.set_yticks(range(len(paths)), paths, fontsize=8)
        axes.set_ylim(max(len(paths), 1) - 0.5, -0.5)
        if not paths:
            axes.text(0.5, 0.5, "nowhere", transform=axes.transAxes, ha="center", va="center")
        axes.tick_params(axis="y", length=0)
        more = f" ({left_out} more ops have some)" if left_out else ""
        key = ["white: 0"] * bool((grid == 0).any())
        key += ["grey: no number"] * (not np.isfinite(grid).all())
        axes.set_xlabel("\n".join([f"step{more}", ", ".join(key)]).rstrip())
        step_axis(axes)
        axes.set_title(title)
    return axes


def _level(value: float, low: float, *, parts: bool) -> str:
    """Return a number beside the colours: the least share stands for all that are smaller."""
    if not parts:
        return f"{value:g}"
    return f"\N{LESS-THAN OR EQUAL TO} {share(low)}" if value <= low else share(value)


def _edges(steps: Sequence[int]) -> list[float]:
    """Return the ends of each step's cell: half-way to its neighbours."""
    if not len(steps):
        return [0.0]
    middles = [(a + b) / 2 for a, b in pairwise(steps)]
    first = middles[0] - steps[0] if middles else 0.5
    last = steps[-1] - middles[-1] if middles else 0.5
    return [steps[0] - first, *middles, steps[-1] + last]


def _limits(values: np.ndarray) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.1, 1.0)
    return low, max(high, 2 * low)
