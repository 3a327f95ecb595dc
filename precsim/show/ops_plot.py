"""Figures of a step's ops in the order in which they ran: their scale, and where it diverges.

Functions from plain data to matplotlib `Axes`; those with `_data` behind make the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import isfinite, log2

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from precsim.analyse.diff import Diff, Row, Verdict
from precsim.analyse.recorded import Op
from precsim.formats.format import Format
from precsim.formats.registry import format
from precsim.show.canvas import LIGHT, QUIET, RC, Data, key_above, new_axes, power_scale
from precsim.show.style import BLUE, VERMILLION, look

MOST_OPS = 60
"""Rows of the scale chart; of more ops those stay at which the scale changes most."""

ROW = 0.17
"""Inches for each op."""

NAMES = 10
"""Rows' worth of room above the first op, for the names of the ends of formats."""

HUES = {"forward": BLUE, "backward": VERMILLION}
MARKERS = {"forward": "o", "backward": "v"}

QUOTIENTS = ("update", "optimizer_state")
"""Roles of ops that divide a gradient by its own size."""

ENDS = ("smallest_subnormal", "smallest_normal", "max")


def scale_chart_data(ops: Sequence[Op], most: int = MOST_OPS) -> Data:
    """Return the scale of a step's forward and backward ops that have a value other than zero."""
    rows = [op.counts for op in ops if op.counts.phase in HUES and op.counts.rms > 0]
    steps = [abs(log2(b.rms / a.rms)) for a, b in pairwise(rows)]
    order = np.argsort([-step for step in [float("inf"), *steps]][: len(rows)], kind="stable")
    kept = [rows[i] for i in sorted(order[:most].tolist())]
    return {
        "rows": [
            {"path": r.path, "call": r.call, "phase": r.phase, "format": r.format, "amin": r.amin,
             "rms": r.rms, "amax": r.amax}
            for r in kept
        ],
        "left_out": len(rows) - len(kept),
    }  # fmt: skip


def scale_chart(
    axes: Axes | None = None, *, rows: Sequence[Data], left_out: int = 0, title: str = ""
) -> Axes:
    """Draw each op's root mean square between its smallest and largest magnitude, first op on top.

    Dashed lines are the ends of the formats that the ops are in, with their exact names above the
    ops.
    """
    with rc_context(RC):
        axes = axes or new_axes(1.6 + ROW * (len(rows) + NAMES))
        for y, row in enumerate(rows):
            low, middle, high = (log2(row[name]) for name in ("amin", "rms", "amax"))
            hue = HUES[row["phase"]]
            axes.plot([low, high], [y, y], color=hue, linewidth=1, alpha=0.5)
            axes.plot([middle], [y], color=hue, marker=MARKERS[row["phase"]], markersize=5)
        names = [_named(row["path"], row.get("call", 0)) for row in rows]
        axes.set_yticks(range(len(rows)), names, fontsize=8)
        axes.set_ylim(len(rows) - 0.4, -0.6 - NAMES)
        _draw_ends(axes, rows)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"$2^{{{x:g}}}$"))
        axes.xaxis.grid(visible=True, color=LIGHT)
        more = f" ({left_out} ops with much the same scale left out)" if left_out else ""
        axes.set_xlabel(f"magnitude{more}")
        axes.legend(handles=[Line2D([], [], color=HUES[p], marker=MARKERS[p], label=p)
                             for p in HUES], frameon=False, fontsize=11, loc="upper left",
                    bbox_to_anchor=(0, -3.2 / (len(rows) + NAMES)), ncols=2)  # fmt: skip
        axes.set_title(title)
    return axes


def _named(path: str, call: int) -> str:
    """Return what tables call an op: a later one of the same path has a number."""
    return f"{path} #{call}" if call else path


def _draw_ends(axes: Axes, rows: Sequence[Data]) -> None:
    """Draw the ends of formats that lie where the values are, or just beyond."""
    left, right = axes.get_xlim()
    for name in dict.fromkeys(row["format"] for row in rows):
        fmt = format(name)
        if not isinstance(fmt, Format) or fmt.is_integer:
            continue
        for end in ENDS:
            x = log2(getattr(fmt, end))
            if left - 4 < x < right + (12 if end == "max" else 4):
                hue = look(name).hue
                axes.axvline(x, color=hue, linestyle=(0, (4, 3)), linewidth=1)
                word = f"max {fmt.max:g}" if end == "max" else end.replace("_", " ")
                axes.annotate(f"{name} {word}", (x, 1), (-2, -4), color=hue, rotation=90,
                              xycoords=("data", "axes fraction"), textcoords="offset points",
                              fontsize=8.5, va="top", ha="right")  # fmt: skip


