"""The figure of the benchmarks: each target as a tick, what was measured as dots on one axis."""

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from precsim.formats.registry import element_of
from precsim.formats.registry import format as resolve
from precsim.show.canvas import LIGHT, QUIET, RC, WIDTH
from precsim.show.style import look
from tests.benchmarks.summary import by_target

MARKERS = {"solid": "o", "dashed": "s", "dotted": "^", "dashdot": "D"}
"""What stands for the line styles by which formats of one hue are told apart."""


def benchmarks(*, rows, machine):
    """Draw the ratios of every target but growth, by format; left of the black tick it is reached.

    A shared scale's dot is its element's.  The machine is not drawn; it is in the data.
    """
    lines = [line for line in by_target(rows) if not line["what"].startswith("growth")]
    with rc_context(RC):
        figure = Figure(figsize=(WIDTH, 2.2 + 0.36 * len(lines)), layout="constrained")
        axes = figure.subplots()
        labels = {}
        for y, line in enumerate(lines):
            axes.plot([line["target"]] * 2, [y - 0.36, y + 0.36], color="black", lw=2.5)
            for found in line["rows"]:
                (dot,) = _dot(axes, found, y)
                labels.setdefault(dot.get_label(), dot)
        names = [f"{line['what']} / {line['peer']}" for line in lines]
        axes.set_yticks(range(len(lines)), names, fontsize=11)
        axes.set_ylim(len(lines) - 0.5, -0.5)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(LogLocator(2))
        axes.xaxis.set_major_formatter(FuncFormatter(_whole))
        axes.grid(visible=True, axis="x", color=LIGHT)
        axes.set_xlabel("ratio (a black bar: the most that is allowed)", color=QUIET)
        axes.set_title("What precsim costs, beside what", loc="center")
        figure.legend(labels.values(), labels, loc="outside lower center", ncols=min(8, len(labels)),
                      frameon=False, handletextpad=0.1, columnspacing=1)  # fmt: skip
    return figure


def _dot(axes, found, y):
    element = element_of(resolve(found["format"]))
    drawn = look(element)
    return axes.plot(found["ratio"], y, MARKERS[drawn.line], color=drawn.hue, ms=7, alpha=0.85,
                     label=element.name)  # fmt: skip


def _whole(x, _):
    return f"{x:g}" if x >= 1 else f"1/{1 / x:g}"
