"""Every figure of recorded runs, by name: what it needs, what makes its data, what draws it.

::

    from precsim.show import gallery
    axes = ps.figure("blame", ps.open("runs/a"), step=137)  # which is gallery.draw
    gallery.save("drift", gallery.collect("drift", ps.open("runs/a")), "drift.png")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from precsim.analyse import ask
from precsim.analyse import search as searching
from precsim.analyse.chance import averaged
from precsim.analyse.moment import Moment, coarsest
from precsim.analyse.recorded import ops_of
from precsim.analyse.timeline import timeline
from precsim.analyse.twins import drifts
from precsim.observe.trace import matches
from precsim.runs.results import Run
from precsim.runs.run import Source, StoredRun, stored
from precsim.runs.sweep_results import Sweep
from precsim.show import plot
from precsim.show.blame_plot import blame_bars, blame_bars_data
from precsim.show.canvas import Data
from precsim.show.chance_plot import chance, chance_data
from precsim.show.drift_plot import distance, drift, drift_data, drift_map_data, local_error
from precsim.show.heat_plot import heat_map, heat_map_data
from precsim.show.ops_plot import divergence, divergence_data, scale_chart, scale_chart_data
from precsim.show.pareto_plot import pareto, pareto_data
from precsim.show.scale_plot import scale_timeline, scale_timeline_data
from precsim.show.swamped_plot import swamped, swamped_data
from precsim.show.sweep_plot import sweep_data, sweep_plot

ONE, MANY, STEP = "one run", "runs", "one step"
SWEEP = "sweep"
"""The figure that is of no run, but of a sweep."""


@dataclass(frozen=True)
class Asked:
    """What a figure is asked of: runs and, where it needs them, a step, ops, and a tolerance.

    `update`: about the weights' update instead of the gradient.
    """

    runs: Sequence[StoredRun]
    step: int = 0
    op: str | None = None
    tolerance: float = 0.1
    update: bool = False

    @property
    def run(self) -> StoredRun:
        """The only run, or the first."""
        return self.runs[0]

    @property
    def moment(self) -> Moment:
        """The moment before the step."""
        return ask.moment_of(self.run, self.step, update=self.update)


@dataclass(frozen=True)
class Kind:
    """A figure: its title, what it shows and of what, what makes its data and what draws them."""

    title: str
    about: str
    of: str
    collect: Callable[[Asked], Data]
    draw: Callable[..., Any]


def _drifts(asked: Asked) -> Data:
    return {"runs": [drift_data(drifts(run), run.path.resolve().name) for run in asked.runs]}


def _drift(asked: Asked) -> Data:
    return {"run": _drifts(asked)["runs"][0]}


def _drift_map(asked: Asked) -> Data:
    return drift_map_data(drifts(asked.run), "update" if asked.update else "gradient")


def _diff(asked: Asked) -> Data:
    return divergence_data(ask.diff(asked.run, asked.step))


def _flushed(asked: Asked) -> Data:
    return heat_map_data(asked.run.ops(op=asked.op), "flushed_share")


def _errors(asked: Asked) -> Data:
    ops = asked.run.ops(op=asked.op)
    if len(ops) and np.isnan(ops["err_u"]).all():
        level = asked.run.config.observe
        msg = f"the run was recorded at observe={level}: errors of ops need observe=shadow"
        raise ValueError(msg)
    return heat_map_data(ops, "err_u")


def _scale_chart(asked: Asked) -> Data:
    ops = ops_of(asked.run, asked.step)
    return scale_chart_data([o for o in ops if not asked.op or matches(o.counts.path, asked.op)])


def _blame(asked: Asked) -> Data:
    return blame_bars_data(ask.blame(asked.run, asked.step, asked.op, update=asked.update))


def _pareto(asked: Asked) -> Data:
    moment = asked.moment
    tried: dict[frozenset[str], float] = {}
    sites = ask.sites_of(moment, asked.op)
    found = searching.search(moment, asked.tolerance, sites, known=tried)
    return pareto_data(tried, sites, found)


def _chance(asked: Asked) -> Data:
    moment = asked.moment
    return chance_data(averaged(moment), coarsest(moment.policy))


def _swamped(asked: Asked) -> Data:
    return {
        "runs": [swamped_data(run, run.path.resolve().name, _kept_in(run)) for run in asked.runs]
    }


def _kept_in(run: StoredRun) -> str:
    """Return the format in which the optimizer keeps a run's weights."""
    policy = run.policy
    return (policy.master_weights if policy.has_master else policy.weights).format


