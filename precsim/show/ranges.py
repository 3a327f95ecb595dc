"""Figures of what formats can hold, and of values over it: the axis is the exponent, 2^k."""

from __future__ import annotations

from collections.abc import Sequence
from math import log2
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

from precsim.formats.registry import AnyFormat, element_of
from precsim.formats.registry import format as resolve
from precsim.show.canvas import LIGHT, RC, WIDTH, Data, key_above
from precsim.show.style import GREY, look, share

HATCH = "/////"

ASIDE = 5
"""Octaves between the peak of a histogram and its label."""

Floats = npt.NDArray[np.float64]


def exponent_histogram(
    *,
    lowest: int,
    counts: Sequence[int],
    ranges: Sequence[Data],
    label: str = "",
    loss_scale: float = 1.0,
    title: str = "",
) -> Figure:
    """Draw how many values have each exponent, over the ranges of formats (`format_range`).

    `counts` are those of the exponents from `lowest` upwards; zeros are not among them.  A
    `loss_scale` above 1 draws them again where it would move them.  Each bar says which share of
    the values, as they are, is so small that rounding to nearest makes it zero in the format.
    """
    values = np.asarray(counts, dtype=float)
    limits = _exponent_limits(lowest, values, log2(loss_scale))
    with rc_context(RC):
        figure = Figure(figsize=(WIDTH, 3.3 + 0.46 * len(ranges)), layout="constrained")
        top, bars = figure.subplots(2, 1, sharex=True, height_ratios=(2.6, 0.46 * len(ranges)))
        _draw_counts(top, lowest, values, label, loss_scale)
        _draw_ranges(bars, ranges, limits)
        for row, found in enumerate(ranges):
            first_kept = found["low"] - 1
            if first_kept > limits[0]:
                lost = share(flushed_share(lowest, values, found["name"]))
                bars.text(first_kept - 0.6, row, f"{lost} become 0", va="center", ha="right")
                for axes, bottom in ((top, 0.0), (bars, 1 - (row + 0.6) / len(ranges))):
                    axes.axvline(
                        first_kept, bottom, color=look(found["name"]).hue,
                        zorder=2 if axes is top else 0.5,
                        linestyle=(0, (1, 1.5)), linewidth=1.5,
                    )  # fmt: skip
        bars.set(xlim=limits, xlabel="magnitude of a gradient before it is rounded")
        _power_axis(bars, 8)
        top.set_title(title)
    return figure


def range_ladder(*, ranges: Sequence[Data], title: str = "") -> Figure:
    """Draw ranges of formats (`format_range`) on one axis of powers of two, with max and u.

    A range that goes on beyond the axis ends in an arrow.
    """
    with rc_context(RC):
        figure = Figure(figsize=(WIDTH, 1.9 + 0.36 * len(ranges)), layout="constrained")
        axes = figure.add_subplot()
        _draw_ranges(axes, ranges, (-158.0, 140.0))
        axes.set_xlabel("magnitude")
        _power_axis(axes, 32)
        axes.xaxis.grid(visible=True, color=LIGHT)
        patches = [
            Patch(facecolor=GREY, label="normal: error at most u"),
            Patch(
                facecolor="white", edgecolor=GREY, hatch=HATCH, label="evenly spaced: error grows"
            ),
            Patch(facecolor="none", edgecolor=LIGHT, label="outside: 0 or overflow"),
        ]
        key_above(axes, title, handles=patches)
    return figure


def format_range(fmt: str | AnyFormat) -> dict[str, Any]:
    """Return a format's range as powers of two: `low` (smallest), `normal` (smallest with all of
    its precision) and `high` (largest).  Integers have no normal values: all are evenly spaced."""
    element = element_of(resolve(fmt))
    high = log2(element.max)
    return {
        "name": element.name,
        "max": element.max,
        "u": element.u,
        "low": log2(element.smallest_subnormal),
        "normal": high if element.is_integer else float(element.emin),
        "high": high,
    }


def flushed_share(lowest: int, counts: npt.ArrayLike, fmt: str | AnyFormat) -> float:
    """Return the share of the values below half of the format's smallest, which round to zero.

    Values of that half itself are a tie and go to zero too, which a histogram cannot tell.
    """
    values = np.asarray(counts, dtype=float)
    first_kept = log2(element_of(resolve(fmt)).smallest_subnormal) - 1
    lost = values[lowest + np.arange(len(values)) < first_kept].sum()
    return float(lost / values.sum()) if values.any() else 0.0


