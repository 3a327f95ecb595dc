"""One number on the terminal: taken apart in one format, or side by side in several."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from decimal import Decimal
from fractions import Fraction

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from precsim.formats import exact
from precsim.formats.explain import Explanation
from precsim.formats.modes import Rounding
from precsim.formats.registry import AnyFormat
from precsim.formats.scaled import Scaled
from precsim.show.style import EXPONENT, FRACTION, SIGN, share
from precsim.show.terminal import Cells, Column, brief, ink, table

LONG = 44
"""Digits and bits that are shown of a number before the rest is counted instead."""


def one_format(found: Explanation, typed: str, fmt: AnyFormat) -> RenderableType:
    """Return one number in one format, taken apart: code, value, neighbours, what was cut, error.

    `typed` is how the user wrote the number, `fmt` the format that was asked for.
    """
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for label, content in _facts(found):
        facts.add_row(label, content)
    if isinstance(fmt, Scaled):
        facts.add_row(
            "scale", f"taken as 1 here; {fmt.name} has one in {fmt.scale.name} / {fmt.block}"
        )
    title = Text.assemble((_short(typed), "bold"), f" in {found.format!r}")
    return Group(title, Text(), _code(found), Text(), facts)


def _code(found: Explanation) -> Text:
    """Return the bits in their fields, coloured, with the fields' names below."""
    top, below = Text("  "), Text("  ", style="dim")
    last = "integer" if found.format.is_integer else "fraction"
    fields = ((found.sign, "s", SIGN), (found.exponent, "exponent", EXPONENT),
              (found.fraction, last, FRACTION))  # fmt: skip
    for bits, name, style in fields:
        if bits:
            room = max(len(bits), len(name)) + 2
            top.append(bits.ljust(room), style=f"bold {style}")
            below.append(name.ljust(room))
    return Text("\n").join([top, below])


def _facts(found: Explanation) -> Iterable[tuple[str, Text | str]]:
    """Yield the lines below the code: a label and what it says."""
    kind = "" if repr(found.value) == found.kind else f" ({found.kind})"
    value = Text.assemble((_all_digits(found.value), "bold"), kind)
    yield "value", value.append(f": the input {found.outcome}")
    if formula := _formula(found):
        yield "", formula
    yield "code", _hex(found)
    if found.window is not None:
        low, high = found.window
        steps = 2**found.format.man_bits
        yield "window", f"{low:g} to {high:g}, step {found.offset} of {steps}"
    yield "hex", found.hexadecimal
    if found.exact is None:
        return
    yield "input", f"{_short(found.decimal)}, exactly"
    yield "in binary", _binary(found)
    yield from _neighbours(found)
    if found.error:
        relative = found.relative_error
        sizes = (
            (_size(found.error), "+.6g", ""),
            (relative, ".3g", " of the input"),
            (found.error_ulp, ".4g", " ulp"),
            (found.error_u, ".4g", " u"),
        )
        parts = [f"{size:{spec}}{unit}" for size, spec, unit in sizes if size]
        yield "error", f"{' = '.join(parts)} (rounding {found.rounding})"


def _size(error: Fraction) -> float:
    """Return an error as a float, or 0 where no float comes near it."""
    return float(error) if abs(error) < Fraction(2) ** 1023 else 0.0


def _hex(found: Explanation) -> str:
    return f"{found.code:#0{2 + (found.format.bits + 3) // 4}x}"


def _formula(found: Explanation) -> str:
    """Return how the fields make the value, as in -2^(3 - 7) x (1 + 5/8); "" for inf, NaN and integers."""
    fmt = found.format
    if fmt.is_integer or found.kind not in ("normal", "subnormal", "zero"):
        return ""
    minus = "-" if found.sign == "1" else ""
    steps = int(found.fraction, 2) if found.fraction else 0
    field = int(found.exponent, 2)
    if field == 0 and fmt.has_zero:
        return f"= {minus}2^(1 - {fmt.bias}) x {steps}/{2**fmt.man_bits}"
    return f"= {minus}2^({field} - {fmt.bias}) x (1 + {steps}/{2**fmt.man_bits})"


