"""Some blocks of an array, compiled by Numba: their amax, what follows from it, and their elements.

A slab is what stays in the second-level cache.  `fused_scales` and `fused_elements` have the loops;
here is where they find the rows, and the blocks of each.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from precsim.backend.fused import EXACT
from precsim.backend.fused_bits import (
    as_float,
    copy,
    inlined,
    like,
    magnitude_mask,
    part,
    piece,
)
from precsim.backend.fused_elements import BY_REMAINDER, ROOM, How, kernel_beside, row_kernel
from precsim.backend.fused_scales import (
    POINT,
    as_end,
    as_rule,
    find_amaxes,
    find_divisors,
    find_divisors_of_two,
    find_ends,
    find_highest,
    find_near_divisors,
    find_scales,
    row_of,
    spread_out,
    up_to_whole,
)


class Slab(NamedTuple):
    """Blocks side by side and below each other: a part of the matrix at `start`."""

    start: Any
    columns: Any
    upper: Any  # rows, from and to
    lower: Any
    left: Any  # columns
    right: Any
    height: Any
    width: Any
    across: Any  # blocks side by side


@inlined
def _row(array: Any, slab: Any, i: Any) -> Any:
    """Return a row of a slab."""
    start = slab.start + i * slab.columns
    return piece(array, start + slab.left, slab.right - slab.left)


@inlined
def _blocks_of(numbers: Any, slab: Any, i: Any) -> Any:
    """Return the part of an array, with a number for each block, that is about those of a row."""
    return piece(numbers, (i - slab.upper) // slab.height * slab.across, slab.across)


@part
def find_all_amaxes(source: Any, slab: Any, peaks: Any, found: Any) -> None:
    """Write the amax of each block, as bits; of columns first, if there is room for their peaks."""
    found[:] = like(0, found[0])
    if peaks.size == 0:
        for i in range(slab.upper, slab.lower):
            find_amaxes(_row(source, slab, i), slab.width, _blocks_of(found, slab, i))
        return
    peaks = piece(peaks, 0, slab.right - slab.left)
    for upper in range(slab.upper, slab.lower, slab.height):
        peaks[:] = like(0, found[0])
        for i in range(upper, min(upper + slab.height, slab.lower)):
            find_highest(_row(source, slab, i), peaks)
        find_amaxes(peaks, slab.width, _blocks_of(found, slab, upper))


@part
def _find_spans(
    source: Any, slab: Any, blocks: Any, magnitude: Any, ends: Any, lows: Any, sizes: Any
) -> None:
    """Write each block's lower end, and, where all of it is finite, its length for its amax."""
    low, high = ends[0], ends[1]
    ends[:] = 0
    for i in range(slab.upper, slab.lower):
        row = _row(source, slab, i).view(ends.dtype)
        here, there = _blocks_of(low, slab, i), _blocks_of(high, slab, i)
        find_ends(row, slab.width, like(magnitude, low[0]), here, there)
    for block in range(blocks):
        lows[block] = as_end(low[block], magnitude)
        if sizes[block] < np.inf:
            sizes[block] = as_end(high[block], magnitude) - lows[block]


@part
def _find_points(scales: Any, lows: Any, rule: Any, points: Any) -> None:
    """Write the zero point of each block."""
    r = as_rule(rule)
    for block in range(scales.size):
        point = r.low - np.rint(lows[block] / scales[block])
        points[block] = min(max(point, r.low), r.high) if scales[block] == scales[block] else 0.0


@cache
def scaling(how: How) -> Callable[..., None]:
    """Return ``run(source, slab, amaxes, room, ends, scale, rule, numbers)``.

    From the amax of blocks to what their elements need.
    """
    two, remainder, affine = how.two, how.division == BY_REMAINDER, how.ends == 2

    @part
    def run(
        source: Any, slab: Any, amaxes: Any, room: Any, ends: Any, scale: Any, rule: Any,
        numbers: Any,
    ) -> None:  # fmt: skip
        blocks, magnitude = up_to_whole(amaxes.size), magnitude_mask(amaxes)
        sizes, scales = row_of(room, 0, blocks), row_of(room, 1, blocks)
        lows = row_of(room, 2, blocks)
        for block in range(amaxes.size):
            sizes[block] = as_float(amaxes[block])
        if affine:
            _find_spans(source, slab, amaxes.size, magnitude, ends, lows, sizes)
        find_scales(sizes, rule, scale, scales)
        if remainder and two:
            find_divisors_of_two(scales, rule, numbers)
        elif remainder:
            find_near_divisors(scales, rule, numbers)
        else:
            find_divisors(scales, rule, numbers)
        if affine:
            _find_points(scales, lows, rule, row_of(numbers, POINT, blocks))

    return run  # type: ignore[no-any-return]


@cache
def rounding_beside(how: How) -> Callable[..., None]:
    """Return ``run(source, target, words, waiting, slab, numbers, beside, element, rule)``.

    As `rounding_by_block`'s; but where a block has several elements in a row, its numbers are written
    beside each of them first.
    """
    round_row, drawn, used = kernel_beside(how), how.mode >= EXACT, how.used

    @part
    def run(
        source: Any, target: Any, words: Any, waiting: Any, slab: Any, numbers: Any, beside: Any,
        c: Any, rule: Any,
    ) -> None:  # fmt: skip
        size = slab.right - slab.left
        for upper in range(slab.upper, slab.lower, slab.height):
            table, first = numbers, (upper - slab.upper) // slab.height * slab.across
            if slab.width > 1:
                for which in used:
                    some = piece(row_of(numbers, which, numbers.shape[1]), first, slab.across)
                    spread_out(some, slab.width, row_of(beside, which, beside.shape[1]))
                table, first = beside, 0
            for i in range(upper, min(upper + slab.height, slab.lower)):
                start = slab.start + i * slab.columns + slab.left
                done = piece(waiting, 0, size) if waiting.size else piece(target, start, size)
                draws = piece(words, start, size) if drawn else words
                round_row(piece(source, start, size), done, draws, table, first, c, rule)
                if waiting.size:
                    copy(waiting, target, start, size)

    return run  # type: ignore[no-any-return]


@cache
def rounding_by_block(how: How) -> Callable[..., None]:
    """Return ``run(source, target, words, waiting, slab, numbers, beside, element, rule)``.

    It rounds whole slabs, and does not use `beside`.  Where the target is the source, `waiting` needs
    room for `ROOM` elements.
    """
    round_row, drawn = row_kernel(how), how.mode >= EXACT

    @part
    def run(
        source: Any, target: Any, words: Any, waiting: Any, slab: Any, numbers: Any, beside: Any,
        c: Any, rule: Any,
    ) -> None:  # fmt: skip
        width = slab.width
        stretch = ROOM // width * width if width <= ROOM else ROOM
        for i in range(slab.upper, slab.lower):
            of_row = (i - slab.upper) // slab.height * slab.across
            for left in range(slab.left, slab.right, stretch):
                start, first = slab.start + i * slab.columns + left, (left - slab.left) // width
                size = min(stretch, slab.right - left)
                done = piece(waiting, 0, size) if waiting.size else piece(target, start, size)
                draws = piece(words, start, size) if drawn else words
                here = piece(source, start, size)
                ahead = slab.height == 1 and start + ROOM < source.size
                round_row(here, done, draws, width, numbers, of_row + first, ahead, c, rule)
                if waiting.size:
                    copy(waiting, target, start, size)

    return run  # type: ignore[no-any-return]
