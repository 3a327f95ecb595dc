"""Which ops the gradient's error comes from: a pair of bars for each."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

from matplotlib import rc_context
from matplotlib.axes import Axes

from precsim.analyse.blame import Blame
from precsim.show.canvas import LIGHT, QUIET, RC, Data, new_axes
from precsim.show.style import BLUE, OCHRE, VERMILLION, share

WORST = 12
"""Sites that are drawn."""


def blame_bars_data(found: Blame, most: int = WORST) -> Data:
    """Return the worst sites of a blame, those first whose promotion removes most."""
    rows = [
        {"site": one.site.title,
         "alone": one.alone, "without": one.without, "removes": one.removes}
        for one in found.worst(most)
    ]  # fmt: skip
    return {"rows": rows, "total": found.total, "u": found.u, "accounted": found.accounted}


def blame_bars(
    axes: Axes | None = None, *, rows: Sequence[Data], total: float, u: float,
    accounted: float = 1.0, title: str = "",
) -> Axes:  # fmt: skip
    """Draw the error with only this site low, and what is left of the total with only it in fp64.

    A dashed line is the total.  A bar that goes beyond the axis is infinite: the gradient has values
    that are not finite.
    """
    with rc_context(RC):
        axes = axes or new_axes(1.9 + 0.46 * len(rows))
        known = [v for row in rows for v in (float(row["alone"]), float(row["without"]))]
        known = [v for v in (*known, float(total)) if isfinite(v)]
        beyond = 1.25 * max(known, default=1.0) or 1.0
        for y, row in enumerate(rows):
            alone, without = (min(float(row[name]), beyond) for name in ("alone", "without"))
            axes.barh(y - 0.19, alone, 0.36, color=VERMILLION, label="only this one low" * (not y))
            axes.barh(y + 0.19, without, 0.36, color=BLUE, hatch="////", edgecolor="white",
                      label="all low but this one" * (not y))  # fmt: skip
            text = f"removes {share(max(0.0, row['removes']))}"
            axes.annotate(text, (without, y + 0.19), (4, 0), textcoords="offset points",
                          va="center", fontsize=9.5, color=QUIET)  # fmt: skip
        if isfinite(float(total)):
            axes.axvline(float(total), color=OCHRE, linestyle=(0, (4, 3)), linewidth=1.5,
                         label=f"all low: {float(total):.2g} = {float(total) / u:.2g} u")  # fmt: skip
        axes.set_yticks(range(len(rows)), [str(row["site"]) for row in rows], fontsize=9.5)
        axes.set(ylim=(len(rows) - 0.4, -0.6), xlim=(0, beyond))
        axes.set_xlabel(
            f"error of the gradient\n(alone² adds up to {accounted:.0%} of the total's square)"
        )
        axes.tick_params(axis="y", length=0)
        axes.xaxis.grid(visible=True, color=LIGHT)
        axes.legend(frameon=False, fontsize=10.5, loc="upper left", ncols=3, columnspacing=1.2,
                    bbox_to_anchor=(-0.25, -0.85 / (0.46 * len(rows) + 0.3)))  # fmt: skip
        axes.set_title(title)
    return axes
