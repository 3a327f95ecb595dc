"""One rounding taken apart: what the number is exactly, what was cut off, and what is left.

Everything is computed on fractions by `precsim.formats.exact`, so nothing in an explanation is
itself rounded, save the few ratios at its end that are floats for the reader's sake.
"""

from __future__ import annotations

import decimal
import html
import math
from dataclasses import dataclass, fields
from fractions import Fraction
from numbers import Rational
from typing import Any, SupportsFloat

from precsim.formats import exact
from precsim.formats.format import Format, floor_log2
from precsim.formats.modes import Mode, Overflow, Rounding, rounding_mode, stochastic
from precsim.formats.registry import AnyFormat, element_of
from precsim.formats.registry import format as resolve

FIELD_HUES = ("#D55E00", "#0072B2", "#009E73")
"""Colours of sign, exponent and fraction, wherever they are shown (Okabe and Ito's palette)."""

WIDTH = 64
"""Digits and bits shown in full; the text shortens longer strings, the fields never do."""


@dataclass(frozen=True, repr=False)
class Explanation:
    """What became of one number; `str` of it is for people, `to_dict` for programs.

    Fields that a NaN or an infinity does not have (exact value, neighbours, errors ...) are None,
    and so is `relative_error` where zero became something else, and `error_u` for integers.
    """

    input: SupportsFloat
    format: Format
    rounding: Mode
    value: float
    """What the input rounds to."""
    kind: str
    """Class of the value: zero, subnormal, normal, inf or nan."""
    code: int
    """Bit pattern of the value, and the same as strings of its fields."""
    sign: str
    exponent: str
    fraction: str
    exact: Fraction | None = None
    """The input, exactly."""
    decimal: str = ""
    """The same in decimal: every digit, or 40 and an ellipsis where they never end."""
    scale: int | None = None
    """The exponent e in ``x = +-(kept | discarded) * 2^e``."""
    kept: str = ""
    """Significand bits that the format has room for, truncated."""
    discarded: str = ""
    """All the bits after them; empty where the input is a value of the format."""
    lower: float | None = None
    """Largest value of the format that is <= x; None where there is none."""
    upper: float | None = None
    """Smallest value of the format that is >= x; None beyond `max` of a format without infinity."""
    tie: bool = False
    """Whether x lies halfway between two values (`max` and what would come next, in overflow)."""
    prob_up: float | None = None
    """Probability that stochastic rounding goes to the `upper` side, before overflow is looked at."""
    error: Fraction | None = None
    """value - x, exactly."""
    relative_error: float | None = None
    error_ulp: float | None = None
    """Size of the error in units of the format's spacing at x."""
    error_u: float | None = None
    """Size of the relative error in units of the format's unit roundoff u."""

    @property
    def bits(self) -> str:
        """The code as sign, exponent and fraction bits with spaces between them."""
        return " ".join(part for part in (self.sign, self.exponent, self.fraction) if part)

    @property
    def hexadecimal(self) -> str:
        """The value in hexadecimal, as `float.hex` writes it: every bit can be read off."""
        return float(self.value).hex()

    @property
    def window(self) -> tuple[float, float] | None:
        """The two powers of two between which the value lies, the lower one included.

        The subnormals share one window with zero, from 0 to the smallest normal.  None for NaN and
        infinities, and for integers, whose steps do not grow.
        """
        if not math.isfinite(self.value) or self.format.is_integer:
            return None
        size = abs(self.value)
        if size < self.format.smallest_normal:
            return 0.0, self.format.smallest_normal
        low = math.ldexp(1.0, math.frexp(size)[1] - 1)
        return low, 2 * low

    @property
    def offset(self) -> int | None:
        """How many of the window's 2^man_bits steps the value is past its beginning."""
        if self.window is None:
            return None
        low, high = self.window
        return int((abs(self.value) - low) / (high - low) * 2**self.format.man_bits)

    @property
    def outcome(self) -> str:
        """What happened, in a few words."""
        if self.exact is None:
            kept = str(float(self.input)) == str(self.value)
            return "passes through" if kept else f"becomes {self.value:g}"
        if self.error == 0:
            return "is a value of the format"
        if math.isinf(self.value) or (math.isnan(self.value) and self.upper is None):
            return f"is beyond {self.format.max:g} and overflows to {self.value:g}"
        if math.isnan(self.value):
            return "is negative, and the format has no sign"
        if abs(self.exact) > self.format.max and abs(self.value) == self.format.max:
            return f"is beyond the largest value and becomes {self.value:g}"
        if self.value == 0:
            return "underflows to zero"
        return "is halfway between two values" if self.tie else "is rounded"

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON holds it: fractions as "n/d", NaN and infinities as strings."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        found |= {"format": self.format.name, "bits": self.bits, "outcome": self.outcome}
        found |= {"hexadecimal": self.hexadecimal, "window": self.window, "offset": self.offset}
        return {name: _json(value) for name, value in found.items()}

    def __str__(self) -> str:
        lines = [f"{_short(_text(self.input))} in {self.format!r}", ""]
        if self.exact is not None:
            lines += self._exact_lines()
        kind = "" if repr(self.value) == self.kind else f" ({self.kind})"
        lines.append(f"value       {self.value!r}{kind}: x {self.outcome}")
        lines.append(f"code        {self.code:#0{2 + (self.format.bits + 3) // 4}x} = {self.bits}")
        if self.window is not None:
            low, high = self.window
            steps = 2**self.format.man_bits
            lines.append(f"window      {low:g} to {high:g}, step {self.offset} of {steps}")
        lines.append(f"hexadecimal {self.hexadecimal}")
        if self.error:
            lines.append(self._error_line())
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """Return the text for a notebook, the code's fields in the colours of `precsim num`."""
        text = html.escape(str(self))
        parts = (self.sign, self.exponent, self.fraction)
        coloured = " ".join(
            f'<b style="color:{hue}">{part}</b>'
            for part, hue in zip(parts, FIELD_HUES, strict=True)
            if part
        )
        return f"<pre>{text.replace(f'= {self.bits}', f'= {coloured}', 1)}</pre>"

    __repr__ = __str__

    def _exact_lines(self) -> list[str]:
        kept = f"{'-' if (self.exact or 0) < 0 else ''}{self.kept}"
        lines = [f"exactly     {_short(self.decimal)}"]
        if self.discarded:
            lines.append(f"in binary   {kept:>4} | {_short(self.discarded)} x 2^{self.scale}")
            lines.append(f"            {'kept':>{len(kept)}} | discarded")
        else:
            lines.append(f"in binary   {kept} x 2^{self.scale}")
        if self.lower != self.upper:
            ends = [end for end in (self.lower, self.upper) if end is not None]
            single = f"beyond      {ends[0]!r}, the last value"
            if self.lower is None:
                single = f"below       {ends[0]!r}, the first value"
            lines.append(single if len(ends) == 1 else f"between     {ends[0]!r} and {ends[1]!r}")
            if self.prob_up is not None:
                lines[-1] += f" (stochastic rounding goes up with probability {self.prob_up:.6g})"
        return lines

    def _error_line(self) -> str:
        parts = [f"{_float(self.error or Fraction(0)):+.6g}"]
        units = ((self.relative_error, "relative"), (self.error_ulp, "ulp"), (self.error_u, "u"))
        parts += [f"{size:.6g} {unit}" for size, unit in units if size is not None]
        return f"error       {', '.join(parts)}; rounding {self.rounding}"


