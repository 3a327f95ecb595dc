"""Rounding to a scaled format in one pass, compiled by Numba: the rules of `precsim.formats.blocks`.

Some blocks of an array, as many as stay in the second-level cache, are gone through twice: for amax,
and, when their scales are known, to divide, round and multiply.  Nothing is padded: the last block
of an axis is simply short.  Only where scales have two levels must the whole array be read before.

What is computed is what NumPy computes; only a float32 quotient whose place near a midpoint is in
doubt does not wait for float64.  It is corrected by the remainder instead, which a fused
multiply-add has exactly, and then, if its last bit is 0, moved by one unit towards the exact
quotient.  So it lies on a midpoint, which ends in zeros, only if the exact one does.

Left to NumPy are the rules that multiply with a float32 factor, and scales that underflow to zero
where elements have no -0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

from precsim.backend import fused
from precsim.backend.fused import (
    BITS,
    DOWN,
    EQUAL,
    EXACT,
    STEPS,
    TO_ODD,
    UP,
    by_bits,
    by_steps,
    compiled,
    in_float64,
    numbers,
    unpack,
)
from precsim.backend.fused_bits import as_bits, as_float, copy, fma, inlined, like
from precsim.backend.fused_scales import (
    CLIPPED_POWERS,
    LONG,
    POWERS,
    RATIOS,
    ROUNDED_RATIOS,
    Rule,
    as_end,
    find_divisors,
    find_divisors_of_two,
    find_ends,
    find_highest,
    find_largest,
    find_scales,
    find_top,
    near_one,
    spread_out,
)
from precsim.formats.arrays import Array
from precsim.formats.blocks import carrier, doubled_above, scale_of_tensor, wider
from precsim.formats.modes import Mode, Overflow, Rounding
from precsim.formats.scaled import FP32, Scaled, ScaleRule
from precsim.formats.tiling import Tiling

ROOM = 1 << 11
"""Elements of a row that are rounded at once, each beside its scale."""
SLAB = 1 << 17
"""Elements of the blocks that are gone through at once, unless one block alone has more."""
BY_POWER, BY_REMAINDER, BY_DIVISION, IN_FLOAT64 = range(4)
"""How an element is divided by its scale: times a power of two; see above; in its carrier; in float64."""


class _Plan(NamedTuple):
    """Which kernel rounds to a format, and its numbers but for the second level."""

    run: Callable[..., float]
    uint: Any
    element: Array
    scale: Array
    rule: Rule


def round_into(
    x: Array,
    out: Array,
    tiling: Tiling,
    fmt: Scaled,
    rounding: Mode,
    words: Array | None,
    factor: float,
) -> bool:
    """Round contiguous x into contiguous `out`, which may be x; False where there is no kernel."""
    loses_zero = fmt.smallest_scale == 0 and not fmt.element.has_negative_zero
    if fmt.rule.multiplies or loses_zero:
        return False
    plan = _plan(x.dtype, fmt, rounding, inside=True)
    if plan is None:
        return False
    uint, shape = plan.uint, _shape(tiling)
    source = x.reshape(-1).view(uint)
    target = source if out is x else out.reshape(-1).view(uint)
    drawn = fused.NO_WORDS if words is None else words.reshape(-1)
    rule, amaxes = plan.rule, source[:0]
    arrays = source, target, drawn, shape, plan.element, plan.scale
    if fmt.tensor_scale is not None:
        amaxes = np.empty(math.prod(tiling.grid), uint)
        top = plan.run(*arrays, np.array(rule), amaxes, True)
        with np.errstate(all="ignore"):
            tensor = float(scale_of_tensor(np.full((1, 1), top), fmt)[0, 0])
        if not _INSIDE[0] < tensor < _INSIDE[1]:
            plan = _plan(x.dtype, fmt, rounding, inside=False)
            assert plan is not None
            arrays = source, target, drawn, shape, plan.element, plan.scale
        rule = plan.rule._replace(most=fmt.element.max * tensor, tensor=tensor)
    plan.run(*arrays, np.array(rule), amaxes, False)
    return True


_INSIDE = 2.0**-90, 2.0**90
"""Between these a tensor's scale makes no float32 subnormal of a block's (`blocks.carrier`)."""


def _shape(tiling: Tiling) -> Array:
    """Return matrices, rows and columns, and the height and width of blocks; rows end to end, if whole."""
    count, rows, columns = tiling.stack
    if tiling.height == 1 and columns % tiling.width == 0:
        count, rows, columns = 1, 1, count * rows * columns
    return np.array([count, rows, columns, tiling.height, tiling.width])


@lru_cache(maxsize=1024)
def _plan(dtype: np.dtype[Any], fmt: Scaled, rounding: Mode, *, inside: bool) -> _Plan | None:
    """Return the kernel and its numbers; None: there is none.

    `inside`: the scale of the tensor, if there is one, is near enough to 1 for float32.
    """
    tensor = None if fmt.tensor_scale is None else np.full((1, 1), 1.0 if inside else np.inf)
    work, doubt = carrier(np.empty(0, dtype), fmt, rounding, tensor)
    grid = wider(fmt.element) if fmt.full_range or fmt.affine else fmt.element
    choice = fused.choose(work, grid, rounding, Overflow.SATURATE)
    if choice is None:
        return None
    if work != dtype:
        division = IN_FLOAT64
    elif doubt is not None:
        division = BY_REMAINDER
    else:
        division = BY_DIVISION if fmt.scale.man_bits or fmt.tensor_scale else BY_POWER
    spans = fmt.rule is ScaleRule.SPAN
    most = (fmt.max - fmt.min) / (2 if spans else 1) if spans or fmt.affine else fmt.element.max
    beyond = Overflow.IEEE if fmt.scale.has_inf else Overflow.SATURATE
    if fmt.rule.gives_powers:
        kind = POWERS if fmt.scale.man_bits else CLIPPED_POWERS
    else:
        kind = RATIOS if fmt.scale == FP32 else ROUNDED_RATIOS
    rule = Rule(
        kind=kind,
        most=most,
        unit=2.0**-fmt.element.emax,
        threshold=doubled_above(fmt),
        amax_min=fmt.amax_min,
        least=fmt.smallest_scale,
        largest=np.inf if fmt.scale.has_inf else fmt.scale.max,
        tensor=1.0,
        low=fmt.min,
        high=fmt.max,
        lost=fmt.element.quantum / 4,
        tiny=float(np.finfo(work).smallest_normal),
    )
    ends = 2 if fmt.affine else int(fmt.full_range)
    run = kernel(
        choice.how, choice.mode, choice.kind,
        narrow=dtype == np.float32, division=division, ends=ends, two=fmt.tensor_scale is not None,
    )  # fmt: skip
    scale = numbers(np.dtype(np.float64), fmt.scale, Rounding.NEAREST, beyond)
    uint = np.uint32 if dtype == np.float32 else np.uint64
    return _Plan(run, uint, choice.numbers, scale, rule)


@inlined
def _quotient(x: Any, inverse: Any, high: Any, rest: Any, two: Any) -> Any:
    """Return the bits of the quotient of a magnitude by high + rest (see above)."""
    q = x * inverse
    r = fma(-q, high, x)
    if two:
        r = fma(-q, rest, r)
    q = fma(r, inverse, q)
    r = fma(-q, high, x)
    if two:
        r = fma(-q, rest, r)
    bits = as_bits(q)
    even = like(bits & 1, bits) == 0
    up, down = like(even & (r > 0), bits), like(even & (r < 0), bits)
    return like(like(bits + up, bits) - down, bits)


@cache
def kernel(
    how: int, mode: int, kind: int, *, narrow: bool, division: int, ends: int, two: bool
) -> Callable[..., float]:
    """Return ``run(source, target, words, shape, element, scale, rule, kept, only_top)``.

    `narrow`: the arrays, which are bits, are of float32.  `ends`: elements have an end that their format
    has not, 2: and a zero point.  `two`: scales have two levels: first, `only_top`, every amax is written
    to `kept`, and the largest that is finite returned.
    """
    real: Any = np.float32 if narrow else np.float64
    number: Any = np.float64 if division == IN_FLOAT64 else real
    integer: Any = np.int32 if narrow else np.int64
    remainder, wide = division == BY_REMAINDER, division == IN_FLOAT64
    mindful, drawn = mode in (UP, DOWN, TO_ODD, EQUAL), mode >= EXACT

    @compiled
    def run(
        source: Any, target: Any, words: Any, shape: Any, packed: Any, scales: Any, rule: Any,
        kept: Any, only_top: Any,
    ) -> Any:  # fmt: skip
        c, top = unpack(packed), 0.0
        tensor, lost = number(rule[7]), as_bits(number(rule[10]))
        boost_of_all, near_of_all = near_one(rule[7])
        nearer, near = number(boost_of_all), number(near_of_all)
        lowest, highest = number(rule[8]), number(rule[9])
        zero = like(0, source[0])
        magnitude = like(like(zero - like(1, zero), zero) >> like(1, zero), zero)
        count, rows, columns, height, width = shape[0], shape[1], shape[2], shape[3], shape[4]
        across, apart = -(-columns // width), source.ctypes.data != target.ctypes.data
        per = max(1, min(ROOM, SLAB // height) // width)
        own, peaks = np.empty(0 if two else per, source.dtype), np.empty(ROOM, source.dtype)
        known = 0
        low, high = np.empty(per, integer), np.empty(per, integer)
        sizes, found, lows = np.empty(per), np.empty(per), np.empty(per)
        boost, inverse, factor = np.empty(per, number), np.empty(per, number), np.empty(per, number)
        head = np.empty(per if remainder else 0, number)
        boosts, inverses, factors = np.empty((3, ROOM), number)
        highs, zeros = np.empty((2, ROOM), number)
        points, waiting = np.empty(per, number), np.empty(ROOM, source.dtype)
        beside = min(width, ROOM)
        for place in range(count * (-(-rows // height)) * (-(-across // per))):
            place, first = divmod(place, -(-across // per))
            matrix, upper = divmod(place, -(-rows // height))
            left = first * per * width
            right = min(left + per * width, columns)
            upper *= height
            lower = min(upper + height, rows)
            blocks = min(per, across - first * per)
            base = matrix * rows * columns
            amaxes = kept[known : known + blocks] if two else own[:blocks]
            known += blocks
            if only_top or not two:
                amaxes[:] = zero
                if height > 1 and width < LONG:
                    peaks[: right - left] = zero
                    for i in range(upper, lower):
                        at = base + i * columns
                        find_highest(source[at + left : at + right], magnitude, peaks)
                    find_largest(peaks[: right - left], width, magnitude, amaxes)
                else:
                    for i in range(upper, lower):
                        at = base + i * columns
                        find_largest(source[at + left : at + right], width, magnitude, amaxes)
            if only_top:
                finite, found_top = find_top(amaxes, as_bits(real(np.inf)))
                if finite:
                    top = max(top, rule[4], np.float64(as_float(found_top)))
                continue
            for block in range(blocks):
                sizes[block] = as_float(amaxes[block])
            if ends == 2:
                low[:blocks] = high[:blocks] = 0
                for i in range(upper, lower):
                    at = base + i * columns
                    part = source[at + left : at + right].view(integer)
                    find_ends(part, width, integer(magnitude), low, high)
                for block in range(blocks):
                    lows[block] = as_end(low[block], magnitude)
                    if sizes[block] < np.inf:
                        sizes[block] = as_end(high[block], magnitude) - lows[block]
            find_scales(sizes[:blocks], rule, scales, found)
            if remainder and two:
                find_divisors_of_two(found[:blocks], near, inverse, factor)
            else:
                find_divisors(found[:blocks], rule, boost, inverse, head, factor)
                spread_out(inverse if division == BY_POWER else boost, blocks, beside, boosts)
            spread_out(factor, blocks, beside, factors)
            if remainder:
                spread_out(inverse, blocks, beside, inverses)
            if remainder and not two:
                spread_out(head, blocks, beside, highs)
            if ends:
                for block in range(blocks):
                    point = 0.0
                    if ends == 2 and found[block] == found[block]:
                        point = rule[8] - np.rint(lows[block] / found[block])
                        point = min(max(point, rule[8]), rule[9])
                    points[block] = point
                spread_out(points, blocks, beside, zeros)
            for i in range(upper, lower):
                for at in range(left, right, ROOM):
                    start = base + i * columns + at
                    here = source[start : start + min(ROOM, right - at)]
                    done = target[start : start + here.size] if apart else waiting[: here.size]
                    draws = words[start : start + here.size] if drawn else words
                    for j in range(here.size):
                        word = draws[j] if drawn else np.uint32(0)
                        size = like(here[j] & magnitude, zero)
                        sign = like(here[j] ^ size, zero)
                        x = as_float(size)
                        if remainder and two:
                            whole = factors[j] * near
                            rest = fma(factors[j], near, -whole)
                            bits = _quotient(x * nearer, inverses[j], whole, rest, two)
                        elif remainder:
                            bits = _quotient(x * boosts[j], inverses[j], highs[j], x, two)
                        elif division == BY_POWER:
                            bits = as_bits(x * boosts[j])
                        else:
                            bits = as_bits(number(x) / boosts[j])
                        if mindful:
                            bits = lost if as_float(bits) == 0 and x != 0 else bits
                        if wide:
                            bits = like(bits | like(like(sign, bits) << 32, bits), bits)
                        else:
                            bits = like(bits | sign, bits)
                        if how == STEPS:
                            bits = by_steps(bits, word, c, mode, kind)
                        elif how == BITS:
                            bits = by_bits(bits, word, c, mode, kind)
                        else:
                            bits = in_float64(bits, word, c, mode, kind)
                        value = as_float(bits)
                        if ends:
                            least, most = lowest - zeros[j], highest - zeros[j]
                            value = max(value, least)
                            value = min(value, most)
                        value *= factors[j]
                        if remainder and two:
                            value *= tensor
                        done[j] = as_bits(real(value))
                    if not apart:
                        copy(waiting, target, start, here.size)
        return top

    return run  # type: ignore[no-any-return]
