"""The sheet that every figure is drawn on: sizes, fonts, colours; and how it becomes a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log2
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import offset_copy

RC: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#444444",
    "axes.labelcolor": "#222222",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 15,
    "axes.titleweight": "bold",
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 12.5,
    "hatch.linewidth": 0.9,
    "savefig.dpi": 160,
    "svg.fonttype": "path",
    "svg.hashsalt": "precsim",
    "text.color": "#222222",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
}
"""Sizes are chosen for a figure 8 inches wide that is shown 600 pixels wide or more."""

WIDTH = 8.0
QUIET, LIGHT = "#555555", "#e6e6e6"

Data = Mapping[str, Any]
"""What a figure is drawn from, as JSON holds it."""


def new_axes(height: float) -> Axes:
    """Return empty axes on a figure of their own, `WIDTH` by `height` inches."""
    return Figure(figsize=(WIDTH, height), layout="constrained").add_subplot()


def power_scale(axes: Axes) -> None:
    """Give axes that have been drawn on a vertical axis of powers of two, two octaves at least."""
    axes.set_yscale("log", base=2)
    low, high = (log2(end) for end in axes.get_ylim())
    room = max(0.0, 2.2 - (high - low)) / 2
    axes.set_ylim(2 ** (low - room), 2 ** (high + room))
    axes.yaxis.set_major_locator(LogLocator(2, numticks=8))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"$2^{{{log2(y):.0f}}}$"))
    axes.yaxis.set_minor_locator(NullLocator())


def step_axis(axes: Axes) -> None:
    """Number the horizontal axis in whole steps, however few there are."""
    axes.xaxis.set_major_locator(
        MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True, min_n_ticks=1)
    )


KEY_SIZE = 11
"""Points of the letters of a key above the axes."""


def key_above(
    axes: Axes, title: str, lift: float = 0.0, handles: Sequence[Any] | None = None
) -> None:
    """Put the legend between title and axes, where it cannot cover what is drawn.

    As many entries stand side by side as there is room for.  `lift`: points below it that are free
    for something else.
    """
    found = axes.get_legend_handles_labels()[0] if handles is None else list(handles)
    labels = [str(one.get_label()) for one in found]
    # The layout will widen the axes about so much.
    across = 1.1 * axes.bbox.width / axes.figure.dpi * 72 / KEY_SIZE
    columns = next((n for n in range(len(labels), 1, -1) if _key_width(labels, n) < across), 1)
    rows = -(-len(labels) // columns)
    if labels:
        above = offset_copy(axes.transAxes, axes.get_figure(root=True), y=lift, units="points")
        axes.legend(handles=found, frameon=False, fontsize=KEY_SIZE, loc="lower left",
                    bbox_to_anchor=(0, 1), bbox_transform=above, ncols=columns,
                    borderaxespad=0.3, columnspacing=1.5)  # fmt: skip
    axes.set_title(title, pad=8 + lift + 1.65 * KEY_SIZE * rows)


def _key_width(labels: Sequence[str], columns: int) -> float:
    """Return about how wide a legend in so many columns is, in sizes of its letters.

    A letter is 0.55 of its size wide; a line and the room around it take 4.5 of them.
    """
    parts = np.array_split(np.array([len(label) for label in labels]), columns)
    return float(sum(0.55 * part.max() + 4.5 for part in parts))


METADATA: Mapping[str, dict[str, Any]] = {
    ".png": {"Software": None},
    ".svg": {"Date": None, "Creator": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
"""What matplotlib would write into a file of its own accord, and must not."""


def check_name(path: Path) -> None:
    """Raise `ValueError` for a file that no figure can be written to, before there is one."""
    if path.suffix and path.suffix not in METADATA:
        msg = f"figure file {str(path)!r}: expected a name that ends in .png, .svg or .pdf"
        raise ValueError(msg)


def write(figure: Figure, path: Path) -> list[Path]:
    """Write a figure as .png, .svg or .pdf, or as both .png and .svg where `path` has no suffix.

    The same figure gives the same bytes, whatever the day.  Raises `ValueError` for another suffix,
    `OSError` where it cannot write.
    """
    check_name(path)
    paths = [path] if path.suffix else [path.with_suffix(suffix) for suffix in (".png", ".svg")]
    with rc_context(RC):
        for file in paths:
            figure.savefig(file, metadata=METADATA[file.suffix])
    return paths
