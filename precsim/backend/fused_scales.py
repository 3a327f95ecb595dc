"""The scales of some blocks of an array, compiled by Numba: amax, the rule, and what elements need of it.

Each step is a loop over all of the blocks, simple enough to become vector instructions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from precsim.backend.fused import NEAREST, ODD, by_steps, unpack
from precsim.backend.fused_bits import (
    LANES,
    as_bits,
    as_float,
    find_largest,
    find_largest_of_each,
    in_wide_vectors,
    inlined,
    like,
    magnitude_mask,
    part,
    piece,
    spread,
)

ROUNDED_RATIOS, RATIOS, POWERS, CLIPPED_POWERS = range(4)
"""How a scale follows from amax: rounded to any format, or to float32; powers of two, to any format."""

BOOST, INVERSE, DIVISOR, FACTOR, POINT = range(5)
"""Numbers of a block: a power of two, what its elements are multiplied with, or divided by, to be
rounded, what with after that, and the zero point."""
UPWARD = 1 + 2.0**-22
"""What a reciprocal is multiplied with that must not be too small, in float32, nor make a quotient so."""

_EXPONENT = np.uint64(0x7FF << 52)
_BOTH = np.uint64(2046 << 52)
"""The bits of a power of two, taken from this, are those of its reciprocal."""


class Rule(NamedTuple):
    """How a scale follows from amax (`precsim.backend.one_pass_blocks.Plan`), in float64."""

    kind: float
    most: float
    unit: float
    threshold: float
    amax_min: float
    least: float
    largest: float  # an infinity, if scales have one
    tensor: float  # the second level; 1: there is none
    low: float  # the elements' range
    high: float
    lost: float  # what stands for a quotient that is not zero but has become it
    tiny: float  # what is divided by, where a scale is zero
    shift: float  # bits of a float32 beyond those that the elements and their midpoints have


@inlined
def as_rule(r: Any) -> Any:
    """Return the `Rule` in an array."""
    return Rule(r[0], r[1], r[2], r[3], r[4], r[5], r[6], r[7], r[8], r[9], r[10], r[11], r[12])


TOGETHER = 64
"""Numbers that a loop goes through at once: of fewer, at its end, each takes as long as all of them."""


@inlined
def up_to_whole(size: Any) -> Any:
    """Return the next multiple of `TOGETHER`."""
    return (size + (TOGETHER - 1)) & -TOGETHER


@inlined
def row_of(table: Any, which: Any, size: Any) -> Any:
    """Return the first so many numbers of a row of a table."""
    return piece(table, which * table.shape[1], size)


@part
def find_scales(amaxes: Any, rule: Any, packed: Any, found: Any) -> None:
    """Write the scales that follow from amax; a loop for each step, which vectors can do."""
    in_wide_vectors()
    s, kind, most, least = unpack(packed), rule[0], rule[1], rule[5]
    if kind >= POWERS:
        threshold = rule[3] if rule[3] < 2 else np.inf
        for i in range(amaxes.size):
            amax = max(amaxes[i], rule[4])
            binade = as_float(as_bits(amax) & _EXPONENT)
            power = binade * rule[2]
            found[i] = power + power if amax > binade * threshold else power
    else:
        for i in range(amaxes.size):
            found[i] = max(amaxes[i], rule[4]) / most
    if kind == CLIPPED_POWERS:
        for i in range(amaxes.size):
            found[i] = min(found[i], rule[6])
    elif kind == RATIOS:
        for i in range(amaxes.size):
            found[i] = np.float64(np.float32(found[i]))
    else:
        for i in range(amaxes.size):
            found[i] = as_float(by_steps(as_bits(found[i]), np.uint32(0), s, NEAREST, ODD))
    for i in range(amaxes.size):
        scale, amax = max(found[i], least), max(amaxes[i], rule[4])
        scale = np.nan if scale == np.inf or not amaxes[i] < np.inf else scale
        found[i] = 1.0 if rule[6] == np.inf and amax == 0 else scale


@part
def find_highest(bits: Any, found: Any) -> None:
    """Find the largest magnitude of each column so far."""
    in_wide_vectors()
    magnitude = magnitude_mask(bits)
    for i in range(bits.size):
        found[i] = max(found[i], like(bits[i] & magnitude, magnitude))


@part
def find_amaxes(bits: Any, width: Any, found: Any) -> None:
    """Find the largest magnitude of each run of `width` elements so far; the last may be short."""
    in_wide_vectors()
    if width == 1:
        find_highest(bits, found)
        return
    whole = bits.size // width // LANES * LANES if width % LANES == 0 else 0
    for block in range(0, whole, LANES):
        find_largest_of_each(bits, block * width, width, found, block)
    for block in range(whole, -(-bits.size // width)):
        start = block * width
        found[block] = max(found[block], find_largest(bits, start, min(width, bits.size - start)))


@part
def find_top(amaxes: Any, infinity: Any) -> Any:
    """Return whether any amax is finite, and the largest that is."""
    top, finite = like(0, infinity), like(0, infinity)
    for i in range(amaxes.size):
        here = amaxes[i] < infinity
        top = max(top, amaxes[i] if here else like(0, infinity))
        finite = like(finite | like(here, infinity), infinity)
    return finite != 0, top


@part
def find_ends(bits: Any, width: Any, magnitude: Any, low: Any, high: Any) -> None:
    """Find the smallest and the largest of each run of `width` elements so far.

    Signed integers, of which each negative float becomes one that is as far below zero.
    """
    sign = like(8 * bits.itemsize - 1, magnitude)
    for start in range(0, bits.size, width):
        run, block = piece(bits, start, min(width, bits.size - start)), start // width
        least, most = low[block], high[block]
        for i in range(run.size):
            v = run[i]
            v = like(v ^ like(like(v >> sign, v) & magnitude, v), v)
            least, most = min(least, v), max(most, v)
        low[block], high[block] = least, most


@part
def find_divisors(scales: Any, rule: Any, numbers: Any) -> None:
    """Write the scales as divisors and as factors, and the reciprocals."""
    r = as_rule(rule)
    for i in range(scales.size):
        total = scales[i] * r.tensor
        divisor = r.tiny if total == 0 else total
        numbers[DIVISOR, i], numbers[INVERSE, i], numbers[FACTOR, i] = divisor, 1.0 / divisor, total


@part
def find_near_divisors(scales: Any, rule: Any, numbers: Any) -> None:
    """Write the power of two that takes a divisor to between 1 and 2, and what is to be done there."""
    most, least = np.uint64(1149 << 52), np.uint64(897 << 52)
    tiny = as_rule(rule).tiny
    for i in range(scales.size):
        divisor = tiny if scales[i] == 0 else scales[i]
        boost = as_float(_BOTH - min(max(as_bits(divisor) & _EXPONENT, least), most))
        divisor *= boost
        numbers[BOOST, i], numbers[DIVISOR, i] = boost, divisor
        numbers[INVERSE, i], numbers[FACTOR, i] = UPWARD / divisor, scales[i]


@part
def find_divisors_of_two(scales: Any, rule: Any, numbers: Any) -> None:
    """Write the reciprocals of two scales, and the first; over 0, any number will do."""
    tensor = as_rule(rule).tensor
    for i in range(scales.size):
        divisor = scales[i] * tensor
        divisor = 1.0 if divisor == 0 else divisor
        numbers[INVERSE, i], numbers[FACTOR, i] = UPWARD / divisor, scales[i]


@part
def spread_out(numbers: Any, width: Any, beside: Any) -> None:
    """Write a block's number beside each of its `width` elements.

    And beside some more, fewer than `LANES`, which the next block writes over: there must be room
    behind the last.
    """
    for block in range(numbers.size):
        for start in range(block * width, (block + 1) * width, LANES):
            spread(beside, start, numbers[block])


@inlined
def as_end(signed: Any, magnitude: Any) -> Any:
    """Return the float64 that one of `find_ends` stands for."""
    size = as_float(like(signed if signed >= 0 else ~signed, magnitude))
    return np.float64(size) if signed >= 0 else -np.float64(size)
