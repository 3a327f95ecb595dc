"""Counting what rounding does, block by block, while numbers before and after are in a cache.

Rounding keeps the order of values, so the largest and smallest of a block tell which of the format's
ends need a look at all; most blocks touch neither.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import inf, isfinite
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from precsim.backend import compiled, one_pass, one_pass_counts
from precsim.backend import cupy as device
from precsim.engine.exponents import BINS, LOWEST, Exponents
from precsim.formats.arrays import array_module
from precsim.formats.format import Format
from precsim.formats.modes import Mode, Overflow
from precsim.formats.registry import AnyFormat, element_of
from precsim.formats.scratch import BLOCK_BYTES, scratch, scratch_bits


class Ends(NamedTuple):
    """Where a format's values can meet what is counted, in a carrier."""

    exact: bool  # rounding changes nothing
    flushes_below: float  # a smaller magnitude may become zero
    normal_from: float  # a smaller result is subnormal or zero
    finite_to: float  # no larger magnitude, no infinity and no NaN
    largest: float  # beyond it results are saturated, or infinite, or NaN
    bits: Any  # the same for compiled kernels, in an array (`precsim.backend.fused_counts.Bounds`)


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
    flushes = smallest if has_zero else 0.0
    safe = max(finite, 0.0)
    bits: Any = np.array([flushes, normal, largest, safe], dtype).view(f"u{dtype.itemsize}")
    return Ends(exact, flushes, normal, finite, largest, bits)


_NO_BINS = np.zeros(0, np.int64)


