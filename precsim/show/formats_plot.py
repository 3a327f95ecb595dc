"""Figures of formats: their values on a line, rounding as a staircase, its error over magnitude.

Each figure is a function from plain data to matplotlib `Axes`, new ones or those it is given; the
function of the same name with `_data` behind it makes the data.  `save` writes the picture and,
beside it, the data, from which `redraw` makes it again::

    from precsim.show import formats_plot as fp
    fp.staircase(**fp.staircase_data("e2m1"))
    fp.save("number_line", fp.number_line_data(["int4", "e2m1"]), "line.png")
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MultipleLocator

from precsim.formats.format import Format
from precsim.formats.modes import Overflow, Rounding
from precsim.formats.quantize import quantize
from precsim.formats.registry import AnyFormat, element_of
from precsim.formats.registry import format as resolve
from precsim.proofs.tables import Table, places, table
from precsim.show import plot
from precsim.show.canvas import LIGHT, QUIET, RC, WIDTH, Data, new_axes
from precsim.show.ranges import Floats
from precsim.show.style import look

INK = "#222222"

MOST_LISTED = 8
"""Bits of the widest format whose values can be told apart in a picture."""

ALL_MODES = tuple(mode for mode in Rounding if mode is not Rounding.STOCHASTIC)


def _narrow(spec: str | AnyFormat) -> Format:
    """Return a format's element; raise where its values would be one grey bar."""
    fmt = element_of(resolve(spec))
    if fmt.bits > MOST_LISTED or not fmt.has_zero:
        msg = f"this figure shows formats with a zero, of at most {MOST_LISTED} bits; got {fmt!r}"
        raise ValueError(msg)
    return fmt


def number_line_data(formats: Sequence[str | AnyFormat] = ("int4", "e2m1", "e2m3")) -> Data:
    """Return the non-negative values of formats of up to 8 bits, for `number_line`."""
    rows: list[Data] = []
    for fmt in map(_narrow, formats):
        values = [v for v in fmt.values() if v >= 0]
        normal = 0.0 if fmt.is_integer else fmt.smallest_normal
        rows.append({"name": fmt.name, "max": fmt.max, "values": values, "smallest_normal": normal})
    names = ", ".join(row["name"] for row in rows)
    return {"rows": rows, "title": f"Every value of {names}"}


def number_line(
    axes: Axes | None = None, *, rows: Sequence[Data], title: str = "", until: float | None = None
) -> Axes:
    """Draw the values of each format as strokes on a line, from 0 up; negative ones mirror them.

    Powers of two have tall strokes, subnormals pale ones; the spacing of a binade stands above it,
    and values below their strokes, where there is room.  `until` cuts the axis off (default: just above the largest value).
    """
    last = until or 1.16 * max(row["max"] for row in rows)
    with rc_context(RC):
        axes = axes or new_axes(1.2 + 1.05 * len(rows))
        for y, row in enumerate(rows):
            _draw_row(axes, y, row, last)
        axes.set(xlim=(-0.015 * last, last), ylim=(len(rows) - 0.4, -0.6))
        axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
        for tick, row in zip(axes.get_yticklabels(), rows, strict=True):
            tick.set(color=look(row["name"]).hue, fontweight="bold")
        axes.tick_params(axis="y", length=0, pad=8)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("value (negative ones mirror these; pale: subnormal)")
        axes.set_title(title)
    return axes


def _draw_row(axes: Axes, y: int, row: Data, last: float) -> None:
    """Draw one format's values, their names below, the spacings above, the largest at the end."""
    hue = look(row["name"]).hue
    values = np.array([v for v in row["values"] if v <= last])
    normal = values >= row["smallest_normal"]
    tall = (values == 0) | normal & (np.frexp(values)[0] == 0.5) & (row["smallest_normal"] > 0)
    height = np.where(tall, 0.25, 0.16)
    axes.plot([0, min(row["max"], last)], [y, y], color=hue, linewidth=1.0, zorder=1)
    axes.vlines(values, y - height, y + height, color=hue, linewidth=np.where(tall, 2.6, 1.6),
                alpha=np.where(normal | (values == 0), 1.0, 0.45))  # fmt: skip
    roomy = np.diff(values).min(initial=last) > 0.045 * last
    taken = np.inf
    for value in values[tall | roomy][::-1]:
        if taken - value > 0.045 * last:
            axes.annotate(f"{value:g}", (value, y + 0.26), (0, -2), textcoords="offset points",
                          ha="center", va="top", fontsize=11, color=QUIET)  # fmt: skip
            taken = value
    for low, high in itertools.pairwise([*values[tall], row["max"]]):
        inside = values[(values >= low) & (values <= high)]
        if high - low > 0.11 * last and inside.size > 1:
            axes.annotate(f"step {inside[1] - inside[0]:g}", ((low + high) / 2, y - 0.2), (0, 3),
                          textcoords="offset points", ha="center", va="bottom", fontsize=10.5,
                          color=hue)  # fmt: skip
    if row["max"] <= last:
        axes.annotate(f"max {row['max']:g}", (row["max"], y), (7, 0), textcoords="offset points",
                      va="center", color=hue, fontweight="bold", fontsize=12)  # fmt: skip
    else:
        axes.plot([last], [y], marker=">", color=hue, markersize=9, clip_on=False)


