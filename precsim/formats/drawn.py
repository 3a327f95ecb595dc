"""Stochastic rounding of float32 in few passes over a block: a word is added, and the rest dropped.

A magnitude in units of its spacing becomes a fixed-point number of 31 bits.  Its fraction exceeds
the first bits of a word if, and only if, it carries when the complement of those bits is added.
Where the two are equal, later bits decide; so it is for one number in 2^k, of k bits of fraction,
and those are done again in float64.
"""

from __future__ import annotations

from math import isnan
from typing import Any

import numpy as np

from precsim.formats.arrays import Array
from precsim.formats.format import Format
from precsim.formats.nearest import Short, edge, reciprocals
from precsim.formats.scratch import scratch, scratch_bits

_BITS = 29
"""Fraction bits of the format and of the fixed-point number, together.

The leading bit is one more, and a carry, or an overflow, another; the sign's stays zero.
"""


def by_steps(dtype: np.dtype[Any], fmt: Format) -> Short | None:
    """Return what rounds by the rule of `Rounding.STOCHASTIC`; None: it needs more care."""
    # A reciprocal must not overflow below, nor x times one underflow.
    if dtype != np.float32 or not (fmt.signed and fmt.subnormals) or not -98 <= fmt.emin <= _BITS:
        return None
    fraction = _BITS - fmt.man_bits
    find = reciprocals(dtype, fmt, fraction)
    treat, nothing, room = edge(dtype, fmt), np.float32(0), np.array(2.0 ** (_BITS + 1), dtype)
    sign, unused = np.array(1 << 31, np.uint32), np.array(32 - fraction, np.uint32)
    last = (1 << fraction) - 1
    rest, whole = np.array(last, np.uint32), np.array(~last & 0xFFFFFFFF, np.uint32)

    def run(x: Array, out: Array, words: Array | None, saturate: bool) -> bool:
        if words is None or not (saturate or fmt.has_nan):
            return False
        inverse, bits = scratch_bits("step", x)
        beyond = find(x, bits)
        _, some = scratch_bits("some", x)
        np.bitwise_and(x.view(np.uint32), sign, out=some)
        np.bitwise_or(bits, some, out=bits)
        size = scratch("multiple", x)
        np.multiply(x, inverse, out=size)
        if beyond:
            if isnan(size.max()):
                return False
            size.clip(nothing, room, out=size)
        fixed = scratch("fixed", x, np.int32)
        np.copyto(fixed, size, casting="unsafe")
        total = fixed.view(np.uint32)
        np.invert(words, out=some)
        np.right_shift(some, unused, out=some)
        np.add(total, some, out=total)
        np.bitwise_and(total, rest, out=some)
        np.bitwise_and(total, whole, out=total)
        if some.max() == last:
            places = np.flatnonzero(some == last)
            total[places] = _again(size[places], words[places], fraction)
        np.copyto(out, fixed, casting="unsafe")
        np.divide(out, inverse, out=out)
        if beyond:
            treat(out, saturate)
        if not fmt.has_negative_zero:
            np.add(out, nothing, out=out)
        return True

    return run


def _again(size: Array, words: Array, fraction: int) -> Array:
    """Round fixed-point numbers with all the bits that they and the words have."""
    exact = size * np.float64(2.0**-fraction)
    lower = np.floor(exact)
    up = (words + 0.5) * 2.0**-32 < exact - lower
    return ((lower + up) * 2.0**fraction).astype(np.uint32)