KINDS: Mapping[str, Kind] = {
    "scales": Kind("Scale of each op", "each op's magnitudes, first to last", STEP, _scale_chart, scale_chart),
    "flushed": Kind("Flushed", "what each op flushed, step by step", ONE, _flushed, heat_map),
    "errors": Kind("Rounding errors", "each op's own error in u, step by step", ONE, _errors, heat_map),
    "loss_scale": Kind(
        "Loss scale", "the loss scale, its skips, headroom and what was flushed", ONE,
        lambda asked: scale_timeline_data(timeline(asked.run)), scale_timeline,
    ),
    "drift": Kind("Drift", "drift in three panels", ONE, _drift, drift),
    "drift_map": Kind(
        "Drift by parameter", "each parameter's gradient error; --update: update error", ONE,
        _drift_map, heat_map,
    ),
    "local_error": Kind("Error of the gradient", "the gradient's error at the same weights", MANY, _drifts, local_error),
    "angle": Kind(
        "Angle of the gradient", "the angle between the gradient and float64's", MANY,
        lambda asked: {**_drifts(asked), "quantity": "angle"}, local_error,
    ),
    "distance": Kind("Drift of the weights", "weights apart, and what chaos explains", MANY, _drifts, distance),
    "divergence": Kind("Divergence", "each op's error in u beside what is expected", STEP, _diff, divergence),
    "blame": Kind("Blame", "each op's part in the gradient's error", STEP, _blame, blame_bars),
    "pareto": Kind("Cost and error", "what keeping ops high costs, and gains", STEP, _pareto, pareto),
    "chance": Kind("By chance or to nearest", "rounding by chance beside to nearest", STEP, _chance, chance),
    "swamped": Kind("Updates that change nothing", "updates that change nothing", MANY, _swamped, swamped),
}  # fmt: skip
"""Name -> figure."""


def _drawn(draw: Callable[..., Any], **data: Any) -> Figure:
    made = draw(**data)
    return made if isinstance(made, Figure) else made.figure


FIGURES: Mapping[str, Callable[..., Figure]] = {
    name: partial(_drawn, draw)
    for name, draw in [(name, kind.draw) for name, kind in KINDS.items()] + [(SWEEP, sweep_plot)]
}
"""Name in a figure's JSON -> function that draws it, on a figure of its own."""


def collect(name: str, runs: Source | Sequence[Source] | Sweep, **asked: Any) -> Data:
    """Return the data of a figure about a run, or several; `asked` are other fields of `Asked`.

    Raises as `draw` does.
    """
    if name == SWEEP and isinstance(runs, Sweep):
        return sweep_data(runs)
    if name == SWEEP or isinstance(runs, Sweep):
        msg = f"the figure {SWEEP} is of what ps.sweep returned; others are of its runs"
        raise ValueError(msg)
    if name not in KINDS:
        msg = f"no figure {name!r}: expected one of {', '.join(KINDS)}"
        raise ValueError(msg)
    given = [runs] if isinstance(runs, Run | str | PathLike) else runs
    several, of = [stored(run) for run in given], KINDS[name].of
    if of == STEP and "step" not in asked:
        msg = f"the figure {name} is of one step: expected its number, step=137 or --step 137"
        raise ValueError(msg)
    if not several or (of != MANY and len(several) > 1):
        msg = f"the figure {name} is of {of}; got {len(several)} runs"
        raise ValueError(msg)
    return KINDS[name].collect(Asked(several, **asked))


def draw(name: str, runs: Source | Sequence[Source] | Sweep, title: str = "", **asked: Any) -> Axes:
    """Return the axes of a figure about a run, or several; of several panels the first.

    `name` is one of those that `precsim plot` lists, or "sweep" of what `ps.sweep` returned.
    `asked`: ``step=137``, which a figure of one step needs; ``op="gradients/*"``, a glob for these
    ops only; ``update=True``, about the weights' update instead of the gradient; ``tolerance=0.1``
    of the search behind "pareto".
    Raises `ValueError` for an unknown figure, for one of a step without a step and for one of a
    single run with none or several, `RunError` where the runs have not what it needs.
    """
    data = collect(name, runs, **asked)
    if name == SWEEP:
        return sweep_plot(**{**data, "title": title or data["title"]})
    drawn = KINDS[name].draw(**data, title=title)
    return drawn.axes[0] if isinstance(drawn, Figure) else drawn


def save(name: str, data: Data, path: str | Path) -> list[Path]:
    """Draw a figure and write it, with its data beside it, as `plot.save` does."""
    return plot.save(name, data, path, FIGURES)


def redraw(path: str | Path) -> Figure:
    """Return the figure whose data `save` wrote to the JSON file `path`."""
    return plot.redraw(path, FIGURES)
