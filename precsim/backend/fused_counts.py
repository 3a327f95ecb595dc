"""Rounding and counting what it did in one go, compiled by Numba (`precsim.backend.fused`).

`precsim.engine.tally` says what the counts are, and has NumPy's way to them.  A block of an array is
rounded, counted and put back while it is in the first-level cache.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

from precsim.backend.fused import (
    BITS,
    EXACT,
    NO_WORDS,
    STEPS,
    Numbers,
    by_bits,
    by_steps,
    choose,
    compiled,
    in_float64,
    unpack,
)
from precsim.backend.fused_bits import copy, like, part, summing
from precsim.backend.fused_exponents import add_exponents, add_subnormals
from precsim.formats.arrays import Array
from precsim.formats.format import Format
from precsim.formats.modes import Mode, Overflow

BLOCK = 1 << 12
"""Elements of a block."""

_BIAS: dict[Any, int] = {np.uint32: 127, np.uint64: 1023}
"""Bits of a carrier -> what its exponent field has too much."""

Counted = tuple[int, int, int, int, int, int, int, int, float, float, float, float]
"""Zeros, flushed, subnormal, inexact, saturated, overflowed, NaN, not finite before; square and error;
the smallest magnitude of a finite number but 0, infinity if there is none, and the largest."""


class Bounds(NamedTuple):
    """Where the ends of a format are, as bits: 0 where there is no lower end, infinity for no upper.

    They come in an array, which is quicker to pass.
    """

    flush: Any  # a smaller magnitude may become zero
    normal: Any  # a smaller result is subnormal or zero
    largest: Any  # a larger result is not finite
    safe: Any  # a smaller magnitude is finite, and so is its result


def round_into(
    x: Array,
    out: Array,
    fmt: Format,
    rounding: Mode,
    overflow: Overflow,
    words: Array | None,
    bounds: Array,
    found: Array,
    lowest: int,
) -> Counted | None:
    """Round as `fused.round_into` does, and count; add to `found` how many have each exponent.

    The first of `found` is for the exponent `lowest` and below, its last for those above; an empty
    one asks for no such count.  None where there is no kernel; then nothing was done.
    """
    choice = _choose(x.dtype, fmt, rounding, overflow)
    if choice is None:
        return None
    run, uint, bias, numbers = choice
    drawn = NO_WORDS if words is None else words.reshape(-1)
    before = x.reshape(-1).view(uint)
    after = before if out is x else out.reshape(-1).view(uint)
    return run(before, after, drawn, numbers, bounds, found, lowest + bias)


@lru_cache(maxsize=1024)
def _choose(
    dtype: np.dtype[Any], fmt: Format, rounding: Mode, overflow: Overflow
) -> tuple[Callable[..., Counted], Any, int, Array] | None:
    """Return the loop, the type and bias of the bits, the numbers; None where there is no kernel."""
    choice = choose(dtype, fmt, rounding, overflow)
    if choice is None:
        return None
    run = _counter(choice.uint, choice.how, choice.mode, choice.kind)
    return run, np.dtype(choice.uint), _BIAS[choice.uint], choice.numbers


def count(x: Array, rounded: Array, bounds: Array, found: Array, lowest: int) -> Counted:
    """Count what rounding has done to x."""
    uint = np.uint32 if x.dtype == np.float32 else np.uint64
    run = _counter(uint, None, 0, 0)
    numbers = np.zeros(len(Numbers._fields), uint)  # by which nothing is rounded
    before, after = x.reshape(-1).view(uint), rounded.reshape(-1).view(uint)
    return run(before, after, NO_WORDS, numbers, bounds, found, lowest + _BIAS[uint])


def _infinity(uint: Any) -> Any:
    return uint(0x7F800000 if uint is np.uint32 else 0x7FF0 << 48)


@cache
def _counter(uint: Any, how: int | None, mode: int, kind: int) -> Callable[..., Counted]:
    """Return the loop over the blocks of an array; `how` None: what is in `target` is rounded."""
    value: Any = np.float32 if uint is np.uint32 else np.float64
    zero, infinity, tiny = uint(0), _infinity(uint), np.finfo(value).tiny.view(uint)
    shift, bias = uint(23 if uint is np.uint32 else 52), _BIAS[uint]
    least, most = value(1e-24), value(1e36)

    @compiled
    def run(
        source: Any, target: Any, words: Any, packed: Any, bounds: Any, found: Any, first: Any
    ) -> Any:
        flush, normal, largest, safe = Bounds(bounds[0], bounds[1], bounds[2], bounds[3])
        c, counts = unpack(packed), np.zeros(8, np.int64)
        square = error = 0.0
        ends = max(flush, normal)
        low, top = infinity, zero
        room = np.empty(BLOCK, uint)
        for start in range(0, source.size, BLOCK):
            before = source[start : start + BLOCK]
            after = target[start : start + BLOCK] if how is None else room[: before.size]
            if how is not None:
                drawn = words[start : start + BLOCK]
                for i in range(after.size):
                    word = drawn[i] if mode >= EXACT else np.uint32(0)
                    if how == STEPS:
                        after[i] = by_steps(before[i], word, c, mode, kind)
                    elif how == BITS:
                        after[i] = by_bits(before[i], word, c, mode, kind)
                    else:
                        after[i] = in_float64(before[i], word, c, mode, kind)
            x, r = before.view(value), after.view(value)
            zeros, changed, small, high, s, e = _count_finite(before, x, r, infinity)
            finite, saturated = high < safe, zero
            if not finite:
                finite, saturated = _count_high(before, after, largest, infinity)
            if finite:
                counts[0] += zeros
                counts[3] += changed
                counts[4] += saturated
                if small < ends:
                    zeros_after, below = _count_low(after, normal)
                    counts[1] += zeros_after - zeros if flush != 0 else 0
                    counts[2] += below - zeros_after if normal != 0 else 0
            else:
                small, high = _count_all(before, after, normal, largest, infinity, counts)
            low, top = min(low, small), max(top, high)
            if finite and least < s < most and (least < e or changed == 0):
                square += s
                error += e
            elif high != 0:
                wide, wide_error = _wide_sums(x, r)
                square += wide
                error += wide_error
            if found.size and high != 0:
                add_exponents(before, small, high, shift, found, first)
                if small < tiny:
                    add_subnormals(x, found, first - bias)
            if how is not None:
                copy(after, target, start, after.size)
        extremes = np.empty(2, uint)
        extremes[0], extremes[1] = low, top
        smallest, largest_of_all = extremes.view(value)
        return (
            counts[0], counts[1], counts[2], counts[3], counts[4], counts[5], counts[6], counts[7],
            square, error, smallest, largest_of_all,
        )  # fmt: skip

    return run  # type: ignore[no-any-return]


@summing
def _count_finite(before: Any, x: Any, r: Any, infinity: Any) -> Any:
    """Count a block, and add up squares; right where all is finite, before and after.

    In integers of the bits' own width: others would halve the vectors.
    """
    zero, one = like(0, infinity), like(1, infinity)
    last = like(zero - one, infinity)
    magnitude = like(last >> one, infinity)
    zeros = changed = top = zero
    low = last
    square = error = like(0.0, x[0])
    for i in range(before.size):
        b = like(before[i] & magnitude, zero)
        zeros = like(zeros + like(b == zero, zero), zero)
        top, low = max(top, b), min(low, like(b - one, zero))
        e = r[i] - x[i]
        changed = like(changed + like(e != 0, zero), zero)
        square += x[i] * x[i]
        error += e * e
    low = infinity if low == last else like(low + one, zero)
    return zeros, changed, low, top, square, error


@part
def _count_low(after: Any, normal: Any) -> Any:
    """Count zeros, and magnitudes below the bits of one."""
    zero, one = like(0, normal), like(1, normal)
    magnitude = like(like(zero - one, zero) >> one, zero)
    zeros = below = zero
    for i in range(after.size):
        a = like(after[i] & magnitude, zero)
        zeros = like(zeros + like(a == zero, zero), zero)
        below = like(below + like(a < normal, zero), zero)
    return zeros, below


@part
def _count_high(before: Any, after: Any, largest: Any, infinity: Any) -> Any:
    """Return whether all is finite, and how much was larger than the largest value, and is that now."""
    zero, one = like(0, infinity), like(1, infinity)
    magnitude = like(like(zero - one, zero) >> one, zero)
    found = top = zero
    for i in range(before.size):
        b, a = like(before[i] & magnitude, zero), like(after[i] & magnitude, zero)
        found = like(found + like((b > largest) & (a == largest), zero), zero)
        top = max(top, max(a, b))
    return top < infinity, found


@part
def _count_all(
    before: Any, after: Any, normal: Any, largest: Any, infinity: Any, counts: Any
) -> Any:
    """Count a block of any values: add to `counts`, the first eight of `Counted`."""
    zero, one = like(0, infinity), like(1, infinity)
    magnitude = like(like(zero - one, zero) >> one, zero)
    low, top = infinity, zero
    for i in range(before.size):
        b, a = like(before[i] & magnitude, zero), like(after[i] & magnitude, zero)
        finite, finite_after = b < infinity, a < infinity
        differs = before[i] != after[i] and (b | a) != 0
        counts[0] += b == 0
        counts[1] += b != 0 and a == 0
        counts[2] += finite and a != 0 and a < normal
        counts[3] += differs and not (b > infinity and a > infinity)
        counts[4] += finite and b > largest and a == largest
        counts[5] += finite and not finite_after
        counts[6] += a > infinity
        counts[7] += not finite
        if finite and b != 0:
            low, top = min(low, b), max(top, b)
    return low, top


@part
def _wide_sums(x: Any, r: Any) -> Any:
    """Return the sums of squares in float64, over what is finite before and after."""
    square = error = 0.0
    for i in range(x.size):
        before, after = np.float64(x[i]), np.float64(r[i])
        if np.isfinite(before) and np.isfinite(after):
            square += before * before
            error += (after - before) * (after - before)
    return square, error
