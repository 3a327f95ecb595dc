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
    inlined,
    largest,
    like,
    part,
    spread,
)

LONG = 64
"""Width from which a block's amax is found row by row; narrower ones beside each other."""
ROUNDED_RATIOS, RATIOS, POWERS, CLIPPED_POWERS = range(4)
"""How a scale follows from amax: rounded to any format, or to float32; powers of two, to any format."""

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


@part
def find_scales(amaxes: Any, rule: Any, packed: Any, found: Any) -> None:
    """Write the scales that follow from amax; a loop for each step, which vectors can do."""
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
def find_largest(bits: Any, width: Any, magnitude: Any, found: Any) -> None:
    """Find the largest magnitude of each run of `width` elements so far; the last may be short."""
    for block in range(-(-bits.size // width)):
        start, stop, top = block * width, min((block + 1) * width, bits.size), found[block]
        if width >= LONG:
            run = bits[start:stop]
            for i in range(run.size):
                top = max(top, like(run[i] & magnitude, magnitude))
        else:
            while start + LANES <= stop:
                top = max(top, largest(bits, start, magnitude))
                start += LANES
            for i in range(start, stop):
                top = max(top, like(bits[i] & magnitude, magnitude))
        found[block] = top


@part
def find_highest(bits: Any, magnitude: Any, found: Any) -> None:
    """Find the largest magnitude of each column so far."""
    for i in range(bits.size):
        found[i] = max(found[i], like(bits[i] & magnitude, magnitude))


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
        run, block = bits[start : start + width], start // width
        least, most = low[block], high[block]
        for i in range(run.size):
            v = run[i]
            v = like(v ^ like(like(v >> sign, v) & magnitude, v), v)
            least, most = min(least, v), max(most, v)
        low[block], high[block] = least, most


@part
def find_divisors(
    scales: Any, rule: Any, boosts: Any, inverses: Any, highs: Any, factors: Any
) -> None:
    """Write what elements are divided by and multiplied with.

    Where there are `highs`: the power of two that takes the divisor to between 1 and 2, the
    reciprocal of that divisor, and itself; else the divisor, as `boosts`, and its reciprocal.
    """
    most, least = np.uint64(1149 << 52), np.uint64(897 << 52)
    tensor, tiny = rule[7], rule[11]
    if highs.size:
        for i in range(scales.size):
            total = scales[i] * tensor
            divisor = tiny if total == 0 else total
            boost = as_float(_BOTH - min(max(as_bits(divisor) & _EXPONENT, least), most))
            divisor *= boost
            boosts[i], inverses[i], highs[i], factors[i] = boost, 1.0 / divisor, divisor, total
    else:
        for i in range(scales.size):
            total = scales[i] * tensor
            divisor = tiny if total == 0 else total
            boosts[i], inverses[i], factors[i] = divisor, 1.0 / divisor, total


@part
def find_divisors_of_two(scales: Any, near: Any, inverses: Any, factors: Any) -> None:
    """Write the reciprocals of divisors over those of a tensor near 1; over 0, any number will do."""
    for i in range(scales.size):
        inverses[i] = 1.0 if scales[i] == 0 else 1.0 / (scales[i] * near)
        factors[i] = scales[i]


@inlined
def near_one(scale: Any) -> Any:
    """Return the power of two that takes a scale to between 1 and 2, and where it is then."""
    boost = as_float(_BOTH - (as_bits(scale) & _EXPONENT))
    return boost, scale * boost


@part
def spread_out(numbers: Any, count: Any, width: Any, beside: Any) -> None:
    """Write a block's number beside each of its elements of a row."""
    for block in range(count):
        start, stop, value = block * width, (block + 1) * width, numbers[block]
        while start + LANES <= stop:
            spread(beside, start, value)
            start += LANES
        for i in range(start, stop):
            beside[i] = value


@inlined
def as_end(signed: Any, magnitude: Any) -> Any:
    """Return the float64 that one of `find_ends` stands for."""
    size = as_float(like(signed if signed >= 0 else ~signed, magnitude))
    return np.float64(size) if signed >= 0 else -np.float64(size)
