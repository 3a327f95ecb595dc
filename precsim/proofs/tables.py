"""Rounding by looking it up: a second method, which shares no code with the kernels.

Take the codes of a format in ascending order and read each by its fields; that is the table of all
values.  Rounding is monotone, so between two neighbouring values there is exactly one place where
the answer changes: the midpoint for "nearest", the upper value for "toward_zero", just above the
lower one for "up" ...  A rounding mode is nothing but the list of these places.  Express each as
the first carrier number that goes to the upper value, and to round is one `searchsorted`.

All values and places have few enough bits to be exact in float64, up to formats of 20 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from precsim.formats.format import Format, Specials
from precsim.formats.modes import Overflow, Rounding

Array = npt.NDArray[Any]

MOST_BITS = 20
"""Formats wider than this have too many values to list; see `significands` for those."""


@dataclass(frozen=True)
class Table:
    """The magnitudes that a format can take, ascending, with the virtual next one at the end.

    `values[0]` is 0 even where the format has no zero, and subnormals are listed even where the
    format flushes them: rounding happens on the full grid, and only then is its result replaced.
    `odd` says whether the last significand bit is 1, `normal` whether the leading one is there.
    """

    values: Array
    odd: Array
    normal: Array


def table(fmt: Format) -> Table:
    """Read every non-negative code of the format by its fields, and one code more.

    The one after the last finite code is read as if no code were special: that is the virtual
    next value, where the values would go on (480 after e4m3's 448, 128 after int8's 127).
    Raises `ValueError` for formats of more than 20 bits, and for those with float64's exponents,
    which have no next value in float64.
    """
    if fmt.bits > MOST_BITS or fmt.exp_bits > 10:
        msg = f"expected at most {MOST_BITS} bits, 10 of them exponent, for a table; got {fmt!r}"
        raise ValueError(msg)
    hidden = 2**fmt.man_bits
    finite = hidden * 2**fmt.exp_bits
    if fmt.specials is Specials.IEEE:
        finite -= hidden  # the top exponent is infinity and NaN
    elif fmt.specials is Specials.FN:
        finite -= 1  # the last code is NaN
    codes = np.arange(finite + 1)
    field, fraction = codes // hidden, codes % hidden
    normal = (field > 0) | (not fmt.has_zero)
    significand = fraction + hidden * normal
    lowest = 1 if fmt.has_zero else 0
    exponent = np.maximum(field, lowest) - fmt.bias - fmt.man_bits
    values = np.ldexp(significand.astype(np.float64), exponent)
    if not fmt.has_zero:
        values, significand = np.append(0.0, values), np.append(0, significand)
        normal = np.append(False, normal)
    return Table(values, significand % 2 == 1, normal)


def places(
    rows: Table, rounding: Rounding, negative: bool, word: int | None = None
) -> tuple[Array, Array]:
    """Return where the answer changes between each two neighbours: (place, goes up at the place).

    A magnitude beyond its place goes to the upper neighbour, one below it to the lower; the second
    array says what happens exactly there.  Infinity stands for "no finite number overflows".
    `word`, needed for "stochastic", is one 32-bit random word for all: the place is the fraction
    (word + 1/2) / 2^32 of the way.
    """
    lower, upper, odd = rows.values[:-1], rows.values[1:], rows.odd[:-1]
    never, always = np.zeros(lower.size, bool), np.ones(lower.size, bool)
    inward = np.append(upper[:-1], np.inf), always  # truncation stops at the largest value
    match rounding:
        case Rounding.NEAREST:
            return (lower + upper) / 2, odd
        case Rounding.NEAREST_AWAY:
            return (lower + upper) / 2, always
        case Rounding.TOWARD_ZERO:
            return inward
        case Rounding.UP:
            return inward if negative else (lower, never)
        case Rounding.DOWN:
            return (lower, never) if negative else inward
        case Rounding.TO_ODD:
            stays = odd | (np.arange(lower.size) == lower.size - 1)
            return np.where(stays, inward[0], lower), stays
        case Rounding.STOCHASTIC:
            if word is None or not 0 <= word < 2**32:
                msg = f"stochastic rounding needs a word in 0 .. 2^32 - 1; got {word!r}"
                raise ValueError(msg)
            return lower + (upper - lower) * ((2 * word + 1) * 2.0**-33), never


@dataclass(frozen=True)
class Side:
    """One sign's half of a rounding function, as steps.

    A carrier number of magnitude m gives ``results[k]``, where k is how many of `firsts`, an
    ascending array in the carrier's dtype, are at most m.  Infinity is a magnitude like any other;
    a NaN gives `of_nan`.
    """

    firsts: Array
    results: Array
    of_nan: float


def side(
    fmt: Format,
    rounding: Rounding,
    overflow: Overflow,
    negative: bool,
    dtype: npt.DTypeLike = np.float64,
    word: int | None = None,
) -> Side:
    """Return the steps of rounding to the format: numbers of one sign, in one carrier."""
    kind = np.dtype(dtype).type
    nowhere = np.nan if fmt.has_nan else 0.0  # what a NaN becomes, and a negative without a sign
    rows = table(fmt)
    results = rows.values.copy()
    if not fmt.subnormals and fmt.has_zero:
        results[~rows.normal] = 0
    if not fmt.has_zero:
        results[0] = results[1]
    if overflow is Overflow.SATURATE or not fmt.has_nan:
        results[-1] = results[-2]
    else:
        results[-1] = np.inf if fmt.has_inf else np.nan
    if negative and not fmt.signed:  # -0 is a zero like any other; what is below has no place
        firsts = np.array([np.finfo(kind).smallest_subnormal], kind)
        return Side(firsts, np.array([results[0], nowhere]).astype(kind), nowhere)
    if negative:
        results = -results
    if not (fmt.signed and fmt.has_zero) or fmt.is_integer or fmt.specials is Specials.FNUZ:
        results[results == 0] = 0.0  # no code for -0
    place, at_place = places(rows, rounding, negative, word)
    return Side(_first_up(place, at_place, kind), results.astype(kind), nowhere)


def _first_up(place: Array, inclusive: Array, kind: Any) -> Array:
    """Return the smallest carrier number beyond each place, or at it where that counts."""
    with np.errstate(all="ignore"):
        first = place.astype(kind)
    above = kind(np.inf)
    first = np.where(first < place, np.nextafter(first, above), first)
    return np.where((first == place) & ~inclusive, np.nextafter(first, above), first)


def round_by_table(
    x: Array,
    fmt: Format,
    rounding: str | Rounding = Rounding.NEAREST,
    overflow: str | Overflow = Overflow.IEEE,
    word: int | None = None,
) -> Array:
    """Round a float32 or float64 array by `precsim.quantize`'s rules, edge cases and all.

    `word` is the one random word of "stochastic", for all elements.  Slow (0.1 us an element).
    """
    magnitude, out = np.abs(x), np.empty_like(x)
    mode, beyond = Rounding(rounding), Overflow(overflow)
    for negative in (False, True):
        steps = side(fmt, mode, beyond, negative, x.dtype, word)
        here = np.signbit(x) == negative
        out[here] = steps.results[np.searchsorted(steps.firsts, magnitude[here], side="right")]
        out[here & np.isnan(x)] = steps.of_nan
    return out
