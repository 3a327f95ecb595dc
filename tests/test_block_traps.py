"""Mistakes that block-scaling libraries are known to make, each with the input that shows it.

Every comment says what the library named returned (gfloat 0.5.2, microxcaling 7bc4195, pychop 0.6.2,
universal e6aa357, torchao 0.18.0 in eager mode, fpy2 0.3.0); the expected values follow from OCP MX
1.0, section 6.3, or from the rule named.
"""

import math
from fractions import Fraction

import numpy as np
import pytest

from precsim.formats import exact
from precsim.formats.codes import decode, encode
from precsim.formats.quantize import quantize
from precsim.formats.registry import format

FLOATS = ["mxfp8_e4m3", "mxfp8_e5m2", "mxfp6_e3m2", "mxfp6_e2m3", "mxfp4"]
MX = [*FLOATS, "mxint8"]
CARRIERS = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def block(*numbers, dtype=np.float64):
    """Return a block of 32 that starts with these numbers and goes on with zeros."""
    return np.array([*numbers, *[0.0] * (32 - len(numbers))], dtype)


def scale_of(x, name):
    return decode(encode(x, name)[1], "e8m0").tolist()[0]


# Tiny blocks.  The exponent of the scale is clamped after emax has been subtracted, and elements
# are divided by the scale that is stored.


@CARRIERS
@pytest.mark.parametrize("name", MX)
def test_a_tiny_block_has_the_smallest_scale_and_is_divided_by_it(name, dtype):
    smallest = format("e8m0").min
    x = block(2.0**-126, -(2.0**-127), 1.5 * 2.0**-127, dtype=dtype)
    want = [2.0**-126, -(2.0**-127), 1.5 * 2.0**-127]
    assert scale_of(x, name) == max(smallest, 2.0 ** (-126 - format(name).element.emax))
    assert quantize(x, name)[:3].tolist() == want  # universal: 2.6e-36 for e4m3, 224 times too big


def test_tiny_blocks_of_noise_lose_no_more_than_their_elements_precision():
    x = (np.random.default_rng(0).standard_normal((100, 32)) * 2.0**-125).astype(np.float32)
    codes, scales = encode(x, "mxfp8_e4m3")
    assert (scales == 0).all()
    # torchao stores 2^-127, as here, but divides by 2^-126: every element came out half its size.
    restored = decode(codes, "mxfp8_e4m3", scales=scales)
    error = np.abs(restored - x)
    assert (error <= np.maximum(np.abs(x) / 16, 2.0 ** (-127 - 10))).all()


@CARRIERS
def test_a_block_of_zeros_has_the_smallest_scale_and_keeps_its_signs(dtype):
    x = block(0.0, -0.0, dtype=dtype)
    for name in FLOATS:
        codes, scales = encode(x, name)
        assert scales.tolist() == [0]  # universal: 2^-emax
        assert np.signbit(decode(codes, name, scales=scales))[:2].tolist() == [False, True]
    assert not np.signbit(quantize(x, "mxint8")).any()  # integers have one zero
    assert encode(x, "int8")[1] == 1.0
    assert encode(x, "nvfp4")[1].blocks.tolist() == [0, 0]


def test_a_double_too_small_or_too_large_for_any_scale_stays_finite():
    assert quantize(block(1e-300, -1e-300), "mxfp4")[:2].tolist() == [0.0, -0.0]
    assert scale_of(block(1e-300), "mxfp4") == 2.0**-127  # gfloat's scale format: 7.5e-301
    huge = quantize(block(1e300, -1e300, 1.0), "mxfp8_e4m3")
    assert huge[:3].tolist() == [448 * 2.0**127, -448 * 2.0**127, 0.0]


# amax just below a power of two, where log2 in floats rounds up to it.


@CARRIERS
@pytest.mark.parametrize("name", MX)
def test_amax_just_below_a_power_of_two_belongs_to_the_binade_below(name, dtype):
    # gfloat, microxcaling and pychop took the next scale in over 9 of 10 such blocks.
    powers = np.arange(-100, 100)
    below = np.nextafter(np.ldexp(dtype(1), powers), dtype(0))
    x = np.zeros((powers.size, 32), dtype)
    x[:, 7] = below
    scales = decode(encode(x, name)[1], "e8m0").ravel()
    np.testing.assert_array_equal(scales, np.ldexp(1.0, powers - 1 - format(name).element.emax))


