"""The executable specification: rounding and bit patterns, one number at a time, on fractions.

Read this file to learn what precsim means by a format; read `kernels.py` and `codes.py` to see how
whole arrays get there fast.  The two share no code, and the tests compare them on every value,
every midpoint and their neighbours.  Nothing here rounds by accident: a `Fraction` is exact, and
the one conversion to float at the end is of a number that float64 holds exactly.

To round: cut the magnitude into whole *steps* of the format's spacing and a rest, decide by the
rest whether one more step is due, and only then look at the ends of the range.
"""

from __future__ import annotations

import math
from fractions import Fraction
from numbers import Rational
from typing import SupportsFloat

from precsim.formats.format import Format, Specials, floor_log2
from precsim.formats.modes import Mode, Overflow, Rounding, rounding_mode, stochastic
from precsim.formats.registry import AnyFormat
from precsim.formats.registry import format as resolve

HALF = Fraction(1, 2)


def round(
    x: SupportsFloat,
    fmt: str | AnyFormat,
    rounding: str | Mode = Rounding.NEAREST,
    overflow: str | Overflow | None = None,
    random: float | Fraction | None = None,
) -> float:
    """Return the value of the format that x rounds to, by the rules in `precsim.formats.modes`.

    NaN stays NaN (formats without NaN: +0).  Infinities and values that round beyond `max` follow
    `overflow` (None: "ieee" where the format has a NaN, else "saturate").  -0 and negative values
    that round to zero give -0 where the format has it.  Formats without a sign: negative numbers
    give NaN (or 0 where there is none); formats without zero: their smallest value takes its place.

    x: a Python or NumPy number, `Fraction` or `Decimal`, taken exactly.  `random`, needed for
    "stochastic", lies in [0, 1): x goes up in magnitude iff random < (|x| - lower)/(upper - lower);
    its other variants look at the first bits of `random` (see `precsim.formats.modes.Stochastic`).
    Raises `ValueError` for unknown names and for scaled formats, `TypeError` where x is no number.
    """
    grid, mode = _grid(fmt), rounding_mode(rounding)
    beyond = Overflow.IEEE if overflow is None else Overflow(overflow)
    if stochastic(mode) and (random is None or not 0 <= random < 1):
        msg = f"stochastic rounding needs `random`, a number in [0, 1); got {random!r}"
        raise ValueError(msg)

    if is_nan(x) or (not grid.signed and x < 0):  # type: ignore[operator]
        return math.nan if grid.has_nan else 0.0
    negative = grid.signed and is_negative(x)
    if is_infinite(x):
        return _signed(_largest(grid, beyond), negative, grid)

    steps, spacing, rest = cut(abs(exact(x)), grid)
    if _goes_up(rest, steps, negative, mode, random):
        steps += 1
    magnitude = steps * spacing

    if magnitude < grid.smallest_normal and not grid.subnormals:
        magnitude = Fraction(0)
    if magnitude == 0 and not grid.has_zero:
        magnitude = Fraction(grid.smallest_normal)
    if magnitude <= grid.max:
        return _signed(float(magnitude), negative, grid)
    if mode in (Rounding.TOWARD_ZERO, Rounding.TO_ODD):
        return _signed(grid.max, negative, grid)
    if mode is (Rounding.UP if negative else Rounding.DOWN):
        return _signed(grid.max, negative, grid)
    return _signed(_largest(grid, beyond), negative, grid)


def cut(magnitude: Fraction, fmt: Format) -> tuple[int, Fraction, Fraction]:
    """Return (steps, spacing, rest) with ``magnitude = (steps + rest) * spacing``, 0 <= rest < 1.

    The spacing is that of the format's values around `magnitude`: constant below the smallest
    normal value, doubling with every binade above it, and going on doubling above `max`.
    """
    exponent = fmt.emin
    if magnitude > 0 and not fmt.is_integer:
        exponent = max(floor_log2(magnitude), fmt.emin)
    spacing = Fraction(2) ** (exponent - fmt.man_bits)
    steps, rest = divmod(magnitude / spacing, 1)
    return int(steps), spacing, rest


