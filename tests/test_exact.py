"""The specification against sources that know nothing of it: tables, NumPy, brute force."""

import itertools
import math
import operator
import struct
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from precsim import testing
from precsim.formats import exact
from precsim.formats.modes import Rounding
from precsim.formats.registry import element_of, format

NARROW = [f for f in testing.GRIDS if f.bits <= 8]
HALF = Fraction(1, 2)


by_name = operator.attrgetter("name")


def same(a, b):
    return (math.isnan(a) and math.isnan(b)) or (
        a == b and math.copysign(1, a) == math.copysign(1, b)
    )


def chosen(below, above, at, odd_above, rounding):
    """Return which of two neighbouring values the definition of a mode picks, 0 < at < 1."""
    inner, outer, odd_outer = below, above, odd_above
    if above <= 0:
        inner, outer, odd_outer = above, below, not odd_above
    return {
        "nearest": below if at < HALF or (at == HALF and odd_above) else above,
        "nearest_away": outer if at == HALF else (below if at < HALF else above),
        "toward_zero": inner,
        "up": above,
        "down": below,
        "to_odd": outer if odd_outer else inner,
    }[rounding]


@pytest.mark.parametrize("rounding", [r for r in Rounding if r is not Rounding.STOCHASTIC])
@pytest.mark.parametrize("fmt", [f for f in NARROW if f.signed], ids=by_name)
def test_rounding_is_what_the_list_of_values_says(fmt, rounding):
    """Evenness is that of a value's place in the list, counted from zero."""
    values = fmt.values()
    for i, (below, above) in enumerate(itertools.pairwise(values)):
        odd_above = (i + 1 - values.index(0.0)) % 2 == 1
        for at in (Fraction(1, 7), HALF - Fraction(1, 10**30), HALF, Fraction(5, 6)):
            x = Fraction(below) + at * (Fraction(above) - Fraction(below))
            assert exact.round(x, fmt, rounding) == chosen(below, above, at, odd_above, rounding)
        assert exact.round(below, fmt, rounding) == below


@given(st.floats())
def test_fp32_and_fp16_are_what_the_processor_and_numpy_make_of_a_double(x):
    with np.errstate(all="ignore"):
        assert same(exact.round(x, "fp32"), float(np.float32(x)))
        assert same(exact.round(x, "fp16"), float(np.float16(x)))
    assert same(exact.round(x, "fp64"), x)


@given(st.fractions() | st.decimals(allow_nan=False, allow_infinity=False))
def test_fp64_is_what_python_makes_of_a_fraction(x):
    assert exact.round(x, "fp64") == float(x)


@pytest.mark.parametrize(
    ("x", "fmt", "want"),
    [
        # OCP OFP8 1.0, and arXiv:2206.02915 for FNUZ.
        (464.0, "e4m3", 448.0), (math.nextafter(464.0, 500), "e4m3", math.nan),
        (61440.0, "e5m2", math.inf), (math.nextafter(61440.0, 0), "e5m2", 57344.0),
        (-65520.0, "fp16", -math.inf), (math.nextafter(65520.0, 0), "fp16", 65504.0),
        (248.0, "e4m3_ieee", math.inf), (248.0, "e4m3fnuz", math.nan),
        (math.inf, "e4m3", math.nan), (-math.inf, "e5m2fnuz", math.nan),
        (-math.inf, "e5m2", -math.inf), (1e300, "e2m1", 6.0), (-math.inf, "e3m2", -28.0),
        (math.nan, "e2m3", 0.0), (-1e-30, "e4m3", -0.0), (-1e-30, "e4m3fnuz", 0.0),
        (-0.0, "bf16", -0.0), (-0.0, "e4m3b11fnuz", 0.0),
        # OCP MX 1.0 scales; ml_dtypes for ties, which all go up.
        (1.5, "e8m0", 2.0), (3.0, "e8m0", 4.0), (0.75, "e8m0", 1.0), (0.0, "e8m0", 2.0**-127),
        (-0.0, "e8m0", 2.0**-127), (1e-300, "e8m0", 2.0**-127), (-1.0, "e8m0", math.nan),
        (1.4999 * 2.0**127, "e8m0", 2.0**127), (1.5 * 2.0**127, "e8m0", math.nan),
        (math.inf, "e8m0", math.nan), (-math.inf, "e8m0", math.nan),
    ],
)  # fmt: skip
def test_published_edges_of_round_to_nearest(x, fmt, want):
    assert same(exact.round(x, fmt), want)


