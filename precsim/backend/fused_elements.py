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
from precsim.backend.fused_bits import (
    LANES,
    as_bits,
    as_float,
    fetch,
    fma,
    in_wide_vectors,
    inlined,
    like,
    part,
    piece,
    put,
    take,
)
from precsim.backend.fused_scales import BOOST, DIVISOR, FACTOR, INVERSE, POINT, as_rule

ROOM = 1 << 13
"""Elements of a row that are rounded one after the other: as many stay in the second-level cache."""
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


@inlined
def _quotient(x: Any, inverse: Any, factor: Any, divisor: Any, shift: Any) -> Any:
    """Return the bits of a quotient by factor * divisor (see above); the product with it is exact."""
    bits = as_bits(x * inverse)
    bits = like(like(bits >> shift, bits) << shift, bits)
    rest = fma(-(as_float(bits) * factor), divisor, x)
    bits = like(bits + like(1, bits), bits) if rest > 0 else bits
    return like(bits - like(1, bits), bits) if rest < 0 else bits


@cache
def _element_kernel(kernel: How) -> Callable[..., None]:
    """Return ``run(source, target, words, place, of_block, element, rule)`` for one element."""
    how, mode, kind, _, division, ends, two = kernel
    real, number = kernel.real, kernel.number
    remainder, wide = division == BY_REMAINDER, division == IN_FLOAT64
    mindful, drawn = mode in (UP, DOWN, TO_ODD, EQUAL), mode >= EXACT

    @inlined
    def run(
        source: Any, target: Any, words: Any, place: Any, of_block: Any, c: Any, rule: Any
    ) -> None:
        boost, inverse, divisor, factor, point = of_block
        magnitude, tensor, lost, shift, lowest, highest = rule
        signed = take(source, place)
        word = take(words, place) if drawn else np.uint32(0)
        absolute = like(signed & magnitude, magnitude)
        sign = like(signed ^ absolute, magnitude)
        x = as_float(absolute)
        if remainder and two:
            bits = _quotient(x, inverse, factor, tensor, shift)
        elif remainder:
            bits = _quotient(x * boost, inverse, like(1.0, x), divisor, shift)
        elif division == BY_POWER:
            bits = as_bits(x * inverse)
        else:
            bits = as_bits(number(x) / divisor)
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
            value = max(value, lowest - point)
            value = min(value, highest - point)
        value *= factor
        if remainder and two:
            value *= tensor
        put(target, place, as_bits(real(value)))

    return run  # type: ignore[no-any-return]


@cache
def row_kernel(kernel: How) -> Callable[..., None]:
    """Return ``run(source, target, words, width, numbers, first, ahead, element, rule)``.

    Source and target are bits, of blocks side by side, or of a part of one, and apart; `numbers` has
    what they need, from the first block's on.  The elements of a block are rounded `LANES` at a
    time, the last of them with some that were rounded already.  `ahead`: what lies `ROOM` further on
    will be asked for its amax next, and is had on its way.
    """
    number, drawn = kernel.number, kernel.mode >= EXACT
    round_one = _element_kernel(kernel)

    @part
    def run(
        source: Any, target: Any, words: Any, width: Any, numbers: Any, first: Any, ahead: Any,
        c: Any, packed: Any,
    ) -> None:  # fmt: skip
        in_wide_vectors()
        zero = like(0, source[0])
        magnitude = like(like(zero - like(1, zero), zero) >> like(1, zero), zero)
        r, block = as_rule(packed), first
        rule = (
            magnitude, number(r.tensor), as_bits(number(r.lost)), like(r.shift, zero),
            number(r.low), number(r.high),
        )  # fmt: skip
        for start in range(0, source.size, width):
            of_block = (
                numbers[BOOST, block], numbers[INVERSE, block], numbers[DIVISOR, block],
                numbers[FACTOR, block], numbers[POINT, block],
            )  # fmt: skip
            block, size = block + 1, min(width, source.size - start)
            if size < LANES:
                for j in range(start, start + size):
                    round_one(source, target, words, j, of_block, c, rule)
                continue
            for done in range(0, size, LANES):
                at = start + min(done, size - LANES)
                here, there = piece(source, at, LANES), piece(target, at, LANES)
                draws = piece(words, at, LANES) if drawn else words
                if ahead:
                    fetch(source, at + ROOM)
                for j in range(LANES):
                    round_one(here, there, draws, j, of_block, c, rule)

    return run  # type: ignore[no-any-return]
