"""Rounding to nearest even, or toward zero, in as few passes over a block as NumPy needs.

The ways are those of `kernels.py`, by steps and by the bits, and so are the results.  Every pass is
one call of NumPy, which costs a third of a microsecond before it touches a number, and then a tenth
of a nanosecond a number; so constants are arrays already, values that turned out too large are
treated after they were rounded, and there is one block of scratch memory.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isnan
from typing import Any

import numpy as np

from precsim.formats.arrays import Array
from precsim.formats.format import Format
from precsim.formats.scratch import repeated, scratch_bits

Short = Callable[[Array, Array, Array | None, bool], bool]
"""``(x, out, words, saturate)`` rounds a flat block, or says that it has not, and left x as it was."""

_Constants = Callable[[Any], Array]


def by_steps(dtype: np.dtype[Any], fmt: Format, *, truncates: bool) -> Short | None:
    """Return what rounds multiples of the spacing to whole numbers; None: it needs more care.

    x is multiplied with the reciprocal of the spacing, and divided by it again: both are exact.
    """
    to_whole = np.trunc if truncates else np.rint
    if not (fmt.signed and fmt.subnormals):
        return None
    find, treat, zero = reciprocals(dtype, fmt), edge(dtype, fmt), np.array(0, dtype)
    has_nan, has_negative_zero = fmt.has_nan, fmt.has_negative_zero
    shortest = among_normal(dtype, fmt, truncates=truncates) if _is_wide(dtype, fmt) else None
    divide = _by_multiplying if dtype == np.float64 else np.divide

    def run(x: Array, out: Array, words: Array | None, saturate: bool) -> bool:
        if not (saturate or has_nan):
            return False
        if shortest is not None and shortest(x, out, words, saturate):
            return True
        inverse, bits = scratch_bits("step", x)
        beyond = find(x, bits)
        if beyond and truncates and not saturate:  # infinities stay, other numbers saturate
            return False
        np.multiply(x, inverse, out=out)
        to_whole(out, out=out)
        divide(out, inverse, out=out)
        if beyond:
            treat(out, saturate)
        if not has_negative_zero:  # -0 + 0 is +0
            np.add(out, zero, out=out)
        return True

    return run


def _by_multiplying(x: Array, power: Array, out: Array) -> None:
    """Divide by powers of two, which are lost: for float64 that is quicker than a division."""
    bits = power.view(np.uint64)
    np.subtract(_BOTH, bits, out=bits)
    np.multiply(x, power, out=out)


_BOTH = np.array(2046 << 52, np.uint64)
"""The bits of a power of two, taken from this, are those of its reciprocal."""


def _is_wide(dtype: np.dtype[Any], fmt: Format) -> bool:
    """Whether numbers below a format's normal ones are rare, as they are for bf16 and tf32."""
    return fmt.emin <= np.finfo(np.float32).minexp < 0 < np.finfo(dtype).nmant - fmt.man_bits


def among_normal(dtype: np.dtype[Any], fmt: Format, *, truncates: bool) -> Short:
    """Return what rounds by adding to the bits, where no number is subnormal, or may overflow."""
    add = _adding(dtype, fmt, truncates=truncates)
    number, word = _constants(dtype)
    one, magnitude = word(1), word((1 << dtype.itemsize * 8 - 1) - 1)
    low, top = (number(2.0**e).view(one.dtype)[()] for e in (fmt.emin, fmt.emax))

    def run(x: Array, out: Array, words: Array | None, saturate: bool) -> bool:
        _, bits = scratch_bits("step", x)
        np.bitwise_and(x.view(bits.dtype), magnitude, out=bits)
        if np.maximum.reduce(bits) >= top:
            return False
        least, limit = np.minimum.reduce(bits), low
        if least == 0:  # less one, zeros are the largest numbers of all
            np.subtract(bits, one, out=bits)
            least, limit = np.minimum.reduce(bits), low - one
        if least < limit:
            return False
        add(x, out)
        return True

    return run


def by_bits(dtype: np.dtype[Any], fmt: Format, *, truncates: bool) -> Short | None:
    """Return what rounds a format with the carrier's exponents by adding to the bits, or not."""
    if np.finfo(dtype).nmant == fmt.man_bits or not (fmt.signed and fmt.subnormals):
        return None
    add, (number, _) = _adding(dtype, fmt, truncates=truncates), _constants(dtype)
    largest, least = number(fmt.max), number(-fmt.max)

    def run(x: Array, out: Array, words: Array | None, saturate: bool) -> bool:
        if isnan(np.maximum.reduce(x)):  # a carry would make a number of it, or losing its bits
            return False
        add(x, out)
        if saturate:
            out.clip(least, largest, out=out)
        return True

    return run


