"""Wrong answers that other emulators were seen to give, each with its input and the right answer.

One test for each library; every comment says what that library returned (versions: pychop 0.6.2,
QPyTorch f58bba7, CPFloat 3583976, microxcaling 7bc4195, apytypes 0.5.1, torchao 0.18.0, gfloat
0.5.2, ml_dtypes 0.6.0, PyTorch 2.13.0, fpy2 0.3.0).  `precsim verify --peers` compares whole
classes of inputs with the libraries that are installed.  Block formats are tested with the blocks.
"""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from precsim.formats import exact
from precsim.formats.codes import encode
from precsim.formats.quantize import quantize
from precsim.formats.registry import format

TINY = 2.0**-24
"""The smallest value of fp16."""


def q(x, fmt, *args, **how):
    """Round one number or a list to a Python float or a list of them, in both carriers alike."""
    wide = quantize(np.array(x, np.float64), fmt, *args, **how)
    with np.errstate(over="ignore"):
        narrow = np.array(x, np.float32)
    if np.array_equal(narrow, np.array(x, np.float64), equal_nan=True):
        both = quantize(narrow, fmt, *args, **how)
        np.testing.assert_array_equal(both, wide)
        np.testing.assert_array_equal(np.signbit(both), np.signbit(wide))
    return wide.tolist()


