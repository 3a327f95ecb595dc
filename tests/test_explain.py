"""One rounding taken apart: worked examples by hand, and identities that must hold for any input."""

import json
import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from precsim import testing
from precsim.formats import exact
from precsim.formats.explain import explain
from precsim.formats.format import Format
from precsim.formats.registry import element_of, format

SHOWN = """\
0.1 in e4m3 (max 448, min normal 2^-6, min subnormal 2^-9, NaN, no inf)

exactly     0.1000000000000000055511151231257827021181583404541015625
in binary   1.100 | 110011001100110011001100110011001100110011001101 x 2^-4
             kept | discarded
between     0.09375 and 0.1015625 (stochastic rounding goes up with probability 0.8)
value       0.1015625 (normal): x is rounded
code        0x1d = 0 0011 101
window      0.0625 to 0.125, step 5 of 8
hexadecimal 0x1.a000000000000p-4
error       +0.0015625, 0.015625 relative, 0.2 ulp, 0.25 u; rounding nearest"""


def test_the_text_shows_every_step():
    assert str(explain(0.1, "e4m3")) == SHOWN
    assert repr(explain(0.1, "e4m3")) == SHOWN


def test_window_and_offset_place_the_value_in_its_binade():
    """6 is the middle of 4..8; below fp16's 2^-14 the window is the subnormals'."""
    six = explain(6.0, "e4m3")
    assert (six.window, six.offset, six.hexadecimal) == ((4.0, 8.0), 4, "0x1.8000000000000p+2")
    tiny = explain(-(2.0**-24), "fp16")
    assert (tiny.window, tiny.offset) == ((0.0, 2.0**-14), 1)
    assert (explain(math.nan, "fp16").window, explain(3.0, "int8").offset) == (None, None)
    assert six.to_dict()["window"] == [4.0, 8.0]


def test_a_notebook_shows_the_text_with_its_fields_in_colour():
    shown = explain(0.1, "e4m3")._repr_html_()
    for part in ("0", "0011", "101"):
        assert f">{part}</b>" in shown
    assert "&lt;" not in shown
    assert "is rounded" in shown


def test_a_tenth_in_e4m3_worked_by_hand():
    """A tenth is 1.6 * 2^-4; e4m3 has 1.5 and 1.625 there."""
    e = explain(Fraction(1, 10), "e4m3")
    assert (e.lower, e.upper, e.value) == (1.5 / 16, 1.625 / 16, 1.625 / 16)
    assert (e.kept, e.scale, e.tie) == ("1.100", -4, False)
    assert e.discarded == "1100" * 16 + "..."  # 0.8 in binary never ends
    assert e.decimal == "0.1"
    assert e.error == Fraction(1, 640)
    assert (e.relative_error, e.error_ulp, e.error_u) == (1 / 64, 0.2, 0.25)
    assert e.prob_up == 0.8
    assert (e.sign, e.exponent, e.fraction, e.code, e.kind) == ("0", "0011", "101", 0x1D, "normal")


def test_below_zero_up_means_towards_zero():
    e = explain(Fraction(-1, 10), "e4m3")
    assert (e.lower, e.upper, e.value) == (-1.625 / 16, -1.5 / 16, -1.625 / 16)
    assert (e.prob_up, e.sign, e.kept) == (0.2, "1", "1.100")


