"""Bit patterns of values that lie on a format's grid, and back, a block at a time.

A code is almost a counter.  With the sign aside, the values of a float format in ascending order
have the codes 0, 1, 2, ... through all the binades, subnormals included, because the exponent
field sits above the fraction and a full fraction carries into it.  So the code of
``steps * 2^(e - man_bits)``, with e the exponent (no less than `emin`) and the leading one counted
in `steps`, is ``(e - emin) * 2^man_bits + steps``: no case for subnormals is needed.

A format of few bits has few codes, and the other way about all its values are told apart by the
first 16 bits of a float32: both ways are then one look into a table.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from precsim.formats.arrays import Array, array_module
from precsim.formats.format import Format, Specials
from precsim.formats.kernels import plan_for, round_by_bits, round_in_float64
from precsim.formats.scratch import BLOCK_BYTES, scratch

_BLOCK = BLOCK_BYTES // 8


def code_dtype_of(fmt: Format) -> np.dtype[Any]:
    """Return the smallest unsigned integer type that holds the format's codes."""
    return np.min_scalar_type(2**fmt.bits - 1)


def codes_of(values: Array, fmt: Format) -> Array:
    """Return the codes of values that lie on the format's grid already; all NaN are one code."""
    xp, flat = array_module(values), values.reshape(-1)
    codes = xp.empty(flat.size, code_dtype_of(fmt))
    block = _BLOCK if xp is np else max(flat.size, 1)
    with np.errstate(all="ignore"):
        for start in range(0, flat.size, block):
            part = slice(start, start + block)
            if xp is np and _is_short(fmt):
                _look_up(flat[part], codes[part], fmt)
            else:
                codes[part] = _count(xp.ascontiguousarray(flat[part]), fmt)
    return codes.reshape(values.shape)[()]  # type: ignore[no-any-return]


def values_of(codes: Array, fmt: Format, dtype: np.dtype[Any]) -> Array:
    """Return the values that codes, integers within range, stand for."""
    xp, flat = array_module(codes), codes.reshape(-1)
    values = xp.empty(flat.size, dtype)
    block = _BLOCK if xp is np else max(flat.size, 1)
    with np.errstate(all="ignore"):  # the codes of infinity and NaN, read as numbers, overflow
        for start in range(0, flat.size, block):
            part = slice(start, start + block)
            if fmt.bits <= 16:
                _read_table(flat[part], values[part], fmt)
            else:
                values[part] = _read(flat[part].astype(np.uint64), fmt)
    return values.reshape(codes.shape)[()]  # type: ignore[no-any-return]


def _read_table(codes: Array, values: Array, fmt: Format) -> None:
    """Write the values of codes of at most 16 bits."""
    xp, table = array_module(codes), _values_in_order(fmt, values.dtype)
    if xp is not np:
        values[...] = xp.asarray(table)[codes]
        return
    places = scratch("places", codes, np.intp)
    places[...] = codes
    # (With the default mode NumPy would make a copy; nothing needs wrapping.)
    np.take(table, places, out=values, mode="wrap")


def _is_short(fmt: Format) -> bool:
    """Whether the first 16 bits of a float32 tell all values of the format apart."""
    inside = fmt.max < 2.0**128 and fmt.quantum >= 2.0 ** (-126 - 7)
    return fmt.bits <= 8 and fmt.man_bits <= 7 and inside


def _look_up(values: Array, codes: Array, fmt: Format) -> None:
    """Find the codes of values by the first 16 bits of them as float32."""
    narrow, places = scratch("narrow", values, np.float32), scratch("places", values, np.uint32)
    narrow[...] = values
    np.right_shift(narrow.view(np.uint32), np.uint32(16), out=places)
    np.take(_codes_by_first_bits(fmt), places, out=codes, mode="wrap")


@lru_cache(maxsize=64)
def _codes_by_first_bits(fmt: Format) -> Array:
    """Return the code of the value that each first half of a float32 begins, if there is one."""
    halves = np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)
    values = halves.view(np.float32).astype(np.float64)
    with np.errstate(all="ignore"):
        codes = _count(values, fmt).astype(np.uint8)
    codes.flags.writeable = False
    return codes


@lru_cache(maxsize=64)
def _values_in_order(fmt: Format, dtype: np.dtype[Any]) -> Array:
    """Return the value of each code."""
    codes = np.arange(1 << fmt.bits, dtype=np.uint64)
    with np.errstate(all="ignore"):
        values = _read(codes, fmt).astype(dtype)
    values.flags.writeable = False
    return values


