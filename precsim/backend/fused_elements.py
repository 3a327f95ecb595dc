"""The elements of blocks, compiled by Numba: divided by their scale, rounded, and multiplied again.

What is computed is what NumPy computes, but for a float32 quotient that is to be rounded to nearest.
Its place beside the midpoints is all that counts, and it is found without dividing.  The number
times the reciprocal of the divisor, which is a little too large, is cut off after the last bit that
a midpoint may have: so the exact quotient lies less than one such bit away, and on which side, the
remainder says, whose sign a fused multiply-add has exactly.  One unit in the last place that way,
and no rounding can tell it from the exact quotient.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from precsim.backend.fused import (
    BITS,
    DOWN,
    EQUAL,
    EXACT,
    STEPS,
    TO_ODD,
    UP,
    by_bits,
    by_saturating_steps,
    in_float64,
)
from precsim.backend.fused_bits import as_bits, as_float, fma, in_wide_vectors, inlined, like, part
from precsim.backend.fused_scales import BOOST, DIVISOR, FACTOR, INVERSE, POINT, as_rule, row_of

BY_POWER, BY_REMAINDER, BY_DIVISION, IN_FLOAT64 = range(4)
"""How an element is divided by its scale: times a power of two; see above; in its carrier; in float64."""


class How(NamedTuple):
    """What is fixed when a kernel is compiled."""

    how: int  # how an element is rounded, its mode, and what its format lacks (`fused.choose`)
    mode: int
    kind: int
    narrow: bool  # whether the arrays, which are bits, are of float32
    division: int
    ends: int  # 1: elements have an end that their format has not; 2: and a zero point
    two: bool  # whether scales have two levels

    @property
    def real(self) -> Any:
        """The type of what is rounded."""
        return np.float32 if self.narrow else np.float64

    @property
    def number(self) -> Any:
        """The type in which elements are divided and rounded."""
        return np.float64 if self.division == IN_FLOAT64 else self.real

    @property
    def used(self) -> tuple[int, ...]:
        """Which numbers of a block its elements need beside them."""
        points = (POINT,) if self.ends else ()
        if self.division == BY_POWER:
            return (INVERSE, FACTOR, *points)
        if self.division == BY_REMAINDER:
            return (INVERSE, FACTOR, *(() if self.two else (BOOST, DIVISOR)), *points)
        return (DIVISOR, FACTOR, *points)


@inlined
def _quotient(x: Any, inverse: Any, factor: Any, divisor: Any, shift: Any) -> Any:
    """Return the bits of a quotient by factor * divisor (see above); the product with it is exact."""
    bits = as_bits(x * inverse)
    bits = like(like(bits >> shift, bits) << shift, bits)
    rest = fma(-(as_float(bits) * factor), divisor, x)
    bits = like(bits + like(1, bits), bits) if rest > 0 else bits
    return like(bits - like(1, bits), bits) if rest < 0 else bits


@cache
def row_kernel(kernel: How) -> Callable[..., None]:
    """Return ``run(source, target, words, beside, element, rule)`` for elements side by side in a row.

    Source and target are bits; `beside` has the numbers of its block for every element.
    """
    how, mode, kind, _, division, ends, two = kernel
    real, number = kernel.real, kernel.number
    remainder, wide = division == BY_REMAINDER, division == IN_FLOAT64
    mindful, drawn = mode in (UP, DOWN, TO_ODD, EQUAL), mode >= EXACT

    @part
    def run(source: Any, target: Any, words: Any, beside: Any, c: Any, packed: Any) -> None:
        in_wide_vectors()
        zero = like(0, source[0])
        magnitude = like(like(zero - like(1, zero), zero) >> like(1, zero), zero)
        rule = as_rule(packed)
        tensor, lost, shift = (
            number(rule.tensor),
            as_bits(number(rule.lost)),
            like(rule.shift, zero),
        )
        lowest, highest = number(rule.low), number(rule.high)
        size = source.size
        boosts, points = row_of(beside, BOOST, size), row_of(beside, POINT, size)
        inverses, divisors = row_of(beside, INVERSE, size), row_of(beside, DIVISOR, size)
        factors = row_of(beside, FACTOR, size)
        for j in range(size):
            word = words[j] if drawn else np.uint32(0)
            absolute = like(source[j] & magnitude, zero)
            sign = like(source[j] ^ absolute, zero)
            x = as_float(absolute)
            if remainder and two:
                bits = _quotient(x, inverses[j], factors[j], tensor, shift)
            elif remainder:
                bits = _quotient(x * boosts[j], inverses[j], like(1.0, x), divisors[j], shift)
            elif division == BY_POWER:
                bits = as_bits(x * inverses[j])
            else:
                bits = as_bits(number(x) / divisors[j])
            if mindful:
                bits = lost if as_float(bits) == 0 and x != 0 else bits
            ahead = like(like(sign, bits) << like(32, bits), bits) if wide else like(sign, bits)
            if how == STEPS:
                value = as_float(by_saturating_steps(bits, ahead, word, c, mode, kind))
            elif how == BITS:
                value = as_float(by_bits(like(bits | ahead, bits), word, c, mode, kind))
            else:
                value = as_float(in_float64(like(bits | ahead, bits), word, c, mode, kind))
            if ends:
                value = max(value, lowest - points[j])
                value = min(value, highest - points[j])
            value *= factors[j]
            if remainder and two:
                value *= tensor
            target[j] = as_bits(real(value))

    return run  # type: ignore[no-any-return]
