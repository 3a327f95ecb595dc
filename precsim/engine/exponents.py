"""Histograms of exponents, block by block."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from precsim.formats.scratch import scratch

Bits = npt.NDArray[np.uint64]

LOWEST, HIGHEST = -160, 140
"""Exponents that a histogram tells apart; smaller and larger ones go to the end bins."""

PAIRS_FROM = 1 << 12
"""Elements from which on exponents are counted in pairs, which is quicker by a third."""

BITS = 6
"""The last bits of an exponent field that pairs tell apart."""
SIDE = 1 << BITS


class Exponents:
    """How many magnitudes have each exponent, counted two at a time.

    `bincount` takes the same time for every number that it is given, so it is given the last
    `BITS` bits of the exponents of two magnitudes, as one number.  That tells exponents apart where
    they span less than 2^BITS; what is in the table goes to the histogram before they span more.
    """

    _pairs: npt.NDArray[np.int64] | None = None
    _zeros = 0
    _first, _last = 0, 0  # exponent fields in the table, if there is one

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.counts = np.zeros(HIGHEST - LOWEST + 1, np.int64)
        self._dtype = dtype

    def add(self, magnitude: npt.NDArray[Any], low: float, top: float, zeros: int) -> None:
        """Count a block, whose nonzero magnitudes go from `low` to `top`; `zeros` are none."""
        if zeros == magnitude.size:
            return
        first, last = self._field(low), self._field(top)
        narrow = first > 0 and last - first < SIDE and magnitude.size >= PAIRS_FROM
        if not narrow:
            self.counts += exponent_histogram(magnitude)
            return
        if self._pairs is not None:
            together = min(first, self._first), max(last, self._last)
            if together[1] - together[0] < SIDE:
                first, last = together
            else:
                self._empty()
        self._first, self._last = first, last
        self._zeros += zeros
        if magnitude.size % 2:
            self.counts += exponent_histogram(magnitude[-1:])
            self._zeros -= int(magnitude[-1] == 0)
            magnitude = magnitude[:-1]
        write = _pairs_of_float32 if self._dtype == np.float32 else _pairs_of_float64
        numbers = write(magnitude.view(np.uint64), scratch("rest", magnitude).view(np.uint64))
        pairs = np.bincount(numbers.view(np.int64), minlength=SIDE * SIDE)
        self._pairs = pairs if self._pairs is None else self._pairs + pairs

    def histogram(self) -> npt.NDArray[np.int64]:
        """Return how many magnitudes have each exponent, `LOWEST` to `HIGHEST` and beyond."""
        self._empty()
        return self.counts

    def _field(self, value: float) -> int:
        bits: Any = self._dtype.type(value).view(f"u{self._dtype.itemsize}")
        return int(bits) >> (23 if self._dtype == np.float32 else 52)

    def _empty(self) -> None:
        """Move what is in the table to the histogram."""
        if self._pairs is None:
            return
        square = self._pairs.reshape(SIDE, SIDE)
        counts = square.sum(0) + square.sum(1)
        counts[0] -= self._zeros
        fields = np.arange(self._first, self._last + 1)
        self.counts += by_exponent(self._first, counts[fields % SIDE], self._dtype)
        self._pairs, self._zeros = None, 0


def _pairs_of_float32(bits: Bits, out: Bits) -> Bits:
    """Return numbers that say the exponents of neighbours, of which two are one uint64.

    The product has the last bits of one exponent beside those of the other, at the top.
    """
    mask, top = SIDE - 1, 64 - 2 * BITS
    np.bitwise_and(bits, np.uint64(mask << 23 | mask << 55), out=out)
    out *= np.uint64(1 << top - 23 | 1 << top + BITS - 55)
    out >>= np.uint64(top)
    return out


def _pairs_of_float64(bits: Bits, out: Bits) -> Bits:
    """Return numbers that say the exponents of those in the first half, and in the second."""
    mask, half = SIDE - 1, bits.size // 2
    low, high = out[:half], out[half:]
    np.right_shift(bits[:half], np.uint64(52), out=low)
    low &= np.uint64(mask)
    np.right_shift(bits[half:], np.uint64(52 - BITS), out=high)
    high &= np.uint64(mask << BITS)
    low |= high
    return low


def exponent_histogram(flat: Any) -> npt.NDArray[np.int64]:
    """Return how many of the finite nonzero magnitudes have each exponent, LOWEST to HIGHEST.

    Zeros are not counted; exponents beyond the ends count in the end bins.
    """
    signed, shift = (np.int32, 23) if flat.dtype == np.float32 else (np.int64, 52)
    counts: Any = np.bincount(flat.view(signed) >> signed(shift))
    counts[0] -= np.count_nonzero(flat == 0)
    if counts[0] and flat.dtype == np.float32:  # a subnormal's exponent is in its leading zeros
        return exponent_histogram(flat.astype(np.float64))
    return by_exponent(0, counts, flat.dtype)


def by_exponent(first: int, counts: Any, dtype: np.dtype[Any]) -> npt.NDArray[np.int64]:
    """Return counts for the exponent fields from `first` on as counts for LOWEST to HIGHEST."""
    histogram = np.zeros(HIGHEST - LOWEST + 1, np.int64)
    start = first - (127 if dtype == np.float32 else 1023) - LOWEST
    below, stop = max(0, -start), histogram.size - start
    inside = counts[below:stop]
    histogram[start + below : start + below + inside.size] = inside
    histogram[0] += counts[:below].sum()
    histogram[-1] += counts[max(0, stop) :].sum()
    return histogram
