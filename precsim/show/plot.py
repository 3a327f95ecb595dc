"""Figures from recorded data.  Nothing here runs a model, opens a window or keeps global state.

Every figure is a function from plain data to a matplotlib `Figure`; `save` writes the picture and,
beside it, the data as JSON, from which `redraw` makes the same figure again.  The same data give
the same bytes, whatever the day: no dates, no versions, fixed identifiers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from precsim.runs.lines import dump
from precsim.runs.results import LAST
from precsim.show.canvas import LIGHT, QUIET, RC, WIDTH, Data, step_axis, write
from precsim.show.ranges import (
    Floats,
    exponent_histogram,
    flushed_share,
    format_range,
    range_ladder,
)
from precsim.show.style import GREY, look

__all__ = [
    "FIGURES", "LIGHT", "QUIET", "RC", "WIDTH", "Data", "exponent_histogram", "flushed_share",
    "format_range", "loss_curves", "range_ladder", "redraw", "running_mean", "save", "spread",
]  # fmt: skip

LEAST = 0.1
"""Nats that the axis of the loss spans at least: what is less apart looks equal."""

NEAR = 0.5
"""Nats above the reference up to which a run is drawn in the panel of small differences."""

Label = tuple[float, float, str, str]
"""End of a curve, its text and its hue."""


def loss_curves(
    *, runs: Sequence[Data], reference: str = "", guess: float | None = None, title: str = ""
) -> Figure:
    """Draw training losses against the step: raw values faint, their running mean on top.

    Each run is ``{"title", "format", "losses"}``, with ``"line"``, a matplotlib line style, where
    it is not the format's own.  The mean is over the last `LAST` steps, so that a curve ends at the
    loss that tables of runs have, which its label gives to as many digits.  A NaN or infinite loss
    ends the curve, and its label says so.  `guess` is the loss of guessing evenly.  With the title of
    a `reference` run there is a second panel: how far the others are above it on the same batches,
    for those that stay near enough to be seen in it.
    """
    longest = max((len(run["losses"]) for run in runs), default=1)
    means = [running_mean(_floats(run["losses"]), LAST) for run in runs]
    base = next((m for run, m in zip(runs, means, strict=True) if run["title"] == reference), None)
    gaps = [_gap(mean, base) for mean in means] if base is not None else []
    near = [bool(len(gap)) and abs(gap[-1]) < NEAR for gap in gaps]
    if sum(near) < 2:  # the reference alone is no panel
        near = [False] * len(runs)
    with rc_context(RC):
        figure = Figure(figsize=(WIDTH, 6.0 if any(near) else 4.5), layout="constrained")
        panels = figure.subplots(
            2 if any(near) else 1, 1, sharex=True, squeeze=False,
            height_ratios=(1.7, 1) if any(near) else (1,),
        )[:, 0]  # fmt: skip
        top = panels[0]
        for run, mean in zip(runs, means, strict=True):
            losses = _floats(run["losses"])
            top.plot(_steps(losses), losses, color=look(run["format"]).hue, alpha=0.15, lw=0.8)
            _curve(top, run, mean)
        top.set(xlim=(0, longest), ylim=_loss_range([_floats(r["losses"]) for r in runs], guess))
        top.set_ylabel(f"training loss, mean of\n{LAST} steps (nats per byte)")
        labels = _loss_labels(runs, means, near)
        if guess is not None:
            top.axhline(guess, color=GREY, linestyle=(0, (5, 3)), linewidth=1.2)
            labels.append((longest, guess, f"guessing evenly: {guess:.2f}", QUIET))
        _label_ends(top, labels)
        top.set_title(title)
        if any(near):
            close = [(run, gap) for run, gap, keep in zip(runs, gaps, near, strict=True) if keep]
            assert base is not None
            _draw_gaps(panels[1], close, reference, float(base[-1]))
        for axes in panels:
            axes.yaxis.grid(visible=True, color=LIGHT)
        step_axis(panels[-1])
        panels[-1].set_xlabel("step")
    return figure


FIGURES: Mapping[str, Callable[..., Figure]] = {
    f.__name__: f for f in (loss_curves, exponent_histogram, range_ladder)
}
"""Name in a figure's JSON -> function that draws it."""


def save(
    name: str,
    data: Data,
    path: str | Path,
    figures: Mapping[str, Callable[..., Figure]] = FIGURES,
) -> list[Path]:
    """Draw figure `name` of `figures` from `data` and write it, with the data beside it as JSON.

    With a suffix (.png, .svg, .pdf) that one file is written, without one both .png and .svg.
    Returns the paths.  Raises `ValueError` for another suffix, `OSError` where it cannot write.
    """
    path = Path(path)
    paths = write(figures[name](**data), path)
    beside = path.with_suffix(".json")
    beside.write_text(dump({"figure": name, "data": data}) + "\n", encoding="utf-8", newline="\n")
    return [*paths, beside]


def redraw(path: str | Path, figures: Mapping[str, Callable[..., Figure]] = FIGURES) -> Figure:
    """Return the figure whose data `save` wrote to the JSON file `path`."""
    stored = json.loads(Path(path).read_text(encoding="utf-8"))
    return figures[stored["figure"]](**stored["data"])