@CARRIERS
def test_amax_just_above_max_takes_the_next_power_when_rounding_up(dtype):
    for name, largest in (
        ("mxfp8_e4m3:rceil", 448),
        ("mxfp4:rceil", 6),
        ("mxint8:rceil", 127 / 64),
    ):
        powers = np.arange(-60, 60)
        x = np.zeros((powers.size, 32), dtype)
        x[:, 0] = np.ldexp(dtype(largest), powers)
        at = decode(encode(x, name)[1], "e8m0").ravel()
        np.testing.assert_array_equal(at, np.ldexp(1.0, powers))
        x[:, 0] = np.nextafter(x[:, 0], dtype(np.inf))
        above = decode(encode(x, name)[1], "e8m0").ravel()  # torchao: ceil(log2) stays below
        np.testing.assert_array_equal(above, np.ldexp(2.0, powers))


def test_the_largest_float32_does_not_overflow_on_the_way():
    top = float(np.finfo(np.float32).max)
    got = quantize(block(top, -top, dtype=np.float32), "mxfp8_e4m3")
    assert got[:2].tolist() == [448 * 2.0**119, -448 * 2.0**119]  # microxcaling: NaN
    # Rounding up to 2^128 is right; only a float32 cannot hold it.
    assert quantize(block(top), "mxfp8_e4m3:rceil")[0] == 2.0**128
    assert quantize(block(top, dtype=np.float32), "mxfp8_e4m3:rceil")[0] == math.inf


# NaN and infinity.