def _count(values: Array, fmt: Format) -> Array:
    """Compute codes: by counting steps, or where the layout is the carrier's, by cutting bits off."""
    xp = array_module(values)
    if fmt.is_integer:
        steps = (values / fmt.quantum).astype(np.int64)
        return steps & ((1 << fmt.bits) - 1)
    plan = plan_for(values.dtype, fmt)
    if plan.kernel is round_in_float64:
        values = values.astype(np.float64)
        plan = plan_for(values.dtype, fmt)
    uint, hidden = plan.uint, 1 << fmt.man_bits
    bits: Any = values.view(uint)
    field = bits & plan.exponent_mask
    special = bool((field == plan.exponent_mask).any())
    if plan.kernel is round_by_bits:
        codes = bits >> plan.shift
    else:
        low, high = plan.lowest.view(uint), plan.highest.view(uint)
        xp.clip(field, low, high, out=field)
        steps = xp.abs(values)
        steps *= (plan.mirror - field + uint(fmt.man_bits << int(plan.quiet) + 1)).view(
            values.dtype
        )
        codes = field
        codes -= low
        codes >>= plan.shift
        codes += steps.astype(uint)
        if not fmt.has_zero:  # then exponent field 0 has a leading one too
            codes -= uint(hidden)
        if fmt.signed:
            sign = bits >> uint(8 * values.dtype.itemsize - 1)
            sign <<= uint(fmt.bits - 1)
            codes |= sign
    if special:
        codes = _with_specials(values, codes, fmt)
    return codes  # type: ignore[no-any-return]


def _with_specials(values: Array, codes: Array, fmt: Format) -> Array:
    """Return the codes with those of infinities and NaN put right."""
    xp, hidden, sign_place = array_module(values), 1 << fmt.man_bits, fmt.bits - 1
    codes, top = codes.astype(np.uint64), ((1 << fmt.exp_bits) - 1) * hidden
    if fmt.has_inf:
        negative = xp.signbit(values).astype(np.uint64) << np.uint64(sign_place)
        codes = xp.where(xp.isinf(values), np.uint64(top) | negative, codes)
    if fmt.has_nan:
        nans = {Specials.IEEE: top + hidden // 2, Specials.FN: top + hidden - 1}
        nan = np.uint64(nans.get(fmt.specials, 1 << sign_place))
        codes = xp.where(xp.isnan(values), nan, codes)
    return codes


def _whole(fmt: Format) -> np.dtype[Any] | None:
    """Return the float type that has the format's code for its first bits, if there is one."""
    if fmt.specials is Specials.IEEE and fmt.signed and fmt.subnormals:
        names = {(8, 127): np.float32, (11, 1023): np.float64}
        found = names.get((fmt.exp_bits, fmt.bias))
        return None if found is None else np.dtype(found)
    return None


def _read(codes: Array, fmt: Format) -> Array:
    """Return the values of codes, given as uint64 within range, as float64."""
    xp = array_module(codes)
    if (whole := _whole(fmt)) is not None:
        uint: Any = np.uint32 if whole.itemsize == 4 else np.uint64
        bits = codes.astype(uint) << uint(8 * whole.itemsize - fmt.bits)
        return bits.view(whole).astype(np.float64)  # type: ignore[no-any-return]
    sign_place, hidden = fmt.bits - 1, 1 << fmt.man_bits
    negative = codes >> np.uint64(sign_place) == 1 if fmt.signed else xp.zeros_like(codes, bool)
    if fmt.is_integer:
        number = codes.astype(np.int64) - (negative.astype(np.int64) << fmt.bits)
        return number * fmt.quantum  # type: ignore[no-any-return]

    magnitude = (codes & np.uint64((1 << fmt.bits - fmt.signed) - 1)).astype(np.int64)
    exponent, fraction = magnitude // hidden, magnitude % hidden
    lowest = 1 if fmt.has_zero else 0  # below this exponent field there is no leading one
    steps = xp.where(exponent < lowest, fraction if fmt.subnormals else 0, hidden + fraction)
    shift = xp.maximum(exponent, lowest) - fmt.bias - fmt.man_bits
    values = xp.ldexp(steps.astype(np.float64), shift.astype(np.int32))

    top = ((1 << fmt.exp_bits) - 1) * hidden
    if fmt.specials is Specials.IEEE:
        values = xp.where(magnitude == top, np.inf, xp.where(magnitude > top, np.nan, values))
    elif fmt.specials is Specials.FN:
        values = xp.where(magnitude == top + hidden - 1, np.nan, values)
    elif fmt.specials is Specials.FNUZ:
        values = xp.where(negative & (magnitude == 0), np.nan, values)
    return xp.where(negative, -values, values)  # type: ignore[no-any-return]