def staircase_data(
    fmt: str | AnyFormat = "e2m1",
    rounding: str | Rounding = Rounding.NEAREST,
    overflow: str | Overflow = Overflow.SATURATE,
) -> Data:
    """Return where the steps of rounding are, both signs, for `staircase`, `sawtooth`, `rounding`.

    ``at`` are the places where the result changes, ``values`` the results before, between and after
    them (None: infinity or NaN), ``up`` tells which of its two neighbours a place itself goes to.
    For formats of up to 8 bits, and not for stochastic rounding: `ValueError`.
    """
    grid, mode = _narrow(fmt), Rounding(rounding)
    if mode is Rounding.STOCHASTIC:
        msg = "stochastic rounding is no staircase: expected one of " + ", ".join(ALL_MODES)
        raise ValueError(msg)
    saturates = Overflow(overflow) is Overflow.SATURATE or not grid.has_nan
    rows = table(grid)
    at, up, values = _half(rows, mode, False, grid.max if saturates else None)
    if grid.signed:
        left, left_up, left_values = _half(rows, mode, True, grid.max if saturates else None)
        at = [-p for p in left[::-1]] + at
        up = [not u for u in left_up[::-1]] + up
        values = [None if v is None else -v for v in left_values[:0:-1]] + values
    return {
        "name": grid.name, "max": grid.max, "u": grid.u, "rounding": mode.value,
        "smallest_normal": 0.0 if grid.is_integer else grid.smallest_normal,
        "at": at, "up": up, "values": values,
        "title": f"Rounding to {grid.name} (max {grid.max:g})",
    }  # fmt: skip


def _half(
    rows: Table, mode: Rounding, negative: bool, top: float | None
) -> tuple[list[float], list[bool], list[float | None]]:
    """Return places, what happens at them, and values, of magnitudes; those at infinity left out."""
    place, up = places(rows, mode, negative)
    values = [*rows.values[:-1].tolist(), top]
    finite = int(np.isfinite(place).sum()) - (top == values[-2] and bool(np.isfinite(place[-1])))
    return place[:finite].tolist(), up[:finite].tolist(), values[: finite + 1]


def staircase(
    axes: Axes | None = None,
    *,
    name: str,
    at: Sequence[float],
    up: Sequence[bool],
    values: Sequence[float | None],
    title: str = "",
    low: float | None = None,
    high: float | None = None,
    **facts: Any,
) -> Axes:
    """Draw the rounded value over the number: a step for each value of the format.

    A dot sits on the step that the number between two steps belongs to.  The default limits show
    the positive half, to a quarter above the largest value.
    """
    low, high = _limits(low, high, facts)
    hue = look(name).hue
    with rc_context(RC):
        axes = axes or new_axes(5.0)
        axes.plot([low, high], [low, high], color="#9a9a9a", linewidth=1.2, zorder=1)
        x, y = _corners(at, values, low, high)
        axes.plot(x, y, color=hue, linewidth=2.3)
        steps = zip(at, up, values[:-1], values[1:], strict=True)
        taken = [(p, b if goes_up else a) for p, goes_up, a, b in steps if low <= p <= high]
        axes.plot(*zip(*((p, v) for p, v in taken if v is not None), strict=True), "o",
                  color=hue, markersize=5.5)  # fmt: skip
        axes.set(xlim=(low, high), ylim=(1.08 * low - 0.03 * high, 1.08 * high))
        axes.set(xlabel="x", ylabel=f"x rounded to {name}")
        axes.grid(visible=True, color=LIGHT)
        axes.set_title(title)
    return axes