@CARRIERS
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", [*MX, "nvfp4", "e4m3:1x32", "int8:1x32", "int8:1x32:affine"])
def test_nan_and_infinity_take_their_own_block_with_them_and_no_other(name, bad, dtype):
    x = np.random.default_rng(1).standard_normal((3, 96)).astype(dtype)
    want = quantize(x, name)
    width = format(name).block.width
    x[1, 40] = bad  # in block 40 // width of its row
    poisoned = np.zeros(x.shape, bool)
    poisoned[1, 40 // width * width : (40 // width + 1) * width] = True
    got = quantize(x, name)
    # microxcaling all NaN; pychop 0 beside an infinity; gfloat 7.6e40 for it; universal 2.6e-36;
    # torchao's fp4 makes NaN 1.0.
    assert np.isnan(got[poisoned]).all()
    np.testing.assert_array_equal(got[~poisoned], want[~poisoned])
    codes, scales = encode(x, name)
    testable = decode(codes, name, scales=scales)
    np.testing.assert_array_equal(np.isnan(testable), poisoned)


def test_the_scale_of_a_poisoned_block_is_the_nan_of_e8m0():
    x = np.array([block(1.0), block(math.nan, 1.0), block(1.0, -math.inf)])
    assert encode(x, "mxfp4")[1].ravel().tolist() == [125, 255, 255]  # torchao: 253 for infinity


# MXINT8.


def test_mxint8_is_not_clipped_at_one():
    x = block(1.5, -1.5, 1.0, 1.984375)
    assert quantize(x, "mxint8")[:4].tolist() == [1.5, -1.5, 1.0, 1.984375]  # universal: 0.992


def test_minus_two_is_a_value_of_mxint8_and_plus_two_is_not():
    x = block(-1.9999, 1.9999)
    codes, scales = encode(x, "mxint8")
    assert (codes[:2].view(np.int8).tolist(), scales.tolist()) == ([-128, 127], [127])
    assert quantize(x, "mxint8")[:2].tolist() == [-2.0, 1.984375]  # fpy2 wraps to -2 on both sides


# Ties, signs, saturation.


@CARRIERS
def test_ties_inside_a_block_go_to_even(dtype):
    x = block(4.0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, -0.25, -2.5, dtype=dtype)
    want = [4.0, 0.0, 1.0, 1.0, 2.0, 2.0, 4.0, -0.0, -2.0]  # microxcaling: away from zero
    assert quantize(x, "mxfp4")[:9].tolist() == want
    assert np.signbit(quantize(x, "mxfp4"))[7]  # microxcaling and pychop: +0


def test_integers_saturate_and_never_wrap():
    x = np.array([[300.0, -300.0, 1.0]])  # astype(int8): 44
    for name in ("int8:row:floor", "int8:row:full:floor"):
        codes, scales = encode(x, name)
        assert scales == 4.0
        assert codes.view(np.int8).tolist() == [[75, -75, 0]]
    codes, scales = encode(np.array([[255.0, -255.0]]), "int8:row:floor")
    assert (codes.view(np.int8).tolist(), scales) == ([[127, -127]], 2.0)
    codes, _ = encode(np.array([[255.0, -255.0]]), "int8:row:full:floor")
    assert codes.view(np.int8).tolist() == [[127, -128]]


@CARRIERS
@pytest.mark.parametrize("name", ["e4m3:row", "e5m2:row", "e2m1:row", "int8:row", "int4:row"])
def test_dividing_is_not_multiplying_by_the_reciprocal(name, dtype):
    element, wrong, total = format(name).element, 0, 0
    steps = np.arange(8 * 2**element.man_bits) + 0.5
    midpoints = np.unique(steps * element.quantum)
    midpoints = midpoints[midpoints < element.max]
    want = [exact.round(m, element) for m in midpoints.tolist()]
    for scale in np.arange(3.0, 200, 2):
        x = np.array([[element.max, *midpoints]], dtype) * dtype(scale)  # exact
        codes, scales = encode(x, name)
        assert scales == scale
        assert [exact.decode(code, element) for code in codes[0, 1:].tolist()] == want
        reciprocal = x.astype(np.float32) * (np.float32(1) / np.float32(scale))
        theirs = quantize(reciprocal, element, overflow="saturate")[0, 1:]
        wrong += int((theirs != want).sum())
        total += len(want)
    assert 0 < wrong < total  # what torchao and Transformer Engine do, and random data do not show


def test_a_quotient_that_float32_takes_for_a_midpoint_is_not_taken_for_one():
    rng, taken = np.random.default_rng(2), 0
    for amax in rng.uniform(1, 2, 100).astype(np.float32):
        scale = amax / np.float32(127)
        x = ((np.arange(100) + 0.5) * float(scale)).astype(np.float32)
        exactly = [Fraction(v) / Fraction(float(scale)) for v in x.tolist()]
        codes, scales = encode(np.array([amax, *x]), "int8")
        assert scales == scale
        assert codes[1:].tolist() == [round(quotient) for quotient in exactly]
        taken += int((np.rint(x / scale) != codes[1:]).sum())
    assert taken  # a division rounded to float32 gives another integer now and then


# NVFP4.


def test_nvfp4_scales_have_no_floor_at_the_smallest_normal():
    x = np.full(16, 1e-4)
    # One level: 1e-4 / 6 underflows to zero, is raised to 2^-9, and 1e-4 is too small for that.
    # Two levels: nothing is lost.  torchao raises block scales to 2^-6 in both.
    assert encode(np.full(16, 2.0**-8), "e2m1:1x16:e4m3")[1].tolist() == [1]
    assert quantize(np.full(16, 2.0**-8), "e2m1:1x16:e4m3").tolist() == [2.0**-8] * 16
    assert (
        quantize(np.full(16, 2.0**-8), "e2m1:1x16:e4m3:scale_min=0.015625").tolist() == [0.0] * 16
    )
    assert quantize(x, "nvfp4") == pytest.approx(x, rel=1e-6)


def test_nvfp4_block_scales_may_underflow_to_zero_as_in_transformer_engine():
    x = np.zeros((1, 32))
    x[0, 0], x[0, 16:] = 2688.0, 2.0**-11 * 6 * 0.99
    _, scales = encode(x, "nvfp4")
    assert (scales.tensor, scales.blocks.tolist()) == (1.0, [[0x7E, 0]])
    assert quantize(x, "nvfp4")[0, 16:].tolist() == [0.0] * 16
    raised = quantize(x, "e2m1:1x16:e4m3+fp32")[0, 16:]  # 2^-9, the smallest: 3/2 of it is 1 or 2
    assert (raised > 0).all()


def test_a_huge_and_a_tiny_block_share_a_tensor_scale():
    x = np.zeros((1, 32), np.float32)
    x[0, 0], x[0, 16] = 3e38, 1e33
    codes, scales = encode(x, "nvfp4")
    assert scales.tensor == np.float32(np.float64(np.float32(3e38)) / 2688)
    assert decode(scales.blocks, "e4m3").tolist()[0] == [448.0, 2.0**-9]
    assert decode(codes, "nvfp4", scales=scales)[0, 0] == 6 * 448 * float(scales.tensor)
