"""Numbers as people type them, read exactly: 0.1 is one tenth, not the float next to it."""

from __future__ import annotations

import math
import re
from fractions import Fraction

LONGEST, FARTHEST = 2000, 5000
"""Characters and decimal or binary exponents up to which a number is read; beyond is a slip."""

_HEX = re.compile(r"([+-]?)0x([0-9a-f]*)\.?([0-9a-f]*)(?:p([+-]?\d+))?", re.IGNORECASE)
_EXPONENT = re.compile(r"[ep]([+-]?\d+)\Z", re.IGNORECASE)


def parse(text: str) -> Fraction | float:
    """Return the number that `text` spells, exactly; NaN, infinities and -0 as floats.

    Read are decimals (0.1, -2.5e-3), hexadecimal floats (0x1.8p-3), fractions (1/3), inf and nan.
    Raises `ValueError` for anything else, and for numbers too long or too large to be meant.
    """
    text = text.strip()
    msg = (
        f"cannot read the number {text[:40]!r}: expected one like 0.1, -2.5e-3, 0x1.8p-3, 1/3, inf"
    )
    if re.fullmatch(r"[+-]?(inf(inity)?|nan)", text, re.IGNORECASE):
        return float(text)
    power = _EXPONENT.search(text)
    if len(text) > LONGEST or (power and abs(int(power[1])) > FARTHEST):
        msg = f"the number {text[:40]!r} is too long or too far from 1 to be shown exactly"
        raise ValueError(msg)
    try:
        value = _read_hex(found) if (found := _HEX.fullmatch(text)) else Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise ValueError(msg) from None
    return math.copysign(0.0, -1) if value == 0 and text.startswith("-") else value


def _read_hex(found: re.Match[str]) -> Fraction:
    """Return sign * whole.fraction * 2^power; the digits may be many more than a float has."""
    sign, whole, fraction, power = found.groups()
    magnitude = Fraction(int(whole + fraction, 16)) * Fraction(2) ** (
        int(power or 0) - 4 * len(fraction)
    )
    return -magnitude if sign == "-" else magnitude
