"""Counting over two arrays, before and after rounding: one pass, block by block, while it is in a cache.

Rounding keeps the order of values, so the largest and smallest of a block tell which of the format's
ends need a look at all; most blocks touch neither.
"""

from __future__ import annotations

from functools import lru_cache
from math import inf, isfinite
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from precsim.backend import compiled
from precsim.backend import cupy as device
from precsim.engine.context import current
from precsim.formats.arrays import array_module
from precsim.formats.format import Format
from precsim.formats.registry import AnyFormat, element_of

Bits = npt.NDArray[np.uint64]

LOWEST, HIGHEST = -160, 140
"""Exponents that a histogram tells apart; smaller and larger ones go to the end bins."""

BLOCK_BYTES = 1 << 18
"""Bytes of an array that is counted at a time: with its scratch it stays in the second-level cache."""

PAIRS_FROM = 1 << 12
"""Elements from which on exponents are counted in pairs, which is quicker by a third."""


class Ends(NamedTuple):
    """Where a format's values can meet what is counted, in a carrier."""

    exact: bool  # rounding changes nothing
    flushes_below: float  # a smaller magnitude may become zero
    normal_from: float  # a smaller result is subnormal or zero
    finite_to: float  # no larger magnitude, no infinity and no NaN
    largest: float  # beyond it results are saturated, or infinite, or NaN
    normal_bits: Any  # and the bits of these two, and of infinity
    largest_bits: Any
    infinity_bits: int


@lru_cache(maxsize=1024)
def ends(fmt: AnyFormat, dtype: np.dtype[Any]) -> Ends:
    """Return the ends of a format; a shared scale has none in its own units."""
    has_zero, limits = element_of(fmt).has_zero, np.finfo(dtype)
    exact, smallest, normal, finite, largest = False, inf, 0.0, -1.0, inf
    if isinstance(fmt, Format):
        carrier = limits.nmant, limits.minexp, limits.maxexp - 1
        exact = fmt.subnormals and fmt.has_inf and (fmt.man_bits, fmt.emin, fmt.emax) == carrier
        smallest, finite = (fmt.smallest_subnormal, fmt.max) if fmt.signed else (inf, -1.0)
        normal, largest = fmt.smallest_normal if has_zero else 0.0, fmt.max
    bits: Any = np.array([normal, largest, inf], dtype).view(f"u{dtype.itemsize}")
    return Ends(
        exact,
        smallest if has_zero else 0.0,
        normal,
        finite,
        largest,
        bits[0],
        bits[1],
        int(bits[2]),
    )


