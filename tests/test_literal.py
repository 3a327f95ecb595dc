"""Numbers as people type them are read exactly, or not at all."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precsim.formats.literal import parse


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.1", Fraction(1, 10)), ("-2.5e-3", Fraction(-1, 400)), ("1/3", Fraction(1, 3)), ("-1/3", Fraction(-1, 3)),
     ("0x1.8p-3", Fraction(3, 16)), ("-0x.8", Fraction(-1, 2)), ("0X10", Fraction(16)), (" 7 ", Fraction(7)),
     ("0x1.00000000000000001p0", 1 + Fraction(1, 16**17)), ("1e400", Fraction(10**400))],
)  # fmt: skip
def test_a_number_is_read_exactly(text, value):
    assert parse(text) == value


@pytest.mark.parametrize("text", ["inf", "-inf", "Infinity", "nan", "-nan", "-0", "-0.0", "-0x0p0"])
def test_what_has_no_fraction_is_a_float(text):
    value = parse(text)
    assert isinstance(value, float)
    assert math.copysign(1, value) == (-1 if text.startswith("-") else 1)


@pytest.mark.parametrize(
    "text",
    ["", "abc", "1/0", "0x", "0x.", "1e", "1e999999999", "1e-999999999", "0x1p99999999", "1" * 3000,
     "0.1.2", "--1", "1/2/3", "1_000/0", "e5"],
)  # fmt: skip
def test_what_is_no_number_says_so(text):
    with pytest.raises(ValueError, match="number"):
        parse(text)


@given(st.floats(allow_nan=False))
def test_every_float_is_read_back_from_its_hexadecimal_and_decimal_form(x):
    assert parse(x.hex()) == x
    assert float(parse(repr(x))) == x
