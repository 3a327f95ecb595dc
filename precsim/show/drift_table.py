"""Gradient drift on the terminal: a row for each measured step, the parameters, and what it means."""

from __future__ import annotations

from math import degrees, isfinite, isnan

from rich.console import RenderableType

from precsim.analyse.twins import Drifts, Point
from precsim.show.style import share
from precsim.show.terminal import Cells, Column, table

STEP_COLUMNS = (
    Column("step", justify="left"),
    Column("loss", 5),
    Column("twin's\nloss", 8),
    Column("gradient's\nerror"),
    Column("in u", 4),
    Column("angle", 7),
    Column("bias", 6),
    Column("weights\nmoved", 2),
    Column("update's\nerror"),
    Column("updates\nlost", 1),
    Column("weights\napart"),
    Column("one\nkick", 3),
    Column("", 0, "left", folds=True),
)

KEY = (
    "gradient's error: from float64's at the same weights; bias: the part along it",
    "weights moved: float64's gradient from the twin's, for the weights differ already",
    "update's error: from a float64 step from the same state; lost: changed nothing",
    "apart: from the twin's weights, of the way that these have come",
    "one kick: the error of a single step, grown as the control twin's has",
)

VERDICTS = {
    "nothing": "the weights are those of the float64 twin",
    "rounding": "rounding: errors that fall any way, at every step",
    "chaos": "chaos: any error of that size would have grown as far, rounding or not",
    "bias": "bias: the errors of the updates point one way and add up",
    "undefined": "undefined: the weights are no longer finite",
}

PARAMETER_COLUMNS = (
    Column("parameter", justify="left"),
    Column("gradient's\nerror"),
    Column("in u", 2),
    Column("bias", 3),
    Column("update's\nerror"),
    Column("updates\nlost"),
)


def steps_table(found: Drifts, width: int) -> RenderableType:
    """Return a row for each measured step."""
    return table(STEP_COLUMNS, map(_step_cells, found.points), width)


def _step_cells(point: Point) -> Cells:
    gradient, update = point.gradient, point.update
    note = "skipped: " * point.skipped + point.undefined
    return [
        str(point.step),
        f"{point.loss:.3f}",
        f"{point.twin_loss:.3f}",
        _part(gradient.rho),
        _number(gradient.rho_u),
        f"{degrees(gradient.angle):.2g}\N{DEGREE SIGN}" if isfinite(gradient.angle) else "-",
        _number(gradient.bias),
        _part(point.split.weights_moved),
        _part(update.rho),
        share(point.swamped),
        _part(point.distance),
        _part(point.chaos),
        note.removesuffix(": ") if not point.undefined else note,
    ]


def parameters_table(point: Point, most: int, width: int) -> RenderableType:
    """Return a row for each of the parameters whose updates drift most in a step."""
    worst = sorted(point.updates, key=lambda n: -_sortable(point.updates[n].rho))[:most]
    rows: list[Cells] = []
    for name in worst:
        gradient, update = point.gradients[name], point.updates[name]
        parts = [_part(gradient.rho), _number(gradient.rho_u), _number(gradient.bias)]
        lost = share(point.lost[name]) if name in point.lost else "-"
        rows.append([name, *parts, _part(update.rho), lost])
    return table(PARAMETER_COLUMNS, rows, width)


def sentences(found: Drifts) -> list[str]:
    """Return what the drift of a run comes to."""
    last = found.points[-1]
    lines = []
    if isfinite(last.distance):
        lines.append(
            f"after step {last.step} the weights are {_part(last.distance)} of the twin's way apart "
            f"from the twin's; one kick would be {_part(last.chaos)}"
        )
    verdict = VERDICTS[found.verdict]
    if found.verdict == "bias":
        verdict += f" ({found.bias:+.0%} of them lies along the updates)"
    lines.append(verdict)
    now, moved = last.split.rounding_now, last.split.weights_moved
    if isfinite(now) and now + moved:
        part = moved**2 / (now**2 + moved**2)
        lines.append(
            f"the last gradient differs from the twin's by {_part(last.split.total)}: "
            f"{share(part)} of its square because the weights have moved, {share(1 - part)} by "
            "rounding now"
        )
    return lines


def _part(value: float) -> str:
    """Return a relative size: percent where that can be read, else two digits."""
    if not isfinite(value):
        return "-"
    if value >= 2:
        return f"{value:.0f}x" if value >= 9.5 else f"{value:.1f}x"
    if value >= 1e-4:
        return f"{100 * value:.0f}%" if value >= 0.095 else f"{100 * value:.2g}%"
    return f"{value:.1e}" if value else "0"


def _number(value: float) -> str:
    return f"{value:.2g}" if isfinite(value) else "-"


def _sortable(value: float) -> float:
    return float("inf") if isnan(value) else value