def sawtooth(
    axes: Axes | None = None,
    *,
    name: str,
    u: float,
    at: Sequence[float],
    values: Sequence[float | None],
    title: str = "",
    low: float | None = None,
    high: float | None = None,
    **facts: Any,
) -> Axes:
    """Draw the relative error over the number: one tooth between any two values.

    In round to nearest the teeth of normal values stay below u; those of subnormals grow, to 100 %
    where a number becomes zero.  Limits as for `staircase`.
    """
    low, high = _limits(low, high, facts)
    hue = look(name).hue
    with rc_context(RC):
        axes = axes or new_axes(3.0)
        x, y = _corners(at, values, low, high)
        teeth = [_tooth(a, b, v) for a, b, v in zip(x[::2], x[1::2], y[::2], strict=True)]
        points, errors = (np.concatenate(part) for part in zip(*teeth, strict=True))
        axes.fill_between(points, 100 * errors, color=hue, alpha=0.25, linewidth=0)
        axes.plot(points, 100 * errors, color=hue, linewidth=1.6)
        axes.axhline(100 * u, color=INK, linewidth=1.2, linestyle=(0, (5, 3)))
        axes.annotate(f"u = {_percent(u)}", (facts.get("max", high), 100 * u), (-4, 3), textcoords="offset points",
                      ha="right", va="bottom", fontsize=11.5)  # fmt: skip
        for a, b, text in (
            (max(low, 0.0), facts.get("smallest_normal", 0.0), "subnormal"),
            (facts.get("max", high), high, "beyond max"),
        ):
            if b > a:
                axes.axvspan(a, b, color="#f1f1f1", linewidth=0, zorder=0)
                if b - a > 0.1 * (high - low):
                    axes.annotate(text, ((a + b) / 2, 108), (0, 2), textcoords="offset points",
                                  ha="center", va="bottom", fontsize=11, color=QUIET)  # fmt: skip
        axes.set(xlim=(low, high), ylim=(0, 108), xlabel="x", ylabel="relative error (%)")
        axes.yaxis.grid(visible=True, color=LIGHT)
        axes.set_title(title)
    return axes


def _limits(low: float | None, high: float | None, facts: Data) -> tuple[float, float]:
    largest = float(facts.get("max", 1.0))
    return 0.0 if low is None else low, 1.25 * largest if high is None else high


def _corners(
    at: Sequence[float], values: Sequence[float | None], low: float, high: float
) -> tuple[list[float], list[float]]:
    """Return the ends of the steps between two limits: x, x, x, x ... and y, y, y, y ..."""
    x: list[float] = []
    y: list[float] = []
    for (left, right), value in zip(
        itertools.pairwise([-np.inf, *at, np.inf]), values, strict=True
    ):
        a, b = max(left, low), min(right, high)
        if a < b and value is not None:
            x += [a, b]
            y += [value, value]
    return x, y


def _tooth(left: float, right: float, value: float) -> tuple[Floats, Floats]:
    """Return points of the relative error between two ends of a step; at 0 that of its side."""
    x = np.union1d(np.linspace(left, right, 65), np.clip(value, left, right))
    x = np.where(x == 0, np.finfo(float).tiny, x)
    return x, np.abs(value - x) / np.abs(x)


def rounding(*, title: str = "", **data: Any) -> Figure:
    """Draw `staircase` above `sawtooth`, on one axis of numbers."""
    with rc_context(RC):
        figure = Figure(figsize=(WIDTH, 7.2), layout="constrained")
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(1.6, 1))
        staircase(top, title=title, **data)
        sawtooth(bottom, **data)
        top.set_xlabel("")
        edge = 1.04 * data["max"]
        top.text(edge, edge, "no rounding", rotation=45, rotation_mode="anchor", fontsize=11,
                 transform_rotates_text=True, color=QUIET, va="bottom")  # fmt: skip
    return figure


def modes_data(
    fmt: str | AnyFormat = "e2m1", roundings: Sequence[str | Rounding] = ALL_MODES
) -> Data:
    """Return `staircase_data` for several rounding modes, for `modes`."""
    grid = element_of(resolve(fmt))
    title = f"Rounding modes in {grid.name}; dots: where the edges of steps go"
    return {"panels": [dict(staircase_data(fmt, mode)) for mode in roundings], "title": title}


