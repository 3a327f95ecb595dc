"""A run that is being recorded, on the terminal: where it stands, its curves, its worst ops."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from math import isfinite, log, log2
from time import monotonic
from typing import TypeVar

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from precsim.analyse.health import Health, complaint
from precsim.engine.policy import Policy
from precsim.observe.counters import OpCounts
from precsim.runs.follow import Follower, State
from precsim.runs.results import StepRecord
from precsim.show.steps import KEY, chip
from precsim.show.style import power, share
from precsim.show.terminal import Cells, Column, ink, table

T = TypeVar("T")

BLOCKS = " \u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
ASCII = " .:-=+*%#"
HEIGHT = 7
"""Lines of the loss curve."""

LAST = 20
"""Steps whose mean loss is told."""

WORST = 5
"""Ops that are shown."""

LINES = 20
"""Lines that a run gets where there is no terminal to draw on."""

ENDINGS = {
    State.FINISHED: "finished",
    State.DIVERGED: "its weights are no longer finite",
    State.INTERRUPTED: "stopped, and can be resumed: precsim resume {}",
    State.KILLED: "its process is gone; what it saved can be resumed: precsim resume {}",
}


class Speed:
    """Steps per second, as seen over the last looks."""

    def __init__(self, looks: int = 30) -> None:
        self._seen: deque[tuple[float, int]] = deque(maxlen=looks)

    def see(self, reached: int) -> None:
        """Note how far the run is now."""
        if self._seen and reached < self._seen[-1][1]:
            self._seen.clear()
        self._seen.append((monotonic(), reached))

    @property
    def rate(self) -> float:
        """Steps per second; 0 while nothing has moved."""
        (since, first), (now, last) = self._seen[0], self._seen[-1]
        return (last - first) / (now - since) if last > first and now > since else 0.0


def page(run: Follower, speed: Speed, title: str, fmt: str, console: Console) -> RenderableType:
    """Return all there is to say now, as wide as the console and no higher."""
    width, plain = console.width, not console.encoding.lower().startswith("utf")
    records = run.records
    parts: list[RenderableType] = [_head(run, speed, title, fmt, width, plain=plain), Text()]
    if not records:
        return Group(*parts, Text("no step yet"))
    parts += [_numbers(run, width), Text()]
    low = console.height < 30
    losses = [r.loss for r in records]
    parts += curve(losses, width, ink(fmt), height=3 if low else HEIGHT, plain=plain)
    if any(r.scale != 1 or r.skipped for r in records):
        parts += [Text(), *_scale(records, width, plain=plain)]
    worst = run.worst(WORST if not low else 2)
    if worst and run.ops:
        parts += [Text(), Text(f"ops that lose most, at step {run.ops[0]}", style="bold")]
        policy = run.policy
        parts.append(table(OP_COLUMNS, [_cells(row, policy) for row in worst], width))
        parts.append(Text(KEY, style="dim"))
    if run.trouble:
        parts += [Text(), Text(f"first op in trouble: {run.trouble}", style="yellow")]
    return Group(*parts)


def _head(
    run: Follower, speed: Speed, title: str, fmt: str, width: int, *, plain: bool
) -> RenderableType:
    """Return a bar of what is done, and how long the rest takes."""
    steps, reached = run.config.steps, run.reached
    rest = (steps - reached) / speed.rate if speed.rate and run.state is State.RUNNING else None
    says = f"step {reached} of {steps}"
    if speed.rate and run.state is State.RUNNING:
        says += f"  {speed.rate:.3g} steps/s"
    if rest is not None:
        says += f"  {int(rest) // 60}:{int(rest) % 60:02d} to go"
    if run.state is not State.RUNNING:
        says += f"  {run.state}"
    name = Text(title, style=f"bold {ink(fmt)}")
    room = max(4, width - name.cell_len - len(says) - 4)
    done = round(room * reached / steps)
    full, empty = ("#", "-") if plain else ("\u2501", "\u2501")
    bar = Text.assemble((full * done, ink(fmt) or "default"), (empty * (room - done), "dim"))
    return Text.assemble(name, "  ", bar, "  ", says)


def _numbers(run: Follower, width: int) -> RenderableType:
    """Return the latest numbers with their names above, as many as there is room for."""
    records = run.records
    last = records[-1]
    valid = next((r.valid_loss for r in reversed(records) if r.valid_loss is not None), None)
    mean = [r.loss for r in records[-LAST:]]
    columns = {
        "loss": f"{sum(mean) / len(mean):.4f}",
        "validation": "-" if valid is None else f"{valid:.4f}",
        "guessing": f"{log(run.vocabulary):.2f}",
        "gradient norm": f"{last.grad_norm:.3g}",
        "flushed": share(last.flushed),
        "updates lost": share(last.lost_updates),
        "loss scale": scale_text(last.scale),
        "skipped": str(sum(r.skipped for r in records)),
    }
    for name in ("guessing", "gradient norm", "skipped", "flushed", "updates lost", "loss scale"):
        if sum(max(len(n), len(v)) + 3 for n, v in columns.items()) > width:
            del columns[name]
    grid = Table.grid(padding=(0, 3, 0, 0))
    for name in columns:
        grid.add_column(justify="right", no_wrap=True, min_width=len(name))
    grid.add_row(*(Text(name, style="dim") for name in columns))
    grid.add_row(*(Text(value, style="bold") for value in columns.values()))
    return grid


def curve(
    values: Sequence[float], width: int, style: str, *, height: int, plain: bool
) -> list[RenderableType]:
    """Return values as columns, a mean where several share one; one that is not finite is left out.

    Where there are several lines, the first and the last say what the highest and the lowest are.
    """
    room = max(8, width - 9)
    columns = [_mean(part) for part in _parts(values, room)]
    finite = [v for v in columns if isfinite(v)]
    if not finite:
        return [Text("no loss is a number", style="red")]
    low, high = min(finite), max(finite)
    span = (high - low) or 1.0
    letters = ASCII if plain else BLOCKS
    steps = len(letters) - 1
    fills = [1 + round((v - low) / span * (height * steps - 1)) if isfinite(v) else 0
             for v in columns]  # fmt: skip
    lines: list[RenderableType] = []
    for level in range(height - 1, -1, -1):
        ends = {height - 1: f"{high:.3f}", 0: f"{low:.3f}"} if height > 1 else {}
        drawn = "".join(letters[min(steps, max(0, fill - level * steps))] for fill in fills)
        lines.append(Text.assemble((f"{ends.get(level, ''):>7}  ", "dim"), (drawn, style)))
    return lines


def _scale(records: Sequence[StepRecord], width: int, *, plain: bool) -> list[RenderableType]:
    """Return the loss scale as one line of columns, and under it an x for each skip."""
    room = max(8, width - 9)
    exponents = [log2(r.scale) if 0 < r.scale < float("inf") else float("nan") for r in records]
    lines = curve(exponents, width, "cyan", height=1, plain=plain)
    finite = [e for e in exponents if isfinite(e)] or [0.0]
    marks = "".join(
        "x" if any(part) else " " for part in _parts([r.skipped for r in records], room)
    )
    ends = f"loss scale {power(round(min(finite)))} to {power(round(max(finite)))}; x: skipped"
    return [Text(f"         {ends}", style="dim"), *lines, Text(f"         {marks}", style="red")]


def _parts(values: Sequence[T], room: int) -> list[Sequence[T]]:
    """Return the values in up to `room` runs of equal length."""
    count = min(room, len(values))
    edges = [round(n * len(values) / count) for n in range(count + 1)]
    return [values[a:b] for a, b in pairwise(edges)]


def _mean(values: Sequence[float]) -> float:
    finite = [v for v in values if isfinite(v)]
    return sum(finite) / len(finite) if finite else float("nan")


OP_COLUMNS = (
    Column("op", justify="left"),
    Column("format", 1, "left"),
    Column("health", 0, "left"),
    Column("flushed"),
    Column("over-\nflow", 2),
    Column("updates\nlost", optional=True),
    Column("", 3, "left"),
)


def _cells(row: OpCounts, policy: Policy) -> Cells:
    health, by_chance = Health.of(row), row.precision(policy).by_chance
    return [
        Text(row.path + (f" #{row.call}" if row.call else "")),
        Text(row.format, style=ink(row.format)),
        chip(health),
        share(row.flushed_share),
        share(health.overflow),
        share(row.swamped_share) if row.updates else "",
        Text(complaint(row, by_chance=by_chance), style="yellow"),
    ]


def line(record: StepRecord, steps: int) -> str:
    """Return a step as one line of text."""
    parts = [f"step {record.step + 1} of {steps}: loss {record.loss:.4f}"]
    if record.valid_loss is not None:
        parts.append(f"validation {record.valid_loss:.4f}")
    if record.scale != 1:
        parts.append(f"scale {scale_text(record.scale)}")
    parts += [f"flushed {share(record.flushed)}", f"updates lost {share(record.lost_updates)}"]
    return ", ".join(parts) + (", skipped" if record.skipped else "")


def worth_a_line(record: StepRecord, steps: int) -> bool:
    """Return whether a step is one of those that get a line: every so many, evaluations, the last."""
    every = max(1, steps // LINES)
    return (record.step + 1) % every == 0 or record.step + 1 == steps


def ending(run: Follower) -> str:
    """Say how a run that is not running any more has ended."""
    return f"step {run.reached} of {run.config.steps}: " + ENDINGS[run.state].format(run.folder)


def scale_text(scale: float) -> str:
    """Return a loss scale as a power of two, if it is one; 1 is none."""
    exponent = log2(scale) if 0 < scale < float("inf") else 0.5
    if scale == 1:
        return "none"
    return power(exponent) if exponent.is_integer() else f"{scale:.4g}"
