"""One training step, taken apart: what each op's rounding did, and how far off the gradient is.

`moment_of` freezes the step after a run; `show_step` runs it op by op, prints a table and can draw it;
`draw_step` draws what that found.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from math import degrees, isnan
from typing import TYPE_CHECKING, Any

import numpy as np

from precsim.analyse.drift import Drift, compare
from precsim.analyse.health import KINDS, Health, complaint
from precsim.analyse.moment import Moment, moment_before, unit
from precsim.analyse.recorded import Op, seen
from precsim.engine.policy import Policy
from precsim.formats.registry import element_of
from precsim.formats.registry import format as resolve
from precsim.lesson.figures import save
from precsim.observe.counters import total
from precsim.runs.data import Batches
from precsim.runs.results import Run
from precsim.show.steps import KEY, OP_COLUMNS, TERMS, op_cells
from precsim.show.style import power, share
from precsim.show.terminal import console, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

TITLES = {True: "One step, and the ops that fare worst", False: "One step: no op is in trouble"}
WORST = 6
"""Ops that are shown."""

COLUMNS: dict[str, dict[str, Any]] = {
    "error\nin u": {"rank": 1}, "format": {"rank": 2}, "NaN": {"heading": "not\nfinite"},
}  # fmt: skip
"""What is different in the table of a lesson: its text tells the format, and has no other word for
what is infinite.
"""

HUES = {"zero": "#d9d9d9", "flushed": "#E69F00", "subnormal": "#F6D9A0", "normal": "#9FC9B5",
        "overflow": "#B0413E", "nan": "#5B2A86"}  # fmt: skip
"""Colours of the kinds of results; each is named in the figure as well."""
NAMES = {"nan": "not finite before"}


@dataclass(frozen=True, repr=False)
class Step:
    """What a step's forward and backward pass did: its ops in order, and its gradient's error."""

    moment: Moment
    ops: list[Op]
    drift: Drift

    def __repr__(self) -> str:
        """Say what a notebook should show of a cell that ends in `show_step`: little."""
        error = f"gradient {share(self.drift.rho)} from float64's"
        return f"Step({self.moment.step}, {len(self.ops)} ops, {error})"

    def worst(self, count: int = WORST) -> list[Op]:
        """Return the ops in the worst health: overflow, what is not finite, what was flushed."""
        return sorted(self.ops, key=_badness, reverse=True)[:count]


def moment_of(run: Run, policy: Policy | str | None = None, scale: float | None = None) -> Moment:
    """Return the step that would follow a run, to be taken under `policy` and a loss scale.

    `policy` None is the run's own, `scale` None that of its last step.  The weights are as the run
    left them, the batch is the next.
    """
    config = run.config
    batches = Batches(run.corpus, config.batch, config.context, config.seed)
    step = run.records[-1].step + 1 if run.records else 0
    chosen = run.policy if policy is None else Policy.parse(policy)
    last = run.records[-1].scale if run.records else 1.0
    return moment_before(step, config, run.model, batches, chosen, last if scale is None else scale)


def take(moment: Moment) -> Step:
    """Run a moment op by op, beside the float64 gradient at the same weights."""
    ops: list[Op] = []

    gradient = moment.gradients(observers=[lambda event: ops.append(seen(event))])
    return Step(moment, ops, compare(gradient, moment.reference(), unit(moment.policy)))


def show_step(moment: Moment, worst: int = WORST, figure: str = "") -> Step:
    """Print the ops in the worst health and the sentences about the step; return all of it.

    With `figure`, a name as `save` takes it, it is drawn and saved as well.
    """
    step = take(moment)
    out = console(sys.stdout, os.environ)
    out.print(_table(step.worst(worst), out.width))
    out.print(f"\n{KEY}\n{TERMS}", style="dim")
    for line in sentences(step):
        out.print(line, soft_wrap=True)
    if figure:
        title = TITLES[any(complaint(op.counts) for op in step.ops)]
        save(draw_step(step, title), figure, facts(step))
    return step


def _table(ops: list[Op], width: int) -> Table:
    """Return the table of ops, without the shares that are zero in every row."""
    cells = [op_cells(op) for op in ops]
    told = [i for i in range(len(OP_COLUMNS)) if any(str(row[i]) != "0%" for row in cells)]
    columns = [replace(column, **COLUMNS.get(column.heading, {})) for column in OP_COLUMNS]
    return table([columns[i] for i in told], ([row[i] for i in told] for row in cells), width)


def sentences(step: Step) -> list[str]:
    """Return what the table does not say: the loss scale's room, what was lost, how far off it is."""
    lines = []
    troubled = sum(1 for op in step.ops if complaint(op.counts))
    backward = total((op.counts for op in step.ops), phase="backward")
    lines.append(
        f"{troubled} of {len(step.ops)} ops in trouble; of the backward pass "
        f"{share(backward.flushed_share)} became zero"
    )
    room = headroom(step)
    if not isnan(room):
        below = f"the largest gradient is 2^{room:.1f} below the end of its format"
        above = "the largest gradient is beyond the end of its format: this step is skipped"
        lines.append(f"loss scale {_scale(step.moment.scale)}: {below if room > 0 else above}")
    drift = step.drift
    if drift.nonfinite:
        lines.append(f"gradient: {drift.nonfinite} elements are not finite")
    else:
        lines.append(
            f"gradient: {share(drift.rho)} from float64's ({drift.rho_u:.2g} u), "
            f"turned by {degrees(drift.angle):.2g} degrees"
        )
    return lines