def _adding(
    dtype: np.dtype[Any], fmt: Format, *, truncates: bool
) -> Callable[[Array, Array], None]:
    """Return ``(x, out)``, which drops bits of normal numbers, and has the others carried to."""
    shift = np.finfo(dtype).nmant - fmt.man_bits
    _, word = _constants(dtype)
    places, one, below_half = word(shift), word(1), word((1 << shift - 1) - 1)
    keep = word((1 << dtype.itemsize * 8) - (1 << shift))

    def run(x: Array, out: Array) -> None:
        source, target = x.view(keep.dtype), out.view(keep.dtype)
        if truncates:
            np.bitwise_and(source, keep, out=target)
            return
        _, bits = scratch_bits("step", x)
        np.right_shift(source, places, out=bits)
        np.bitwise_and(bits, one, out=bits)
        np.add(bits, below_half, out=bits)
        np.add(bits, source, out=bits)
        np.bitwise_and(bits, keep, out=target)

    return run


def reciprocals(
    dtype: np.dtype[Any], fmt: Format, fraction: int = 0
) -> Callable[[Array, Array], bool]:
    """Return ``(x, bits)``, which writes the bits of 2^fraction / spacing around each x.

    It says whether there is any x from 2^emax on.
    """
    number, word = _constants(dtype)
    nmant, maxexp = int(np.finfo(dtype).nmant), int(np.finfo(dtype).maxexp)
    field = word((1 << dtype.itemsize * 8 - 1) - (1 << nmant))
    lowest = 2.0**fmt.emin
    # Powers of two are in order as numbers and as bits; NumPy clips the shorter ones faster as bits.
    kind = np.dtype(np.float64) if dtype == np.float64 else field.dtype
    low, high = (number(2.0**e).view(kind) for e in (fmt.emin, max(fmt.emin, fmt.emax)))
    top = number(2.0**fmt.emax).view(field.dtype)[()]
    # Taken from this, the bits of the power of two below x leave those of the reciprocal.
    mirror = word(2 * maxexp - 2 + fmt.man_bits + fraction << nmant)

    def find(x: Array, bits: Array) -> bool:
        np.bitwise_and(x.view(bits.dtype), field, out=bits)
        beyond = bool(np.maximum.reduce(bits) >= top)
        if beyond:
            powers = bits.view(kind)
            powers.clip(low, high, out=powers)
        else:
            powers = bits.view(dtype)
            np.maximum(powers, repeated(lowest, dtype, bits.size), out=powers)
        np.subtract(mirror, bits, out=bits)
        return beyond

    return find


def edge(dtype: np.dtype[Any], fmt: Format) -> Callable[[Array, bool], None]:
    """Return what makes of rounded numbers beyond the largest that, an infinity or NaN, in place."""
    number, word = _constants(dtype)
    largest, least = number(fmt.max), number(-fmt.max)
    room = int(np.finfo(dtype).maxexp) - 1 - fmt.emax
    sign = word(1 << dtype.itemsize * 8 - 1)
    special = number("inf" if fmt.has_inf else "nan").view(sign.dtype)
    # With infinities all of the top binade is finite: moved to the carrier's own top, the next
    # binade overflows by itself.  (Both factors must be normal.)
    moves = fmt.has_inf and fmt.emax >= 1
    factors = (number(2.0**room), number(2.0**-room)) if moves else None

    def treat(out: Array, saturate: bool) -> None:
        if saturate:
            out.clip(least, largest, out=out)
            if not fmt.has_nan and np.isnan(out.max()):
                np.copyto(out, 0, where=np.isnan(out))
        elif factors is not None:
            for factor in factors:
                np.multiply(out, factor, out=out)
        else:
            size, bits = scratch_bits("step", out)
            np.abs(out, out=size)
            beyond = size > largest
            np.bitwise_and(out.view(bits.dtype), sign, out=bits)
            np.bitwise_or(bits, special, out=bits)
            np.copyto(out, size, where=beyond)

    return treat


def _constants(dtype: np.dtype[Any]) -> tuple[_Constants, _Constants]:
    """Return what makes numbers of a dtype, and words of its size, arrays without an axis."""
    uint: Any = np.uint32 if dtype == np.float32 else np.uint64
    return (lambda value: np.array(value, dtype)), (lambda value: np.array(value, uint))
