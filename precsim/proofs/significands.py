"""Rounding on integer significands: the second method for formats too wide to list.

A float64 is an integer M < 2^53 times a power of two.  Rounding it to a format is dropping the
`shift` lowest bits of M and deciding, by what was dropped, whether to add one: integer arithmetic
throughout.  No code is shared with the kernels, which let the floating-point adder do the work.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from precsim.formats.format import Format
from precsim.formats.modes import Overflow, Rounding

Array = npt.NDArray[Any]

FAR = 62
"""A shift that leaves nothing of a 53-bit significand, not even half a step."""


def round_by_significand(
    x: Array,
    fmt: Format,
    rounding: str | Rounding = Rounding.NEAREST,
    overflow: str | Overflow = Overflow.IEEE,
    words: Array | None = None,
) -> Array:
    """Round a float32 or float64 array by `precsim.quantize`'s rules, edge cases and all.

    `words` are the uint32 words of "stochastic", of x's shape.
    """
    mode, beyond = Rounding(rounding), Overflow(overflow)
    with np.errstate(invalid="ignore"):  # a signalling NaN signals when it is widened
        wide = np.abs(x).astype(np.float64)
    finite, negative = np.isfinite(wide), np.signbit(x)
    bits = np.where(finite, wide, 0.0).view(np.int64)
    field = np.maximum(bits >> 52, 1)
    significand = (bits & (2**52 - 1)) + ((bits >> 52 > 0).astype(np.int64) << 52)

    # x = significand * 2^(field - 1075), and the format's step there is 2^spacing.
    spacing = np.maximum(field - 1023, fmt.emin) - fmt.man_bits
    if fmt.is_integer:
        spacing = np.full_like(field, fmt.emin - fmt.man_bits)
        # Beyond the top the integer grid has more steps than bits; what is there overflows anyway.
        spacing = np.maximum(spacing, field - 1075)
    shift = spacing - (field - 1075)
    near = np.minimum(shift, FAR)
    steps = significand >> near
    rest = significand - (steps << near)
    steps += _goes_up(rest, near, shift, steps % 2 == 1, negative, mode, words)

    top = 2**fmt.man_bits - 1 if fmt.is_integer else 0
    if not fmt.subnormals and fmt.has_zero:
        steps[(steps < 2**fmt.man_bits) & (spacing == fmt.emin - fmt.man_bits)] = 0
    with np.errstate(over="ignore"):
        magnitude = np.ldexp(steps.astype(np.float64), spacing)
    if not fmt.has_zero:
        magnitude = np.maximum(magnitude, 2.0**fmt.emin)
    largest = float(top) * fmt.quantum if fmt.is_integer else fmt.max

    over = magnitude > largest
    none = Overflow.SATURATE is beyond or not fmt.has_nan
    replacement = largest if none else np.inf if fmt.has_inf else np.nan
    inward = {Rounding.TOWARD_ZERO: over, Rounding.TO_ODD: over,
              Rounding.UP: negative, Rounding.DOWN: ~negative}  # fmt: skip
    magnitude = np.where(over & inward.get(mode, ~over), largest, magnitude)
    magnitude = np.where(magnitude > largest, replacement, magnitude)
    magnitude = np.where(np.isinf(wide), replacement, magnitude)
    out = np.where(negative & fmt.signed, -magnitude, magnitude)
    if not fmt.has_negative_zero:
        out = out + 0.0
    lost = np.isnan(x) | ((x < 0) & (not fmt.signed))
    return np.where(lost, np.nan if fmt.has_nan else 0.0, out).astype(x.dtype)


def _goes_up(
    rest: Array,
    near: Array,
    shift: Array,
    odd: Array,
    negative: Array,
    mode: Rounding,
    words: Array | None,
) -> Array:
    """Return where the dropped bits add a step; `rest` is them, of `shift` bits (`near`, capped)."""
    half = np.left_shift(1, np.maximum(near - 1, 0))
    up: Array = np.zeros_like(odd)
    match mode:
        case Rounding.NEAREST:
            up = (rest > half) | ((rest == half) & odd & (near > 0))
        case Rounding.NEAREST_AWAY:
            up = (rest >= half) & (near > 0)
        case Rounding.UP:
            up = (rest > 0) & ~negative
        case Rounding.DOWN:
            up = (rest > 0) & negative
        case Rounding.TO_ODD:
            up = (rest > 0) & ~odd
        case Rounding.STOCHASTIC:
            if words is None:
                msg = "stochastic rounding needs `words`, uint32 of x's shape"
                raise ValueError(msg)
            # rest / 2^shift > (2 word + 1) / 2^33, both sides brought to 33 bits and a remainder.
            place = 2 * words.astype(np.int64) + 1
            cut, grown = np.clip(shift - 33, 0, FAR), np.clip(33 - shift, 0, 33)
            head = (rest >> cut) << grown
            tail = rest - (rest >> cut << cut)
            up = (head > place) | ((head == place) & (tail > 0))
    return up
