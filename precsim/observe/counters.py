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
from typing import Any

import numpy as np
import numpy.typing as npt

from precsim.engine.dispatch import Event
from precsim.formats.arrays import array_module
from precsim.formats.format import Format
from precsim.formats.registry import element_of

LOWEST, HIGHEST = -160, 140
"""Exponents that a histogram tells apart; smaller and larger ones go to the end bins."""

COUNTS = ("n", "zeros", "flushed", "subnormal", "overflowed", "saturated", "nan", "nonfinite_in",
          "inexact", "swamped", "updates")  # fmt: skip


@dataclass
class OpCounts:
    """What one op did to its values, or several ops together (they add up).

    n: results. zeros: exactly zero before rounding. flushed: not zero before, zero after.
    subnormal: in the format's subnormal range after rounding. overflowed: finite before, infinite
    or NaN after. saturated: finite and beyond max before, max after. nan: NaN after. nonfinite_in:
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
    rows: list[OpCounts] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        """Count one op."""
        if self.keep is None or self.keep(event):
            self.rows.append(count(event, histogram=self.histograms))

    def drain(self) -> list[OpCounts]:
        """Return the rows so far and forget them."""
        rows, self.rows = self.rows, []
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
    exact, rounded = event.exact, event.rounded
    xp = array_module(exact)
    element = element_of(event.format)
    counts = OpCounts(
        event.path, event.step, event.call, event.op, event.phase, event.role, event.scope,
        event.format.name, element.u, exact.size,
    )  # fmt: skip
    if exact.size == 0:
        return counts
    with np.errstate(all="ignore"):
        magnitude = xp.abs(exact)
        zeros = int(exact.size - xp.count_nonzero(exact))
        counts.zeros = zeros
        if element.has_zero:
            counts.flushed = int(exact.size - xp.count_nonzero(rounded)) - zeros
        counts.inexact = int(xp.count_nonzero(exact != rounded))
        counts.amax = float(magnitude.max())
        if not np.isfinite(counts.amax) or not xp.isfinite(rounded).all():
            exact, rounded, magnitude = _set_nonfinite_aside(counts, exact, rounded, magnitude)
        _count_range_ends(counts, event.format, magnitude, rounded)
        counts.square = _sum_of_squares(exact)
        counts.error = _sum_of_squares(rounded - exact) if counts.inexact else 0.0
        if event.op == "apply_update":
            _count_swamped(counts, event)
        _measure_smallest(counts, magnitude, zeros, histogram=histogram)
    return counts


def _set_nonfinite_aside(counts: OpCounts, *arrays: Any) -> tuple[Any, Any, Any]:
    """Count NaN, infinities and overflow, and return the arrays with zeros in their place.

    Overflow leaves exact and rounded, but not the magnitude, which is about what came in.
    """
    exact, rounded, magnitude = arrays
    xp = array_module(exact)
    finite_before, finite_after = xp.isfinite(exact), xp.isfinite(rounded)
    counts.nonfinite_in = int(exact.size - xp.count_nonzero(finite_before))
    counts.overflowed = int(xp.count_nonzero(finite_before & ~finite_after))
    counts.nan = int(xp.count_nonzero(xp.isnan(rounded)))
    counts.inexact -= int(xp.count_nonzero(xp.isnan(exact) & xp.isnan(rounded)))
    counts.flushed = int(xp.count_nonzero((exact != 0) & (rounded == 0)))  # a zero may be NaN now
    both = finite_before & finite_after
    magnitude = xp.where(finite_before, magnitude, 0)
    counts.amax = float(magnitude.max())
    return xp.where(both, exact, 0), xp.where(both, rounded, 0), magnitude


def _sum_of_squares(x: Any) -> float:
    """Return the sum, in float64 where the squares of float32 values may have left its range."""
    flat = x.ravel()
    total = float(flat @ flat)
    if flat.dtype == np.float64 or 1e-24 < total < 1e36:
        return total
    wide = flat.astype(np.float64)
    return float(wide @ wide)


def _count_range_ends(counts: OpCounts, fmt: Any, magnitude: Any, rounded: Any) -> None:
    """Count subnormal and saturated results; a shared scale has neither in its own units."""
    xp = array_module(magnitude)
    if not isinstance(fmt, Format):
        return
    if counts.amax > fmt.max:
        at_max = xp.abs(rounded) == fmt.max
        counts.saturated = int(xp.count_nonzero((magnitude > fmt.max) & at_max))
    after = xp.abs(rounded)
    small = int(xp.count_nonzero(after < fmt.smallest_normal))
    counts.subnormal = small - int(after.size - xp.count_nonzero(after))


def _count_swamped(counts: OpCounts, event: Event) -> None:
    """Count updates d != 0 with w + d == w after rounding."""
    weight, delta = event.inputs
    moved = delta != 0
    counts.updates = int(moved.sum())
    counts.swamped = int((moved & (event.rounded == weight)).sum())


def _measure_smallest(counts: OpCounts, magnitude: Any, zeros: int, *, histogram: bool) -> None:
    """Find the smallest nonzero magnitude and the exponent histogram, from the exponent bits."""
    xp = array_module(magnitude)
    flat = magnitude.ravel()
    nonzero = flat[flat != 0] if zeros or counts.nonfinite_in else flat
    if nonzero.size == 0:
        return
    counts.amin = float(nonzero.min())
    if histogram:
        if counts.amin < np.finfo(np.float32).tiny:  # normal in float64, with an exponent to read
            nonzero = nonzero.astype(np.float64, copy=False)
        counts.histogram = exponent_histogram(nonzero, xp)


def exponent_histogram(magnitude: Any, xp: Any = np) -> npt.NDArray[np.int64]:
    """Return how many of the magnitudes, all finite and normal, have each exponent, LOWEST to HIGHEST.

    A float64 that is subnormal is far below LOWEST and counts there, as it should.
    """
    if magnitude.dtype == np.float32:
        exponents = (magnitude.view(np.uint32) >> np.uint32(23)).astype(np.int64) - 127
    else:
        exponents = (magnitude.view(np.uint64) >> np.uint64(52)).astype(np.int64) - 1023
    bins = xp.clip(exponents, LOWEST, HIGHEST) - LOWEST
    counted: Any = xp.bincount(bins, minlength=HIGHEST - LOWEST + 1)
    return np.asarray(counted.get() if hasattr(counted, "get") else counted)
