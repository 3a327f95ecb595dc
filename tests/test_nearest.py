"""The short way to round to nearest: what lies beyond the largest value, NaNs, and odd shapes."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from precsim import testing
from precsim.backend import tier
from precsim.formats.format import Format
from precsim.formats.kernels import plan_for
from precsim.formats.modes import Rounding
from precsim.formats.quantize import quantize
from precsim.formats.registry import element_of, format
from precsim.formats.scratch import SLOT_BYTES

NAN, INF = 0x7FC00000, 0x7F800000
SIGN = 0x80000000


def element(name):
    return element_of(format(name))


def bits(x):
    return np.atleast_1d(np.asarray(x, np.float32)).view(np.uint32).tolist()


def test_most_formats_go_that_way_and_those_that_need_more_do_not():
    short = {n for n in ("fp16", "bf16", "e4m3", "e5m2", "e2m1", "int8", "e4m3fnuz", "fp16_ftz",
                         "e8m0", "tf32") if plan_for(np.dtype("f4"), element(n)).shorter.get(Rounding.NEAREST)}  # fmt: skip
    assert short == {"fp16", "bf16", "e4m3", "e5m2", "e2m1", "int8", "e4m3fnuz", "tf32"}


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e5, 1e12, 1e38])
def test_fp16_is_the_conversion_of_processors_bit_by_bit(scale):
    x = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    with np.errstate(all="ignore"):
        x *= np.float32(scale)
        x[:6] = [np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0]
        want = x.astype(np.float16).astype(np.float32)
    assert bits(quantize(x, "fp16")) == bits(want)


@pytest.mark.parametrize("fmt", ["bf16", "e4m3", "e5m2", "e4m3fnuz", "e5m2fnuz"])
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e3, 1e12, 1e38])
def test_blocks_of_one_size_of_numbers_are_what_ml_dtypes_makes_of_them(fmt, scale):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    name = {"bf16": "bfloat16", "e4m3": "float8_e4m3fn"}.get(fmt, f"float8_{fmt}")
    x = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    with np.errstate(all="ignore"):
        x *= np.float32(scale)
        theirs = x.astype(getattr(ml_dtypes, name)).astype(np.float32)
    testing.assert_same(quantize(x, fmt), theirs, x)


def test_overflow_without_an_infinity_is_one_quiet_nan_of_the_same_sign():
    x = np.array([464, 464.1, -464.1, 1e30, -1e30, np.inf, -np.inf, 1, -448], np.float32)
    want = [*bits(448.0), NAN, NAN | SIGN, NAN, NAN | SIGN, NAN, NAN | SIGN, *bits([1, -448])]
    assert bits(quantize(x, "e4m3")) == want
    x[7] = np.nan  # which changes nothing for the others
    assert bits(quantize(x, "e4m3"))[:7] == want[:7]


def test_overflow_of_a_format_whose_values_are_small_is_infinite_all_the_same():
    fmt = Format("low", 5, 4, bias=40)  # its largest value is below 1: the carrier's top is too far
    assert fmt.max < 1
    x = np.array([fmt.max, 1, -1, np.inf, 2**-60, -(2.0**-60)], np.float32)
    assert bits(quantize(x, fmt)) == [*bits(fmt.max), INF, INF | SIGN, INF, 0, SIGN]


@pytest.mark.parametrize(("fmt", "nan"), [("fp16", NAN), ("bf16", NAN), ("e2m1", 0), ("int8", 0)])
def test_saturation_beside_nan(fmt, nan):
    x = np.array([np.nan, 3.4e38, -np.inf, 1.0, np.inf], np.float32)
    top = element(fmt).max
    got = quantize(x, element(fmt), overflow="saturate")
    assert bits(got) == [nan, *bits([top, -top, 1.0, top])]


@pytest.mark.parametrize("name", ["fp16", "bf16", "e4m3", "int8"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_parts_of_any_length_round_as_the_whole_and_in_place(name, dtype):
    fmt, room = element(name), SLOT_BYTES // np.dtype(dtype).itemsize
    x = np.resize(testing.specimens(fmt, dtype, per_binade=8), room + 3)
    x = np.random.default_rng(0).permutation(x)  # a NaN, an infinity and overflow anywhere
    cuts = [0, 0, 1, 5, 1000, room, room + 3]
    parts = [quantize(x[a:b], fmt) for a, b in itertools.pairwise(cuts)]
    whole = quantize(x, fmt)
    testing.assert_same(whole, np.concatenate(parts), x)
    place = x.copy()
    quantize(place, fmt, out=place)
    testing.assert_same(place, whole, x)


def test_truncation_keeps_infinities_and_brings_other_numbers_back():
    x = np.array([1e30, -1e30, np.inf, -np.inf, np.nan, 1 + 2**-11, -(1 + 2**-11)], np.float32)
    assert bits(quantize(x, "fp16", "toward_zero")) == [
        *bits([65504, -65504]), INF, INF | SIGN, NAN, *bits([1, -1]),
    ]  # fmt: skip
    low_nan = np.array([0x7F800001, 0xFF800001, 0x3F800001], np.uint32).view(np.float32)
    got = quantize(low_nan, "bf16", "toward_zero")  # whose fraction is all in the bits that go
    assert np.isnan(got).tolist() == [True, True, False]
    assert got[2] == 1
    assert bits(quantize(x[:4], "fp16", "toward_zero", "saturate")) == bits([65504, -65504] * 2)


def by_hand(v, fmt, rounding):
    """Return a float rounded to nearest even, or toward zero, by fractions; infinity beyond all."""
    if not math.isfinite(v) or v == 0:
        return v
    exponent = max(math.frexp(v)[1] - 1, fmt.emin) - fmt.man_bits
    size = Fraction(abs(v)) / Fraction(2) ** exponent
    whole = round(size) if rounding is Rounding.NEAREST else math.floor(size)
    found = float(whole * Fraction(2) ** exponent)
    if found > fmt.max:
        found = math.inf if rounding is Rounding.NEAREST else fmt.max
    return math.copysign(found, v)


def near(v):
    """Return a number and those beside it."""
    return [v, np.nextafter(v, 0), np.nextafter(v, math.inf)]


@pytest.mark.parametrize("name", ["bf16", "tf32", "e8m13", "e8m2", "fp16"])
@pytest.mark.parametrize("rounding", [Rounding.NEAREST, Rounding.TOWARD_ZERO])
def test_doubles_of_which_all_are_normal_are_rounded_as_those_are_of_which_some_are_not(
    name, rounding
):
    """Where a block has no others, the bits are added to: that is so at its edges, and not beyond."""
    fmt = element(name)
    middles = [2.0**e * (1 + (k + 0.5) * 2.0**-fmt.man_bits) for e in (-9, 0, 7) for k in range(4)]
    normal = [v for middle in middles for v in near(middle)]
    edges = {
        "none": [],
        "zeros": [0.0, -0.0],
        "smallest": near(2.0**fmt.emin),
        "subnormal": near(2.0**fmt.emin * (1 - 2.0 ** -(fmt.man_bits + 1))),
        "tiny": [5e-324, 2.0**-1022, 2.0 ** (fmt.emin - fmt.man_bits - 1)],
        "largest": near(fmt.max),
        "top": near(2.0**fmt.emax),
        "beyond": near(fmt.max + 2.0 ** (fmt.emax - fmt.man_bits - 1)),
        "special": [math.inf, -math.inf, 1e308],
    }
    for edge, zeros in itertools.product(edges.values(), ([], [0.0, -0.0])):
        x = np.array([sign * v for v in [*normal, *edge, *zeros] for sign in (1, -1)])
        want = [by_hand(v, fmt, rounding) for v in x.tolist()]
        with tier("numpy"):
            testing.assert_same(quantize(x, fmt, rounding), np.array(want), x)
            for v, one in zip(x.tolist(), want, strict=True):
                testing.assert_same(quantize(np.array([v]), fmt, rounding), np.array([one]), v)
