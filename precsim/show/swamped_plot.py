"""Updates that change nothing, step by step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from precsim.observe.counters import total
from precsim.runs.results import Run
from precsim.show.canvas import LIGHT, RC, Data, key_above, new_axes, step_axis
from precsim.show.plot import running_mean
from precsim.show.style import looks, share


def swamped_data(run: Run, name: str, fmt: str) -> Data:
    """Return the share of lost updates of each step of a run; `fmt` is that of its weights.

    And `of_all`, of all its updates, as tables of runs have it.
    """
    steps = run.steps
    return {"name": name, "format": fmt, "step": steps["step"].tolist(),
            "lost": steps["lost_updates"].tolist(),
            "of_all": total(run.counts.values()).swamped_share}  # fmt: skip


def swamped(axes: Axes | None = None, *, runs: Sequence[Data], title: str = "") -> Axes:
    """Draw the share of the nonzero updates that changed nothing: each step faint, a mean on top.

    The mean is over a twentieth of the run; the number in the key is that of all its updates.
    Steps without an observed update leave gaps.
    """
    with rc_context(RC):
        axes = axes or new_axes(4.6)
        for run, style in zip(runs, looks([run["format"] for run in runs]), strict=True):
            lost = np.array([float(part) for part in run["lost"]])
            known = np.isfinite(lost)
            steps = np.array(run["step"])[known]
            mean = running_mean(lost[known], max(1, len(lost) // 20))
            axes.plot(steps, lost[known], color=style.hue, alpha=0.25, linewidth=0.8)
            told = f", {share(run['of_all'])} in all" if "of_all" in run and mean.size else ""
            axes.plot(steps, mean, color=style.hue, linestyle=style.line, linewidth=2.2,
                      marker="o" if mean.size == 1 else "",
                      label=f"{run['name']} (weights in {run['format']}){told}")  # fmt: skip
        axes.set_ylim(-0.02, 1.02)
        axes.set(xlabel="step", ylabel="updates that change nothing")
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.yaxis.grid(visible=True, color=LIGHT)
        step_axis(axes)
        key_above(axes, title)
    return axes