def ups(x, fmt, draws=1 << 12):
    """Return the share of evenly spread random words that take x up from its lower neighbour."""
    words = np.arange(draws, dtype=np.uint32) * np.uint32(2**32 // draws)
    got = quantize(np.full(draws, x), fmt, "stochastic", random=words)
    return float((got > exact.round(x, fmt, "toward_zero")).mean())


def test_pychop_1_values_beyond_the_largest_do_not_vanish():
    x = np.concatenate([np.linspace(65520, 131071, 999), 2.0 ** np.arange(16, 120)])
    assert q(x, "fp16") == [math.inf] * x.size  # 65536 up to 65536, 0.0 up to 131072
    assert q([247.9, 248.0], "e4m3_ieee") == [240.0, math.inf]  # 256
    just_below_2_128 = float(np.float32(3.40282e38))
    assert q(just_below_2_128, "bf16") == math.inf  # 0.0


def test_pychop_2_round_to_odd_leaves_exact_values_alone():
    assert q([1.0, 2.0, 1.0009765625], "fp16", "to_odd") == [1.0, 2.0, 1.0009765625]  # 1.00098
    assert q([1 + 2.0**-12, 2 - 2.0**-12], "fp16", "to_odd") == [1 + 2.0**-10, 2 - 2.0**-10]


def test_pychop_3_ties_away_from_zero_go_away_on_both_sides():
    tie = 1 + 2.0**-11
    assert q([tie, -tie], "fp16", "nearest_away") == [1 + 2.0**-10, -1 - 2.0**-10]  # -1.0
    assert q([tie, -tie], "fp16") == [1.0, -1.0]


def test_pychop_4_directed_modes_at_the_top():
    assert q([-65505.0, 65505.0], "fp16", "down") == [-math.inf, 65504.0]  # -65536
    assert q([-65505.0, 65505.0], "fp16", "up") == [-65504.0, math.inf]  # 65536
    assert q(70000.0, "fp16", "up") == math.inf  # 0
    assert q(70000.0, "fp16", "down") == q(70000.0, "fp16", "toward_zero") == 65504.0  # 0


@pytest.mark.parametrize("fmt", ["e4m3_ieee", "e5m2", "fp16", "e4m3", "bf16"])
def test_pychop_5_just_above_half_the_smallest_value_is_that_value(fmt):
    smallest = format(fmt).smallest_subnormal
    half = smallest / 2
    above, below = (np.nextafter(half, to).item() for to in (1.0, 0.0))
    assert q([half, above, below], fmt) == [0.0, smallest, 0.0]  # 0.0 for all
    assert repr(q(-below, fmt)) == "-0.0"  # 0.0
    if half >= 2.0**-126:
        narrow = np.nextafter(np.float32(half), np.float32(1))
        assert quantize(narrow, fmt) == smallest


def test_qpytorch_6_infinity_nan_ties_and_underflow():
    assert q([65520.0, 70000.0, 1e6, math.inf], "e5m10") == [math.inf] * 4  # 65536 ... 131008
    for fmt in ("e5m10", "e4m3", "bf16"):
        assert math.isnan(q(math.nan, fmt))  # 131008, 480, inf
    assert q([1 + 2.0**-11, 1 + 3 * 2.0**-11], "e5m10") == [1.0, 1 + 2.0**-9]  # 1 + 2^-10
    below_half = np.nextafter(np.float32(TINY / 2), np.float32(0)).item()
    assert q([below_half, -0.0], "e5m10") == [0.0, 0.0]  # 2^-24
    assert repr(q(-0.0, "e5m10")) == "-0.0"  # 0.0


def test_cpfloat_7_nan_payloads_the_largest_e4m3_and_the_share_that_goes_up():
    payloads = np.array([0x7F800001, 0xFF800001, 0x7FFFFFFF], np.uint32).view(np.float32)
    payloads64 = np.array([0x7FF0000000000001, 0xFFFFFFFFFFFFFFFF], np.uint64).view(np.float64)
    for fmt in ("fp16", "bf16", "e5m2", "tf32"):
        assert np.isnan(quantize(payloads, fmt)).all()  # inf
        assert np.isnan(quantize(payloads64, fmt)).all()  # -0
    assert q([448.0, 470.0, 1e9], "e4m3", overflow="saturate") == [448.0] * 3  # 480
    assert abs(ups(65504 + 0.3 * 32, "fp16") - 0.3) < 2**-12  # 0.6
    assert abs(ups(65504 + 0.7 * 32, "fp16") - 0.7) < 2**-12  # 1.0
    assert abs(ups(0.3 * TINY, "fp16") - 0.3) < 2**-12  # 0.6


def test_cpfloat_7_the_draw_does_not_depend_on_threads():
    """With OpenMP its generator had 32 states, and went up for 0 of 200,000 at probability 0.3."""
    x = np.full(1 << 16, 1 + 0.3 * 2.0**-10)
    words = np.random.default_rng(0).integers(0, 2**32, x.size, np.uint32)
    whole = quantize(x, "fp16", "stochastic", random=words)
    with ThreadPoolExecutor(4) as pool:
        parts = [slice(i, i + 4096) for i in range(0, x.size, 4096)]
        pieces = pool.map(lambda p: quantize(x[p], "fp16", "stochastic", random=words[p]), parts)
        np.testing.assert_array_equal(np.concatenate(list(pieces)), whole)
    assert abs((whole > 1).mean() - 0.3) < 0.01


def test_microxcaling_8_elements_tie_to_even_and_do_not_overflow_on_the_way():
    assert q([1.0625, 1.1875, -1.0625], "e4m3") == [1.0, 1.25, -1.0]  # 1.125, 1.25
    largest = float(np.finfo(np.float32).max)
    assert q([largest, -largest], "e4m3", overflow="saturate") == [448.0, -448.0]  # NaN
    below_half = np.nextafter(np.float32(2.0**-10), np.float32(0)).item()
    assert q(below_half, "e4m3") == 0.0  # 2^-9, by floor(log2(x))


def test_apytypes_9_the_largest_subnormal_carries_into_the_smallest_normal():
    x = 1023.5 * TINY
    for rounding in ("nearest", "nearest_away", "up"):
        assert q(x, "fp16", rounding) == 1024 * TINY  # 0.0
    assert ups(1023.3 * TINY, "fp16") == pytest.approx(0.3, abs=2**-12)  # 0.0 came of going up
    word = np.array(0, np.uint32)
    assert quantize(1023.3 * TINY, "fp16", "stochastic", random=word) == 1024 * TINY
    assert abs(ups(0.3 * TINY, "fp16") - 0.3) < 2**-12  # never


def test_universal_10_and_torchao_11_nan_in_a_format_without_nan_is_zero():
    for fmt in ("e2m1", "e3m2", "e2m3", format("int8").element):
        assert q([math.nan, -math.nan], fmt) == [0.0, 0.0]  # 1.0 (torchao), -0 (ml_dtypes)
        assert encode(math.nan, fmt) == 0


def test_gfloat_12_scales_stay_in_their_range_and_tie_up():
    assert q([1e-300, 0.0, -0.0], "e8m0") == [2.0**-127] * 3  # 7.5e-301, 0
    assert math.isnan(q(-1.0, "e8m0"))  # -1
    assert q([3.0, 0.75, 1.5], "e8m0") == [4.0, 1.0, 2.0]  # 2, 0.5


def test_gfloat_12_numbers_and_arrays_agree_about_nan():
    for fmt in ("e2m1", "e3m2", "e2m3", "e8m0", "e4m3"):  # it raised for one, kept NaN in the other
        alone = exact.round(math.nan, fmt)
        assert repr(alone) == repr(q(math.nan, fmt)) == repr(q([math.nan], fmt)[0])


def test_gfloat_12_round_to_odd_does_not_overflow():
    assert q([65536.0, 1e300, -1e300], "fp16", "to_odd") == [65504.0, 65504.0, -65504.0]  # inf


@pytest.mark.parametrize("fmt", ["fp16", "bf16", "e4m3", "e5m2", "e4m3fnuz", "e3m2", "e2m1"])
def test_ml_dtypes_and_torch_13_float64_is_not_rounded_to_float32_first(fmt):
    """They were wrong on every second midpoint, plus or minus one unit in float64's last place."""
    values = np.array([v for v in format(fmt).values() if v >= 0])
    middle = (values[1:] + values[:-1]) / 2
    for towards, want in ((np.inf, values[1:]), (0.0, values[:-1])):
        beside = np.nextafter(middle, towards)
        np.testing.assert_array_equal(quantize(beside, fmt), want)
        np.testing.assert_array_equal(quantize(-beside, fmt), -want)


def test_torch_13_e4m3_saturates_only_where_it_is_asked_to():
    x = [464.0, 465.0, math.inf]
    np.testing.assert_array_equal(q(x, "e4m3"), [448.0, math.nan, math.nan])  # 448 (PyTorch 2.13)
    assert q(x, "e4m3", overflow="saturate") == [448.0] * 3


def test_torch_and_ml_dtypes_13_e8m0_of_zero_and_of_negative_numbers():
    assert q(0.0, "e8m0") == 2.0**-127  # NaN (ml_dtypes)
    assert math.isnan(q(-1.0, "e8m0"))  # 1.0 (PyTorch ignores the sign)
    assert encode([0.0, -1.0], "e8m0").tolist() == [0x00, 0xFF]


def test_fpy2_14_integers_saturate_and_tiny_scales_are_no_nan():
    element = format("int8").element
    assert q([127.6, 128.0, -200.0, 1e30], element) == [127.0, 127.0, -127.0, 127.0]  # -128 wraps
    assert q([2.0**-128, 2.0**-140], "e8m0") == [2.0**-127] * 2  # NaN


def test_numpy_integers_do_not_wrap_and_nan_is_zero():
    element = format("int8").element  # astype(np.int8): 300 gave 44
    assert q([300.0, -300.0, math.nan, math.inf], element) == [127.0, -127.0, 0.0, 127.0]
    assert encode([300.0, -300.0, math.nan], element).tolist() == [127, 0x81, 0]