def explain(
    x: SupportsFloat,
    fmt: str | AnyFormat,
    rounding: str | Mode = Rounding.NEAREST,
    overflow: str | Overflow | None = None,
    random: float | Fraction | None = None,
) -> Explanation:
    """Return how x becomes a value of the format, step by step.

    NaN and infinities have a value, a code and an outcome, and None for the rest.  x is one
    number: a float is taken for exactly what it is (0.1 is 0.1000000000000000055...), and a
    `Fraction` for any other.  A scaled format is explained by its element format, as if the scale
    were 1.  `overflow` and `random` as in `precsim.formats.exact.round`, which decides the value
    and raises for whatever it cannot read.
    """
    grid, mode = element_of(resolve(fmt)), rounding_mode(rounding)
    value = exact.round(x, grid, mode, overflow, random)
    code = exact.encode(value, grid)
    bits = f"{code:0{grid.bits}b}"
    split = int(grid.signed)
    found: dict[str, Any] = {
        "input": x,
        "format": grid,
        "rounding": mode,
        "value": value,
        "kind": _kind(value, grid),
        "code": code,
        "sign": bits[:split],
        "exponent": bits[split : split + grid.exp_bits],
        "fraction": bits[split + grid.exp_bits :],
    }
    if not exact.is_nan(x) and not exact.is_infinite(x):
        found |= _finite(exact.exact(x), value, grid, mode)
    return Explanation(**found)