@pytest.mark.parametrize(
    ("x", "fmt", "want"),
    [(465.0, "e4m3", 448.0), (math.inf, "e4m3", 448.0), (-math.inf, "fp16", -65504.0),
     (-1e9, "e4m3fnuz", -240.0), (math.nan, "e4m3", math.nan), (1e300, "e8m0", 2.0**127),
     (math.inf, "e8m0", 2.0**127), (-1.0, "e8m0", math.nan), (-math.inf, "e8m0", math.nan)],
)  # fmt: skip
def test_saturation_clamps_infinities_too_but_not_nan(x, fmt, want):
    assert same(exact.round(x, fmt, overflow="saturate"), want)


@pytest.mark.parametrize(
    ("rounding", "above", "below"),
    [("nearest", math.inf, -math.inf), ("nearest_away", math.inf, -math.inf),
     ("toward_zero", 65504.0, -65504.0), ("to_odd", 65504.0, -65504.0),
     ("up", math.inf, -65504.0), ("down", 65504.0, -math.inf)],
)  # fmt: skip
def test_finite_overflow_follows_the_direction_of_rounding(rounding, above, below):
    """IEEE 754-2019 section 7.4; to_odd as in SoftFloat 3."""
    assert exact.round(1e6, "fp16", rounding) == above
    assert exact.round(-1e6, "fp16", rounding) == below
    assert exact.round(math.inf, "fp16", rounding) == math.inf  # an infinity is no overflow


def test_stochastic_compares_random_with_the_distance_from_the_lower_neighbour():
    x = Fraction(17, 16)  # half way from 1 to 1.125 in e4m3
    assert exact.round(x, "e4m3", "stochastic", random=HALF - Fraction(1, 10**9)) == 1.125
    assert exact.round(x, "e4m3", "stochastic", random=0.5) == 1.0
    assert exact.round(-x, "e4m3", "stochastic", random=0.0) == -1.125
    assert exact.round(1.0, "e4m3", "stochastic", random=0.0) == 1.0


def test_flushing_happens_after_rounding():
    tiny = format("fp16").smallest_normal
    assert exact.round(tiny * (1 - 2.0**-12), "fp16_ftz") == tiny  # rounds up to a normal value
    assert exact.round(tiny * (1 - 2.0**-10), "fp16_ftz") == 0.0
    assert same(exact.round(-tiny / 2, "fp16_ftz"), -0.0)


@pytest.mark.parametrize("number", [3, np.int64(3), np.int8(3), Fraction(3), Decimal(3),
                                    np.float16(3), np.float32(3), np.longdouble(3)])  # fmt: skip
def test_every_kind_of_number_is_taken_exactly(number):
    assert exact.round(number, "e2m1") == 3.0


def test_numbers_beyond_float64_are_taken_exactly():
    assert exact.round(10**400, "fp16", "toward_zero") == 65504.0
    assert exact.round(np.longdouble(1) / 3, "fp16") == float(np.float16(1 / 3))
    just_above_a_tie = Fraction(2049) + Fraction(1, 10**400)
    assert exact.round(just_above_a_tie, "fp16") == 2050.0
    assert exact.round(2049, "fp16") == 2048.0


