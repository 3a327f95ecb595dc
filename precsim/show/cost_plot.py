"""What a step would cost in each recipe: a bar each, arithmetic and then traffic, by format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from precsim.analyse.cost import LABEL, Cost, energy
from precsim.formats.registry import element_of, format
from precsim.show import plot
from precsim.show.canvas import LIGHT, QUIET, RC, Data, new_axes
from precsim.show.style import look

HATCH = "////"
"""Drawn over traffic, so that the two halves of a bar differ in more than their place."""

TITLE = f"What one step would cost ({LABEL})"


def cost_bars_data(costs: Mapping[str, Cost], reference: Cost, memory: str) -> Data:
    """Return picojoules by recipe and format, of the arithmetic and of the traffic with `memory`.

    `reference` is the same step in fp32, of whose energy the figure shows shares.
    """
    rows = []
    for name, cost in costs.items():
        lines = cost.by("format").items()
        rows.append(
            {
                "recipe": name,
                "arithmetic": {fmt: line.arithmetic for fmt, line in lines if line.arithmetic},
                "traffic": {
                    fmt: cost.prices.traffic(line.moved, memory)
                    for fmt, line in lines
                    if line.moved
                },
            }
        )
    estimated = sorted({name for cost in costs.values() for name in cost.estimated})
    return {
        "rows": rows, "memory": memory, "prices": reference.prices.name, "estimated": estimated,
        "reference": reference.arithmetic + reference.traffic(memory),
    }  # fmt: skip


def cost_bars(
    axes: Axes | None = None, *, rows: Sequence[Data], reference: float, memory: str = "",
    prices: str = "", estimated: Sequence[str] = (), title: str = TITLE,
) -> Axes:  # fmt: skip
    """Draw a bar for each recipe: its arithmetic by format, then, hatched, its traffic by format.

    The axis is in shares of fp32's energy; at the end of a bar stands its own.  A model, not a
    measurement: the axis says so whatever the title.
    """
    with rc_context(RC):
        axes = axes or new_axes(2.5 + 0.42 * len(rows))
        shown: list[str] = []
        for y, row in enumerate(rows):
            left = 0.0
            for part, hatch in (("arithmetic", ""), ("traffic", HATCH)):
                for fmt in sorted(row[part], key=_widest_first):
                    width = float(row[part][fmt]) / (reference or 1.0)
                    axes.barh(y, width, 0.66, left, color=look(fmt).hue, hatch=hatch,
                              edgecolor="white", linewidth=0.6)  # fmt: skip
                    shown += [fmt] if fmt not in shown else []
                    left += width
            axes.annotate(energy(left * reference), (left, y), (5, 0), va="center", fontsize=10.5,
                          textcoords="offset points", color=QUIET)  # fmt: skip
        axes.set_yticks(range(len(rows)), [str(row["recipe"]) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(0, axes.get_xlim()[1] * 1.09)
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.tick_params(axis="y", length=0)
        axes.xaxis.grid(visible=True, color=LIGHT)
        guess = f"; estimated: {', '.join(estimated)}" if estimated else ""
        axes.set_xlabel(f"energy, of fp32's ({LABEL})\nprices: {prices}; traffic: {memory}{guess}")
        keys = [Patch(color=look(fmt).hue, label=fmt) for fmt in sorted(shown, key=_widest_first)]
        keys += [Patch(facecolor="#999999", label="arithmetic"),
                 Patch(facecolor="#999999", edgecolor="white", hatch=HATCH, label="moving bytes")]  # fmt: skip
        axes.legend(handles=keys, frameon=False, fontsize=11, loc="center left",
                    bbox_to_anchor=(1.01, 0.5))  # fmt: skip
        axes.set_title(title)
    return axes


def _widest_first(fmt: str) -> tuple[int, str]:
    return -element_of(format(fmt)).bits, fmt


def _figure(**data: Any) -> Figure:
    figure = cost_bars(**data).figure
    assert isinstance(figure, Figure)
    return figure


FIGURES = {"cost_bars": _figure}
"""Name in a figure's JSON -> function that draws it, on a figure of its own."""


def save(data: Data, path: str | Path) -> list[Path]:
    """Draw the figure and write it, with its data beside it, as `plot.save` does."""
    return plot.save("cost_bars", data, path, FIGURES)


def redraw(path: str | Path) -> Figure:
    """Return the figure whose data `save` wrote to the JSON file `path`."""
    return plot.redraw(path, FIGURES)
