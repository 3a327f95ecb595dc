"""The loss of a sweep over the first number that was swept, a line for each recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from math import ceil, log2, log10
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator
from matplotlib.transforms import Transform, offset_copy

from precsim.runs.grid import RECIPE, shown
from precsim.runs.sweep_results import Sweep, words
from precsim.show.canvas import LIGHT, QUIET, RC, WIDTH, Data
from precsim.show.style import GREY, Look, looks
from precsim.show.sweep_table import format_of_cell

MARKERS = "os^Dvp"
MANY = 9
"""Values from which on not each has a label."""

ACROSS = 2
"""Panels side by side."""

ASIDE = 16
"""Points, at most, over which lines with the same values lie side by side, none hidden."""

ROW = 0.075
"""Height of a line of marks for runs that diverged, as a part of the axes."""


def sweep_data(found: Sweep) -> Data:
    """Return the losses of a sweep, a panel for each combination of what comes after the first number.

    Without a number the recipes lie side by side.
    """
    grid = found.grid
    first, *others = grid.swept or [RECIPE]
    panels = []
    for rest in product(*(grid.over[name] for name in others)):
        fixed = dict(zip(others, rest, strict=True))
        rows = [row for row in found.rows if all(row[k] == v for k, v in fixed.items())]
        lines = [_line(found, name, first, rows) for name in grid.recipes]
        panels.append({"title": words(fixed, others), "lines": lines})
    config = grid.cells[0].config
    return {
        "over": first,
        "values": list(grid.over[first]),
        "panels": panels,
        "guess": found.guess,
        "title": f"Loss after {config.steps} steps, by {first}"
        if "steps" not in grid.swept
        else "",
    }


def _line(found: Sweep, name: str, first: str, rows: Sequence[Mapping[str, Any]]) -> Data:
    """Return a recipe's numbers, one for each value of the first number."""
    mine = [row if row["recipe"] == name else {} for row in rows]
    if first != RECIPE:
        mine = [row for row in mine if row]
    nan = float("nan")
    cell = next(cell for cell in found.grid.cells if cell.recipe == name)
    return {
        "name": name,
        "format": format_of_cell(cell),
        **{key: [row.get(key, nan) for row in mine] for key in ("loss", "low", "high")},
        **{key: [row.get(key, 0) for row in mine] for key in ("diverged", "seeds")},
        "best": next((i for i, row in enumerate(mine) if row.get("best")), None),
    }


def sweep_plot(
    axes: Axes | None = None, *, over: str, values: Sequence[Any], panels: Sequence[Data],
    guess: float | None = None, title: str = "",
) -> Axes:  # fmt: skip
    """Draw the mean loss over the first swept number, a line for each recipe, and a panel for each
    combination of the others; a band from the lowest to the highest seed, and a star on the best.

    Crosses above the axes are runs that diverged, with their number where others of that cell did
    not.  A triangle is a loss far worse than guessing, for which there is no room.
    The axis of what is swept is logarithmic where its numbers lie far apart; what is no number has
    its place in the order of the sweep.  `axes` are for a single panel.  Returns the first panel.
    """
    if axes is not None and len(panels) > 1:
        msg = f"the sweep has {len(panels)} panels: expected no axes, or a sweep over one number"
        raise ValueError(msg)
    x, log = _places(values)
    order = np.argsort(x, kind="stable")
    x, values = x[order], [values[i] for i in order]
    panels = [{**p, "lines": [_in_order(line, order) for line in p["lines"]]} for p in panels]
    with rc_context(RC):
        first = axes
        if axes is None:
            across = min(ACROSS, len(panels))
            down = ceil(len(panels) / across)
            figure = Figure(figsize=(WIDTH, 1.2 + 3.4 * down), layout="constrained")
            every = figure.subplots(down, across, sharey=True, squeeze=False).ravel()
            for spare in every[len(panels) :]:
                spare.remove()
            drawn = list(every[: len(panels)])
            first = drawn[0]
        else:
            drawn = [axes]
        assert first is not None
        limits = _limits(panels, guess)
        for one, panel in zip(drawn, panels, strict=True):
            _mark_axis(one, x, values, log=log)
            _draw(one, x, panel["lines"], limits, guess)
            one.set_xlabel(over)
            if len(panels) > 1:
                one.tick_params(axis="x", labelsize=11)
                one.set_title(panel["title"], fontsize=12.5, fontweight="normal")
        for one in drawn[:: ACROSS if axes is None else 1]:
            one.set_ylabel("validation loss")
        _name(first, title, alone=len(panels) == 1, own=axes is None)
    return first