def flags(
    x: SupportsFloat,
    fmt: str | AnyFormat,
    rounding: str | Mode = Rounding.NEAREST,
    overflow: str | Overflow | None = None,
    random: float | Fraction | None = None,
) -> frozenset[str]:
    """Return what happens when x is rounded; `precsim.formats.accounting.Counts` says what is what.

    A NaN that stays one, an infinity that stays one and a value of the format that is no subnormal
    raise nothing: the empty set.  Arguments and errors as for `round`.
    """
    grid, mode = _grid(fmt), rounding_mode(rounding)
    result = round(x, grid, mode, overflow, random)
    if is_nan(x):
        return frozenset(() if is_nan(result) else {"nan_lost"})
    below = grid.smallest_normal
    found = {
        "nan_created": is_nan(result),
        "flushed": x != 0 and result == 0,
        "subnormal": 0 < abs(result) < below,
    }
    negative = is_negative(x)
    if is_infinite(x):
        found["saturated"] = abs(result) == grid.max
    else:
        found["inexact"] = is_nan(result) or result != exact(x)
    if not is_infinite(x) and (grid.signed or not negative):
        magnitude = abs(exact(x))
        steps, spacing, rest = cut(magnitude, grid)
        up = _goes_up(rest, steps, negative, mode, random)
        between = (
            grid.has_zero or magnitude >= below
        )  # without a zero, nothing is below the smallest
        found["tie"] = rest == HALF and between and steps * spacing <= grid.max
        found["overflow"] = (steps + up) * spacing > grid.max
        found["saturated"] = found["overflow"] and abs(result) == grid.max
        if 0 < magnitude < below and not grid.is_integer:
            spacing = Fraction(2) ** (floor_log2(magnitude) - grid.man_bits)
            steps, rest = divmod(magnitude / spacing, 1)
            up = _goes_up(rest, int(steps), negative, mode, random)
            found |= {"tiny_before": True, "tiny_after": (steps + up) * spacing < below}
    return frozenset(name for name, happens in found.items() if happens)


def prob_up(
    x: SupportsFloat, fmt: str | AnyFormat, rounding: str | Mode = Rounding.STOCHASTIC
) -> Fraction | None:
    """Return the probability that x is rounded to the upper of its neighbours, the one toward +inf.

    None where x has no neighbours: NaN, infinities, negative numbers in a format without a sign.
    0 for a value of the format, which never moves.  Beyond `max` the farther neighbour is the
    virtual next value, whatever overflow makes of it, and whatever lies beyond that is sure to get
    there.  The neighbours of what would be a flushed subnormal are 0 and the smallest normal value,
    and a format without zero is sure to take what is smaller to its smallest value.

    x is any real number, taken exactly.  Raises as `round` does, and `ValueError` for a rounding
    that is not stochastic.
    """
    grid, variant = _grid(fmt), stochastic(rounding_mode(rounding))
    if variant is None:
        msg = f"rounding {rounding!s} leaves nothing to chance: expected a stochastic one"
        raise ValueError(msg)
    if is_nan(x) or is_infinite(x) or (not grid.signed and x < 0):  # type: ignore[operator]
        return None
    if round(x, grid, Rounding.TOWARD_ZERO, Overflow.SATURATE) == exact(x):
        return Fraction(0)
    steps, spacing, rest = cut(abs(exact(x)), grid)
    away = variant.share(rest)
    below = steps * spacing < grid.smallest_normal
    if steps * spacing > grid.max or (below and not grid.has_zero):
        away = Fraction(1)
    elif not grid.subnormals and (steps + 1) * spacing < grid.smallest_normal:
        away = Fraction(0)
    return 1 - away if x < 0 else away  # type: ignore[operator]


def _goes_up(
    rest: Fraction,
    steps: int,
    negative: bool,
    rounding: Mode,
    random: float | Fraction | None,
) -> bool:
    """Whether a magnitude of steps + rest goes to steps + 1 (a rest of 0 never does)."""
    odd = steps % 2 == 1
    match rounding:
        case Rounding.NEAREST:
            return rest > HALF or (rest == HALF and odd)
        case Rounding.NEAREST_AWAY:
            return rest >= HALF
        case Rounding.TOWARD_ZERO:
            return False
        case Rounding.UP:
            return rest > 0 and not negative
        case Rounding.DOWN:
            return rest > 0 and negative
        case Rounding.TO_ODD:
            return rest > 0 and not odd
    variant = stochastic(rounding)
    return variant is not None and random is not None and variant.goes_up(rest, random)


def _largest(fmt: Format, overflow: Overflow) -> float:
    """Return the magnitude that stands for everything beyond `max`."""
    if overflow is Overflow.IEEE and fmt.has_nan:
        return math.inf if fmt.has_inf else math.nan
    return fmt.max


def _signed(magnitude: float, negative: bool, fmt: Format) -> float:
    """Return the magnitude with its sign; a zero has one only where the format has -0."""
    if magnitude == 0 and not fmt.has_negative_zero:
        return 0.0
    return -magnitude if negative else magnitude