def _exponent_limits(lowest: int, counts: Floats, shift: float) -> tuple[float, float]:
    """Return the exponents between which all but two in a thousand values lie, with room around.

    For their labels there is a quarter of the axis left of the peak, and a third right of where the
    loss scale moves it.
    """
    below = np.cumsum(counts) / (counts.sum() or 1.0)
    first = lowest + int(np.searchsorted(below, 0.001))
    last = lowest + int(np.searchsorted(below, 0.999))
    peak = lowest + int(counts.argmax())
    left, right = float(min(first - 4, -40)), float(max(last + shift + 4, 42))
    left = min(left, (peak - ASIDE - right / 4) / 0.75)
    return left, max(right, (peak + shift + ASIDE - left / 3) * 1.5)


def _draw_counts(axes: Axes, lowest: int, counts: Floats, label: str, loss_scale: float) -> None:
    """Draw the histogram, and an arrow from its peak to where the loss scale moves it."""
    shares = 100 * counts / (counts.sum() or 1.0)
    edges = lowest + np.arange(len(shares) + 1)
    peak, top = edges[shares.argmax()] + 0.5, float(shares.max())
    axes.stairs(shares, edges, fill=True, color="#a3a3a3")
    axes.set(ylabel="% of the values", ylim=(0, 1.1 * top or 1))
    axes.text(peak - ASIDE, 0.75 * top, label, ha="right", va="center")
    if loss_scale > 1:
        by = log2(loss_scale)
        hue = look("fp16").hue
        axes.stairs(shares, edges + by, color=hue, linewidth=1.6)
        axes.annotate(
            "", (peak + by, 0.8 * top), (peak, 0.8 * top),
            arrowprops={"arrowstyle": "-|>", "color": hue, "linewidth": 1.6},
        )  # fmt: skip
        moved = f"times the loss scale $2^{{{by:g}}}$"
        axes.text(peak + by + ASIDE, 0.75 * top, moved, color=hue, ha="left", va="center")
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.tick_params(labelbottom=False)


def _draw_ranges(axes: Axes, ranges: Sequence[Data], limits: tuple[float, float]) -> None:
    """Draw a bar for each format: evenly spaced values hatched, normal ones solid, a text beside."""
    for row, found in enumerate(ranges):
        hue = look(found["name"]).hue
        low, normal, high = np.clip([found[k] for k in ("low", "normal", "high")], *limits)
        axes.barh(row, high - normal, 0.6, normal, color=hue)
        axes.barh(row, normal - low, 0.6, low, color="white", edgecolor=hue, hatch=HATCH)
        inside = high - low > 0.6 * (limits[1] - limits[0])
        axes.annotate(
            _range_text(found), (high, row), (-6 if inside else 5, 0), textcoords="offset points",
            va="center", ha="right" if inside else "left", fontsize=11.5,
            color="white" if inside else "#222222",
        )  # fmt: skip
        for goes_on, edge, sign in (
            (found["low"] < limits[0], limits[0], -1),
            (found["high"] > limits[1], limits[1], 1),
        ):
            if goes_on:
                axes.plot(
                    [edge], [row], marker="<" if sign < 0 else ">", color=hue, markersize=11,
                    clip_on=False,
                )  # fmt: skip
    axes.set(xlim=limits, ylim=(len(ranges) - 0.4, -0.6))
    axes.set_yticks(range(len(ranges)), [str(found["name"]) for found in ranges])
    for tick, found in zip(axes.get_yticklabels(), ranges, strict=True):
        tick.set(color=look(found["name"]).hue, fontweight="bold")
    axes.tick_params(axis="y", length=0, pad=8)
    axes.spines["left"].set_visible(False)


def _range_text(found: Data) -> str:
    digits, _, exponent = f"{found['max']:.5g}".partition("e")
    largest = rf"${float(digits):.2f} \times 10^{{{int(exponent)}}}$" if exponent else digits
    return f"max {largest}, $u = 2^{{{log2(found['u']):g}}}$"


def _power_axis(axes: Axes, every: int) -> None:
    axes.xaxis.set_major_locator(MultipleLocator(every))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"$2^{{{x:g}}}$"))
