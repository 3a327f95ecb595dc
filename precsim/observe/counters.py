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
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from precsim.engine.dispatch import Event
from precsim.formats.arrays import array_module
from precsim.formats.format import Format
from precsim.formats.registry import AnyFormat, element_of

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
    """Return the counts of one event.  Defined for empty, all-zero, all-NaN and 0-d results.

    Rounding keeps the order of values, so the largest and smallest before it tell which of the
    format's ends need a look at all; most ops touch neither.
    """
    exact, rounded, fmt = event.exact, event.rounded, event.format
    xp = array_module(exact)
    element = element_of(fmt)
    counts = OpCounts(
        event.path, event.step, event.call, event.op, event.phase, event.role, event.scope,
        fmt.name, element.u, exact.size,
    )  # fmt: skip
    if exact.size == 0:
        return counts
    with np.errstate(all="ignore"):
        magnitude = xp.abs(exact)
        counts.zeros = int(xp.count_nonzero(exact == 0))  # NumPy counts booleans faster than floats
        counts.amax = float(magnitude.max())
        changed = not _holds_carrier(fmt, exact.dtype)
        if changed and element.has_zero:
            counts.flushed = int(xp.count_nonzero(rounded == 0)) - counts.zeros
        if changed:
            counts.inexact = int(xp.count_nonzero(exact != rounded))
        within = isinstance(fmt, Format) and fmt.signed and counts.amax <= fmt.max
        if not within and not (np.isfinite(counts.amax) and xp.isfinite(rounded).all()):
            exact, rounded, magnitude = _set_nonfinite_aside(counts, exact, rounded, magnitude)
        counts.amin = _smallest_nonzero(magnitude)
        if isinstance(fmt, Format):
            _count_range_ends(counts, fmt, magnitude, rounded)
        counts.square = _sum_of_squares(exact)
        counts.error = _sum_of_squares(rounded - exact) if counts.inexact else 0.0
        if event.op == "apply_update":
            _count_swamped(counts, event)
        if histogram and np.isfinite(counts.amin):
            counts.histogram = exponent_histogram(magnitude, xp)
    return counts


@lru_cache(maxsize=1024)
def _holds_carrier(fmt: AnyFormat, dtype: np.dtype[Any]) -> bool:
    """Return whether every carrier value is one of the format, so that rounding changes none."""
    limits = np.finfo(dtype)
    return (
        isinstance(fmt, Format)
        and fmt.subnormals
        and fmt.has_inf
        and (fmt.man_bits, fmt.emin, fmt.emax) == (limits.nmant, limits.minexp, limits.maxexp - 1)
    )


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
    stays_nan = xp.isnan(exact) & xp.isnan(rounded)
    counts.inexact = int(xp.count_nonzero((exact != rounded) & ~stays_nan))
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


def _count_range_ends(counts: OpCounts, fmt: Format, magnitude: Any, rounded: Any) -> None:
    """Count subnormal and saturated results; a shared scale has neither in its own units."""
    xp = array_module(magnitude)
    if counts.amax > fmt.max:
        at_max = xp.abs(rounded) == fmt.max
        counts.saturated = int(xp.count_nonzero((magnitude > fmt.max) & at_max))
    if counts.amin < fmt.smallest_normal:
        small = int(xp.count_nonzero(xp.abs(rounded) < fmt.smallest_normal))
        counts.subnormal = small - int(xp.count_nonzero(rounded == 0))


def _count_swamped(counts: OpCounts, event: Event) -> None:
    """Count updates d != 0 with w + d == w after rounding."""
    weight, delta = event.inputs
    moved = delta != 0
    counts.updates = int(moved.sum())
    counts.swamped = int((moved & (event.rounded == weight)).sum())


def _smallest_nonzero(magnitude: Any) -> float:
    """Return the smallest magnitude that is not zero; inf if all are.

    The bits of magnitudes are ordered as they are, and those of 0, less one, come out last.
    """
    uint: Any = np.uint32 if magnitude.dtype == np.float32 else np.uint64
    last = int((magnitude.view(uint) - uint(1)).min())
    with np.errstate(over="ignore"):
        bits = uint(last) + uint(1)
    return float(bits.view(magnitude.dtype)) if bits else float("inf")


def exponent_histogram(magnitude: Any, xp: Any = np) -> npt.NDArray[np.int64]:
    """Return how many of the finite nonzero magnitudes have each exponent, LOWEST to HIGHEST.

    Zeros are not counted; exponents beyond the ends count in the end bins.
    """
    flat = magnitude.ravel()
    if flat.dtype == np.float32 and _smallest_nonzero(flat) < np.finfo(np.float32).tiny:
        flat = flat.astype(np.float64)  # a subnormal's exponent is in its leading zeros
    signed, shift, bias = (np.int32, 23, 127) if flat.dtype == np.float32 else (np.int64, 52, 1023)
    fields: Any = xp.bincount(flat.view(signed) >> signed(shift), minlength=bias + HIGHEST + 1)
    by_field: Any = fields.get() if hasattr(fields, "get") else fields
    by_field[0] -= int(xp.count_nonzero(flat == 0))
    lowest = bias + LOWEST  # the field of LOWEST; float32 has none so low
    histogram = np.zeros(HIGHEST - LOWEST + 1, np.int64)
    histogram[max(0, -lowest) :] = by_field[max(0, lowest) : bias + HIGHEST + 1]
    histogram[0] += by_field[: max(0, lowest)].sum()
    histogram[-1] += by_field[bias + HIGHEST + 1 :].sum()
    return histogram
