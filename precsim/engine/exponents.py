"""Histograms of exponents, block by block."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from precsim.formats.scratch import scratch

Bits = npt.NDArray[np.uint64]

LOWEST, HIGHEST = -160, 140
"""Exponents that a histogram tells apart; smaller and larger ones go to the end bins."""

BINS = HIGHEST - LOWEST + 1
"""How many exponents those are."""

PAIRS_FROM = 1 << 12
"""Elements from which on exponents are counted in pairs, which is quicker by a third."""

BITS = 6
"""The last bits of an exponent field that pairs tell apart."""
SIDE = 1 << BITS


class Exponents:
    """Counts how many magnitudes have each exponent, two at a time, into a histogram of `BINS`.

    Its first is for the exponent `LOWEST` and below, its last for `HIGHEST` and above.

    `bincount` takes the same time for every number that it is given, so it is given the last
    `BITS` bits of the exponents of two magnitudes, as one number.  That tells exponents apart where
    they span less than 2^BITS; what is in the table goes to the histogram before they span more.
    """

    _pairs: npt.NDArray[np.int64] | None = None
    _zeros = 0
    _first, _last = 0, 0  # exponent fields in the table, if there is one

    def __init__(self, dtype: np.dtype[Any], counts: npt.NDArray[np.int64]) -> None:
        self.counts = counts
        self._dtype = dtype

    def add(self, magnitude: npt.NDArray[Any], low: float, top: float, zeros: int) -> None:
        """Count a block, whose nonzero magnitudes go from `low` to `top`; `zeros` are none."""
        if zeros == magnitude.size:
            return
        first, last = self._field(low), self._field(top)
        if first == 0 or last - first >= SIDE or magnitude.size < PAIRS_FROM:
            self._add_one_by_one(magnitude, first, zeros)
            return
        if self._pairs is not None:
            together = min(first, self._first), max(last, self._last)
            if together[1] - together[0] < SIDE:
                first, last = together
            else:
                self.finish()
        self._first, self._last = first, last
        self._zeros += zeros
        if magnitude.size % 2:
            blank = int(magnitude[-1] == 0)
            self._add_one_by_one(magnitude[-1:], first, blank)
            self._zeros -= blank
            magnitude = magnitude[:-1]
        write = _pairs_of_float32 if self._dtype == np.float32 else _pairs_of_float64
        numbers = write(magnitude.view(np.uint64), scratch("rest", magnitude).view(np.uint64))
        pairs = np.bincount(numbers.view(np.int64), minlength=SIDE * SIDE)
        self._pairs = pairs if self._pairs is None else self._pairs + pairs

    def _field(self, value: float) -> int:
        bits: Any = self._dtype.type(value).view(f"u{self._dtype.itemsize}")
        return int(bits) >> (23 if self._dtype == np.float32 else 52)

    def _add_one_by_one(self, magnitude: Any, first: int, zeros: int) -> None:
        """Count magnitudes whose smallest exponent field, zeros apart, is `first`."""
        if first == 0 and magnitude.dtype == np.float32:
            magnitude = magnitude.astype(np.float64)  # there a subnormal's exponent is in its field
        signed, shift, bias = (
            (np.int32, 23, 127) if magnitude.dtype == np.float32 else (np.int64, 52, 1023)
        )
        counts = np.bincount(magnitude.view(signed) >> signed(shift))
        counts[0] -= zeros
        self._add_fields(counts, -bias)

    def _add_fields(self, counts: npt.NDArray[np.int64], exponent: int) -> None:
        """Add counts for the exponents from one on; those beyond the ends go to the end bins."""
        start = exponent - LOWEST
        if start >= 0 and start + counts.size <= self.counts.size:
            self.counts[start : start + counts.size] += counts
        else:
            places = np.arange(start, start + counts.size).clip(0, self.counts.size - 1)
            np.add.at(self.counts, places, counts)

    def finish(self) -> None:
        """Move what is in the table to the histogram."""
        if self._pairs is None:
            return
        square = self._pairs.reshape(SIDE, SIDE)
        counts = square.sum(0) + square.sum(1)
        counts[0] -= self._zeros
        fields = np.arange(self._first, self._last + 1)
        bias = 127 if self._dtype == np.float32 else 1023
        self._add_fields(counts[fields % SIDE], self._first - bias)
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