def running_mean(values: Floats, window: int) -> Floats:
    """Return the mean of the last `window` values at every step (of fewer, at the start)."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return np.asarray((sums[ends] - sums[starts]) / (ends - starts))


def _floats(values: Iterable[Any]) -> Floats:
    """Return numbers as an array; "nan" and "inf" are read, since JSON has them as strings."""
    return np.array([float(v) for v in values], dtype=float)


def _loss_range(losses: Sequence[Floats], guess: float | None) -> tuple[float, float]:
    """Return the losses between which curves are drawn: a run that explodes leaves at the top."""
    finite = np.concatenate([run[np.isfinite(run)] for run in losses] or [np.zeros(0)])
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if guess is not None:
        low, high = min(low, guess), max(min(high, 2 * guess), guess)
    room = max(0.06 * (high - low), (LEAST - (high - low)) / 2)
    return max(0.0, low - room), high + room


def _steps(values: Floats) -> npt.NDArray[np.int64]:
    return np.arange(1, len(values) + 1)


def _gap(mean: Floats, base: Floats) -> Floats:
    """Return how far a run's mean loss is above another's, as long as both are numbers."""
    both = min(len(mean), len(base))
    gap = mean[:both] - base[:both]
    return gap if np.isfinite(gap).all() else gap[:0]


def _curve(axes: Axes, run: Data, values: Floats) -> None:
    style = look(run["format"])
    line = run.get("line") or style.line
    alone = np.isfinite(values).sum() == 1  # which a line without a marker would not show
    axes.plot(_steps(values), values, color=style.hue, linestyle=line, linewidth=2.2,
              marker="o" if alone else "", clip_on=not alone)  # fmt: skip


def _loss_labels(
    runs: Sequence[Data], means: Sequence[Floats], near: Sequence[bool]
) -> list[Label]:
    """Return a label for each curve; one for all the curves that the second panel tells apart."""
    labels: list[Label] = []
    together = []
    for run, mean, elsewhere in zip(runs, means, near, strict=True):
        alive = np.flatnonzero(np.isfinite(mean))
        if not alive.size:
            continue
        end = int(alive[-1])
        if elsewhere:
            together.append(float(mean[end]))
            continue
        says = f"{mean[end]:.3f}" if end + 1 == len(mean) else f"dead at step {end + 2}"
        text = f"{run['title']}\n{says}"
        labels.append((end + 1, float(mean[end]), text, look(run["format"]).hue))
    if together:
        who = f"all {len(runs)}" if len(together) == len(runs) else f"{len(together)} others"
        ends = dict.fromkeys(f"{end:.3f}" for end in (min(together), max(together)))
        text = f"{who}, see below\n{' to '.join(ends)}"
        labels.append((len(means[0]), sum(together) / len(together), text, "#333333"))
    return labels


def _draw_gaps(
    axes: Axes, close: Sequence[tuple[Data, Floats]], reference: str, base: float
) -> None:
    """Draw how far runs are above the reference, whose last mean is `base`."""
    for run, gap in close:
        _curve(axes, run, gap)
    # The first steps are not typical, and would take the room from the rest.
    seen = np.concatenate([gap[len(gap) // 4 :] for _, gap in close])
    low, high = min(float(seen.min()), -0.01), max(float(seen.max()), 0.01)
    room = 0.15 * (high - low)
    axes.set(ylim=(low - room, high + room))
    axes.set_ylabel(f"above\n{reference}")
    ends = [(len(g), float(g[-1]), _gap_text(r, g, base), look(r["format"]).hue) for r, g in close]
    _label_ends(axes, ends)


def _gap_text(run: Data, gap: Floats, base: float) -> str:
    """Return a label with the last gap, between the two losses as tables round them.

    Its minus sign is as wide as the plus; equal losses have neither.
    """
    if not gap.any():
        return str(run["title"])
    apart = round(base + float(gap[-1]), 3) - round(base, 3)
    number = f"{apart:+.3f}" if abs(apart) > 5e-4 else "0.000"
    return f"{run['title']} {number}".replace(" -", " \N{MINUS SIGN}")


def _label_ends(axes: Axes, labels: Sequence[Label]) -> None:
    """Write each curve's label right of the axes, as near its end as the other labels allow."""
    low, high = axes.get_ylim()
    right = axes.get_xlim()[1]
    tallest = max((text.count("\n") + 1 for _, _, text, _ in labels), default=1)
    inches = axes.bbox.height / axes.figure.dpi
    gap = 0.21 * tallest / inches * (high - low)
    heights = spread([y for _, y, _, _ in labels], gap, low + gap / 3, high - gap / 3)
    for (x, y, text, hue), height in zip(labels, heights, strict=True):
        axes.annotate(
            text, (x, min(y, high)), (right * 1.03, height), color=hue, va="center",
            fontsize=12, annotation_clip=False, fontweight="bold", linespacing=1.1,
            arrowprops={"arrowstyle": "-", "color": hue, "linewidth": 0.8, "shrinkA": 1,
                        "shrinkB": 0, "relpos": (0, 0.5)},
        )  # fmt: skip


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return places at least `gap` apart, in the order of `wanted` and near it, within the limits."""
    order = np.argsort(wanted, kind="stable")
    places = [0.0] * len(wanted)
    floor = low
    for index in order:
        places[index] = floor = max(wanted[index], floor)
        floor += gap
    ceiling = high
    for index in order[::-1]:
        places[index] = min(places[index], ceiling)
        ceiling = places[index] - gap
    return places
