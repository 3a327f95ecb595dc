"""Which ops the gradient's error comes from: a pair of bars for each."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from precsim.analyse.blame import Blame
from precsim.show.canvas import LIGHT, QUIET, RC, Data, key_above, new_axes
from precsim.show.style import BLUE, OCHRE, VERMILLION, share

WORST = 12
"""Sites that are drawn."""

ON_BAR = {"facecolor": "white", "edgecolor": "none", "pad": 1}
"""Behind a text on a bar."""


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

    A dashed line is the total; right of the axes stands what promoting a site removes of it.  A bar
    that goes to the end of the axis is infinite, and says so: the gradient has values that are not
    finite.
    """
    with rc_context(RC):
        axes = axes or new_axes(2.0 + 0.46 * len(rows))
        known = [v for row in rows for v in (float(row["alone"]), float(row["without"]))]
        known = [v for v in (*known, float(total)) if isfinite(v)]
        beyond = 1.15 * max(known, default=1.0) or 1.0
        for y, row in enumerate(rows):
            alone, without = (min(float(row[name]), beyond) for name in ("alone", "without"))
            for name, at in (("alone", y - 0.19), ("without", y + 0.19)):
                if not isfinite(float(row[name])):
                    axes.annotate("not finite", (beyond, at), (-4, 0), textcoords="offset points",
                                  ha="right", va="center", fontsize=8.5, bbox=ON_BAR)  # fmt: skip
            axes.barh(y - 0.19, alone, 0.36, color=VERMILLION, label="only this one low" * (not y))
            axes.barh(y + 0.19, without, 0.36, color=BLUE, hatch="////", edgecolor="white",
                      label="all low but this one" * (not y))  # fmt: skip
            text = f"removes {share(max(0.0, row['removes']))}"
            axes.annotate(text, (1, y), (6, 0), xycoords=("axes fraction", "data"), va="center",
                          textcoords="offset points", fontsize=9.5, color=QUIET)  # fmt: skip
        if isfinite(float(total)):
            axes.axvline(float(total), color=OCHRE, linestyle=(0, (4, 3)), linewidth=1.5,
                         label=f"all low: {float(total):.2g} = {float(total) / u:.2g} u")  # fmt: skip
        axes.set_yticks(range(len(rows)), [str(row["site"]) for row in rows], fontsize=9.5)
        axes.set(ylim=(len(rows) - 0.4, -0.6), xlim=(0, beyond))
        axes.set_xlabel(
            f"error of the gradient\n(alone² adds up to {accounted:.0%} of the total's square)"
        )
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.tick_params(axis="y", length=0)
        axes.xaxis.grid(visible=True, color=LIGHT)
        key_above(axes, title)
    return axes
