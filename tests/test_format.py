"""Derived constants against the published tables, and the grammar of names."""

import math
import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import precsim as ps
from precsim import testing
from precsim.formats.format import Format, Specials
from precsim.formats.registry import ALIASES, FORMATS, element_of, format
from precsim.formats.scaled import ROW, Scaled

# Largest, smallest normal, smallest subnormal, bits, significand bits, infinity, NaN, -0.
# IEEE 754-2019 table 3.5; OCP OFP8 1.0 table 1; OCP MX 1.0 tables 2-5 and 7; arXiv:2206.02915.
PUBLISHED = {
    "fp64": (1.7976931348623157e308, 2.0**-1022, 2.0**-1074, 64, 53, True, True, True),
    "fp32": (3.4028234663852886e38, 2.0**-126, 2.0**-149, 32, 24, True, True, True),
    "tf32": (3.4011621342146535e38, 2.0**-126, 2.0**-136, 19, 11, True, True, True),
    "fp16": (65504.0, 2.0**-14, 2.0**-24, 16, 11, True, True, True),
    "bf16": (3.3895313892515355e38, 2.0**-126, 2.0**-133, 16, 8, True, True, True),
    "e5m2": (57344.0, 2.0**-14, 2.0**-16, 8, 3, True, True, True),
    "e4m3": (448.0, 2.0**-6, 2.0**-9, 8, 4, False, True, True),
    "e4m3_ieee": (240.0, 2.0**-6, 2.0**-9, 8, 4, True, True, True),
    "e3m4": (15.5, 2.0**-2, 2.0**-6, 8, 5, True, True, True),
    "e4m3fnuz": (240.0, 2.0**-7, 2.0**-10, 8, 4, False, True, False),
    "e5m2fnuz": (57344.0, 2.0**-15, 2.0**-17, 8, 3, False, True, False),
    "e4m3b11fnuz": (30.0, 2.0**-10, 2.0**-13, 8, 4, False, True, False),
    "e3m2": (28.0, 0.25, 0.0625, 6, 3, False, False, True),
    "e2m3": (7.5, 1.0, 0.125, 6, 4, False, False, True),
    "e2m1": (6.0, 1.0, 0.5, 4, 2, False, False, True),
    "e8m0": (2.0**127, 2.0**-127, 2.0**-127, 8, 1, False, True, False),
    "int8": (127.0, 1.0, 1.0, 8, 7, False, False, False),
    "int4": (7.0, 1.0, 1.0, 4, 3, False, False, False),
    "int8_q6": (1.984375, 2.0**-6, 2.0**-6, 8, 7, False, False, False),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_derived_constants_are_the_published_ones(name):
    f = element_of(format(name))
    derived = (
        f.max, f.smallest_normal, f.smallest_subnormal, f.bits, f.precision,
        f.has_inf, f.has_nan, f.has_negative_zero,
    )  # fmt: skip
    assert derived == PUBLISHED[name]
    assert f.min == (-f.max if f.signed else f.smallest_normal)


def test_every_format_that_one_number_can_take_is_in_the_table():
    assert [f.name for f in testing.GRIDS] == list(PUBLISHED)


@pytest.mark.parametrize("name", ["fp16", "fp32", "fp64"])
def test_constants_agree_with_numpy(name):
    f, info = format(name), np.finfo(np.dtype(name.replace("fp", "float")))
    theirs = (info.max, info.smallest_normal, info.smallest_subnormal, info.eps, info.bits)
    assert (f.max, f.smallest_normal, f.smallest_subnormal, f.eps, f.bits) == theirs
    assert (f.emax, f.emin) == (info.maxexp - 1, info.minexp)


@pytest.mark.parametrize("alias", [a for a in ALIASES if re.match(r"(float[84]_|float6_|bfl)", a)])
def test_constants_agree_with_ml_dtypes_under_its_own_names(alias):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    f, info = format(alias), ml_dtypes.finfo(getattr(ml_dtypes, alias))
    assert f.max == float(info.max)
    assert f.smallest_normal == float(info.smallest_normal)
    assert f.bits == info.bits
    if alias != "float8_e8m0fnu":  # ml_dtypes counts what it calls its smallest subnormal there
        assert f.smallest_subnormal == float(info.smallest_subnormal)


@pytest.mark.parametrize(
    ("x", "spacing"),
    [(0.0, 2.0**-9), (2.0**-9, 2.0**-9), (2.0**-6, 2.0**-9), (1.0, 0.125), (-1.99, 0.125),
     (448.0, 32.0), (1e30, 32.0), (5e-324, 2.0**-9)],
)  # fmt: skip
def test_ulp_is_the_spacing_of_e4m3(x, spacing):
    assert format("e4m3").ulp(x) == spacing


def test_ulp_of_nan_and_infinity_is_nan():
    assert math.isnan(format("fp16").ulp(math.nan))
    assert math.isnan(format("fp16").ulp(-math.inf))


def test_ulp_just_below_a_power_of_two_is_that_of_the_lower_binade():
    below = math.nextafter(2.0**10, 0)  # log2 of it, in floats, is 10
    assert format("fp16").ulp(below) == format("fp16").ulp(2.0**9) == 0.5


def test_values_of_e2m1_are_those_of_the_ocp_table():
    positive = [0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    assert format("e2m1").values() == [-v for v in reversed(positive)] + [0.0, *positive]


def test_values_of_e8m0_are_the_powers_of_two():
    assert format("e8m0").values() == [2.0**e for e in range(-127, 128)]


def test_values_of_a_flushed_format_have_no_subnormals():
    positive = [v for v in format("fp16_ftz").values() if v > 0]
    assert positive[0] == 2.0**-14
    assert len(positive) == 30 * 1024


def test_values_of_a_wide_format_are_refused_with_its_width():
    with pytest.raises(ValueError, match=r"fp32 has about 2\^32 values.*at most 20 bits"):
        format("fp32").values()


@given(testing.formats(max_bits=9), testing.formats(max_bits=9))
def test_contains_is_set_inclusion(wide, narrow):
    assert wide.contains(narrow) == (set(narrow.values()) <= set(wide.values()))


def test_contains_sees_the_gap_that_flushing_leaves():
    # e4m3fnuz reaches down to 2^-10 in subnormals, but has no bits left there for 1.125 * 2^-10.
    assert not format("e4m3fnuz").contains(format("e4m3b11fnuz_ftz"))
    assert format("fp32").contains(format("tf32"))
    assert not format("tf32").contains(format("fp32"))


def test_contains_counts_the_bits_that_values_have_and_not_those_of_their_format():
    three = Format("1, 2 and 3", 1, 1, Specials.FN)  # all of one binade, or below it
    for narrow in (three, Format("one bit less", 1, 2, Specials.FINITE)):
        for wide in (Format("powers", 6, 0, Specials.FINITE), format("e2m1"), format("e3m2")):
            values = set(narrow.values())
            assert wide.contains(narrow) == (values <= set(wide.values())), (wide, narrow)


@pytest.mark.parametrize("name", FORMATS)
def test_repr_prints_the_largest_value(name):
    f = format(name)
    assert f"max {f.max:g}" in repr(f)


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_aliases_name_the_same_format(alias, name):
    assert format(alias) is FORMATS[name]


@given(st.integers(2, 10), st.integers(1, 50))
def test_any_exponent_and_fraction_width_can_be_spelled(exp_bits, man_bits):
    name = f"e{exp_bits}m{man_bits}"
    f = format(name)
    if name not in FORMATS:
        assert (f.exp_bits, f.man_bits, f.specials) == (exp_bits, man_bits, Specials.IEEE)
        assert f.emax == 2 ** (exp_bits - 1) - 1
        assert f.emin == 1 - f.emax


def test_a_registered_name_is_not_spelled_but_looked_up():
    assert format("e4m3").max == 448.0
    assert format("e2m1").specials is Specials.FINITE


def test_suffixes_flush_and_share_scales():
    assert format("FP16_ftz ") == format("fp16").flushed()
    assert format("e4m3:row") == Scaled(format("e4m3"), ROW)
    assert format("int8:column").name == "int8:column"
    assert format("int8").name == "int8"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("fp61", r"unknown format 'fp61': did you mean .*fp16"),
        ("", "unknown format"),
        ("e4m3:rows", "unknown word 'rows'.*tensor, row or column"),
        ("e1m3", "at least 2 exponent bits"),
        ("e5m0", "inf and NaN need 2 exponent bits and 1 fraction bit"),
        ("e12m3", "0 to 11 exponent bits"),
        ("e5m53", "0 to 50 fraction bits"),
    ],
)
def test_a_wrong_name_says_what_would_be_right(spec, message):
    with pytest.raises(ValueError, match=message):
        format(spec)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"exp_bits": 0, "man_bits": 7}, "integer format has no special codes"),
        ({"exp_bits": 4, "man_bits": 3, "specials": "fnuz", "signed": False}, "needs a sign"),
        ({"exp_bits": 8, "man_bits": 0, "specials": "fn", "has_zero": False}, "unsigned"),
        ({"exp_bits": 5, "man_bits": 2, "bias": 2000}, "inside float64's range"),
        ({"exp_bits": 5, "man_bits": 2, "bias": -2000}, "inside float64's range"),
        ({"exp_bits": 11, "man_bits": 4, "specials": "fn"}, "inside float64's range"),
        ({"exp_bits": 11, "man_bits": 4, "signed": False, "has_zero": False}, "float64's range"),
        ({"exp_bits": 4, "man_bits": 3, "specials": "ocp"}, "'ocp' is not a valid Specials"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Format("mine", **fields)


@pytest.mark.parametrize(("int_bits", "frac_bits"), [(2, 6), (8, 8), (4, 0), (1, 7), (2, 22)])
def test_fixed_point_is_a_multiple_of_its_step_rounded_half_to_even(int_bits, frac_bits):
    step, top = Fraction(1, 2**frac_bits), 2 ** (int_bits + frac_bits - 1) - 1
    quarters = [Fraction(k, 4) for k in (*range(-40, 41), 4 * top - 2, 4 * top, 4 * top + 9)]
    expected = [float(step * max(-top, min(top, round(k)))) for k in quarters]
    x = [float(k * step) for k in quarters]
    np.testing.assert_array_equal(ps.quantize(x, f"q{int_bits}.{frac_bits}"), expected)


def test_fixed_point_in_a_policy_rounds_by_chance_to_one_of_two_neighbours():
    assert str(ps.Policy.parse("weights=q2.6:stochastic").weights) == "q2.6:stochastic"
    np.testing.assert_allclose(ps.prob_up(0.25 / 64, "q2.6"), 0.25, rtol=0, atol=0)


@pytest.mark.parametrize("spec", ["q0.8", "q1.0", "q2.23", "q8.8.1"])
def test_fixed_point_that_cannot_be_is_refused(spec):
    with pytest.raises(ValueError, match=r"fixed point needs|unknown format"):
        ps.quantize([1.0], spec)


@pytest.mark.parametrize("spec", [None, 8, np.float16, b"fp16"], ids=str)
def test_what_is_no_text_is_no_format(spec):
    with pytest.raises(TypeError, match="the name of one, such as 'e4m3'"):
        format(spec)


@pytest.mark.parametrize("subnormals", [True, False])
def test_without_a_zero_the_smallest_normal_value_stands_for_all_below_it(subnormals):
    # Codes 0000 .. 1110 are 2^(E - 1) (1 + M/4): 0.5, 0.625, ... 6; there is nothing below 0.5.
    fmt = Format("x", 2, 2, "fn", bias=1, signed=False, has_zero=False, subnormals=subnormals)
    assert fmt.values() == [2.0**e * (1 + m / 4) for e in range(-1, 3) for m in range(4)][:-1]
    x = np.array([0.0, 1e-30, 0.125, 0.3, 0.375, 0.49])
    for mode in ("nearest", "nearest_away", "toward_zero", "up", "down", "to_odd"):
        assert ps.quantize(x, fmt, mode).tolist() == [0.5] * 6
        assert [ps.exact.round(v, fmt, mode) for v in x.tolist()] == [0.5] * 6
    assert ps.prob_up(x, fmt).tolist() == [1.0] * 6
    assert [ps.exact.prob_up(v, fmt) for v in x.tolist()] == [1] * 6
    assert ps.prob_up(fmt.values(), fmt).tolist() == [0.0] * 15


def test_a_format_that_holds_nothing_but_zero_is_refused():
    for exp_bits, specials in ((1, "fn"), (0, "finite")):  # codes: 0 and NaN; 0 alone
        with pytest.raises(ValueError, match="must not be zero"):
            Format("x", exp_bits, 0, specials)
    assert Format("x", 1, 0, "finite").values() == [-2.0, 0.0, 2.0]  # bias 0, so the code 1 is 2^1


@pytest.mark.parametrize("rounding", ["stochastic", "stochastic_a3", "stochastic_equal"])
def test_a_number_of_which_not_even_the_distance_is_a_float_has_a_chance_all_the_same(rounding):
    fmt = Format("x", 4, 3, bias=-100)  # steps of 2^98
    up, down = ps.prob_up([5e-324, -5e-324], fmt, rounding)
    assert (up, down) == ((0.5, 0.5) if rounding.endswith("equal") else (0.0, 1.0))
