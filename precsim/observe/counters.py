"""Counting what each op's rounding did: the first layer of observation.

`Counters` is an observer: pass it to ``ps.using(policy, observers=[counters])`` and it keeps one
`OpCounts` for every op that ran, forward, backward and update.  It reads arrays and writes none,
so a run with it has the same bits as one without.

Shares say of what: flushed, subnormal and inexact are shares of the results that are not zero
before rounding; swamped is a share of the updates that are not zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from precsim.backend import cupy as device
from precsim.engine.dispatch import Event
from precsim.engine.exponents import HIGHEST, LOWEST
from precsim.engine.policy import Policy
from precsim.engine.precision import Precision
from precsim.engine.rule import Rule
from precsim.engine.tally import Tally
from precsim.engine.tape import OPS
from precsim.formats.arrays import array_module
from precsim.formats.registry import element_of

__all__ = ["COUNTS", "HIGHEST", "LOWEST", "Counters", "OpCounts", "count", "total"]

COUNTS = ("n", "zeros", "flushed", "subnormal", "overflowed", "saturated", "nan", "nonfinite_in",
          "inexact", "swamped", "updates")  # fmt: skip


@dataclass
class OpCounts:
    """What one op did to its values, or several ops together (they add up).

    n: results. zeros: exactly zero before rounding. flushed: not zero before, zero after.
    subnormal: in the format's subnormal range after rounding. overflowed: finite before, infinite
    or NaN after. saturated: finite and beyond max before, max after (with delayed scaling: times its
    factor; in other scaled formats none is counted). nan: NaN after. nonfinite_in:
    not finite before rounding (the op itself made it, or was fed it). inexact: changed by rounding
    (a NaN that stays one is not).
    updates, swamped: of `apply_update`, the updates that are not zero, and those of them that
    changed nothing. amax, amin: largest and smallest nonzero finite magnitude before rounding.
    square, error: sums of squares of the results that are finite before and after rounding, and of
    their rounding errors.  histogram: how many nonzero finite results, before rounding, have each
    exponent (LOWEST up).
    """

    path: str = ""
    step: int = 0
    call: int = 0
    op: str = ""
    phase: str = ""
    role: str = ""
    scope: str = ""
    format: str = ""
    u: float = 0.0
    n: int = 0
    zeros: int = 0
    flushed: int = 0
    subnormal: int = 0
    overflowed: int = 0
    saturated: int = 0
    nan: int = 0
    nonfinite_in: int = 0
    inexact: int = 0
    swamped: int = 0
    updates: int = 0
    amax: float = 0.0
    amin: float = np.inf
    square: float = 0.0
    error: float = 0.0
    histogram: npt.NDArray[np.int64] | None = field(default=None, repr=False)

    @property
    def flushed_share(self) -> float:
        """Share of the nonzero results that rounding turned into zero."""
        return _share(self.flushed, self.n - self.zeros)

    @property
    def subnormal_share(self) -> float:
        """Share of the nonzero results that lost significand bits to the subnormal range."""
        return _share(self.subnormal, self.n - self.zeros)

    @property
    def inexact_share(self) -> float:
        """Share of the nonzero results that rounding changed."""
        return _share(self.inexact, self.n - self.zeros)

    def precision(self, policy: Policy) -> Precision:
        """Return how a policy rounds the op's results: as its first rule for it says, or its role."""
        kind = OPS[self.op].kind if self.op in OPS else ""
        matching = (r for r in policy.rules if r.matches(self.op, kind, self.role, self.scope))
        rule = next(matching, Rule())
        named = (rule.inputs if self.op == "cast" else None) or rule.output
        found: Precision = named or getattr(policy, self.role)
        return found

    @property
    def swamped_share(self) -> float:
        """Share of the nonzero weight updates that left the weight as it was."""
        return _share(self.swamped, self.updates)

    @property
    def rms(self) -> float:
        """Root mean square of the results that are finite before and after rounding."""
        finite = self.n - self.nonfinite_in - self.overflowed
        return float(np.sqrt(_share(self.square, finite)))

    @property
    def relative_error(self) -> float:
        """Norm of the rounding errors over the norm of the results (0 if these are all zero)."""
        return float(np.sqrt(_share(self.error, self.square)))

    def add(self, other: OpCounts) -> None:
        """Take the counts of another op in; names stay as they are."""
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.amax, self.amin = max(self.amax, other.amax), min(self.amin, other.amin)
        self.square += other.square
        self.error += other.error
        if other.histogram is not None:
            mine = 0 if self.histogram is None else self.histogram
            self.histogram = mine + other.histogram

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers for JSON, with the shares; the histogram as a list."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "histogram"}
        plain["amin"] = self.amin if np.isfinite(self.amin) else 0.0
        shares = ("flushed_share", "subnormal_share", "swamped_share", "rms", "relative_error")
        plain |= {name: getattr(self, name) for name in shares}
        if self.histogram is not None:
            plain["histogram"] = self.histogram.tolist()
        return plain


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


