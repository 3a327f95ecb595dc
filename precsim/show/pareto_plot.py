"""What accuracy costs: every set of ops that a search has tried, and those that none beats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from precsim.analyse.moment import Site
from precsim.analyse.search import Found
from precsim.show.canvas import LIGHT, RC, Data, key_above, new_axes, power_scale
from precsim.show.style import BLUE, GREY, OCHRE, VERMILLION

FAR = 64
"""How many times smaller than the tolerance an error may be to have room in the figure."""


def pareto_data(
    tried: Mapping[frozenset[str], float], sites: Sequence[Site], found: Found | None = None
) -> Data:
    """Return cost and error of each set of sites that was tried, cheapest first.

    The cost of a set is its share of all values that the step rounds: a count, not a time.
    """
    sizes = {site.name: site.values for site in sites}
    whole = sum(sizes.values()) or 1
    points = sorted(
        (sum(sizes.get(name, 0) for name in high) / whole, error, len(high))
        for high, error in tried.items()
    )
    kept = None
    if found is not None and found.policy is not None:
        cost = sum(sizes.get(site.name, 0) for site in found.keep) / whole
        kept = {"cost": cost, "error": found.error, "sites": [s.name for s in found.keep]}
    return {
        "cost": [cost for cost, _, _ in points],
        "error": [error for _, error, _ in points],
        "sites": [count for _, _, count in points],
        "tolerance": None if found is None else found.tolerance,
        "found": kept,
    }


def frontier(cost: Sequence[float], error: Sequence[float]) -> list[int]:
    """Return which points no other beats: none is as cheap and as good, and better in one of them.

    Of equal ones the first.  Infinite errors are never among them.
    """
    order = sorted(range(len(cost)), key=lambda i: (cost[i], float(error[i]), i))
    best, kept = float("inf"), []
    for i in order:
        if float(error[i]) < best:
            best = float(error[i])
            kept.append(i)
    return kept


def pareto(
    axes: Axes | None = None, *, cost: Sequence[float], error: Sequence[float],
    sites: Sequence[int] = (), tolerance: float | None = None, found: Data | None = None,
    title: str = "",
) -> Axes:  # fmt: skip
    """Draw the error of the gradient over the share of values that are kept high.

    The stairs are the sets that no other beats; the star is what the search chose.  Sets whose
    gradient is not finite, or exact, are not drawn; errors far below the tolerance are off the axis.
    """
    with rc_context(RC):
        axes = axes or new_axes(4.8)
        drawn = [i for i, e in enumerate(error) if isfinite(float(e)) and e > 0]
        axes.plot([cost[i] for i in drawn], [error[i] for i in drawn], "o", color=GREY, alpha=0.6,
                  markersize=5, label=f"{len(cost)} sets tried")  # fmt: skip
        best = [i for i in frontier(cost, error) if error[i] > 0]
        axes.step([cost[i] for i in best], [error[i] for i in best], where="post", color=BLUE,
                  linewidth=2, marker="o", markersize=5, label="no other is better")  # fmt: skip
        if tolerance is not None:
            axes.axhline(tolerance, color=VERMILLION, linestyle=(0, (4, 3)), linewidth=1.4,
                         label=f"tolerance {tolerance:g}")  # fmt: skip
        if found is not None:
            axes.plot([found["cost"]], [found["error"]], "*", color=OCHRE, markersize=19,
                      markeredgecolor="#222222",
                      label=f"found: {len(found['sites'])} of the ops high")  # fmt: skip
        power_scale(axes)
        if tolerance is not None:
            axes.set_ylim(bottom=max(axes.get_ylim()[0], tolerance / FAR))
        axes.set_xlim(-0.03, 1.03)
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.set(xlabel="values kept high, of those that the step rounds\n(a count, not a time)",
                 ylabel="error of the gradient")  # fmt: skip
        axes.yaxis.grid(visible=True, color=LIGHT)
        key_above(axes, title)
    return axes
