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
    magnitude_mask,
    part,
    piece,
    put,
    take,
)
from precsim.backend.fused_scales import BOOST, DIVISOR, FACTOR, INVERSE, POINT, as_rule

ROOM, SHORT_ROOM = 1 << 13, 1 << 11
"""Elements of a row that are rounded one after the other: as many stay in the second-level cache;
each beside its scale, where `How.beside` says so."""
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
    beside: bool  # whether elements have the numbers of their block beside them: narrow blocks, and tall ones

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
        """Which numbers of its block an element needs."""
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
def _element_kernel(kernel: How) -> Callable[..., None]:
    """Return ``run(source, target, words, place, of_block, element, rule)`` for one element."""
    how, mode, kind, _, division, ends, two, _ = kernel
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
def _constants(kernel: How) -> Callable[..., Any]:
    """Return ``run(rule, like_these)``: what of a rule, as an array, `_element_kernel` asks for."""
    number = kernel.number

    @inlined
    def run(packed: Any, bits: Any) -> Any:
        r, magnitude = as_rule(packed), magnitude_mask(bits)
        return (
            magnitude, number(r.tensor), as_bits(number(r.lost)), like(r.shift, magnitude),
            number(r.low), number(r.high),
        )  # fmt: skip

    return run  # type: ignore[no-any-return]


@inlined
def _of_block(numbers: Any, place: Any) -> Any:
    """Return a column of a table of numbers."""
    return (
        numbers[BOOST, place], numbers[INVERSE, place], numbers[DIVISOR, place],
        numbers[FACTOR, place], numbers[POINT, place],
    )  # fmt: skip


@cache
def kernel_beside(kernel: How) -> Callable[..., None]:
    """Return ``run(source, target, words, beside, first, element, rule)`` for elements of a row.

    As `row_kernel`'s, but `beside` has the numbers of its block for each element, from `first` on.
    """
    round_one, constants = _element_kernel(kernel), _constants(kernel)

    @part
    def run(
        source: Any, target: Any, words: Any, beside: Any, first: Any, c: Any, packed: Any
    ) -> None:
        in_wide_vectors()
        rule, size, row = constants(packed, source), source.size, beside.shape[1]
        boosts, inverses, divisors, factors, points = (
            piece(beside, BOOST * row + first, size), piece(beside, INVERSE * row + first, size),
            piece(beside, DIVISOR * row + first, size), piece(beside, FACTOR * row + first, size),
            piece(beside, POINT * row + first, size),
        )  # fmt: skip
        for j in range(size):
            of_block = (
                take(boosts, j), take(inverses, j), take(divisors, j), take(factors, j),
                take(points, j),
            )  # fmt: skip
            round_one(source, target, words, j, of_block, c, rule)

    return run  # type: ignore[no-any-return]


@cache
def row_kernel(kernel: How) -> Callable[..., None]:
    """Return ``run(source, target, words, width, numbers, first, ahead, element, rule)``.

    Source and target are bits, of blocks side by side, or of a part of one, and apart; `numbers` has
    what they need, from the first block's on.  The elements of a block are rounded `LANES` at a
    time, the last of them with some that were rounded already.  `ahead`: what lies `ROOM` further on
    will be asked for its amax next, and is had on its way.
    """
    drawn = kernel.mode >= EXACT
    round_one, constants = _element_kernel(kernel), _constants(kernel)

    @part
    def run(
        source: Any, target: Any, words: Any, width: Any, numbers: Any, first: Any, ahead: Any,
        c: Any, packed: Any,
    ) -> None:  # fmt: skip
        in_wide_vectors()
        rule, block = constants(packed, source), first
        for start in range(0, source.size, width):
            of_block = _of_block(numbers, block)
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