class Tally:
    """Running counts; their names are those of `precsim.observe.counters.OpCounts`."""

    zeros = flushed = subnormal = overflowed = saturated = nan = nonfinite_in = inexact = 0
    amax, amin = 0.0, inf
    square = error = 0.0
    histogram: npt.NDArray[np.int64] | None = None

    def __init__(self, exact: Any, rounded: Any, fmt: AnyFormat, *, histogram: bool) -> None:
        """Count `rounded` beside `exact`: of one shape and dtype, not empty, of any values."""
        xp = self._xp = array_module(exact)
        self._ends = ends(fmt, exact.dtype)
        if xp is not np:
            self._count_on_device(exact, rounded, histogram=histogram)
            return
        before, after = exact.reshape(-1), rounded.reshape(-1)
        fused = compiled.counting()
        if fused is None or not self._count_compiled(fused, before, after, histogram=histogram):
            self._count_in_blocks(before, after, histogram=histogram)

    def _count_on_device(self, exact: Any, rounded: Any, *, histogram: bool) -> None:
        found = device.count(
            exact, rounded, self._ends.normal_from, self._ends.largest,
            LOWEST, HIGHEST - LOWEST + 1, histogram=histogram,
        )._asdict()  # fmt: skip
        if not histogram or found["amin"] == inf:
            found.pop("histogram")
        vars(self).update(found)

    def _count_compiled(self, fused: Any, x: Any, r: Any, *, histogram: bool) -> bool:
        """Count each block in one pass, if all is finite; False: it is not, and nothing is counted."""
        edges, block = self._ends, BLOCK_BYTES // x.itemsize
        rest = current().pool.empty((min(block, x.size),), x.dtype)
        parts, square, error = [], 0.0, 0.0
        with np.errstate(all="ignore"):
            for start in range(0, x.size, block):
                before, after = x[start : start + block], r[start : start + block]
                found = fused.tally(before, after, edges.normal_bits, edges.largest_bits)
                if max(found.top, found.top_after) >= edges.infinity_bits:
                    return False
                parts.append(found)
                square += _sum_of_squares(before)
                if found.changed:
                    difference = np.subtract(after, before, out=rest[: before.size])
                    error += _sum_of_squares(difference)
        zeros, zeros_after, below_normal, changed, saturated = map(
            sum, list(zip(*parts, strict=True))[:5]
        )
        self.zeros, self.inexact, self.saturated = zeros, changed, saturated
        self.flushed = zeros_after - zeros if edges.flushes_below else 0
        self.subnormal = below_normal - zeros_after if edges.normal_from else 0
        self.square, self.error = square, error
        if zeros < x.size:
            top, low = max(p.top for p in parts), min(p.low for p in parts) + 1
            self.amax, self.amin = np.array([top, low], f"u{x.itemsize}").view(x.dtype).tolist()
            if histogram:
                seen = fused.histogram(x, zeros, LOWEST, HIGHEST)
                self.histogram = exponent_histogram(np.abs(x)) if seen is None else seen
        return True

    def _count_in_blocks(self, before: Any, after: Any, *, histogram: bool) -> None:
        xp = self._xp
        block = BLOCK_BYTES // before.itemsize if xp is np else before.size
        size = min(block, before.size)
        empty = current().pool.empty if xp is np else xp.empty
        self._magnitude, self._rest = (empty((size,), before.dtype) for _ in range(2))
        self._where = empty((size,), np.dtype(bool))
        self._blank = 0  # magnitudes of zero, that of what is not finite included
        self._uint: Any = np.uint32 if before.dtype == np.float32 else np.uint64
        in_pairs = histogram and xp is np and before.size >= PAIRS_FROM
        exponents = _Exponents(before.dtype) if in_pairs else None
        with np.errstate(all="ignore"):
            for start in range(0, before.size, block):
                magnitude = self._add(before[start : start + block], after[start : start + block])
                if exponents is not None:
                    exponents.add(magnitude, self._rest[: magnitude.size])
            if histogram and self.amin < inf:
                if exponents is not None and exponents.can_tell(self.amin, self.amax):
                    self.histogram = exponents.histogram(self.amin, self.amax, self._blank)
                else:
                    whole = magnitude if before.size <= block else _finite_magnitude(before, xp)
                    self.histogram = exponent_histogram(whole, xp)

    def _count(self, where: Any) -> int:
        return int(self._xp.count_nonzero(where))  # NumPy counts booleans faster than floats

    def _add(self, x: Any, r: Any) -> Any:
        """Count one block and return its magnitudes, with zeros for what is not finite."""
        xp, edges = self._xp, self._ends
        magnitude, where = self._magnitude[: x.size], self._where[: x.size]
        xp.abs(x, out=magnitude)
        top = float(magnitude.max())
        finite = top <= edges.finite_to or (isfinite(top) and bool(xp.isfinite(r).all()))
        if not finite:
            x, r = self._set_nonfinite_aside(x, r, magnitude)
            top = float(magnitude.max())
        blank, low = self._smallest(magnitude)
        self._blank += blank
        zeros_after = blank
        if not finite or low < edges.flushes_below:
            zeros_after = self._count(xp.equal(r, 0, out=where))
        if finite:
            self.zeros += blank
            self.flushed += zeros_after - blank
            changed = 0 if edges.exact else self._count(xp.not_equal(x, r, out=where))
            self.inexact += changed
        if not finite or changed:
            self.error += _sum_of_squares(xp.subtract(r, x, out=self._rest[: x.size]))
        if low < edges.normal_from:
            small = xp.abs(r, out=self._rest[: x.size])
            self.subnormal += (
                self._count(xp.less(small, edges.normal_from, out=where)) - zeros_after
            )
        if top > edges.largest:
            self.saturated += self._count(
                (magnitude > edges.largest) & (xp.abs(r) == edges.largest)
            )
        self.square += _sum_of_squares(x)
        self.amax, self.amin = max(self.amax, top), min(self.amin, low)
        return magnitude

    def _smallest(self, magnitude: Any) -> tuple[int, float]:
        """Return how many magnitudes are 0, and the smallest of the others; inf if there is none.

        The bits of magnitudes are ordered as they are, and those of 0, less one, come out last.
        """
        bits, zeros = magnitude.view(self._uint), 0
        last = int(bits.min())
        if last == 0:
            where = self._xp.equal(magnitude, 0, out=self._where[: magnitude.size])
            zeros = self._count(where)
            rest = self._rest[: magnitude.size].view(self._uint)
            last = int(self._xp.subtract(bits, self._uint(1), out=rest).min()) + 1
        if zeros == magnitude.size:
            return zeros, inf
        return zeros, float(self._uint(last).view(magnitude.dtype))

    def _set_nonfinite_aside(self, x: Any, r: Any, magnitude: Any) -> tuple[Any, Any]:
        """Count NaN, infinities and overflow, and return the arrays with zeros in their place.

        Overflow leaves both arrays, but not the magnitude, which is about what came in.
        """
        xp = self._xp
        finite_before, finite_after = xp.isfinite(x), xp.isfinite(r)
        self.nonfinite_in += x.size - self._count(finite_before)
        self.overflowed += self._count(finite_before & ~finite_after)
        self.nan += self._count(xp.isnan(r))
        self.zeros += self._count(x == 0)
        self.flushed += self._count((x != 0) & (r == 0))  # a NaN may be a zero now
        self.inexact += self._count((x != r) & ~(xp.isnan(x) & xp.isnan(r)))
        magnitude[~finite_before] = 0
        both = finite_before & finite_after
        return xp.where(both, x, 0), xp.where(both, r, 0)