def _in_order(line: Data, order: np.ndarray) -> Data:
    """Return a line with its values from the smallest on, in whatever order they were swept."""
    keys = ("loss", "low", "high", "diverged", "seeds")
    best = line["best"]
    moved = None if best is None else int(np.flatnonzero(order == best)[0])
    return {**line, **{key: [line[key][i] for i in order] for key in keys}, "best": moved}


def _name(first: Axes, title: str, *, alone: bool, own: bool) -> None:
    """Write the title, and what the lines are."""
    first.plot([], [], "*", color=GREY, markersize=12, label="best")
    handles, labels = first.get_legend_handles_labels()
    if any(labels):
        if own:
            first.figure.legend(handles, labels, loc="outside lower center", frameon=False,
                                fontsize=11.5, ncols=5 if sum(map(len, labels)) < 45 else 3)  # fmt: skip
        else:
            first.legend(frameon=False, fontsize=11.5, loc="best")
    if alone:
        first.set_title(title)
    elif title:
        first.figure.suptitle(title, x=0.01, ha="left", fontsize=15, fontweight="bold")


def _draw(
    axes: Axes, x: np.ndarray, lines: Sequence[Data], limits: tuple[float, float],
    guess: float | None,
) -> None:  # fmt: skip
    """Draw the lines of a panel and, above them, a row of marks for each that diverged somewhere."""
    low, high = limits
    styles = looks([line["format"] for line in lines])
    lost = [number for number, line in enumerate(lines) if any(line["diverged"])]
    strip = ROW * len(lost) + 0.03 * bool(lost)
    for number, (line, style) in enumerate(zip(lines, styles, strict=True)):
        points = (number / max(1, len(lines) - 1) - 0.5) * min(ASIDE, 4 * (len(lines) - 1))
        aside = offset_copy(axes.transData, axes.get_figure(root=True), points, units="points")
        _draw_line(axes, x, line, style, MARKERS[number % len(MARKERS)], high, aside)
    for row, number in enumerate(lost):
        marker = MARKERS[number % len(MARKERS)]
        _mark_lost(axes, x, lines[number], styles[number].hue, marker, 1 - ROW * (row + 0.5))
    axes.set_ylim(low, low + (high - low) / (1 - strip))
    ticks = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    axes.yaxis.set_major_locator(FixedLocator([t for t in ticks if low <= t <= high]))
    axes.yaxis.grid(visible=True, color=LIGHT)
    if lost:
        axes.axhline(high, color=QUIET, linewidth=0.8)
        axes.annotate("diverged", (0, high), (3, 2), xycoords=("axes fraction", "data"),
                      textcoords="offset points", color=QUIET, fontsize=10)  # fmt: skip
    if guess is not None and low < guess < high:
        axes.axhline(guess, color=GREY, linestyle=(0, (5, 3)), linewidth=1.2)
        axes.annotate("guessing", (1, guess), (-2, 3), xycoords=("axes fraction", "data"),
                      textcoords="offset points", ha="right", color=QUIET, fontsize=10)  # fmt: skip