@pytest.mark.parametrize(
    ("x", "fmt", "kind", "bits", "outcome"),
    [
        (0.0, "fp16", "zero", "0 00000 0000000000", "is a value of the format"),
        (-0.0, "e4m3", "zero", "1 0000 000", "is a value of the format"),
        (2.0**-24, "fp16", "subnormal", "0 00000 0000000001", "is a value of the format"),
        (2.0**-25, "fp16", "zero", "0 00000 0000000000", "underflows to zero"),
        (2049, "fp16", "normal", "0 11010 0000000000", "is halfway between two values"),
        (65520.0, "fp16", "inf", "0 11111 0000000000", "is beyond 65504 and overflows to inf"),
        (-65520.0, "fp16", "inf", "1 11111 0000000000", "is beyond 65504 and overflows to -inf"),
        (464.0, "e4m3", "normal", "0 1111 110", "is beyond the largest value and becomes 448"),
        (465.0, "e4m3", "nan", "0 1111 111", "is beyond 448 and overflows to nan"),
        (math.inf, "fp16", "inf", "0 11111 0000000000", "passes through"),
        (math.nan, "fp16", "nan", "0 11111 1000000000", "passes through"),
        (math.inf, "e4m3", "nan", "0 1111 111", "becomes nan"),
        (math.nan, "e2m1", "zero", "0 00 0", "becomes 0"),
        (-math.inf, "e2m1", "normal", "1 11 1", "becomes -6"),
        (3, "e8m0", "normal", "10000001", "is halfway between two values"),
        (-3, "e8m0", "nan", "11111111", "is negative, and the format has no sign"),
        (-3, "int8", "normal", "1 1111101", "is a value of the format"),
        (1e-5, "fp16_ftz", "zero", "0 00000 0000000000", "underflows to zero"),
    ],
)  # fmt: skip
def test_classes_fields_and_outcomes(x, fmt, kind, bits, outcome):
    e = explain(x, fmt)
    assert (e.kind, e.bits, e.outcome) == (kind, bits, outcome)
    assert f"= {bits}" in str(e)
    assert outcome in str(e)


def test_ends_of_the_range_have_one_neighbour():
    assert (explain(460.0, "e4m3").lower, explain(460.0, "e4m3").upper) == (448.0, None)
    assert (explain(-460.0, "e4m3").lower, explain(-460.0, "e4m3").upper) == (None, -448.0)
    assert explain(460.0, "e4m3").prob_up == 12 / 32  # of going on to the 480 that is not there
    assert (explain(1e6, "fp16").lower, explain(1e6, "fp16").upper) == (65504.0, math.inf)
    assert explain(1e6, "fp16").prob_up == 1.0
    assert (explain(0, "e8m0").lower, explain(0, "e8m0").upper) == (None, 2.0**-127)
    assert "beyond      448.0, the last value" in str(explain(460.0, "e4m3"))
    assert "below       -448.0, the first value" in str(explain(-460.0, "e4m3"))


def test_flushing_leaves_a_gap_between_zero_and_the_smallest_normal():
    smallest = 2.0**-14
    e = explain(smallest * (0.75 + 2.0**-12), "fp16_ftz")  # a quarter of a step above a subnormal
    assert (e.lower, e.upper, e.prob_up, e.value) == (0.0, smallest, 0.0, 0.0)
    e = explain(smallest * (1 - 2.0**-12), "fp16_ftz")  # a quarter of a step below
    assert (e.prob_up, e.value) == (0.75, smallest)


