"""Figures of drift: the error of each step's gradient, and how far the weights have gone astray.

Functions from plain data to matplotlib `Axes`, new ones or those they are given; `drift_data` makes
the data of one run from what `precsim.analyse.twins.drifts` found.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import degrees, isfinite
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from precsim.analyse.twins import Drifts, Point
from precsim.formats.registry import element_of, format
from precsim.show.canvas import (
    LIGHT,
    QUIET,
    RC,
    WIDTH,
    Data,
    key_above,
    new_axes,
    power_scale,
    step_axis,
)
from precsim.show.ranges import Floats
from precsim.show.style import look, looks


def drift_data(found: Drifts, name: str) -> Data:
    """Return what the figures of drift need to know about one run."""
    points = found.points
    return {
        "name": name,
        "format": found.format,
        "u": found.u,
        "step": [p.step for p in points],
        "rho": [p.gradient.rho for p in points],
        "rho_low": [_end(p, "rho", min) for p in points],
        "rho_high": [_end(p, "rho", max) for p in points],
        "angle": [degrees(p.gradient.angle) for p in points],
        "angle_low": [degrees(_end(p, "angle", min)) for p in points],
        "angle_high": [degrees(_end(p, "angle", max)) for p in points],
        "now": [p.split.rounding_now for p in points],
        "moved": [p.split.weights_moved for p in points],
        "update": [p.update.rho for p in points],
        "swamped": [p.swamped for p in points],
        "distance": [p.distance for p in points],
        "control": [p.control for p in points],
        "chaos": [p.chaos for p in points],
    }


def drift_map_data(found: Drifts, quantity: str = "update") -> Data:
    """Return the error of each parameter's gradient, or update, at each step, for `heat_map`.

    Raises `ValueError` for another quantity than "gradient" and "update".
    """
    if quantity not in ("gradient", "update"):
        msg = f"drift by parameter is of the gradient or the update; got {quantity!r}"
        raise ValueError(msg)
    rows = [getattr(point, f"{quantity}s") for point in found.points]
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {
        "column": f"{quantity}_error",
        "paths": names,
        "steps": [point.step for point in found.points],
        "values": [[row[n].rho if n in row else float("nan") for row in rows] for n in names],
    }


def _end(point: Point, name: str, which: Any) -> float:
    values = [getattr(one, name) for one in point.gradients.values()]
    return float(which((v for v in values if isfinite(v)), default=float("nan")))


def local_error(
    axes: Axes | None = None, *, runs: Sequence[Data], quantity: str = "rho", title: str = ""
) -> Axes:
    """Draw the error of each step's gradient, or its angle in degrees, at the run's own weights.

    A line for each run, the least and the largest of its parameters as a band.  A dashed line is u
    of its format.  `quantity`: "rho" or "angle".  Zeros and what is not finite leave gaps.
    """
    with rc_context(RC):
        axes = axes or new_axes(4.6)
        for run, style in zip(runs, looks([run["format"] for run in runs]), strict=True):
            steps = run["step"]
            low, middle, high = (
                _positive(run[f"{quantity}{end}"]) for end in ("_low", "", "_high")
            )
            axes.fill_between(steps, low, high, color=style.hue, alpha=0.15, linewidth=0)
            axes.plot(steps, middle, color=style.hue, linestyle=style.line, linewidth=2.2,
                      marker="o", markersize=4, label=_label(run))  # fmt: skip
            if quantity == "rho":
                axes.axhline(run["u"], color=style.hue, linestyle=(0, (5, 3)), linewidth=1)
                axes.annotate("u", (1, run["u"]), (3, 0), xycoords=("axes fraction", "data"),
                              textcoords="offset points", color=style.hue, va="center",
                              fontsize=11.5)  # fmt: skip
        name = "error of the gradient" if quantity == "rho" else "angle (degrees)"
        _finish(axes, f"{name}\nat the same weights", title)
    return axes


def distance(axes: Axes | None = None, *, runs: Sequence[Data], title: str = "") -> Axes:
    """Draw how far the weights are from the float64 twin's, relative to the way that it has come.

    The dotted line of each is what one error as large as a step's has become by then, grown as the
    control twin's has: what lies above it has been added by rounding since.  Of a single run the
    band below it is shaded; several would mix their hues.
    """
    with rc_context(RC):
        axes = axes or new_axes(4.6)
        for run, style in zip(runs, looks([run["format"] for run in runs]), strict=True):
            axes.plot(run["step"], _positive(run["chaos"]), color=style.hue, linewidth=1,
                      linestyle=(0, (1, 1.5)))  # fmt: skip
            axes.plot(run["step"], _positive(run["distance"]), color=style.hue,
                      linestyle=style.line, linewidth=2.2, marker="o", markersize=4,
                      label=_label(run))  # fmt: skip
        axes.plot([], [], color=QUIET, linewidth=1, linestyle=(0, (1, 1.5)),
                  label="one kick, grown as the control twin's")  # fmt: skip
        _finish(axes, "weights apart,\nof the way", title)
        if len(runs) == 1:
            floor, top = axes.get_ylim()
            chaos = _positive(runs[0]["chaos"])
            axes.fill_between(runs[0]["step"], np.full(len(chaos), floor), chaos, alpha=0.12,
                              color=look(runs[0]["format"]).hue, linewidth=0)  # fmt: skip
            axes.set_ylim(floor, top)
    return axes


def split(axes: Axes | None = None, *, run: Data, title: str = "") -> Axes:
    """Draw the two parts of a gradient's drift from the twin's: rounding now, weights moved."""
    with rc_context(RC):
        axes = axes or new_axes(4.6)
        hue = look(run["format"]).hue
        axes.plot(run["step"], _positive(run["now"]), color=hue, linewidth=2.2, marker="o",
                  markersize=4, label="rounding now")  # fmt: skip
        axes.plot(run["step"], _positive(run["moved"]), color="#222222", linewidth=2.2,
                  marker="s", markersize=4, linestyle=(0, (4, 1.5)),
                  label="weights already moved")  # fmt: skip
        _finish(axes, "gradient's drift\nfrom the twin's", title)
    return axes


def drift(*, run: Data, title: str = "") -> Figure:
    """Draw a run's drift in three panels: local error, split of the whole, weights apart."""
    with rc_context(RC):
        figure = Figure(figsize=(WIDTH, 9.8), layout="constrained")
        top, middle, bottom = figure.subplots(3, 1, sharex=True)
        local_error(top, runs=[run], title=title)
        split(middle, run=run)
        distance(bottom, runs=[run])
        for axes in (top, middle):
            axes.set_xlabel("")
    return figure


def _finish(axes: Axes, ylabel: str, title: str) -> None:
    power_scale(axes)
    axes.set(xlabel="step", ylabel=ylabel)
    axes.yaxis.grid(visible=True, color=LIGHT)
    step_axis(axes)
    key_above(axes, title)


def _label(run: Data) -> str:
    largest = f"{element_of(format(run['format'])).max:.5g}".replace("e+", "e")
    return f"{run['name']} ({run['format']}, max {largest})"


def _positive(values: Sequence[Any]) -> Floats:
    """Return numbers for a logarithmic axis; "nan" and "inf" are read, since JSON has them so."""
    array = np.array([float(v) for v in values])
    return np.where((array > 0) & np.isfinite(array), array, np.nan)
