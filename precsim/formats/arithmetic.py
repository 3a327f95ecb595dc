"""Arithmetic in any format and rounding mode: the exact result, rounded once.

The processor rounds a float64 result to 53 bits before anybody can round it to the format, and
two roundings are not one.  So each operation here also computes what float64 left out, the error
of the operation, which for these operations is exact in float64 (TwoSum, TwoProduct, the
remainder).  Its sign is enough: the float64 result is rounded *to odd*, that is, if it is inexact
its last bit is made 1, and a number with its last bit set is neither a value of a narrower format
nor a midpoint, so it lies on the same side of both as the exact result does (Boldo and Melquiond
2008, "Emulation of FMA and correctly rounded sums").

Where is plain arithmetic in a wider *carrier*, rounded afterwards, as good?  With P bits in the
carrier and p in the format of operands and result: for ``+ - * / sqrt`` and rounding to nearest,
wherever ``P >= 2p + 2`` (Figueroa 1995).  So float64 serves every format up to fp32, and float32,
the carrier of ``arithmetic="fast"``, those with p <= 11.  It is NOT as good

- to nearest where ``P < 2p + 2``: sums, products and roots of e8m11 (p = 12) in float32;
- for a fused multiply-add done as two operations, whose product has 2p bits: from e5m2 on in
  float32, from bf16 on in float64, to nearest already;
- in the directed modes, to_odd and stochastic rounding, for sums with more than P bits: the
  smaller addend decides the direction, and the carrier has dropped it.  That can be where
  ``emax - emin + p + 1 > P``: from e5m2 on in float32; bf16, tf32 and fp32 in float64 (2^100 +
  2^-100, up).  Products are exact where P >= 2p, and quotients and roots keep to their side;
- for results beyond the carrier's own range.  Those of bf16, tf32 and fp32 overflow float32 to
  an infinity, which "toward_zero" can no longer call finite, and below 2^-126 they are subnormal
  there, with fewer than P bits: tf32 products are then rounded twice even to nearest (those of
  bf16, 16 bits, still fit);
- for an exact zero sum in rounding mode "down": it is -0, and no carrier says so;
- for operands with more bits than the result has: fp32 + fp32 to bf16, in float64 too.

The functions of this module are right in all these cases (`precsim.proofs.arithmetic`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from precsim.formats.arrays import Array, array_module, as_float
from precsim.formats.format import Format
from precsim.formats.modes import Mode, Overflow, Rounding, rounding_mode
from precsim.formats.quantize import quantize
from precsim.formats.registry import AnyFormat
from precsim.formats.registry import format as resolve

Random = Array | np.random.Generator | int | None

SPLITTER = 2.0**27 + 1
"""Veltkamp's constant: it cuts 53 bits into 26 and 26, whose products are exact."""


def add(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    fmt: str | AnyFormat,
    rounding: str | Mode = Rounding.NEAREST,
    overflow: str | Overflow | None = None,
    random: Random = None,
) -> Array:
    """Return a + b, rounded once to the format.

    NaN operands and inf - inf give NaN (+0 in formats without); an infinite operand, like a result
    beyond `max`, follows `overflow`.  An exact zero sum of addends with different signs is +0, but
    -0 in rounding mode "down"; of two zeros with the same sign it is that zero (IEEE 754-2019,
    6.3); formats without -0 have +0 in its place.

    a, b: values of any formats within fp32, not necessarily of `fmt`; broadcast against each
    other; two float32 arrays give float32, everything else float64.  `rounding`, `overflow`,
    `random` (words of the result's shape) as in `quantize`.  Stochastic rounding of results has
    its exact probability for formats of up to 19 significand bits, and to within 2^-29 beyond.
    Raises `ValueError` for an operand that is no float32 value, a format that fp32 does not
    contain, a scaled format, and whatever `quantize` refuses.
    """
    return _rounded_once(_sum, (a, b), fmt, rounding, overflow, random)


def sub(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    fmt: str | AnyFormat,
    rounding: str | Mode = Rounding.NEAREST,
    overflow: str | Overflow | None = None,
    random: Random = None,
) -> Array:
    """Return a - b, rounded once to the format: `add` of a and -b, in every particular."""
    return _rounded_once(
        lambda x, y, mode: _sum(x, -y, mode), (a, b), fmt, rounding, overflow, random
    )


def mul(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    fmt: str | AnyFormat,
    rounding: str | Mode = Rounding.NEAREST,
    overflow: str | Overflow | None = None,
    random: Random = None,
) -> Array:
    """Return a * b, rounded once to the format.

    NaN operands and 0 * inf give NaN (+0 in formats without); inf * x follows `overflow`; a zero
    product, and one that underflows, has the sign of a times the sign of b where the format has
    -0.  Operands, results, errors: as `add`.
    """
    return _rounded_once(lambda x, y, mode: (x * y, None), (a, b), fmt, rounding, overflow, random)


def div(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    fmt: str | AnyFormat,
    rounding: str | Mode = Rounding.NEAREST,
    overflow: str | Overflow | None = None,
    random: Random = None,
) -> Array:
    """Return a / b, rounded once to the format.

    NaN operands, 0/0 and inf/inf give NaN (+0 in formats without); x/0 is an infinity with the
    sign of x times that of the zero, which then follows `overflow`; x/inf is a zero, with that
    sign where the format has -0.  Operands, results, errors: as `add`.
    """
    return _rounded_once(_quotient, (a, b), fmt, rounding, overflow, random)


