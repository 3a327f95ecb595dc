"""Every format at every loss scale, for the values of one recorded step; nothing is run again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import log2

from precsim.formats.format import Format
from precsim.formats.registry import FORMATS
from precsim.observe.counters import OpCounts
from precsim.observe.whatif import Loss, what_if

SHOWN = (1.0, 2.0**4, 2.0**8, 2.0**12, 2.0**16, 2.0**20)
"""Loss scales that are tried, each to the nearest power of two away from the recorded one."""

SEARCHED = range(-40, 41)
"""Powers of two by which the recorded loss scale is changed in search of the best."""


@dataclass(frozen=True)
class Outlook:
    """What a format would lose: `losses` by loss scale, `best` the scale that loses least.

    The best scale is one that no value overflows at, nor at twice as much; of those that flush
    equally little the one nearest to the recorded one.  None where there is none.
    """

    format: str
    losses: dict[float, Loss]
    best: float | None


def outlooks(row: OpCounts, scale: float) -> list[Outlook]:
    """Return the outlook of every format for values that were recorded at a loss scale.

    `row` is the sum of the ops in question.  Left out are integers, and formats that share scales.
    """
    powers = sorted({round(log2(wanted / scale)) for wanted in SHOWN} | {0})
    return [
        Outlook(
            fmt.name,
            {scale * 2.0**k: what_if(row, fmt, 2.0**k) for k in powers},
            _best(row, fmt, scale),
        )
        for fmt in candidates()
    ]


def _best(row: OpCounts, fmt: Format, scale: float) -> float | None:
    safe = [k for k in SEARCHED if not what_if(row, fmt, 2.0 ** (k + 1)).overflowed]
    least = min(safe, key=lambda k: (what_if(row, fmt, 2.0**k).flushed, abs(k)), default=None)
    return None if least is None else scale * 2.0**least


def candidates() -> Iterable[Format]:
    """Yield the floating-point formats with a sign of their own and no shared scale."""
    for fmt in FORMATS.values():
        if isinstance(fmt, Format) and fmt.signed and not fmt.is_integer and fmt.name != "fp64":
            yield fmt