def decode(code: int, fmt: str | AnyFormat) -> float:
    """Return the value of a bit pattern, read field by field: sign, exponent, fraction.

    NaN and infinity where `Specials` says so; -0 where the format has it; the subnormal codes of
    a format that flushes them are zeros.  Integers are two's complement; their lowest code (-128
    in int8), which rounding never produces, is read all the same.
    Raises `ValueError` for a code outside 0 .. 2^bits - 1.
    """
    grid = _grid(fmt)
    if not 0 <= code < 2**grid.bits:
        msg = f"expected a code of {grid.name} in 0 .. 2^{grid.bits} - 1; got {code}"
        raise ValueError(msg)
    if grid.is_integer:
        number = code - 2**grid.bits if grid.signed and code >> (grid.bits - 1) else code
        return number * grid.quantum

    top = 2**grid.exp_bits - 1
    fraction = code % 2**grid.man_bits
    exponent = (code >> grid.man_bits) % 2**grid.exp_bits
    negative = grid.signed and code >> (grid.bits - 1) == 1
    match grid.specials:
        case Specials.IEEE if exponent == top:
            return math.nan if fraction else -math.inf if negative else math.inf
        case Specials.FN if exponent == top and fraction == 2**grid.man_bits - 1:
            return math.nan
        case Specials.FNUZ if negative and exponent == fraction == 0:
            return math.nan
    if exponent == 0 and grid.has_zero:
        magnitude = fraction * grid.quantum if grid.subnormals else 0.0
    else:
        magnitude = 2.0 ** (exponent - grid.bias) * (1 + fraction * grid.eps)
    return -magnitude if negative else magnitude


def encode(value: SupportsFloat, fmt: str | AnyFormat) -> int:
    """Return the bit pattern of a value of the format.

    NaN has many codes in most formats; the answer is the positive quiet one with no payload.
    Raises `ValueError` for a number that is not a value of the format: `round` it first.
    """
    grid = _grid(fmt)
    hidden: int = 2**grid.man_bits  # steps in a binade, and so the place of the exponent field
    top: int = (2**grid.exp_bits - 1) * hidden
    sign_bit: int = 2 ** (grid.bits - 1)
    if is_nan(value) and grid.has_nan:
        nans = {Specials.IEEE: top + hidden // 2, Specials.FN: top + hidden - 1}
        return nans.get(grid.specials, sign_bit)
    sign = sign_bit if grid.signed and is_negative(value) else 0
    if is_infinite(value) and grid.has_inf:
        return sign + top
    if is_nan(value) or is_infinite(value) or round(value, grid) != exact(value):
        msg = f"{value!r} is not a value of {grid!r}: round it first"
        raise ValueError(msg)

    steps, spacing, _ = cut(abs(exact(value)), grid)
    if grid.is_integer:
        return steps if sign == 0 else (2 * sign_bit - steps) % (2 * sign_bit)
    if steps < hidden:  # zero or subnormal: no leading one to hide
        return steps + (sign if steps or grid.has_negative_zero else 0)
    exponent = floor_log2(spacing * hidden) + grid.bias
    return sign + exponent * hidden + (steps - hidden)


def values(fmt: str | AnyFormat) -> list[float]:
    """Every finite value, ascending, found by decoding every code (`Format.values` counts them up).

    -0 and the asymmetric lowest integer are left out.  Meant for formats of at most 16 bits.
    """
    grid = _grid(fmt)
    decoded = {decode(code, grid) for code in range(2**grid.bits)}
    return sorted(v + 0.0 for v in decoded if grid.min <= v <= grid.max)


def exact(x: SupportsFloat) -> Fraction:
    """Return a finite number as the fraction that it is; NaN and infinities raise."""
    if isinstance(x, Rational):  # NumPy integers are rationals with NumPy parts, which overflow
        return Fraction(int(x.numerator), int(x.denominator))
    ratio = x if hasattr(x, "as_integer_ratio") else float(x)
    return Fraction(*ratio.as_integer_ratio())


def is_nan(x: SupportsFloat) -> bool:
    """Whether x is a NaN; raises `TypeError` where x is not a number at all."""
    if isinstance(x, str | bytes) or not hasattr(x, "__float__"):
        msg = f"expected one real number, such as 0.1 or Fraction(1, 3); got {x!r}"
        raise TypeError(msg)
    return bool(x != x)  # noqa: PLR0124 (only a NaN differs from itself)


def is_infinite(x: SupportsFloat) -> bool:
    """Whether x is an infinity (a huge int or fraction is not, though float() would fail on it)."""
    return bool(x in (math.inf, -math.inf))


def is_negative(x: SupportsFloat) -> bool:
    """Whether x carries a minus sign; -0.0 does."""
    return bool(x < 0 or (x == 0 and math.copysign(1, float(x)) < 0))  # type: ignore[operator]


def _grid(fmt: str | AnyFormat) -> Format:
    """Return the format; one that shares a scale is no grid for a single number."""
    found = resolve(fmt)
    if isinstance(found, Format):
        return found
    msg = (
        f"{found.name} is a scaled format, and one number has no tensor to share a scale with: "
        f"pass its element, precsim.format({found.name!r}).element, and x / scale"
    )
    raise ValueError(msg)