class Tally:
    """Counts of one array; their names are those of `precsim.observe.counters.OpCounts`.

    It is there before the array is rounded, and watches that (`precsim.formats.kernels.Watch`):
    called with each block of NumPy's arrays, flat, of `BLOCK_BYTES` at most, before and after.
    """

    def __init__(self, fmt: AnyFormat, dtype: np.dtype[Any], *, histogram: bool) -> None:
        self.ends = ends(fmt, dtype)
        self.bins = np.zeros(BINS, np.int64) if histogram else None
        self._exponents: Exponents | None = None  # which NumPy counts in
        self._on_device: Callable[[], one_pass_counts.Counted] | None = None

    @classmethod
    def of(
        cls,
        exact: Any,
        rounded: Any,
        fmt: AnyFormat,
        *,
        histogram: bool,
        factor: float | None = None,
    ) -> Self:
        """Count `rounded` beside `exact`: of one shape and dtype, of any values.

        With the `factor` of delayed scaling numbers saturate that, times it, are beyond the largest.
        """
        tally = cls(fmt, exact.dtype, histogram=histogram)
        if array_module(exact) is not np:
            xp = array_module(exact)
            limits = {"largest": fmt.max, "factor": factor} if factor else {}
            tally._leave_on_device(*map(xp.ascontiguousarray, (exact, rounded)), **limits)
            return tally
        before, after = exact.reshape(-1), rounded.reshape(-1)
        fused = compiled.counting(before.size)
        with np.errstate(all="ignore"):
            if fused is not None:
                bins = _NO_BINS if tally.bins is None else tally.bins
                tally._take(fused.count(before, after, tally.ends.bits, bins, LOWEST))
            else:
                block = BLOCK_BYTES // before.itemsize
                for start in range(0, before.size, block):
                    part = slice(start, start + block)
                    tally(before[part], after[part])
            if factor is not None:
                beyond = np.abs(exact) * factor > fmt.max
                tally.saturated = _count(beyond & np.isfinite(exact))
        return tally

    def _leave_on_device(self, exact: Any, rounded: Any, *how: Any, **limits: float) -> None:
        """Let a device count, and, if it is told how, round; counts are fetched when one is read."""
        wanted = one_pass_counts.Wanted(
            normal=self.ends.normal_from,
            largest=limits.get("largest", self.ends.largest),
            factor=limits.get("factor", 0.0),
            lowest=LOWEST,
            bins=BINS,
            histogram=self.bins is not None,
        )
        self._on_device = device.count(exact, rounded, wanted, *how)

    def __getattr__(self, name: str) -> Any:
        """Fetch counts that are on a device still, or begin with those of nothing."""
        if name not in _NOTHING:
            msg = f"a tally has no {name!r}"
            raise AttributeError(msg)
        if self._on_device is None:
            vars(self).update(_NOTHING)
        self._fetch()
        return vars(self)[name]

    def _fetch(self) -> None:
        if self._on_device is None:
            return
        found = self._on_device()._asdict()
        counts = found.pop("histogram")
        vars(self).update(found)
        self._on_device = None
        if self.bins is not None:
            self.bins += counts

    def in_one_pass(
        self,
        x: Any,
        out: Any,
        fmt: Format,
        rounding: Mode,
        overflow: Overflow,
        words: Any,
    ) -> bool:
        """Round x into `out` and count, on a device or if compiled kernels do that here; else False."""
        if array_module(x) is not np:
            self._leave_on_device(x, out, one_pass.rule(fmt, rounding, overflow), words)
            return True
        fused = compiled.counting(x.size)
        if fused is None:
            return False
        bins = _NO_BINS if self.bins is None else self.bins
        return self._take(
            fused.round_into(x, out, fmt, rounding, overflow, words, self.ends.bits, bins, LOWEST)
        )

    def _take(self, found: Any) -> bool:
        """Keep what compiled kernels counted in a whole array; False if they did not."""
        if found is None:
            return False
        (self.zeros, self.flushed, self.subnormal, self.inexact, self.saturated, self.overflowed,
         self.nan, self.nonfinite_in, self.square, self.error, self.amin, self.amax) = found  # fmt: skip
        return True

    def __call__(self, x: Any, r: Any) -> None:
        """Count a block of numbers x that rounding made r of, pass by pass."""
        edges = self.ends
        magnitude, bits = scratch_bits("magnitude", x)
        np.abs(x, out=magnitude)
        top = float(np.maximum.reduce(magnitude))
        finite = top <= edges.finite_to or (isfinite(top) and bool(np.isfinite(r).all()))
        if not finite:
            x, r = self._set_nonfinite_aside(x, r, magnitude)
            top = float(np.maximum.reduce(magnitude))
        rest, rest_bits = scratch_bits("rest", x)
        zeros, low = _smallest(magnitude, bits, rest_bits)
        if finite:
            self.zeros += zeros
        if not edges.exact:
            np.subtract(r, x, out=rest)
            changed = _count(rest_bits)  # a difference is +0 only between equals
            if finite:
                self.inexact += changed
            if changed:
                self.error += sum_of_squares(rest)
        subnormal = low < edges.normal_from
        if subnormal or low < edges.flushes_below:
            np.abs(r, out=rest)
            zeros_after = zeros
            if not finite or low < edges.flushes_below:
                zeros_after = x.size - _count(rest_bits)
            if finite:
                self.flushed += zeros_after - zeros
            if subnormal:
                where = np.less(rest, edges.normal_from, out=scratch("where", x, bool))
                self.subnormal += _count(where) - zeros_after
        if top > edges.largest:
            self.saturated += _count((magnitude > edges.largest) & (np.abs(r) == edges.largest))
        self.square += sum_of_squares(x)
        self.amax, self.amin = max(self.amax, top), min(self.amin, low)
        if self.bins is not None:
            if self._exponents is None:
                self._exponents = Exponents(x.dtype, self.bins)
            self._exponents.add(magnitude, low, top, zeros)

    @property
    def histogram(self) -> npt.NDArray[np.int64] | None:
        """How many nonzero finite magnitudes have each exponent, `LOWEST` up; None without any."""
        if self._on_device is not None:
            self._fetch()
        if self._exponents is not None:
            self._exponents.finish()
        return self.bins

    def _set_nonfinite_aside(self, x: Any, r: Any, magnitude: Any) -> tuple[Any, Any]:
        """Count NaN, infinities and overflow, and return the arrays with zeros in their place.

        Overflow leaves both arrays, but not the magnitude, which is about what came in.
        """
        finite_before, finite_after = np.isfinite(x), np.isfinite(r)
        self.nonfinite_in += x.size - _count(finite_before)
        self.overflowed += _count(finite_before & ~finite_after)
        self.nan += _count(np.isnan(r))
        self.zeros += _count(x == 0)
        self.flushed += _count((x != 0) & (r == 0))  # a NaN may be a zero now
        self.inexact += _count((x != r) & ~(np.isnan(x) & np.isnan(r)))
        magnitude[~finite_before] = 0
        both = finite_before & finite_after
        return np.where(both, x, 0), np.where(both, r, 0)


_NOTHING: dict[str, float] = {
    **dict.fromkeys(one_pass_counts.NAMES, 0), "amax": 0.0, "amin": inf, "square": 0.0, "error": 0.0,
}  # fmt: skip


def _smallest(magnitude: Any, bits: Any, spare: Any) -> tuple[int, float]:
    """Return how many magnitudes are 0, and the smallest of the others; inf if there is none.

    The bits of magnitudes are ordered as they are, and those of 0, less one, come out last.
    """
    low = float(np.minimum.reduce(magnitude))
    if low > 0:
        return 0, low
    zeros = bits.size - _count(bits)
    if zeros == bits.size:
        return zeros, inf
    last = np.minimum.reduce(np.subtract(bits, bits.dtype.type(1), out=spare))
    return zeros, float((last + bits.dtype.type(1)).view(magnitude.dtype))


def sum_of_squares(x: Any) -> float:
    """Return the sum, in float64 where the squares of float32 values may have left its range."""
    total = float(np.dot(x, x))
    if 1e-24 < total < 1e36 or x.dtype == np.float64:
        return total
    wide = x.astype(np.float64)
    return float(wide @ wide)


def _count(where: Any) -> int:
    return int(np.count_nonzero(where))  # NumPy is fast at booleans and integers, slow at floats
