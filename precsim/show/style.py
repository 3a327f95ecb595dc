"""The look that every figure and table shares: one hue for each format, exponents as 2^k.

The hues are Okabe and Ito's (2008), which people with any colour vision tell apart, darkened where
text in them would be too pale to read on white.  A family of formats has one hue and its members
differ in line style, so that no meaning rests on colour alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from types import MappingProxyType

from precsim.formats.registry import AnyFormat, element_of
from precsim.formats.registry import format as resolve

BLACK, BLUE, VERMILLION = "#000000", "#0072B2", "#D55E00"
GREEN, SKY, PURPLE, OCHRE, GREY = "#00805E", "#3A93C9", "#B0578D", "#A87400", "#767676"

SOLID, DASHED, DOTTED, DASH_DOT = "solid", "dashed", "dotted", "dashdot"


@dataclass(frozen=True)
class Look:
    """How a format is drawn: hue as "#rrggbb", and a matplotlib line style."""

    hue: str
    line: str = SOLID


LOOKS: MappingProxyType[str, Look] = MappingProxyType(
    {
        "fp64": Look(BLACK, DOTTED),
        "fp32": Look(BLACK),
        "tf32": Look(BLACK, DASHED),
        "fp16": Look(BLUE),
        "bf16": Look(VERMILLION),
        "e5m2": Look(SKY),
        "e5m2fnuz": Look(SKY, DASHED),
        "e4m3": Look(GREEN),
        "e4m3_ieee": Look(GREEN, DASHED),
        "e4m3fnuz": Look(GREEN, DOTTED),
        "e4m3b11fnuz": Look(GREEN, DASH_DOT),
        "e3m4": Look(OCHRE),
        "e3m2": Look(OCHRE, DASHED),
        "e2m3": Look(OCHRE, DOTTED),
        "e2m1": Look(OCHRE, DASH_DOT),
        "e8m0": Look(GREY),
        "int8": Look(PURPLE),
        "int4": Look(PURPLE, DASHED),
    }
)
"""Format name -> look; `look` finds one for every other format too."""

SIGN, EXPONENT, FRACTION = "magenta", "green", "blue"
"""Terminal colours of the three fields of a code; the fields are named in words as well."""


def look(fmt: str | AnyFormat) -> Look:
    """Return the look of a format; one without an entry borrows its nearest relative's hue.

    Scaled elements have the elements' hue, dashed.  Raises `ValueError` for an unknown format.
    """
    found = resolve(fmt)
    element = element_of(found)
    if (name := found.name.removesuffix("_ftz")) in LOOKS:
        return LOOKS[name]
    if element is not found:
        return Look(look(element).hue, DASHED)
    if element.is_integer:
        return Look(PURPLE, DOTTED)
    relatives = {8: "bf16", 5: "fp16" if element.man_bits > 4 else "e5m2", 4: "e4m3", 3: "e3m4"}
    return Look(LOOKS[relatives.get(element.exp_bits, "e8m0")].hue, DOTTED)


def looks(formats: Sequence[str]) -> list[Look]:
    """Return a look for each of several runs, with line styles apart where a format comes again."""
    found: list[Look] = []
    for name in formats:
        own = look(name)
        seen = sum(one.hue == own.hue for one in found)
        styles = [own.line, *(s for s in (SOLID, DASHED, DOTTED, DASH_DOT) if s != own.line)]
        found.append(Look(own.hue, styles[seen % len(styles)]))
    return found


def power(exponent: float) -> str:
    """Return a power of two as text in ASCII: 2^-14."""
    return f"2^{exponent:g}"


def rough(value: float) -> str:
    """Return a number to two significant figures: 0.42, 8.3, 180, 24,000, 2.5e+06, inf."""
    rounded = f"{value:.2g}"
    return f"{float(rounded):,.0f}" if 10 <= abs(float(rounded)) < 1e6 else rounded


def share(part: float) -> str:
    """Return a share in percent, "-" for NaN, which nobody knows.

    One that is not zero never reads 0%, nor an incomplete one 100%.
    """
    if isnan(part):
        return "-"
    if 0 < part < 0.001:
        return "<0.1%"
    part = 1.0 if 1 - 1e-9 < part < 1 else part  # a sum of parts may fall short by its rounding
    if part < 0.1:
        return f"{part:.1%}" if part else "0%"
    return f"{min(part, 0.999):.1%}" if 0.995 <= part < 1 else f"{part:.0%}"