def _draw_line(
    axes: Axes, x: np.ndarray, line: Data, style: Look, marker: str, high: float, aside: Transform
) -> None:
    """Draw what a recipe's runs came to; what lies above `high` at `high`, with a triangle."""
    loss, bottom, above = (_floats(line[key]) for key in ("loss", "low", "high"))
    drawn, bottom, above = (np.minimum(values, high) for values in (loss, bottom, above))
    hue = style.hue
    axes.fill_between(x, bottom, above, color=hue, alpha=0.12, linewidth=0, transform=aside)
    axes.vlines(x, bottom, above, color=hue, alpha=0.5, linewidth=1.2, transform=aside)
    axes.plot(x, drawn, color=hue, linestyle=style.line, linewidth=2, marker=marker, markersize=6,
              label=line["name"], transform=aside)  # fmt: skip
    beyond = x[loss > high]
    axes.plot(beyond, np.full(beyond.size, high), "^", color=hue, markersize=10, transform=aside)
    if line["best"] is not None:
        axes.plot(x[[line["best"]]], drawn[[line["best"]]], "*", color=hue, markersize=15,
                  markeredgecolor="white", markeredgewidth=1, zorder=4, transform=aside)  # fmt: skip


def _mark_lost(axes: Axes, x: np.ndarray, line: Data, hue: str, marker: str, height: float) -> None:
    """Draw a crossed-out marker for each value at which runs of a line diverged, and how many did."""
    across = axes.get_xaxis_transform()
    for place, lost, seeds in zip(x, line["diverged"], line["seeds"], strict=True):
        if not lost:
            continue
        axes.plot([place], [height], marker, color=hue, fillstyle="none", transform=across,
                  markersize=6)  # fmt: skip
        axes.plot([place], [height], "x", color=hue, transform=across, markersize=10,
                  markeredgewidth=2)  # fmt: skip
        if lost < seeds:
            axes.annotate(f"{lost} of {seeds}", (place, height), (-9, 0), xycoords=across,
                          textcoords="offset points", ha="right", va="center", color=hue,
                          fontsize=10)  # fmt: skip


def _limits(panels: Sequence[Data], guess: float | None) -> tuple[float, float]:
    """Return the losses that have room: all, up to somewhat more than guessing evenly."""
    lines = [line for panel in panels for line in panel["lines"]]
    found = np.concatenate([_floats(line[key]) for line in lines for key in ("low", "high")])
    found = found[np.isfinite(found)]
    if not found.size:
        return 0.0, guess or 1.0
    low, high = float(found.min()), float(found.max())
    if guess is not None and low < guess:
        high = min(high, guess + max(0.5 * (guess - low), 0.1 * guess))
    room = max(0.06 * (high - low), 0.01)
    return low - room, high + room


def _places(values: Sequence[Any]) -> tuple[np.ndarray, bool]:
    """Return where values lie, and whether on a logarithmic axis; no numbers lie side by side."""
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    if not numbers:
        return np.arange(len(values), dtype=float), False
    x = np.array([float(v) for v in values])
    return x, bool(x.min() > 0 and x.max() >= 4 * x.min())


def _mark_axis(axes: Axes, x: np.ndarray, values: Sequence[Any], *, log: bool) -> None:
    """Put a tick at each value: as powers of two or ten, where they are, else as it is."""
    binary = all(value > 0 and log2(value).is_integer() for value in x) if log else False
    if log:
        axes.set_xscale("log", base=2 if binary else 10)
    ticks = range(0, len(values), ceil(len(values) / MANY))
    axes.xaxis.set_major_locator(FixedLocator([float(x[i]) for i in ticks]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([_label(values[i], binary=binary, log=log) for i in ticks])
    ends = np.log10(x[[0, -1]]) if log else x[[0, -1]]
    room = 0.08 * (ends[1] - ends[0]) or 0.5
    left, right = ends[0] - room, ends[1] + room
    axes.set_xlim(*((10**left, 10**right) if log else (left, right)))


def _label(value: Any, *, binary: bool, log: bool) -> str:
    """Return a value as the axis has it: 2^16, 10^-3, 3·10^-3; small whole numbers as they are."""
    if not log or 1 <= value <= 512:
        return shown(value)
    if binary:
        return f"$2^{{{log2(value):.0f}}}$"
    exponent = int(np.floor(log10(value) + 1e-12))
    factor = value / 10.0**exponent
    power = f"10^{{{exponent}}}"
    return f"${power}$" if abs(factor - 1) < 1e-9 else f"${factor:.3g}\\cdot{power}$"


def _floats(values: Sequence[Any]) -> np.ndarray:
    return np.array([float(value) for value in values])
