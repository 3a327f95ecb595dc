"""Rounding by chance beside rounding to nearest: the error of the mean of ever more gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite, sqrt
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes

from precsim.analyse.chance import Averaged
from precsim.show.canvas import LIGHT, QUIET, RC, Data, key_above, new_axes, power_scale
from precsim.show.style import DASHED, SOLID, look

STYLES = {"stochastic": (SOLID, "o", "by chance"), "nearest": (DASHED, "s", "to nearest")}


def chance_data(found: Mapping[str, Averaged], fmt: str) -> Data:
    """Return what `precsim.analyse.chance.averaged` found for a policy whose coarsest is `fmt`."""
    rows = [{"rounding": r, "mean": list(a.mean), "single": a.single} for r, a in found.items()]
    return {"rows": rows, "format": fmt}


def chance(axes: Axes | None = None, *, rows: Sequence[Data], format: str, title: str = "") -> Axes:
    """Draw the error of the mean of K gradients over K, for both ways to round.

    To nearest it stays where it is; by chance it falls along the dotted line, 1 / sqrt(K), as long
    as it has no bias.  Errors that are infinite leave gaps.
    """
    hue = look(format).hue
    with rc_context(RC):
        axes = axes or new_axes(4.6)
        for row in rows:
            line, marker, words = STYLES[row["rounding"]]
            means = [_gap(mean) for mean in row["mean"]]
            count = range(1, len(means) + 1)
            axes.plot(count, means, color=hue, linestyle=line, marker=marker, markersize=5,
                      linewidth=2, markerfacecolor=hue if line == SOLID else "white",
                      label=f"{format}, {words}")  # fmt: skip
            if row["rounding"] == "stochastic":
                axes.plot(count, [row["single"] / sqrt(k) for k in count], color=QUIET,
                          linestyle=(0, (1, 1.5)), label="no bias at all: 1 / √K")  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        power_scale(axes)
        axes.set(xlabel="K gradients averaged", ylabel="error of their mean")
        axes.yaxis.grid(visible=True, color=LIGHT)
        key_above(axes, title)
    return axes


def _gap(value: Any) -> float:
    return float(value) if isfinite(float(value)) else float("nan")