def _binary(found: Explanation) -> Text:
    minus = "-" if (found.exact or 0) < 0 else ""
    text = Text.assemble(minus, (found.kept, f"bold {FRACTION}"))
    if found.discarded:
        bits = found.discarded
        cut = f"{bits[:LONG]}..." if len(bits) > LONG else bits
        text.append("|").append(cut, style="dim")
    text.append(f" x 2^{found.scale}")
    if found.discarded:
        text.append(" (kept|discarded)", style="dim")
    return text


def _neighbours(found: Explanation) -> Iterable[tuple[str, Text | str]]:
    """Yield the values on either side, and where between them the input lies."""
    if found.lower == found.upper:
        below, above = (_next_value(found, mode) for mode in (Rounding.DOWN, Rounding.UP))
        yield "neighbours", f"{below} and {above}"
        return
    if found.lower is None or found.upper is None or math.isinf(found.lower - found.upper):
        ends = [_decimal(end) for end in (found.lower, found.upper) if end is not None]
        if len(ends) > 1:
            yield "beyond", f"{ends[0]} and {ends[1]}"
        elif found.lower is None:
            yield "below", f"{ends[0]}, the first value"
        else:
            yield "beyond", f"{ends[0]}, the last value"
        return
    lower, upper = Fraction(found.lower), Fraction(found.upper)
    place = float(((found.exact or 0) - lower) / (upper - lower))
    yield "neighbours", _line(found, place)
    tie = ", a tie" if found.tie else ""
    chance = f"stochastic rounding goes up with probability {found.prob_up:.4g}"
    yield "", f"{share(place)} of the way{tie}; {chance}"


def _line(found: Explanation, place: float) -> Text:
    """Return "lower |---*------| upper", the one that was taken in bold."""
    length = 24
    at = min(max(round(place * length), 0), length)
    line = f" |{'-' * at}*{'-' * (length - at)}| "
    parts = [Text(_decimal(end), style="bold" if end == found.value else "") for end in
             (found.lower or 0.0, found.upper or 0.0)]  # fmt: skip
    return Text.assemble(parts[0], (line, "dim"), parts[1])


def _next_value(found: Explanation, mode: Rounding) -> str:
    """Return the value of the format next to one of its values, or say that there is none."""
    fmt, value = found.format, Fraction(found.value)
    step = Fraction(fmt.quantum) / 4
    moved = value - step if mode is Rounding.DOWN else value + step
    if not fmt.min <= moved <= fmt.max:
        return "none above" if mode is Rounding.UP else "none below"
    return _decimal(exact.round(moved, fmt, mode))


COMPARISON = (
    Column("format", justify="left"),
    Column("max", 4),
    Column("code", 3, "left"),
    Column("value", justify="left"),
    Column("relative\nerror", 1),
    Column("in u", 2),
    Column("what happens", 5, "left", folds=True),
)


def several_formats(found: Mapping[str, Explanation], typed: str, width: int) -> RenderableType:
    """Return one number, as the user wrote it, in several formats (by name) side by side."""
    rows: list[Cells] = []
    for name, one in found.items():
        rows.append(
            [
                Text(name, style=ink(name)),
                brief(one.format.max),
                _hex(one) if one.format.bits > 16 else one.bits,
                _decimal(one.value, 20),
                "" if one.relative_error is None else f"{one.relative_error:.3g}",
                "" if one.error_u is None else f"{one.error_u:.3g}",
                one.outcome,
            ]
        )
    return Group(Text(_short(typed), style="bold"), Text(), table(COMPARISON, rows, width))


def _decimal(value: float, most: int = LONG) -> str:
    """Return a float's exact value in decimal where it is short, else the shortest that means it."""
    exactly = format(Decimal(value), "f") if math.isfinite(value) else str(value)
    return exactly if len(exactly) <= most else repr(value)


def _all_digits(value: float) -> str:
    """Return a float's exact value in decimal, or as much of it as can be read."""
    exactly = format(Decimal(value), "f") if math.isfinite(value) else str(value)
    if len(exactly) <= LONG:
        return exactly
    digits, e, power_of_ten = f"{Decimal(value):.36g}".lower().partition("e")
    return f"{digits}...{e}{power_of_ten}"


def _short(text: str) -> str:
    if len(text) <= LONG + 20:
        return text
    return f"{text[:LONG]}... ({len(text) - LONG} more digits)"