def headroom(step: Step) -> float:
    """Return log2 of (a format's largest number / the largest gradient), the smallest of all ops.

    The 1 that the backward pass starts from is no gradient of the model's, and left out.  NaN where no
    op of the backward pass has a result that is neither zero nor scaled.
    """
    rooms = [
        np.log2(resolve(row.format).max / row.amax)
        for row in (op.counts for op in step.ops)
        if row.phase == "backward" and row.scope != "seed" and row.amax > 0
        and element_of(resolve(row.format)) is resolve(row.format)
    ]  # fmt: skip
    return float(min(rooms, default=float("nan")))


def draw_step(step: Step, title: str = "", worst: int = WORST) -> Figure:
    """Draw the worst ops, each as a bar of what became of its results, and the step's sentences."""
    from matplotlib import pyplot as plt
    from matplotlib import rc_context
    from matplotlib.patches import Patch

    from precsim.show.canvas import QUIET, RC, WIDTH

    rows = step.worst(worst)
    with rc_context(RC):
        fig, axes = plt.subplots(figsize=(WIDTH, 2.1 + 0.38 * len(rows)), layout="constrained")
        for place, op in enumerate(rows):
            _bar(axes, place, Health.of(op.counts))
            axes.text(1.02, place, _error(op), va="center", fontsize=11, color=QUIET)
        axes.text(1.02, -0.75, "error", va="center", fontsize=11, color=QUIET)
        axes.set_yticks(range(len(rows)), [_name(op) for op in rows], fontsize=11)
        axes.set(xlim=(0, 1), ylim=(len(rows) - 0.4, -0.6))
        axes.set_xticks([0, 0.5, 1], ["0 %", "of its results", "100 %"])
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.tick_params(length=0)
        seen = [k for k in KINDS if any(getattr(Health.of(op.counts), k) > 0 for op in rows)]
        handles = [Patch(color=HUES[kind]) for kind in seen]
        axes.legend(handles, [NAMES.get(k, k) for k in seen], ncols=len(seen), loc="lower center", frameon=False,
                    bbox_to_anchor=(0.3, 1.0), fontsize=11, handlelength=1)  # fmt: skip
        fig.supxlabel("\n".join(sentences(step)), x=0.01, ha="left", color=QUIET, fontsize=11)
        fig.suptitle(title, x=0.01, ha="left", fontsize=15, fontweight="bold")
    return fig


def facts(step: Step, worst: int = WORST) -> dict[str, Any]:
    """Return what `draw_step` draws, for `save`."""
    return {
        "ops": [op.counts.path for op in step.worst(worst)],
        "shares": {
            kind: [getattr(Health.of(op.counts), kind) for op in step.worst(worst)]
            for kind in KINDS
        },
        "error in u": [op.err_u for op in step.worst(worst)],
        "loss_scale": step.moment.scale,
        "gradient_error": step.drift.rho,
    }


def _scale(scale: float) -> str:
    exponent = np.log2(scale)
    return power(exponent) if exponent == int(exponent) and scale != 1 else f"{scale:g}"


def _bar(axes: Axes, place: int, health: Health) -> None:
    left = 0.0
    for kind in KINDS:
        part = getattr(health, kind)
        axes.barh(place, part, left=left, height=0.62, color=HUES[kind], lw=0)
        if part > 0.12 and kind != "normal":
            axes.text(left + part / 2, place, share(part), ha="center", va="center", fontsize=10.5,
                      color="white" if kind in ("overflow", "nan") else "#222222")  # fmt: skip
        left += part


def _error(op: Op) -> str:
    if not op.counts.u:
        return ""
    return f"{op.err_u:,.0f} u" if op.err_u >= 10 else f"{op.err_u:.2g} u"


def _name(op: Op) -> str:
    row = op.counts
    return f"{row.path}  {row.format}"


def _badness(op: Op) -> tuple[float, ...]:
    row, health = op.counts, Health.of(op.counts)
    return (health.overflow, health.nan, row.flushed_share, health.subnormal, op.err_u)
