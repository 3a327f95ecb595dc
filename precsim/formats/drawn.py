"""Stochastic rounding of float32 in few passes over a block: a word is subtracted, and the rest dropped.

Let c be the format's smallest normal number.  Below c its values are as far apart as just above, and
a float's bits are that too once c is added; from c on they are as they are, and so they are when a
magnitude is doubled.  y = |x| + max(|x|, c) does the one or the other, and in order: [0, c) comes to
[c, 2c), and what is larger to twice itself.  Now what rounding has to drop are the last bits of y.
The first bits of a word are subtracted from them, and the rest is rounded up to what can stay: to the
value above x where the bits of y are more, else to the one below.  With h, half of the result,
h + min(h - c, 0) is the way back.

Doubling is exact; the sum with c has no room for all bits of a small x.  So that it never comes out
too large, c's predecessor is added; then it is too small by less than one in the last bit, and next to
c, where floats are closer, by less than two.  Where that decides, which it may for one word in 2^(k-1)
when k bits are dropped, numbers are rounded again, with all bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from precsim.formats.arrays import Array
from precsim.formats.format import Format
from precsim.formats.nearest import Short, edge
from precsim.formats.scratch import repeated, scratch, scratch_bits

_MOST_BITS = 10
"""Fraction bits of a format of which few enough numbers are rounded again."""


def by_steps(dtype: np.dtype[Any], fmt: Format) -> Short | None:
    """Return what rounds by the rule of `Rounding.STOCHASTIC`; None: it needs more care."""
    lowest, highest = fmt.emin, max(fmt.emin, fmt.emax)
    in_range = lowest >= -125 and lowest - fmt.man_bits >= -126 and highest <= 125
    plain = fmt.signed and fmt.subnormals and fmt.man_bits <= _MOST_BITS
    if dtype != np.float32 or not (in_range and plain):
        return None
    shift = 23 - fmt.man_bits
    treat, has_nan, has_negative_zero = edge(dtype, fmt), fmt.has_nan, fmt.has_negative_zero
    c, nothing = np.array(2.0**lowest, dtype), np.array(0, dtype)
    below_c, limit = float(np.nextafter(c, nothing)), 2.0 ** (highest + 1)
    top, infinity = (np.float32(number).view(np.uint32) for number in (2.0**fmt.emax, np.inf))
    sign, magnitude = np.array(1 << 31, np.uint32), np.array((1 << 31) - 1, np.uint32)
    unused, dropped = np.array(32 - shift, np.uint32), np.array((1 << shift) - 1, np.uint32)
    halved = np.array(-(1 << 23), np.int32).view(np.uint32)

    def run(x: Array, out: Array, words: Array | None, saturate: bool) -> bool:
        if words is None or not (saturate or has_nan):
            return False
        y, bits = scratch_bits("step", x)
        rest, rest_bits = scratch_bits("some", x)
        np.bitwise_and(x.view(np.uint32), magnitude, out=bits)
        largest = np.maximum.reduce(bits)
        if largest > infinity:
            return False
        if largest >= top:  # from the limit on all overflow
            np.minimum(y, repeated(limit, dtype, y.size), out=y)
        np.maximum(y, repeated(below_c, dtype, y.size), out=rest)
        np.add(y, rest, out=y)
        np.right_shift(words, unused, out=rest_bits)
        np.subtract(rest_bits, bits, out=bits)  # negative, or what drops bits would not round up
        np.bitwise_and(bits, dropped, out=rest_bits)
        undecided = _small(rest_bits, x, c) if np.minimum.reduce(rest_bits) <= 1 else None
        np.bitwise_xor(bits, rest_bits, out=bits)
        np.subtract(halved, bits, out=bits)
        np.subtract(y, c, out=rest)
        np.minimum(rest, repeated(0.0, dtype, y.size), out=rest)
        np.add(y, rest, out=y)
        if undecided is not None:
            y[undecided] = _again(x[undecided], words[undecided], 2.0 ** (lowest - fmt.man_bits))
        np.bitwise_and(x.view(np.uint32), sign, out=rest_bits)
        np.bitwise_or(bits, rest_bits, out=out.view(np.uint32))
        if largest >= top:
            treat(out, saturate)
        if not has_negative_zero:  # -0 + 0 is +0
            np.add(out, nothing, out=out)
        return True

    return run


_LITTLE = np.array(1, np.uint32)


def _small(rest: Array, x: Array, c: Array) -> Array:
    """Return the places where next to nothing is left, and x is below c; elsewhere that is decided."""
    places = np.less_equal(rest, _LITTLE, out=scratch("where", rest, bool)).nonzero()[0]
    return places[np.abs(x[places]) < c]


def _again(x: Array, words: Array, step: float) -> Array:
    """Round magnitudes that are a step apart with all the bits that they and the words have."""
    exact = np.abs(x.astype(np.float64)) / step
    lower = np.floor(exact)
    return (lower + ((words + 0.5) * 2.0**-32 < exact - lower)) * step