def divergence_data(found: Diff) -> Data:
    """Return the error of each op in u, what is expected of it, and the first abnormal one.

    `index` is the op's number in the table of the diff.  Of the optimizer's ops those that change
    the weights, or are abnormal: errors of the others say little, since they divide a gradient by
    its own size.
    """
    rows = [r for r in found.rows if r.verdict is not Verdict.OK or _root(r) not in QUOTIENTS]
    first = next((n for n, row in enumerate(rows) if row.verdict is not Verdict.OK), None)
    return {
        "index": [row.index for row in rows],
        "error": [row.total for row in rows],
        "expected": [row.expected for row in rows],
        "abnormal": [row.verdict is not Verdict.OK for row in rows],
        "backward": next((n for n, row in enumerate(rows) if _root(row) == "gradients"), None),
        "update": next((n for n, row in enumerate(rows) if row.of_optimizer), None),
        "first": None if first is None else {"place": first, "path": _named(rows[first].path, rows[first].call),
                                             "verdict": str(rows[first].verdict)},
    }  # fmt: skip


def _root(row: Row) -> str:
    return row.path.partition("/")[0]


def divergence(
    axes: Axes | None = None, *, index: Sequence[int], error: Sequence[float],
    expected: Sequence[float], abnormal: Sequence[bool], backward: int | None = None,
    update: int | None = None, first: Data | None = None, title: str = "",
) -> Axes:  # fmt: skip
    """Draw each op's distance from the other run in units of u, over what is expected of it.

    Ops lie side by side, and the axis has their numbers, of which those that are not drawn are
    missing.  Abnormal ops are filled; above the axes stands the first.  Triangles at the top have no
    number: one of the two is zero or not finite there.
    """
    with rc_context(RC):
        axes = axes or new_axes(4.8)
        errors = np.array([float(e) for e in error])
        shown = np.where(np.isfinite(errors) & (errors > 0), errors, np.nan)
        bad = np.array(abnormal, bool)
        x = np.arange(len(errors))
        floor = np.array([float(e) for e in expected])
        axes.step(x, np.where(np.isfinite(floor), floor, np.nan), where="mid", color=QUIET,
                  linewidth=1.3, label="expected from its inputs and one rounding")  # fmt: skip
        axes.plot(x[~bad], shown[~bad], "o", color=BLUE, markersize=3.5, markerfacecolor="white",
                  label="ok")  # fmt: skip
        axes.plot(x[bad], shown[bad], "o", color=VERMILLION, markersize=4.5, label="abnormal")
        power_scale(axes)
        bottom, top = axes.get_ylim()
        axes.set_ylim(bottom * (bottom / top) ** 0.07, top)  # with room for the names of parts
        lost = np.flatnonzero(~np.isfinite(errors))
        axes.plot(lost, np.full(len(lost), top), "^", color=VERMILLION, markersize=5,
                  clip_on=False)  # fmt: skip
        for name, place in (("backward", backward), ("update", update)):
            if place is not None:
                _part(axes, name, place - 0.5)
        if first is not None:
            _flag(axes, first, index, shown)
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
        numbers = {float(place): f"{number}" for place, number in enumerate(index)}
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: numbers.get(x, "")))
        left_out = len(index) > 0 and index[-1] - index[0] >= len(index)
        which = "\n(of the update, those that change weights)" if left_out else ""
        axes.set(xlabel=f"op, in the order in which they run{which}", ylabel="error in u")
        axes.yaxis.grid(visible=True, color=LIGHT)
        key_above(axes, title, lift=0 if first is None else 30)
    return axes


def _part(axes: Axes, name: str, at: float) -> None:
    """Mark where a part of the step begins, with its name below all points."""
    axes.axvline(at, color=LIGHT, linewidth=1.5, zorder=0)
    axes.annotate(name, (at, 0), (3, 2), textcoords="offset points", color=QUIET, fontsize=11,
                  xycoords=("data", "axes fraction"))  # fmt: skip


def _flag(axes: Axes, first: Data, index: Sequence[int], shown: np.ndarray) -> None:
    """Say above the axes which op is the first, where no point is, and draw an arrow down to it.

    The text is left, right or in the middle, as the op is.
    """
    at = first["place"]
    left, right = axes.get_xlim()
    across = (at - left) / (right - left)
    ha = "left" if across < 1 / 3 else "right" if across > 2 / 3 else "center"
    side = {"left": 0.0, "center": 0.5, "right": 1.0}[ha]
    top = axes.get_ylim()[1]
    y = shown[at] if isfinite(shown[at]) else top
    axes.annotate(
        "", (at, y), (at, 1), textcoords=("data", "axes fraction"),
        arrowprops={"arrowstyle": "-|>", "color": VERMILLION, "shrinkA": 0, "shrinkB": 3},
    )  # fmt: skip
    axes.annotate(
        f"first abnormal op: {index[at]}, {first['verdict']}\n{first['path']}", (side, 1), (0, 6),
        xycoords="axes fraction", textcoords="offset points", color=VERMILLION, ha=ha, va="bottom",
        fontsize=10.5, fontweight="bold",
    )  # fmt: skip
