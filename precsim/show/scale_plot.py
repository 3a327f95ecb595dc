"""The loss scale over a run: where it stood, what it cost, and the op behind each skipped step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from precsim.analyse.timeline import Timeline
from precsim.show.canvas import LIGHT, QUIET, RC, WIDTH, Data, step_axis
from precsim.show.style import BLUE, GREEN, OCHRE, VERMILLION

NAMED = 4
"""Skips whose op is written out: the first that are of different ops."""


def scale_timeline_data(found: Timeline) -> Data:
    """Return a timeline as plain data."""
    return found.to_dict()


def scale_timeline(
    *, steps: Sequence[int], scale: Sequence[float], skipped: Sequence[bool],
    flushed: Sequence[Any], headroom: Sequence[Any], skips: Sequence[Data], alarm: str = "",
    title: str = "",
) -> Axes:  # fmt: skip
    """Draw the loss scale, a cross for each skipped step with its op, headroom and flushed share.

    Small crosses are the skips with which the scale finds its place.  A scale of zero, and what
    was not recorded, leave gaps.  Returns the top panel.
    """
    with rc_context(RC):
        figure = Figure(figsize=(WIDTH, 7.0), layout="constrained")
        top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=(2.2, 1, 1))
        _draw_scale(top, steps, scale, skips, alarm)
        _draw_headroom(middle, steps, headroom)
        _draw_flushed(bottom, steps, flushed)
        bottom.set_xlabel("step")
        step_axis(bottom)
        for axes in (top, middle, bottom):
            axes.yaxis.grid(visible=True, color=LIGHT)
        top.set_title(title)
    first: Axes = top
    return first


def _draw_scale(
    axes: Axes, steps: Sequence[int], scale: Sequence[float], skips: Sequence[Data], alarm: str
) -> None:
    levels = _logarithms(scale)
    axes.step(steps, levels, where="post", color=BLUE, linewidth=2.2)
    level_at = dict(zip(steps, levels.tolist(), strict=True))
    named: dict[str, list[Data]] = {}
    for skip in skips:
        calm = skip["calibration"]
        axes.plot([skip["step"]], [level_at[skip["step"]]], "x", color=OCHRE if calm else VERMILLION,
                  markersize=6 if calm else 9, markeredgewidth=1.3 if calm else 2.4)  # fmt: skip
        named.setdefault(skip["path"] or "no op", []).append(skip)
    lines = [
        f"{len(found)} skipped from step {found[0]['step']}: {path}"
        + ("" if found[0]["helps"] else " (forward: no scale helps)")
        for path, found in list(named.items())[:NAMED]
    ]
    if len(named) > NAMED:
        more = len(named) - NAMED
        lines.append(f"and at {more} more op{'s' * (more > 1)}")
    if any(skip["calibration"] for skip in skips):
        lines.append("small crosses: while it finds its scale")
    lines += [alarm] * bool(alarm)
    axes.text(1, 1.0, "\n".join(lines), transform=axes.transAxes, ha="right", va="top",
              fontsize=9.5, color=QUIET, linespacing=1.4,
              bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8})  # fmt: skip
    low, high = axes.get_ylim()
    low, high = low - 0.5, high + 0.5
    axes.set_ylim(low, high + 0.1 * len(lines) * (high - low))
    axes.set_ylabel("loss scale")
    axes.yaxis.set_major_locator(MaxNLocator(7, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"$2^{{{y:g}}}$"))


def _draw_headroom(axes: Axes, steps: Sequence[int], headroom: Sequence[Any]) -> None:
    """Draw the bits between the largest gradient and the format's largest value, red at none."""
    bits = np.array([float(b) for b in headroom])
    axes.plot(steps, bits, color=GREEN, linewidth=1.8)
    axes.axhline(0, color=VERMILLION, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_ylabel("headroom\n(bits)")
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))


def _draw_flushed(axes: Axes, steps: Sequence[int], flushed: Sequence[Any]) -> None:
    shares = np.array([float(f) for f in flushed])
    axes.fill_between(steps, 0, shares, color=OCHRE, alpha=0.35, linewidth=0)
    axes.plot(steps, shares, color=OCHRE, linewidth=1.5)
    # The axis ends with the data, so that a share of a hundredth of a percent is seen, too.
    axes.set_ylim(0, 1.1 * float(np.nanmax(shares, initial=0.0)) or 0.01)
    axes.set_ylabel("backward\nflushed")
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: _percent(y)))


def _percent(part: float) -> str:
    """Return a share in percent without an exponent, however small it is."""
    return f"{100 * part:.9f}".rstrip("0").rstrip(".") + "%"


def _logarithms(scale: Sequence[float]) -> np.ndarray:
    values = np.array([float(s) for s in scale])
    known = np.where((values > 0) & np.isfinite(values), values, np.nan)
    return np.asarray(np.log2(known))
