"""Stochastic rounding on arrays: who goes up for a given word, and with what probability.

`precsim.formats.modes.Stochastic` states the rules and executes them on fractions; here are the
same rules for whole arrays, and `prob_up`, which is the closed form of what a draw does.
"""

from __future__ import annotations

from fractions import Fraction
from numbers import Rational
from typing import Any

import numpy as np
import numpy.typing as npt

from precsim.formats import exact
from precsim.formats.arrays import Array, array_module, as_float
from precsim.formats.format import Format
from precsim.formats.modes import Mode, Rounding, Stochastic, Variant, rounding_mode, stochastic
from precsim.formats.registry import AnyFormat, element_of
from precsim.formats.registry import format as resolve
from precsim.formats.scratch import scratch


def goes_up(variant: Stochastic, rest: Array, words: Array) -> Array:
    """Return where the words take a magnitude at distance `rest` from its lower neighbour up.

    A rest of 0 or NaN never goes up.  Every comparison is exact, and the same in both carriers: t
    has 32 bits and half a cell one more, so float64 holds both, and a power of two scales exactly.
    """
    xp = array_module(rest)
    if variant.variant is Variant.EXACT:
        if rest.dtype == np.float32:
            return _exceeds(rest, words)
        return (words + 0.5) * 2.0**-32 < rest
    if variant.variant is Variant.EQUAL:
        return (words < 1 << 31) & (rest > 0)
    bits = variant.bits or 0
    t = (words >> (32 - bits)).astype(rest.dtype if bits < 24 else np.float64)
    if variant.variant is Variant.C:
        return t < xp.rint(rest * 2.0**bits)  # type: ignore[no-any-return]
    # t < floor(d 2^n) iff t + 1 <= d 2^n, and t < floor(d 2^n + 1/2) iff t + 1/2 <= d 2^n.
    t += 1.0 if variant.variant is Variant.A else 0.5
    t *= 2.0**-bits
    return t <= rest


def _exceeds(rest: Array, words: Array) -> Array:
    """Return where float32 distances exceed (w + 1/2) / 2^32, without leaving float32.

    The first 24 bits of a word fit, and decide unless the distance lies between them and the next
    larger 24 bits: for one in 2^24 of the words, if the distance has more bits at all.
    """
    xp = array_module(rest)
    first, ahead = scratch("first", words), scratch("ahead", rest)
    xp.right_shift(words, np.uint32(8), out=first)
    ahead[...] = first.view(np.int32)  # NumPy converts signed integers faster
    excess = xp.subtract(rest * np.float32(2.0**24), ahead, out=ahead)
    up = excess > 0
    doubtful = up & (excess < 1)
    if doubtful.any():
        up[doubtful] = ((words[doubtful] & 255) + 0.5) / 256 < excess[doubtful]
    return up  # type: ignore[no-any-return]


def prob_up(
    x: npt.ArrayLike | Fraction,
    fmt: str | AnyFormat,
    rounding: str | Mode = Rounding.STOCHASTIC,
) -> Any:
    """Return the probability that x is rounded to the upper of its two neighbours, toward +inf.

    Values of the format never move: 0.  NaN, infinities and negative numbers in a format without a
    sign have no neighbours: NaN (None for a fraction).  Beyond `max` the upper neighbour is the
    virtual next value, that is overflow, whatever becomes of it; beyond that the probability is 1.
    Where subnormals are flushed the neighbours of a small x are 0 and the smallest normal, and a
    format without zero takes all that is smaller to its smallest value: 1.

    x: an integer or `Fraction` gives a `Fraction`, exactly; floats of any shape give float64, the
    exact probability rounded once at most.  For "exact" it is the ideal one, from which the kernels'
    32-bit words differ by at most 2^-33; for the other variants it is what they do.  Of a negative
    x, the probability to go up in magnitude, which is what the variants define, is 1 minus this.

    Raises `ValueError` for a rounding that is not stochastic, and for a scaled format.
    """
    if isinstance(x, Rational):
        return exact.prob_up(x, fmt, rounding)
    exact.prob_up(0, fmt, rounding)  # raises for what is no format, or leaves nothing to chance
    variant, grid = stochastic(rounding_mode(rounding)), element_of(resolve(fmt))
    assert variant is not None
    with np.errstate(all="ignore"):  # a signalling NaN is an invalid conversion
        wide = as_float(x).astype(np.float64)
    return _prob_up(wide, grid, variant)[()]


def _prob_up(x: Array, fmt: Format, variant: Stochastic) -> Array:
    """Compute on arrays what `exact.prob_up` does on fractions."""
    xp = array_module(x)
    with np.errstate(all="ignore"):
        magnitude = xp.abs(x)
        exponent = xp.maximum(xp.frexp(magnitude)[1] - 1, fmt.emin)
        if fmt.is_integer:
            exponent = xp.full_like(exponent, fmt.emin)
        scaled = xp.ldexp(magnitude, fmt.man_bits - exponent)
        steps = xp.floor(scaled)
        lower, upper = (xp.ldexp(s, exponent - fmt.man_bits) for s in (steps, steps + 1))
        away = _share(variant, scaled - steps)
        if variant.variant is Variant.EQUAL:  # the distance itself may underflow
            away = xp.where(magnitude > lower, 0.5, 0.0)
        stays = (magnitude == lower) & (lower <= fmt.max)
        away = xp.where(lower > fmt.max, 1.0, away)
        if not fmt.has_zero:
            away = xp.where(lower < fmt.smallest_normal, 1.0, away)
            stays &= lower >= fmt.smallest_normal
        elif not fmt.subnormals:
            away = xp.where(upper < fmt.smallest_normal, 0.0, away)
            stays &= (lower >= fmt.smallest_normal) | (magnitude == 0)
        chance = xp.where(stays, 0.0, xp.where(x < 0, 1 - away, away))
        known = xp.isfinite(x) & (fmt.signed | (x >= 0))
        return xp.where(known, chance, xp.nan)  # type: ignore[no-any-return]


def _share(variant: Stochastic, rest: Array) -> Array:
    """Compute on arrays what `Stochastic.share` does on fractions; powers of two scale exactly."""
    xp, cells = array_module(rest), float(variant.cells)
    scaled = rest * cells
    whole = xp.floor(scaled)
    match variant.variant:
        case Variant.EXACT:
            return rest
        case Variant.A:
            return whole / cells  # type: ignore[no-any-return]
        case Variant.B:  # not floor(scaled + 0.5): that sum may round
            return (whole + (scaled - whole >= 0.5)) / cells  # type: ignore[no-any-return]
        case Variant.C:
            return xp.rint(scaled) / cells  # type: ignore[no-any-return]
        case Variant.EQUAL:
            return xp.where(rest > 0, 0.5, 0.0)  # type: ignore[no-any-return]
