"""Arithmetic against the exact result: on fractions, and on all pairs of a narrow format.

`exact_result` is the specification: an operation on rational numbers, with IEEE 754's rules for
infinities, NaN and the sign of zero spelled out.  `precsim.formats.exact.round` rounds it.

For all pairs at array speed there is a third method.  NumPy's float64 result is the exact one
rounded to nearest, and rounding is monotone: where it differs from every place at which the
format's rounding changes (`tables.places`), the exact result lies on the same side of all of them.
Only where it *is* such a place can the two differ, and there fractions decide.  Nothing of this
is shared with `precsim.formats.arithmetic`, which works with the errors of float64 operations.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from precsim import testing
from precsim.formats import arithmetic, exact
from precsim.formats.codes import decode
from precsim.formats.format import Format
from precsim.formats.modes import Overflow, Rounding
from precsim.formats.quantize import quantize
from precsim.proofs.tables import places, side, table

Array = npt.NDArray[Any]

OPERATIONS = {"add": 2, "sub": 2, "mul": 2, "div": 2, "sqrt": 1, "fma": 3}
"""Name of an operation -> number of its operands."""

ROOT_BITS = 256
"""Binary places to which the specification cuts an irrational root, plus one to say it is cut."""


def exact_result(
    op: str, operands: tuple[float, ...], rounding: str | Rounding = Rounding.NEAREST
) -> Fraction | float:
    """Return what the operation gives before any rounding, by IEEE 754-2019.

    A fraction for a finite result other than zero; for zeros (whose sign matters), infinities and
    NaN a float.  A root that is no fraction is cut to 256 binary places with a 1 behind them: it
    lies on the same side of every number of fewer places.  `rounding` matters for the sign of an
    exact zero sum alone.
    """
    down = rounding == Rounding.DOWN
    match op, operands:
        case "add", (a, b):
            return _sum(a, b, down)
        case "sub", (a, b):
            return _sum(a, -b, down)
        case "mul", (a, b):
            return _product(a, b)
        case "fma", (a, b, c):
            return _sum(_product(a, b), c, down)
        case "div", (a, b):
            return _quotient(a, b)
        case "sqrt", (x,):
            return _root(x)
    msg = f"expected one of {OPERATIONS} with its number of operands; got {op!r}, {operands}"
    raise ValueError(msg)


def _sum(a: Fraction | float, b: Fraction | float, down: bool) -> Fraction | float:
    if not (_finite(a) and _finite(b)):
        return float(a) + float(b) if _finite(a) or _finite(b) or a == b else math.nan
    total = Fraction(a) + Fraction(b)
    if total:
        return total
    if a == 0 and b == 0 and _minus(a) == _minus(b):
        return float(a)
    return -0.0 if down else 0.0


def _product(a: float, b: float) -> Fraction | float:
    if _finite(a) and _finite(b) and a != 0 and b != 0:
        return Fraction(a) * Fraction(b)
    if math.isnan(a) or math.isnan(b) or (0 in (a, b) and not (_finite(a) and _finite(b))):
        return math.nan
    magnitude = 0.0 if 0 in (a, b) else math.inf
    return -magnitude if _minus(a) != _minus(b) else magnitude


def _quotient(a: float, b: float) -> Fraction | float:
    if _finite(a) and _finite(b) and a != 0 and b != 0:
        return Fraction(a) / Fraction(b)
    both_zero, both_infinite = a == b == 0, not _finite(a) and not _finite(b)
    if math.isnan(a) or math.isnan(b) or both_zero or both_infinite:
        return math.nan
    magnitude = math.inf if b == 0 or not _finite(a) else 0.0
    return -magnitude if _minus(a) != _minus(b) else magnitude


def _root(x: float) -> Fraction | float:
    if math.isnan(x) or x < 0:
        return math.nan
    if x in (0, math.inf):
        return x
    scaled = Fraction(x) * 4**ROOT_BITS
    root = math.isqrt(int(scaled))
    cut = scaled != root * root
    return Fraction(2 * root + cut, 2 ** (ROOT_BITS + 1))


def _finite(x: Fraction | float) -> bool:
    return isinstance(x, Fraction) or math.isfinite(x)


def _minus(x: Fraction | float) -> bool:
    return math.copysign(1, x) < 0 if isinstance(x, float) else x < 0


def check_against_fractions(
    op: str,
    operands: tuple[Array, ...],
    fmt: Format,
    rounding: Rounding,
    overflow: Overflow = Overflow.IEEE,
    words: Array | None = None,
) -> int:
    """Check `precsim.arithmetic` against the specification, element by element.

    operands: arrays of one shape.  `words`: the uint32 words of "stochastic".  Returns how many
    results were compared; raises `AssertionError` with the first that differs.
    """
    draws: list[Fraction | None] = [None] * operands[0].size
    if words is not None:
        draws = [Fraction(2 * w + 1, 2**33) for w in words.ravel().tolist()]
    rows = zip(*(x.ravel().tolist() for x in operands), strict=True)
    results = [exact_result(op, row, rounding) for row in rows]
    want = [
        exact.round(r, fmt, rounding, overflow, at) for r, at in zip(results, draws, strict=True)
    ]
    got = getattr(arithmetic, op)(*operands, fmt, rounding, overflow, words)
    law = f"{op} in {fmt.name}, {rounding.value}, {overflow.value}"
    shown = np.array([str(row) for row in zip(*operands, strict=True)])
    return _assert_same(got, np.array(want), shown, law)


def check_by_places(
    op: str,
    operands: tuple[Array, ...],
    fmt: Format,
    rounding: Rounding,
    overflow: Overflow = Overflow.IEEE,
    word: int | None = None,
) -> int:
    """Check `precsim.arithmetic` against float64 with fractions where that cannot tell.

    The fast check, for all pairs of codes: as `check_against_fractions`, but for operands that are
    values of the format, of at most 20 bits, and with one random `word` for all.
    """
    x = np.broadcast_arrays(*(np.asarray(a, np.float64) for a in operands))
    with np.errstate(all="ignore"):
        near = _in_float64(op, *x)
    magnitude, want = np.abs(near), np.empty_like(near)
    for negative in (False, True)[: 1 + fmt.signed]:
        here = (np.signbit(near) == negative) & (near != 0)
        place, goes_up = places(table(fmt), rounding, negative, word)
        k, beyond = (np.searchsorted(place, magnitude[here], way) for way in ("left", "right"))
        at = beyond > k  # on a place, or rounded to it (to_odd has two at every even value)
        if _exact_in_float64(op, fmt):
            ups = np.append(0, np.cumsum(goes_up))
            k += ups[beyond] - ups[k]
        else:
            rows = zip(*(a[here][at].tolist() for a in x), strict=True)
            ends = zip(k[at].tolist(), beyond[at].tolist(), strict=True)
            k[at] = [
                low + sum(_reaches(op, row, place[i], goes_up[i]) for i in range(low, high))
                for row, (low, high) in zip(rows, ends, strict=True)
            ]
        want[here] = side(fmt, rounding, overflow, negative, word=word).results[k]
    zero, lost = near == 0, np.isnan(near) | ((near < 0) & (not fmt.signed))
    rows = zip(*(a[zero].tolist() for a in x), strict=True)
    want[zero] = [exact.round(exact_result(op, row, rounding), fmt, random=0) for row in rows]
    want[lost] = np.nan if fmt.has_nan else 0.0
    words = None if word is None else np.full(near.shape, word, np.uint32)
    got = getattr(arithmetic, op)(*x, fmt, rounding, overflow, words)
    law = f"{op} in {fmt.name}, {rounding.value}, {overflow.value}"
    return _assert_same(got.ravel(), want.ravel(), x, law)


def _in_float64(op: str, *x: Array) -> Array:
    """Return the exact result, correctly rounded to float64 (products are exact there)."""
    if op == "fma":
        return x[0] * x[1] + x[2]
    numpy = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide,
             "sqrt": np.sqrt}[op]  # fmt: skip
    return numpy(*x)  # type: ignore[no-any-return]


def _exact_in_float64(op: str, fmt: Format) -> bool:
    """Whether no result of the operation on values of the format has more than 53 bits."""
    span = (
        fmt.emax - (fmt.emin - fmt.man_bits) + 1
    )  # from the largest value's top to the last place
    bits = {"add": span + 1, "sub": span + 1, "mul": 2 * fmt.precision, "fma": 2 * span + 1}
    return bits.get(op, 54) <= 53


def _reaches(op: str, row: tuple[float, ...], place: float, goes_up: bool) -> bool:
    """Whether the magnitude of the exact result is beyond a place, or at it where that counts."""
    result = exact_result(op, row)
    if not _finite(result):
        return bool(goes_up)
    magnitude = abs(Fraction(result))
    return bool(goes_up) if magnitude == Fraction(place) else magnitude > Fraction(place)


def all_codes(fmt: Format) -> Array:
    """Return the value of every code that rounding can produce, infinities and one NaN included."""
    values = decode(np.arange(2**fmt.bits), fmt)
    return np.append(np.unique(values[~(values < fmt.min) | np.isinf(values)]), [-0.0])


def pairs(fmt: Format) -> tuple[Array, Array]:
    """Return all pairs of values of the format as two flat arrays."""
    values = all_codes(fmt)
    first, second = np.meshgrid(values, values)
    return first.ravel(), second.ravel()


def samples(fmt: Format, op: str, size: int, seed: int = 0) -> tuple[Array, ...]:
    """Return operands that make an operation hard to round: far apart, near ties, cancelling.

    A third are codes at random; in a third the operands are within a few binades of each other; in
    the rest the second is near the result's last place, or makes the sum vanish.  Formats of any
    width within fp32.
    """
    rng = np.random.default_rng([seed, fmt.bits, size])
    codes = rng.integers(0, 2**fmt.bits, (3, size), np.uint64)
    x = decode(codes, fmt)
    specials = x[:, : size // 3]
    specials[~np.isfinite(specials) & (rng.random(specials.shape) < 0.8)] = 1.0
    first, second, third = x
    near, tiny = slice(size // 3, 2 * size // 3), slice(2 * size // 3, size)
    with np.errstate(all="ignore"):
        ratio = np.ldexp(rng.uniform(1, 2, size), rng.integers(-4, 5, size))
        second[near] = (first * ratio)[near]
        distance = np.ldexp(rng.uniform(1, 2, size), -fmt.precision - rng.integers(-2, 3, size))
        second[tiny] = (first * distance)[tiny]
        third[tiny] = (-first * second)[tiny]
        operands = [quantize(v, fmt) for v in (first, second, third)]
    cancel = slice(0, size, 17)
    operands[1][cancel] = -operands[0][cancel]
    return tuple(operands[: OPERATIONS[op]])


def _assert_same(got: Array, want: Array, inputs: Any, law: str) -> int:
    """Compare as `testing.assert_same` does, and name the operands of the first that differs."""
    same = (got == want) & (np.signbit(got) == np.signbit(want)) | (np.isnan(got) & np.isnan(want))
    for i in np.flatnonzero(~same)[:1]:
        row = inputs[i] if isinstance(inputs, np.ndarray) else [float(a.flat[i]) for a in inputs]
        msg = f"{law}: operands {row!s} gave {got[i]!r}, expected {want[i]!r}"
        raise AssertionError(msg)
    return testing.assert_same(got, want, got, law)