@pytest.mark.parametrize("fmt", NARROW, ids=by_name)
def test_codes_decode_to_what_ml_dtypes_reads(fmt):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    dtypes = {
        "e5m2": "float8_e5m2", "e4m3": "float8_e4m3fn", "e4m3_ieee": "float8_e4m3",
        "e3m4": "float8_e3m4", "e4m3fnuz": "float8_e4m3fnuz", "e5m2fnuz": "float8_e5m2fnuz",
        "e4m3b11fnuz": "float8_e4m3b11fnuz", "e3m2": "float6_e3m2fn", "e2m3": "float6_e2m3fn",
        "e2m1": "float4_e2m1fn", "e8m0": "float8_e8m0fnu", "int4": "int4",
    }  # fmt: skip
    dtype = np.int8 if fmt.bits == 8 and fmt.is_integer else getattr(ml_dtypes, dtypes[fmt.name])
    theirs = np.arange(2**fmt.bits, dtype=np.uint8).view(dtype).astype(np.float64)
    theirs = (theirs * (fmt.quantum if fmt.is_integer else 1)).tolist()
    for code, value in enumerate(theirs):
        assert same(exact.decode(code, fmt), value), code


@given(st.integers(0, 2**32 - 1))
def test_fp32_codes_are_the_bits_of_the_c_float(code):
    value = struct.unpack("<f", struct.pack("<I", code))[0]
    assert same(exact.decode(code, "fp32"), value)
    if not math.isnan(value):
        assert exact.encode(value, "fp32") == code


@given(st.integers(0, 2**64 - 1))
def test_fp64_codes_are_the_bits_of_the_c_double(code):
    value = struct.unpack("<d", struct.pack("<Q", code))[0]
    assert same(exact.decode(code, "fp64"), value)
    if not math.isnan(value):
        assert exact.encode(value, "fp64") == code


@pytest.mark.parametrize("fmt", NARROW, ids=by_name)
def test_every_value_survives_its_code(fmt):
    assert exact.values(fmt) == fmt.values()
    for value in fmt.values():
        assert same(exact.decode(exact.encode(value, fmt), fmt), value)
    if fmt.has_negative_zero:
        assert same(exact.decode(exact.encode(-0.0, fmt), fmt), -0.0)


def test_flushed_codes_read_as_signed_zeros():
    assert same(exact.decode(0x07, "e4m3_ftz"), 0.0)
    assert same(exact.decode(0x87, "e4m3_ftz"), -0.0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: exact.round("0.1", "fp16"), TypeError, "expected one real number.*'0.1'"),
        (lambda: exact.round([1.0], "fp16"), TypeError, r"expected one real number.*\[1\.0\]"),
        (lambda: exact.round(1j, "fp16"), TypeError, "expected one real number.*1j"),
        (lambda: exact.round(1.0, "fp17"), ValueError, "unknown format 'fp17'"),
        (lambda: exact.round(1.0, "fp16", "round"), ValueError, "unknown rounding 'round': .*nearest,"),
        (lambda: exact.round(1.0, "fp16", overflow="wrap"), ValueError, "expected one of ieee, saturate"),
        (lambda: exact.round(1.0, "fp16", "stochastic"), ValueError, "needs `random`.*None"),
        (lambda: exact.round(1.0, "fp16", "stochastic", random=1.0), ValueError, r"\[0, 1\)"),
        (lambda: exact.round(1.0, "int8"), ValueError, "scaled format.*element, and x / scale"),
        (lambda: exact.decode(256, "e4m3"), ValueError, r"code of e4m3 in 0 \.\. 2\^8 - 1; got 256"),
        (lambda: exact.decode(-1, "e4m3"), ValueError, "got -1"),
        (lambda: exact.encode(0.1, "e4m3"), ValueError, "0.1 is not a value of e4m3.*round it"),
        (lambda: exact.encode(math.nan, "e2m1"), ValueError, "nan is not a value of e2m1"),
        (lambda: exact.encode(math.inf, "e4m3"), ValueError, "inf is not a value of e4m3"),
    ],
)  # fmt: skip
def test_wrong_input_says_what_would_be_right(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_the_element_of_a_scaled_format_rounds():
    int8 = element_of(format("int8"))
    assert [exact.round(x, int8) for x in (0.5, 1.5, -2.5, 127.5, -1e9)] == [0, 2, -2, 127, -127]
    assert same(exact.round(-0.3, int8), 0.0)
