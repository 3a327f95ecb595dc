"""One training step on the terminal: health chips, the strip of exponents, a row for each op.

A chip is a short bar in which every kind of result has a letter of its own, so that it can be read
without colour: 0 zero, _ flushed, - subnormal, = normal, ^ overflow, N not finite.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from precsim.analyse.health import KINDS, Health
from precsim.analyse.recorded import Op
from precsim.formats.format import Format
from precsim.formats.registry import format as resolve
from precsim.observe.counters import LOWEST, OpCounts, total
from precsim.show.style import power, rough, share
from precsim.show.terminal import Cells, Column, ink, table

CHIP = 12
"""Letters of a chip."""

LETTERS = dict(zip(KINDS, "0_-=^N", strict=True))
STYLES = {"zero": "dim", "flushed": "yellow", "subnormal": "cyan", "normal": "green",
          "overflow": "bold red", "nan": "bold magenta"}  # fmt: skip

KEY = "0 zero  _ flushed  - subnormal  = normal  ^ overflow  N NaN or infinite"

TERMS = (
    "flushed, updates lost: of those that were not zero; the other shares: of all\n"
    "NaN or infinite: before rounding, made by the op or fed to it\n"
    "error: of the op's own rounding; u: the largest that a normal number meets"
)

OP_COLUMNS = (
    Column("op", justify="left"),
    Column("format", 1, "left"),
    Column("values", 6),
    Column("health", 0, "left"),
    Column("zero", 8),
    Column("flushed"),
    Column("sub-\nnormal", 5),
    Column("over-\nflow", 3),
    Column("NaN", 4),
    Column("updates\nlost", optional=True),
    Column("error\nin u", 2),
)


def chip(health: Health) -> Text:
    """Return the bar of an op: a kind that occurs has a letter at least, however rare it is."""
    shares = {kind: getattr(health, kind) for kind in KINDS}
    lengths = {kind: ceil(part * CHIP) for kind, part in shares.items()}
    while sum(lengths.values()) > CHIP:
        most = max(lengths, key=lambda kind: lengths[kind] - shares[kind] * CHIP
                   if lengths[kind] > 1 else -1.0)  # fmt: skip
        lengths[most] -= 1
    parts = [(LETTERS[kind] * n, STYLES[kind]) for kind, n in lengths.items() if n]
    return Text.assemble(*parts)


def op_cells(op: Op) -> Cells:
    """Return an op's row under `OP_COLUMNS`."""
    row, health = op.counts, Health.of(op.counts)
    name = row.path + (f" #{row.call}" if row.call else "")
    return [
        Text(name, style="bold" if op.complaint else ""),
        Text(row.format, style=ink(row.format) if row.format else ""),
        f"{row.n:,}",
        chip(health),
        share(health.zero),
        share(row.flushed_share),
        share(health.subnormal),
        share(health.overflow),
        share(health.nan),
        share(row.swamped_share) if row.updates else "",
        rough(op.err_u) if row.u else "",
    ]


def ops_table(ops: Iterable[Op], width: int) -> RenderableType:
    """Return the table of ops and the key to their chips."""
    drawn = table(OP_COLUMNS, map(op_cells, ops), width)
    return Group(drawn, Text(), Text(f"{KEY}\n{TERMS}", style="dim"))


def walk(ops: Sequence[Op], width: int) -> RenderableType:
    """Return a step's forward and backward ops in order, and what the updates came to."""
    parts: list[RenderableType] = []
    for phase in ("forward", "backward"):
        rows = [op for op in ops if op.counts.phase == phase]
        if rows:
            parts += [Text(phase, style="bold"), table(OP_COLUMNS, map(op_cells, rows), width)]
            parts.append(Text())
    updates = total(op.counts for op in ops if op.counts.phase == "update")
    if updates.n:
        lost = f"  {share(updates.swamped_share)} of the weight updates changed nothing"
        if not any(op.counts.op == "apply_update" for op in ops):
            lost = "  no weight was updated"
        parts += [Text("update", style="bold"), chip(Health.of(updates)).append(lost, style="")]
        parts.append(Text())
    return Group(*parts, Text(KEY, style="dim"))


HEIGHT = 6


def strip(row: OpCounts, width: int) -> RenderableType:
    """Return the op's exponents as bars over the format's range, in letters as those of chips.

    One column is a power of two, or several where that is too wide.  An op without a nonzero value,
    and a format that shares scales, have a sentence instead.
    """
    fmt = resolve(row.format)
    if row.histogram is None or not row.histogram.any():
        return Text("no nonzero value: there are no exponents to show")
    if not isinstance(fmt, Format) or fmt.is_integer:
        return Text(f"{row.format} has no exponents of its own to show these values over")
    used = np.flatnonzero(row.histogram) + LOWEST
    first, last = int(used[0]), int(used[-1])
    smallest = int(np.frexp(fmt.smallest_subnormal)[1]) - 1
    low, high = max(min(first, smallest - 2), first - 12), min(max(last, fmt.emax + 2), last + 12)
    group = ceil((high - low + 1) / (width - 2))
    exponents = range(low, high + 1, group)
    counts = np.array([row.histogram[_bins(e, group)].sum() for e in exponents])
    kinds = [_kind(e + group - 1, fmt) for e in exponents]
    heights = np.ceil(HEIGHT * counts / counts.max())
    styled = [(height, STYLES[kind]) for height, kind in zip(heights, kinds, strict=True)]
    lines = [
        Text.assemble(*(("#" if height >= level else " ", style) for height, style in styled))
        for level in range(HEIGHT, 0, -1)
    ]
    letters = Text.assemble(*((LETTERS[kind], STYLES[kind]) for kind in kinds))
    return Group(*lines, letters, _ticks(exponents), *_headroom(row, fmt))


def _bins(exponent: int, group: int) -> slice:
    return slice(max(0, exponent - LOWEST), max(0, exponent - LOWEST + group))


def _kind(exponent: int, fmt: Format) -> str:
    """Return what the format does to nearly all values of an exponent."""
    smallest = int(np.frexp(fmt.smallest_subnormal)[1]) - 1
    if exponent < smallest - (1 if fmt.subnormals else 0):
        return "flushed"
    if exponent > fmt.emax:
        return "overflow"
    return "subnormal" if exponent < fmt.emin else "normal"


def _ticks(exponents: Sequence[int]) -> Text:
    """Return labels 2^k below their columns, as many as fit."""
    line = ""
    for column, exponent in enumerate(exponents):
        if column >= len(line) + (2 if line else 0) and column % 10 == 0:
            line = line.ljust(column) + power(exponent)
    return Text(line, style="dim")


def _headroom(row: OpCounts, fmt: Format) -> Iterable[Text]:
    """Say how far the largest value is below the format's largest."""
    if 0 < row.amax <= fmt.max:
        room = int(np.floor(np.log2(fmt.max / row.amax)))
        yield Text(f"the largest, {row.amax:.3g}, could grow {power(room)} times in {row.format}")