@pytest.mark.parametrize("x", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_has_no_neighbours_and_no_error(x):
    e = explain(x, "e4m3")
    missing = (e.exact, e.lower, e.upper, e.scale, e.prob_up, e.error, e.relative_error)
    assert missing == (None,) * 7
    assert e.decimal == e.kept == e.discarded == ""


FORMATS = st.sampled_from([*testing.GRIDS, format("fp16_ftz"), format("bf16_ftz")])


@given(st.data())
def test_the_parts_add_up_to_the_whole(data):
    fmt = data.draw(FORMATS)
    x = data.draw(testing.doubles() | testing.near_ties(fmt))
    e = explain(x, fmt)
    np.testing.assert_equal(e.value, exact.round(x, fmt))
    assert e.code == exact.encode(e.value, fmt)
    assert e.bits.replace(" ", "") == f"{e.code:0{fmt.bits}b}"
    if e.exact is None:
        return
    assert Fraction(Decimal(e.decimal)) == e.exact == Fraction(x)
    digits = e.kept.replace(".", "") + e.discarded
    places = len(e.kept.partition(".")[2]) + len(e.discarded)
    magnitude = Fraction(int(digits, 2), 2**places) * Fraction(2) ** e.scale
    assert magnitude == abs(e.exact)
    if e.error is not None:
        assert Fraction(e.value) - e.error == e.exact


@given(st.data())
def test_neighbours_bracket_the_input_and_are_adjacent(data):
    fmt = data.draw(st.sampled_from([f for f in testing.GRIDS if f.bits <= 8]))
    x = data.draw(testing.near_ties(fmt) | st.floats(-2 * fmt.max, 2 * fmt.max))
    e, values = explain(x, fmt), fmt.values()
    below, above = [v for v in values if v <= x], [v for v in values if v >= x]
    assert e.lower == (below[-1] if below else -math.inf if fmt.has_inf else None)
    assert e.upper == (above[0] if above else math.inf if fmt.has_inf else None)
    if e.lower is not None and e.upper is not None and e.lower < e.upper < math.inf:
        if e.lower > -math.inf:
            between = (e.exact - Fraction(e.lower)) / (Fraction(e.upper) - Fraction(e.lower))
            assert e.prob_up == float(between)
            assert e.tie == (between == Fraction(1, 2))
    elif e.lower == e.upper:
        assert e.prob_up == 0
        assert e.error == 0


@given(testing.doubles(), FORMATS)
def test_the_dictionary_is_standard_json(x, fmt):
    e = explain(x, fmt)
    back = json.loads(json.dumps(e.to_dict(), allow_nan=False))
    np.testing.assert_equal(float(back["value"]), e.value)
    assert (back["format"], back["bits"], back["outcome"]) == (fmt.name, e.bits, e.outcome)
    assert back["exact"] is None or Fraction(back["exact"]) == e.exact


def test_the_dictionary_names_what_is_not_finite():
    d = explain(-math.inf, "fp16").to_dict()
    assert (d["input"], d["value"], d["exact"], d["rounding"]) == ("-inf", "-inf", None, "nearest")
    assert explain(math.nan, "e4m3").to_dict()["value"] == "nan"
    assert explain(Fraction(1, 3), "fp16").to_dict()["input"] == "1/3"


def test_numbers_of_any_size_are_explained():
    e = explain(Fraction(-(10**5000), 3), "fp16", overflow="saturate")
    assert (e.value, e.decimal[-3:]) == (-65504.0, "...")
    assert json.dumps(e.to_dict(), allow_nan=False)
    assert "overflows to inf" in str(explain(10**5000, "fp16"))
    assert str(explain(5e-324, "fp16")).count("more") == 2  # long strings are shortened in print
    assert len(explain(5e-324, "fp16").discarded) == 1050


def test_numpy_numbers_are_taken_at_their_own_precision():
    assert explain(np.float32(0.1), "fp32").error == 0
    assert explain(np.float32(0.1), "fp32").decimal == "0.100000001490116119384765625"
    assert explain(np.int64(2049), "fp16").tie


def test_a_tie_is_between_two_neighbours():
    assert explain(464.0, "e4m3").tie  # 448 and what would come next
    assert not explain(65536.0 + 32, "fp16").tie  # far beyond both: it overflows, whoever is nearer


def test_rounding_overflow_and_random_reach_the_value():
    assert explain(0.1, "e4m3", "down").value == 0.09375
    assert explain(1e9, "fp16", overflow="saturate").value == 65504.0
    assert explain(0.1, "e4m3", "stochastic", random=0.85).value == 0.09375
    assert "rounding down" in str(explain(0.1, "e4m3", "down"))


def test_a_scaled_format_is_explained_by_its_element():
    assert explain(2.5, "int8").format == element_of(format("int8"))
    assert explain(2.5, "int8").value == 2.0
    assert explain(2.5, "int8").error_u is None


def test_zero_that_becomes_something_has_no_relative_error():
    e = explain(0, "e8m0")
    assert (e.error, e.relative_error, e.error_u) == (Fraction(2) ** -127, None, None)


def test_a_format_of_ones_own_is_explained_too():
    e = explain(1.3, Format("mine", 3, 2))
    assert (e.value, e.bits) == (1.25, "0 011 01")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: explain("0.1", "fp16"), TypeError, "expected one real number.*'0.1'"),
        (lambda: explain(0.1, "fp17"), ValueError, "unknown format 'fp17'"),
        (lambda: explain(0.1, "fp16", "even"), ValueError, "unknown rounding 'even'"),
        (lambda: explain(0.1, "fp16", "stochastic"), ValueError, "stochastic .* needs `random`"),
    ],
)
def test_wrong_input_says_what_would_be_right(call, error, message):
    with pytest.raises(error, match=message):
        call()
