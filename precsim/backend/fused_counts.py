"""Counting what rounding did in one pass, compiled by Numba (`precsim.backend.fused`).

`precsim.engine.tally` says what the counts are, and has NumPy's way to them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from precsim.backend.fused import compiled
from precsim.formats.arrays import Array


class Counted(NamedTuple):
    """What `tally` counts; magnitudes are bits, `low` one less than those of the smallest, not 0."""

    zeros: int
    zeros_after: int
    below_normal: int
    changed: int
    saturated: int
    top: int
    top_after: int
    low: int


def tally(x: Array, rounded: Array, normal: Any, largest: Any) -> Counted:
    """Compare arrays, flat, before and after rounding; right where both are finite throughout.

    `normal` and `largest` are the bits of the smallest normal value and of the largest.
    """
    uint = np.uint32 if x.dtype == np.float32 else np.uint64
    return Counted(*_tally(uint)(x.view(uint), rounded.view(uint), normal, largest))


def histogram(x: Array, zeros: int, lowest: int, highest: int) -> Array | None:
    """Return how many elements have each exponent, from `lowest` to `highest` and beyond.

    Of finite elements, so many of them zero.  None for float32's subnormals: their exponents are not
    in their exponent fields.
    """
    uint, shift, bias = (np.uint32, 23, 127) if x.dtype == np.float32 else (np.uint64, 52, 1023)
    fields = np.zeros((4, 1 << 8 * x.itemsize - 1 - shift), np.uint32)
    found = np.zeros(highest - lowest + 1, np.int64)
    subnormals = _exponents(x.view(uint), uint(shift), fields, bias + lowest, found) - zeros
    found[0] += subnormals
    return None if subnormals and shift == 23 else found


@cache
def _tally(uint: Any) -> Callable[..., tuple[Any, ...]]:
    """Return the loop for bits of a type; integer arithmetic would make all integers 64 bits wide."""
    zero, one, magnitude = uint(0), uint(1), uint(int(np.iinfo(uint).max) >> 1)
    last = np.iinfo(uint).max

    @compiled
    def run(before: Any, after: Any, normal: Any, largest: Any) -> Any:
        zeros = zeros_after = below = changed = saturated = top = top_after = zero
        low = uint(last)
        for i in range(before.size):
            b, a = uint(before[i] & magnitude), uint(after[i] & magnitude)
            zeros = uint(zeros + uint(b == zero))
            zeros_after = uint(zeros_after + uint(a == zero))
            below = uint(below + uint(a < normal))
            differs = uint(before[i] != after[i]) & uint(uint(b | a) != zero)
            changed = uint(changed + differs)
            saturated = uint(saturated + (uint(b > largest) & uint(a == largest)))
            top, top_after = max(top, b), max(top_after, a)
            low = min(low, uint(b - one))
        return zeros, zeros_after, below, changed, saturated, top, top_after, low

    return run  # type: ignore[no-any-return]


@compiled
def _exponents(bits: Any, shift: Any, fields: Any, first: Any, found: Any) -> Any:
    """Count by exponent field, then in `found`, of which the first is for field `first`.

    In four tables in turn: one would wait for itself where neighbours are alike.  Returns how many
    are in field 0.
    """
    mask, whole = fields.shape[1] - 1, bits.size & ~3
    for i in range(0, whole, 4):
        for j in range(4):
            fields[j, (bits[i + j] >> shift) & mask] += np.uint32(1)
    for i in range(whole, bits.size):
        fields[0, (bits[i] >> shift) & mask] += np.uint32(1)
    for field in range(1, fields.shape[1]):
        place = min(max(field - first, 0), found.size - 1)
        for j in range(4):
            found[place] += fields[j, field]
    return fields[0, 0] + fields[1, 0] + fields[2, 0] + fields[3, 0]