def _finite(x: Fraction, value: float, fmt: Format, rounding: Mode) -> dict[str, Any]:
    """Return the fields that only a finite number has."""
    steps, spacing, rest = exact.cut(abs(x), fmt)
    lower, upper = _neighbours(x, fmt)
    chance = exact.prob_up(x, fmt, rounding if stochastic(rounding) else Rounding.STOCHASTIC)
    kept = f"{steps:0{fmt.precision}b}"
    if not fmt.is_integer and fmt.man_bits:
        kept = f"{kept[0]}.{kept[1:]}"
    found: dict[str, Any] = {
        "exact": x,
        "decimal": _decimal(x),
        "scale": floor_log2(spacing) + (0 if fmt.is_integer else fmt.man_bits),
        "kept": kept,
        "discarded": _binary(rest),
        "lower": lower,
        "upper": upper,
        "tie": rest == exact.HALF and steps * spacing <= fmt.max,
        "prob_up": None if chance is None else float(chance),
    }
    if math.isfinite(value):
        error = Fraction(value) - x
        relative = abs(error / x) if x else (None if error else Fraction(0))
        found |= {"error": error, "error_ulp": _float(abs(error) / spacing)}
        if relative is not None:
            found["relative_error"] = _float(relative)
            if not fmt.is_integer:
                found["error_u"] = _float(relative / Fraction(fmt.u))
    return found


def _neighbours(x: Fraction, fmt: Format) -> tuple[float | None, float | None]:
    """Return the values on either side of x."""
    if x < 0 and not fmt.signed:
        return None, fmt.min
    steps, spacing, rest = exact.cut(abs(x), fmt)
    inner, outer = steps * spacing, (steps + (rest > 0)) * spacing
    if 0 < abs(x) < fmt.smallest_normal and not fmt.subnormals and fmt.has_zero:
        inner, outer = Fraction(0), Fraction(fmt.smallest_normal)
    near: float | None = float(min(inner, Fraction(fmt.max)))
    far: float | None = math.inf if fmt.has_inf else None
    if outer <= fmt.max:
        far = float(outer)
    if near == 0 and not fmt.has_zero:
        near, far = None, fmt.min
    if x >= 0:
        return near, far
    # Seen from below zero the farther value is the lower one.
    lower, upper = (None if v is None else 0.0 - v for v in (far, near))
    return lower, upper


def _kind(value: float, fmt: Format) -> str:
    """Return the class of a value of the format."""
    if math.isnan(value):
        return "nan"
    if math.isinf(value):
        return "inf"
    if value == 0:
        return "zero"
    return "normal" if abs(value) >= fmt.smallest_normal else "subnormal"


def _binary(rest: Fraction) -> str:
    """Return the bits after the binary point: all of them, or `WIDTH` where they never end."""
    places = rest.denominator.bit_length() - 1
    if rest.denominator == 1 << places:
        return f"{rest.numerator:0{places}b}" if places else ""
    return f"{int(rest * 2**WIDTH):0{WIDTH}b}..."


def _decimal(x: Fraction) -> str:
    """Return a fraction in decimal: every digit if they end, else 40 of them."""
    rest, twos, fives = x.denominator, 0, 0
    while rest % 2 == 0:
        rest, twos = rest // 2, twos + 1
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    # No bit of the numerator and no factor of the denominator takes more than one digit.
    enough = x.numerator.bit_length() + twos + fives + 1
    context = decimal.Context(prec=enough if rest == 1 else 40, Emin=-(10**9), Emax=10**9)
    quotient = context.divide(decimal.Decimal(x.numerator), decimal.Decimal(x.denominator))
    digits = quotient.normalize(context)
    text = f"{digits:f}" if -8 < digits.adjusted() < 24 else f"{digits:e}"
    return text if rest == 1 else text + "..."


def _short(text: str) -> str:
    """Return text with its middle left out where it is too long to read."""
    if len(text) <= WIDTH + 12:
        return text
    return f"{text[: WIDTH - 16]}...({len(text) - WIDTH} more)...{text[-16:]}"


def _text(x: Any) -> str:
    """Return a number as the user would write it; str() refuses integers of over 4300 digits."""
    if not isinstance(x, Rational):
        return str(x)
    top, bottom = (f"{decimal.Decimal(int(part)):f}" for part in (x.numerator, x.denominator))
    return top if bottom == "1" else f"{top}/{bottom}"


def _float(x: Fraction) -> float:
    """Return the nearest float; beyond the largest one, infinity with the sign of x."""
    if abs(x) < Fraction(2) ** 1023:
        return float(x)
    return math.inf if x > 0 else -math.inf


def _json(value: Any) -> Any:
    """Return a value that the json module writes as standard JSON."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, tuple):
        return [_json(part) for part in value]
    return value if isinstance(value, int) and abs(value) < 1 << 64 else _text(value)