def modes(*, panels: Sequence[Data], title: str = "") -> Figure:
    """Draw a staircase for each rounding mode, three in a row, both signs."""
    with rc_context(RC):
        rows = -(-len(panels) // 3)
        figure = Figure(figsize=(WIDTH, 0.5 + 2.7 * rows), layout="constrained")
        grid = figure.subplots(rows, 3, sharex=True, sharey=True, squeeze=False)
        for axes, data in itertools.zip_longest(grid.flat, panels):
            if data is None:
                axes.set_visible(False)
                continue
            edge = 1.15 * data["max"] if data["max"] > 1 else data["max"]
            facts = {key: data[key] for key in ("name", "max", "at", "up", "values")}
            staircase(axes, low=-edge, high=edge, **facts)
            axes.set_title(data["rounding"].replace("_", " "), fontsize=13)
            axes.set(xlabel="x" if axes in grid[-1] else "", ylabel="", aspect="equal")
        figure.suptitle(title, x=0.01, ha="left", fontsize=14, fontweight="bold")
    return figure


def error_by_magnitude_data(
    formats: Sequence[str | AnyFormat] = ("bf16", "fp16", "e5m2", "e4m3"),
    low: int = -34,
    high: int = 20,
    rounding: str | Rounding = Rounding.NEAREST,
) -> Data:
    """Return the worst relative error of rounding in every binade from 2^low to 2^high.

    From the binade's two ends and 2^14 numbers between, the midpoints of formats of up to 13
    significand bits among them.  None where numbers overflow.  Not for stochastic rounding.
    """
    inside = (np.arange(2**14) + 0.5) / 2**14
    ends = [0.0, 2.0**-40, 1 - 2.0**-40]
    x = np.ldexp(1 + np.concatenate([ends, inside, np.arange(2**14) / 2**14]),
                 np.arange(low, high)[:, None])  # fmt: skip
    curves = []
    for spec in formats:
        fmt = element_of(resolve(spec))
        got = quantize(x, fmt, rounding, Overflow.IEEE)
        with np.errstate(invalid="ignore"):
            error = np.abs(got - x) / x
        error[x > fmt.max] = 0.0
        worst = np.where(2.0 ** np.arange(low, high) > fmt.max, np.nan, error.max(axis=1))
        levels = [None if np.isnan(w) else float(w) for w in worst]
        curves.append({"name": fmt.name, "max": fmt.max, "u": fmt.u, "worst": levels})
    title = "Worst relative error of rounding, by magnitude"
    return {"low": low, "curves": curves, "title": title}


def error_by_magnitude(
    axes: Axes | None = None, *, low: int, curves: Sequence[Data], title: str = ""
) -> Axes:
    """Draw the worst relative error in each binade, both axes as powers of two.

    The plateau is u; left of it, below the smallest normal value, the error doubles with every
    binade until numbers are lost altogether; on the right a curve ends where numbers overflow.
    """
    with rc_context(RC):
        axes = axes or new_axes(4.8)
        for curve in curves:
            style = look(curve["name"])
            worst = np.array([np.nan if w is None or w == 0 else w for w in curve["worst"]])
            levels, x = np.log2(worst), low + np.arange(worst.size + 1)
            axes.stairs(levels, x, color=style.hue, linewidth=2.4, linestyle=style.line,
                        baseline=None)  # fmt: skip
            known = np.flatnonzero(~np.isnan(levels))
            if not known.size:
                continue
            end, level = x[known[-1] + 1], levels[known[-1]]
            if end < x[-1]:
                axes.plot([end], [level], marker="|", color=style.hue, markersize=15,
                          markeredgewidth=2.6)  # fmt: skip
            largest = f"{curve['max']:.5g}".replace("e+", "e")
            axes.annotate(f"{curve['name']} (max {largest})", (end, level), (-5, 3),
                          textcoords="offset points", color=style.hue, fontweight="bold",
                          ha="right", va="bottom", fontsize=11.5)  # fmt: skip
        axes.set(xlim=(low, x[-1]), xlabel="magnitude of x", ylabel="worst relative error")
        axes.set_ylim(axes.get_ylim()[0] - 0.5, 0.7)
        axes.xaxis.set_major_locator(MultipleLocator(8))
        axes.yaxis.set_major_locator(MultipleLocator(2))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda e, _: f"$2^{{{e:g}}}$"))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda e, _: _percent(2.0**e)))
        axes.grid(visible=True, color=LIGHT)
        axes.set_title(title)
    return axes


def _percent(part: float) -> str:
    return f"{100 * part:.3g} %"


def _figure(draw: Callable[..., Axes]) -> Callable[..., Any]:
    return lambda **data: draw(**data).figure


FIGURES: Mapping[str, Callable[..., Any]] = {
    "rounding": rounding,
    "modes": modes,
    **{f.__name__: _figure(f) for f in (number_line, staircase, sawtooth, error_by_magnitude)},
}
"""Name in a figure's JSON -> function that draws it, on a figure of its own."""


def save(name: str, data: Data, path: str | Path) -> list[Path]:
    """Draw one of `FIGURES` and write it, with its data beside it, as `plot.save` does."""
    return plot.save(name, data, path, FIGURES)


def redraw(path: str | Path) -> Figure:
    """Return the figure whose data `save` wrote to the JSON file `path`."""
    return plot.redraw(path, FIGURES)