class _Exponents:
    """How many magnitudes have each exponent, counted two at a time.

    `bincount` takes the same time for every number that it is given, so it is given the last
    `BITS` bits of the exponents of two magnitudes, as one number.  That tells exponents apart where
    they span less than 2^BITS, which `can_tell` says in the end.
    """

    BITS = 6

    def __init__(self, dtype: np.dtype[Any]) -> None:
        limits = np.finfo(dtype)
        self._dtype, self._tiny, self._shift = dtype, float(limits.tiny), limits.nmant
        self._pairs = np.zeros(1 << 2 * self.BITS, np.int64)
        self._last: list[float] = []

    def add(self, magnitude: npt.NDArray[Any], scratch: npt.NDArray[Any]) -> None:
        """Count a block; what is zero counts as exponent field 0.  `scratch` is like `magnitude`."""
        if magnitude.size % 2:
            self._last.append(float(magnitude[-1]))
            magnitude, scratch = magnitude[:-1], scratch[:-1]
        write = self._pairs_of_float32 if self._shift == 23 else self._pairs_of_float64
        numbers = write(magnitude.view(np.uint64), scratch.view(np.uint64))
        self._pairs += np.bincount(numbers.view(np.int64), minlength=self._pairs.size)

    def _pairs_of_float32(self, bits: Bits, out: Bits) -> Bits:
        """Return numbers that say the exponents of neighbours, of which two are one uint64.

        The product has the last bits of one exponent beside those of the other, at the top.
        """
        mask, top = (1 << self.BITS) - 1, 64 - 2 * self.BITS
        np.bitwise_and(bits, np.uint64(mask << 23 | mask << 55), out=out)
        out *= np.uint64(1 << top - 23 | 1 << top + self.BITS - 55)
        out >>= np.uint64(top)
        return out

    def _pairs_of_float64(self, bits: Bits, out: Bits) -> Bits:
        """Return numbers that say the exponents of those in the first half, and in the second."""
        mask, half = (1 << self.BITS) - 1, bits.size // 2
        low, high = out[:half], out[half:]
        np.right_shift(bits[:half], np.uint64(52), out=low)
        low &= np.uint64(mask)
        np.right_shift(bits[half:], np.uint64(52 - self.BITS), out=high)
        high &= np.uint64(mask << self.BITS)
        low |= high
        return low

    def can_tell(self, low: float, top: float) -> bool:
        """Return whether all exponents from `low` to `top` were told apart."""
        return low >= self._tiny and self._field(top) - self._field(low) < 1 << self.BITS

    def _field(self, value: float) -> int:
        bits: Any = self._dtype.type(value).view(f"u{self._dtype.itemsize}")
        return int(bits) >> self._shift

    def histogram(self, low: float, top: float, zeros: int) -> npt.NDArray[np.int64]:
        """Return how many magnitudes have each exponent: of `low` to `top`, and so many zeros."""
        side = 1 << self.BITS
        square = self._pairs.reshape(side, side)
        counts = square.sum(0) + square.sum(1)
        for value in self._last:
            counts[self._field(value) % side] += 1
        counts[0] -= zeros
        first, last = self._field(low), self._field(top)
        return _by_exponent(first, counts[np.arange(first, last + 1) % side], self._dtype)


def exponent_histogram(magnitude: Any, xp: Any = np) -> npt.NDArray[np.int64]:
    """Return how many of the finite nonzero magnitudes have each exponent, LOWEST to HIGHEST.

    Zeros are not counted; exponents beyond the ends count in the end bins.
    """
    flat = magnitude.ravel()
    signed, shift = (np.int32, 23) if flat.dtype == np.float32 else (np.int64, 52)
    counts: Any = xp.bincount(flat.view(signed) >> signed(shift))
    counts = counts.get() if hasattr(counts, "get") else counts
    counts[0] -= int(xp.count_nonzero(flat == 0))
    if counts[0] and flat.dtype == np.float32:  # a subnormal's exponent is in its leading zeros
        return exponent_histogram(flat.astype(np.float64), xp)
    return _by_exponent(0, counts, flat.dtype)


def _by_exponent(first: int, counts: Any, dtype: np.dtype[Any]) -> npt.NDArray[np.int64]:
    """Return counts for the exponent fields from `first` on as counts for LOWEST to HIGHEST."""
    histogram = np.zeros(HIGHEST - LOWEST + 1, np.int64)
    start = first - (127 if dtype == np.float32 else 1023) - LOWEST
    below, stop = max(0, -start), histogram.size - start
    inside = counts[below:stop]
    histogram[start + below : start + below + inside.size] = inside
    histogram[0] += counts[:below].sum()
    histogram[-1] += counts[max(0, stop) :].sum()
    return histogram


def _finite_magnitude(x: Any, xp: Any) -> Any:
    return xp.where(xp.isfinite(x), xp.abs(x), 0)


def _sum_of_squares(x: Any) -> float:
    """Return the sum, in float64 where the squares of float32 values may have left its range."""
    total = float(x @ x)
    if x.dtype == np.float64 or 1e-24 < total < 1e36:
        return total
    wide = x.astype(np.float64)
    return float(wide @ wide)
