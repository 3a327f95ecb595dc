"""Rounding to a scaled format in one pass, compiled by Numba: the rules of `precsim.formats.blocks`.

Some blocks of an array, as many as stay in the second-level cache, are gone through twice: for amax,
and, when their scales are known, to divide, round and multiply.  Nothing is padded: the last block
of an axis is simply short.  Only where scales have two levels must the whole array be read before.

`fused_slabs` does that with some blocks; here is what goes through the array, and which kernel does
it.

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
from precsim.backend.fused import NO_NAN, PLAIN, compiled, numbers, unpack
from precsim.backend.fused_bits import LANES, as_bits, as_float, piece
from precsim.backend.fused_elements import (
    BY_DIVISION,
    BY_POWER,
    BY_REMAINDER,
    IN_FLOAT64,
    ROOM,
    SHORT_ROOM,
    How,
)
from precsim.backend.fused_scales import (
    CLIPPED_POWERS,
    POWERS,
    RATIOS,
    ROUNDED_RATIOS,
    Rule,
    as_rule,
    find_top,
    up_to_whole,
)
from precsim.backend.fused_slabs import (
    Slab,
    find_all_amaxes,
    rounding_beside,
    rounding_by_block,
    scaling,
)
from precsim.formats.arrays import Array
from precsim.formats.blocks import carrier, doubled_above, scale_of_tensor, wider
from precsim.formats.modes import Mode, Overflow, Rounding
from precsim.formats.scaled import FP32, Scaled, ScaleRule
from precsim.formats.tiling import Tiling

SLAB = 1 << 17
"""Elements of the blocks that are gone through at once, unless one block alone has more."""
BESIDE = 5
"""Numbers of a block that its elements need."""


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
    beside = tiling.width < LANES or (tiling.height > 1 and tiling.width <= SHORT_ROOM)
    plan = _plan(x.dtype, fmt, rounding, inside=True, beside=beside)
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
            plan = _plan(x.dtype, fmt, rounding, inside=False, beside=beside)
            assert plan is not None
            arrays = source, target, drawn, shape, plan.element, plan.scale
        rule = plan.rule._replace(most=fmt.element.max * tensor, tensor=tensor)
    plan.run(*arrays, np.array(rule), amaxes, False)
    return True


_INSIDE = 2.0**-60, 2.0**60
"""Between these a tensor's scale makes no float32 subnormal of a block's, nor of a remainder."""


def _has_remainders(fmt: Scaled) -> bool:
    """Whether float32 holds what is left of a number after a quotient by two scales, cut off."""
    element, scale = fmt.element, fmt.scale
    last = element.quantum * 2.0 ** -(element.man_bits + 2) * scale.quantum
    return element.precision + scale.precision < 24 and last * _INSIDE[0] * 2.0**-23 >= 2.0**-149


def _shape(tiling: Tiling) -> Array:
    """Return matrices, rows and columns, and the height and width of blocks; rows end to end, if whole."""
    count, rows, columns = tiling.stack
    if tiling.height == 1 and columns % tiling.width == 0:
        count, rows, columns = 1, 1, count * rows * columns
    return np.array([count, rows, columns, tiling.height, tiling.width])


@lru_cache(maxsize=1024)
def _plan(
    dtype: np.dtype[Any], fmt: Scaled, rounding: Mode, *, inside: bool, beside: bool
) -> _Plan | None:
    """Return the kernel and its numbers; None: there is none.

    `inside`: the scale of the tensor, if there is one, is near enough to 1 for float32.
    `beside`: see `How`.
    """
    tensor = None if fmt.tensor_scale is None else np.full((1, 1), 1.0 if inside else np.inf)
    work, doubt = carrier(np.empty(0, dtype), fmt, rounding, tensor)
    if doubt and not _has_remainders(fmt):
        work = np.dtype(np.float64)
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
        shift=22 - grid.man_bits,
    )
    ends = 2 if fmt.affine else int(fmt.full_range)
    two = fmt.tensor_scale is not None
    lacks = PLAIN if choice.kind == NO_NAN else choice.kind  # a NaN makes all of its block NaN
    how = How(choice.how, choice.mode, lacks, dtype == np.float32, division, ends, two, beside)
    scale = numbers(np.dtype(np.float64), fmt.scale, Rounding.NEAREST, beyond)
    uint = np.uint32 if dtype == np.float32 else np.uint64
    return _Plan(kernel(how), uint, choice.numbers, scale, rule)


@cache
def kernel(how: How) -> Callable[..., float]:
    """Return ``run(source, target, words, shape, element, scale, rule, kept, only_top)``.

    The arrays are bits.  Where scales have two levels it is run twice: first, `only_top`, every amax
    is written to `kept`, and the largest that is finite returned.
    """
    real, number, two, beside = how.real, how.number, how.two, how.beside
    integer: Any = np.int32 if how.narrow else np.int64
    find_numbers, make = scaling(how), rounding_beside if beside else rounding_by_block
    round_slab, longest = make(how), SHORT_ROOM if beside else ROOM

    @compiled
    def run(
        source: Any, target: Any, words: Any, shape: Any, packed: Any, scale: Any, rule: Any,
        kept: Any, only_top: Any,
    ) -> Any:  # fmt: skip
        count, rows, columns, height, width = shape[0], shape[1], shape[2], shape[3], shape[4]
        apart = source.ctypes.data != target.ctypes.data
        per = max(1, min(min(longest, SLAB // height) // width, -(-columns // width)))
        bands = max(1, longest // (per * width * height)) if per * width >= columns else 1
        own = np.empty(0 if two else per * bands, source.dtype)
        room, ends = np.zeros((3, up_to_whole(per * bands))), np.empty((2, per * bands), integer)
        numbers = np.zeros((BESIDE, up_to_whole(per * bands)), number)
        peaks = np.empty(per * width if beside and height > 1 else 0, source.dtype)
        table = np.empty((BESIDE, per * width + LANES if beside else 0), number)
        waiting = np.empty(0 if apart else longest, source.dtype)
        c, least, top, known = unpack(packed), as_rule(rule).amax_min, 0.0, 0
        for matrix in range(count):
            for upper in range(0, rows, height * bands):
                for left in range(0, columns, per * width):
                    right = min(left + per * width, columns)
                    lower, across = min(upper + height * bands, rows), -(-(right - left) // width)
                    start = matrix * rows * columns
                    slab = Slab(start, columns, upper, lower, left, right, height, width, across)
                    blocks = -(-(lower - upper) // height) * across
                    amaxes = piece(kept, known, blocks) if two else piece(own, 0, blocks)
                    known += blocks
                    if only_top or not two:
                        find_all_amaxes(source, slab, peaks, amaxes)
                    if only_top:
                        finite, found = find_top(amaxes, as_bits(real(np.inf)))
                        top = max(top, least, np.float64(as_float(found))) if finite else top
                        continue
                    find_numbers(source, slab, amaxes, room, ends, scale, rule, numbers)
                    round_slab(source, target, words, waiting, slab, numbers, table, c, rule)
        return top

    return run  # type: ignore[no-any-return]