@dataclass
class Counters:
    """An observer that keeps the counts of every op; see the module's docstring.

    `histograms=False` leaves the exponent histograms out.  `keep` filters events before any work
    is done on them.  `drain` hands the rows over and starts afresh, once a step, say.
    """

    histograms: bool = True
    keep: Callable[[Event], bool] | None = None
    _rows: list[OpCounts | Pending] = field(default_factory=list, init=False, repr=False)

    @property
    def rows(self) -> list[OpCounts]:
        """One row for every op so far; reading them waits for a device that still counts."""
        return read(self._rows)

    @property
    def needs(self) -> str:
        """What is asked of each op (`precsim.engine.context.Observer`)."""
        if self.keep is not None:
            return "exact"  # or all would be counted that is not kept
        return "hist" if self.histograms else "counts"

    def __call__(self, event: Event) -> None:
        """Count one op."""
        if self.keep is None or self.keep(event):
            self._rows.append(note(event, histogram=self.histograms))

    def drain(self) -> list[OpCounts]:
        """Return the rows so far and forget them."""
        rows, self._rows = self.rows, []
        return rows

    def total(self, **wanted: str) -> OpCounts:
        """Return the sum over all rows whose fields equal `wanted`, e.g. ``phase="backward"``."""
        return total(self.rows, **wanted)

    def worst(self, k: int = 5, by: str = "flushed_share") -> list[OpCounts]:
        """Return the k rows where `by` (any field or share of `OpCounts`) is largest."""
        return sorted(self.rows, key=lambda row: -float(getattr(row, by)))[:k]


def total(rows: Iterable[OpCounts], **wanted: str) -> OpCounts:
    """Return the sum of the rows whose fields equal `wanted`."""
    result = OpCounts(**wanted)  # type: ignore[arg-type]
    for row in rows:
        if all(getattr(row, name) == value for name, value in wanted.items()):
            result.add(row)
    return result


def count(event: Event, *, histogram: bool = True) -> OpCounts:
    """Return the counts of one event.  Defined for empty, all-zero, all-NaN and 0-d results."""
    (row,) = read([note(event, histogram=histogram)])
    return row


def note(event: Event, *, histogram: bool = True) -> OpCounts | Pending:
    """Return what `count` does, or, if a device still counts, what `read` makes that of."""
    fmt, t = event.format, event.tally
    names = (event.path, event.step, event.call, event.op, event.phase, event.role, event.scope,
             fmt.name, element_of(fmt).u, event.rounded.size)  # fmt: skip
    if not event.rounded.size:
        return OpCounts(*names)
    if t is None or (histogram and t.bins is None):
        t = Tally.of(event.exact, event.rounded, fmt, histogram=histogram, factor=event.factor)
    moved = _updates(event) if event.op == "apply_update" else None
    if array_module(event.rounded) is np:  # there is nothing to wait for
        return _row(names, t, moved, histogram)
    return Pending(names, t, moved, histogram)


Names = tuple[str, int, int, str, str, str, str, str, float, int]
"""The first ten fields of `OpCounts`."""
Moved = Callable[[], dict[str, int]] | None


class Pending(NamedTuple):
    """The counts of an op that a device may still be at: what `_row` makes one of them."""

    names: Names
    tally: Tally
    moved: Moved
    histogram: bool


def _row(names: Names, t: Tally, moved: Moved, histogram: bool) -> OpCounts:
    row = OpCounts(
        *names, t.zeros, t.flushed, t.subnormal, t.overflowed, t.saturated, t.nan, t.nonfinite_in,
        t.inexact, 0, 0, t.amax, t.amin, t.square, t.error, t.histogram if histogram else None,
    )  # fmt: skip
    if moved is not None:
        vars(row).update(moved())
    return row


def read(rows: list[OpCounts | Pending]) -> list[OpCounts]:
    """Wait for the rows that are pending, and return all; the list keeps them as well."""
    for i, row in enumerate(rows):
        if isinstance(row, Pending):
            rows[i] = _row(*row)
    return cast(list[OpCounts], rows)


def _updates(event: Event) -> Callable[[], dict[str, int]]:
    """Count updates d != 0, and those with w + d == w after rounding."""
    weight, delta = event.inputs
    if array_module(weight) is not np:
        return device.updates(weight, delta, event.rounded)
    moved = delta != 0
    swamped = moved & (event.rounded == weight)
    found = {
        "updates": int(np.count_nonzero(moved)),
        "swamped": int(np.count_nonzero(swamped)),
    }
    return lambda: found