def sqrt(
    x: npt.ArrayLike,
    fmt: str | AnyFormat,
    rounding: str | Mode = Rounding.NEAREST,
    overflow: str | Overflow | None = None,
    random: Random = None,
) -> Array:
    """Return the square root of x, rounded once to the format.

    NaN and negative numbers give NaN (+0 in formats without); sqrt(-0) is -0 where the format has
    it; sqrt(inf) follows `overflow`.  Operand, result, errors: as `add`.
    """
    return _rounded_once(_root, (x,), fmt, rounding, overflow, random)


def fma(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    c: npt.ArrayLike,
    fmt: str | AnyFormat,
    rounding: str | Mode = Rounding.NEAREST,
    overflow: str | Overflow | None = None,
    random: Random = None,
) -> Array:
    """Return a * b + c, rounded once to the format: the product is not rounded on the way.

    NaN operands, 0 * inf and inf - inf give NaN (+0 in formats without), whatever c is.  The sign
    of an exact zero is that of the sum of product and c (see `add`).  Operands, results, errors:
    as `add`.
    """
    return _rounded_once(
        lambda x, y, z, mode: _sum(x * y, z, mode), (a, b, c), fmt, rounding, overflow, random
    )


def _rounded_once(
    operation: Callable[..., tuple[Array, Array | None]],
    operands: tuple[npt.ArrayLike, ...],
    fmt: str | AnyFormat,
    rounding: str | Mode,
    overflow: str | Overflow | None,
    random: Random,
) -> Array:
    """Apply `operation`, which returns its float64 result and a number with its error's sign."""
    grid, mode = _supported(fmt), rounding_mode(rounding)
    arrays = [as_float(x) for x in operands]
    with np.errstate(all="ignore"):
        result, error = operation(*map(_widened, arrays), mode)
        if error is not None:
            result = _to_odd(result, error)
        rounded = quantize(result, grid, mode, overflow, random)
        return rounded.astype(np.result_type(*arrays), copy=False)


def _sum(a: Array, b: Array, mode: Mode) -> tuple[Array, Array]:
    """Knuth's TwoSum, with the sign that an exact zero has when rounding down."""
    total = a + b
    part = total - a
    error = (a - (total - part)) + (b - part)
    if mode is Rounding.DOWN:
        xp = array_module(total)
        cancelled = (total == 0) & (xp.signbit(a) != xp.signbit(b))
        total = xp.where(cancelled, -0.0, total)
    return total, error


def _quotient(a: Array, b: Array, mode: Mode) -> tuple[Array, Array]:
    """Return a / b; the remainder a - q*b of a rounded quotient q is exact in float64."""
    quotient = a / b
    product, rest = _product(quotient, b)
    return quotient, ((a - product) - rest) * array_module(b).sign(b)


def _root(x: Array, mode: Mode) -> tuple[Array, Array]:
    """Return sqrt(x); the remainder x - s*s of a rounded root s is exact in float64."""
    root = array_module(x).sqrt(x)
    square, rest = _product(root, root)
    return root, (x - square) - rest


def _product(a: Array, b: Array) -> tuple[Array, Array]:
    """Dekker's TwoProduct: the float64 product and what it left out."""
    a_high, b_high = (SPLITTER * x - (SPLITTER * x - x) for x in (a, b))
    a_low, b_low = a - a_high, b - b_high
    product = a * b
    rest = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    return product, rest


def _to_odd(result: Array, error: Array) -> Array:
    """Return the odd one of the two float64 neighbours of result + error; exact ones stay.

    An error of NaN, left by infinite operands, counts as none.
    """
    xp = array_module(result)
    even = xp.asarray(result).view(np.int64) % 2 == 0
    inexact = xp.isfinite(result) & ((error > 0) | (error < 0))
    beside = xp.nextafter(result, xp.where(error > 0, np.inf, -np.inf))
    return xp.where(even & inexact, beside, result)  # type: ignore[no-any-return]


def _widened(x: Array) -> Array:
    """Return x in float64; raise where it is no float32 value, whose products are exact there."""
    wide = x.astype(np.float64)
    other = wide[(x.astype(np.float32) != x) & ~array_module(x).isnan(x)]
    if other.size:
        msg = (
            f"expected operands that are values of fp32 or of a narrower format; got {other[0]!r}: "
            "quantize them first"
        )
        raise ValueError(msg)
    return wide


def _supported(fmt: str | AnyFormat) -> Format:
    """Return the format; raise where its values are beyond fp32, or share a scale."""
    found = resolve(fmt)
    if not isinstance(found, Format):
        msg = (
            f"{found.name} has a scale that a tensor shares, and arithmetic here is between "
            f"numbers: expected a plain format, such as precsim.format({found.name!r}).element"
        )
        raise ValueError(msg)  # noqa: TRY004  (a format of the wrong sort, not type)
    fp32 = resolve("fp32")
    assert isinstance(fp32, Format)
    if not fp32.contains(found):
        msg = f"arithmetic needs a format whose values are all float32 values; got {found!r}"
        raise ValueError(msg)
    return found
