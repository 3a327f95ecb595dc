"""Health: what became of an op's values, as shares that add up to 1."""

from __future__ import annotations

from dataclasses import dataclass

from precsim.observe.counters import OpCounts

KINDS = ("zero", "flushed", "subnormal", "normal", "overflow", "nan")
"""The kinds of results, from the smallest up; the fields of `Health`."""


@dataclass(frozen=True)
class Health:
    """Shares of all results of an op; all 0 where it has none.

    zero: it was zero before rounding.  flushed: rounding made it zero.  subnormal: rounding left it
    fewer bits.  overflow: beyond the format's largest (infinite, NaN or the largest after).  nan:
    not finite before rounding, made by the op or fed to it.  normal: all others.
    """

    zero: float
    flushed: float
    subnormal: float
    normal: float
    overflow: float
    nan: float

    @classmethod
    def of(cls, row: OpCounts) -> Health:
        """Return the health of an op, or of several that were added up."""
        over = row.overflowed + row.saturated
        lost = (row.zeros, row.flushed, row.subnormal, over, row.nonfinite_in)
        zero, flushed, subnormal, overflow, nan = (part / row.n if row.n else 0.0 for part in lost)
        normal = max(0, row.n - sum(lost)) / row.n if row.n else 0.0
        return cls(zero, flushed, subnormal, normal, overflow, nan)


def complaint(row: OpCounts, *, by_chance: bool = False) -> str:
    """Return what is wrong with an op's results: "" for nothing.

    That is a result that is no finite number, before rounding or because of it, and more than half
    of the nonzero results flushed, or of the updates lost.  What rounding loses `by_chance` comes
    back on average, and is not wrong.
    """
    if row.nonfinite_in:
        return f"{row.nonfinite_in} of {row.n} not finite"
    if row.overflowed:
        return f"{row.overflowed} of {row.n} overflowed"
    if row.flushed_share > 0.5 and not by_chance:
        return f"{row.flushed_share:.0%} flushed to zero"
    lost = row.swamped_share > 0.5 and not by_chance
    return f"{row.swamped_share:.0%} of the updates lost" if lost else ""
