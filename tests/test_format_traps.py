"""Mistakes that number-format emulators are known to make, each with the input that shows it.

Expected values are worked out by hand or taken from the standard or vendor document named; where
a peer gets it wrong, the comment says what it gives.
"""

import math
import warnings

import numpy as np
import pytest

from precsim import testing
from precsim.formats.codes import decode, encode
from precsim.formats.quantize import quantize
from precsim.formats.registry import format

NARROW = [f for f in testing.GRIDS if not f.is_integer and f.name != "fp64"]
MODES = ["nearest", "nearest_away", "toward_zero", "up", "down", "to_odd", "stochastic"]


def q(x, fmt, *args, dtype=np.float64, **how):
    """Round one number or a list, in the carrier `dtype`, to a list or a Python float."""
    return quantize(np.array(x, dtype), fmt, *args, **how).tolist()


def same(a, b):
    """Equal, NaN to NaN and -0 to -0; the sign of a NaN is nothing."""
    signs = (np.where(np.isnan(v), False, np.signbit(v)) for v in (a, b))
    return np.array_equal(a, b, equal_nan=True) and np.array_equal(*signs)


# 1. Overflow in e4m3 is decided after rounding, as if 480 were the next value.


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_e4m3_keeps_448_up_to_and_including_464(dtype):
    above = float(np.nextafter(dtype(464), dtype(500)))
    x = [448.0, 449.0, 464.0, above, 480.0, -464.0, -above]
    want = [448.0, 448.0, 448.0, math.nan, math.nan, -448.0, math.nan]
    assert same(q(x, "e4m3", dtype=dtype), want)
    assert q(x, "e4m3", overflow="saturate", dtype=dtype) == [448.0] * 5 + [-448.0] * 2


def test_infinity_follows_the_overflow_policy():
    """OCP OFP8 1.0 section 5.2: NaN without saturation, the largest value with it."""
    assert same(q([math.inf, -math.inf], "e4m3"), [math.nan, math.nan])
    assert q([math.inf, -math.inf], "e4m3", overflow="saturate") == [448.0, -448.0]
    assert q([math.inf, -math.inf], "e5m2") == [math.inf, -math.inf]
    assert q([math.inf, -math.inf], "e5m2", overflow="saturate") == [57344.0, -57344.0]


# 2. IEEE overflow: half way to the next value already goes to infinity; directions matter.


@pytest.mark.parametrize(
    ("fmt", "threshold"),
    [("fp16", 65520.0), ("e5m2", 61440.0), ("bf16", (2 - 2.0**-8) * 2.0**127),
     ("e4m3_ieee", 248.0), ("e3m4", 15.75), ("tf32", (2 - 2.0**-11) * 2.0**127)],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_overflow_threshold_itself_goes_to_infinity(fmt, threshold, dtype):
    below = float(np.nextafter(dtype(threshold), dtype(0)))
    largest = format(fmt).max
    x = [threshold, below, -threshold, -below]
    assert q(x, fmt, dtype=dtype) == [math.inf, largest, -math.inf, -largest]


@pytest.mark.parametrize(
    ("rounding", "want"),
    [("nearest", [math.inf, -math.inf]), ("nearest_away", [math.inf, -math.inf]),
     ("toward_zero", [65504.0, -65504.0]), ("up", [math.inf, -65504.0]),
     ("down", [65504.0, -math.inf])],
)  # fmt: skip
def test_directed_modes_overflow_only_in_their_own_direction(rounding, want):
    """IEEE 754-2019 section 7.4; pychop returned 0 for 70000 toward zero."""
    assert q([70000.0, -70000.0], "fp16", rounding) == want
    assert q([65505.0, -65505.0], "fp16", rounding) == (
        [65504.0, -65504.0] if rounding.startswith("near") else want
    )


def test_round_to_odd_stops_at_the_largest_value():
    """SoftFloat 3 and CPFloat; gfloat's development version gives infinity."""
    assert q([70000.0, -1e300, math.inf], "fp16", "to_odd") == [65504.0, -65504.0, math.inf]
    assert q([460.0, 1e300], "e4m3", "to_odd") == [448.0, 448.0]


def test_round_to_odd_leaves_exact_values_alone():
    """Pychop gave 1.00098 for 1.0."""
    exact_values = np.array(format("e4m3").values())
    assert same(quantize(exact_values, "e4m3", "to_odd"), exact_values)
    assert q([1.01, 1.2, -1.99], "e4m3", "to_odd") == [1.125, 1.125, -1.875]


# 3. FNUZ formats: one NaN, no infinity, no -0, and a bias of their own.


@pytest.mark.parametrize("fmt", ["e4m3fnuz", "e5m2fnuz", "e4m3b11fnuz"])
def test_fnuz_has_one_zero_and_one_nan(fmt):
    """Noune et al. 2022, arXiv:2206.02915; ONNX once turned infinity into max."""
    zeros = quantize(np.array([-0.0, -1e-30, 0.0]), fmt)
    assert same(zeros, [0.0, 0.0, 0.0])
    assert encode(np.array([-0.0, -1e-30, math.nan, math.inf, -1e30]), fmt).tolist() == [
        0, 0, 0x80, 0x80, 0x80,
    ]  # fmt: skip
    assert np.isnan(decode(np.arange(256), fmt)).sum() == 1


def test_fnuz_reaches_one_binade_lower_than_ocp():
    assert q([2.0**-10, 2.0**-11, 1.5 * 2.0**-11], "e4m3fnuz") == [2.0**-10, 0.0, 2.0**-10]
    assert q([240.0, 247.9, -247.9], "e4m3fnuz") == [240.0, 240.0, -240.0]
    assert math.isnan(q(248.0, "e4m3fnuz"))
    assert q([57344.0, 61439.0], "e5m2fnuz") == [57344.0, 57344.0]


# 4. Double rounding: a float64 just beside a midpoint must not stop at float32 on its way.


@pytest.mark.parametrize("fmt", NARROW, ids=lambda f: f.name)
def test_float64_just_beside_a_midpoint_is_rounded_once(fmt):
    """ml_dtypes and torch, which go through float32, are wrong at every second one of these."""
    steps = np.arange(2**fmt.man_bits, 2 ** (fmt.man_bits + 1), max(1, 2**fmt.man_bits // 512))
    step = 2.0 ** (min(0, fmt.emax - 1) - fmt.man_bits)
    lower, middle, upper = steps * step, (steps + 0.5) * step, (steps + 1) * step
    assert same(quantize(np.nextafter(middle, np.inf), fmt), upper)
    assert same(quantize(np.nextafter(middle, 0), fmt), lower)
    ties = np.where(steps % 2 == 0, lower, upper)
    assert same(quantize(middle, fmt), ties)


# 5. Stochastic rounding: the ends of the range, exact values, and all the discarded bits.


def share_up(x, fmt, upper, dtype=np.float64):
    """Share of 2^16 evenly spread random words that round x up to `upper`."""
    words = (np.arange(2**16, dtype=np.uint32) << np.uint32(16)) + np.uint32(2**15)
    got = quantize(np.full(2**16, x, dtype), fmt, "stochastic", random=words)
    return np.mean(got == upper)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_top_of_the_range_overflows_with_the_probability_of_its_distance(dtype):
    """CPFloat gives 0.6 here, and MATLAB's chop 0."""
    x = 65504 + 0.25 * 32
    assert share_up(x, "fp16", math.inf, dtype) == 0.25
    words = np.array([0, 2**31], np.uint32)
    got = quantize(np.array([x, x]), "fp16", "stochastic", "saturate", random=words)
    assert got.tolist() == [65504.0, 65504.0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("fmt", ["fp16", "e4m3", "e5m2", "e2m3"])
def test_the_largest_subnormal_carries_into_the_smallest_normal(fmt, dtype):
    """apytypes 0.5.1 gave 0."""
    f = format(fmt)
    x = f.smallest_normal - 0.25 * f.quantum
    assert share_up(x, fmt, f.smallest_normal, dtype) == 0.75


@pytest.mark.parametrize("fmt", ["fp16", "e4m3", "e5m2", "e2m1", "bf16", "tf32"])
def test_far_below_the_smallest_value_the_chance_is_still_the_quotient(fmt):
    """apytypes never rounds these up; CPFloat without its own generator does so twice too often."""
    smallest = format(fmt).smallest_subnormal
    assert share_up(smallest * 0.3125, fmt, smallest) == 0.3125
    assert share_up(-smallest * 2.0**-10, fmt, -smallest) == 2.0**-10


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_random_word_moves_an_exact_value(dtype):
    """``floor(x + uniform)`` in float32 moves 100 in 81 of 2^24 draws."""
    for fmt in NARROW:
        f = np.array(fmt.values() if fmt.bits <= 8 else [1.0, fmt.max, fmt.quantum], dtype)
        for word in (0, 2**31, 2**32 - 1):
            words = np.full(f.shape, word, np.uint32)
            assert same(quantize(f, fmt, "stochastic", random=words), f)


def test_random_bits_do_not_turn_infinity_into_nan():
    x = np.array([math.inf, -math.inf, math.nan])
    for fmt in ("fp16", "bf16", "fp32"):
        assert same(quantize(x, fmt, "stochastic", random=np.full(3, 2**32 - 1, np.uint32)), x)


def test_every_discarded_bit_counts():
    """A sticky bit would make 2^-30 above a value the same as any other small remainder."""
    x = np.full(2, 1 + 2.0**-10 * 2.0**-30)
    words = np.array([1, 2], np.uint32)  # (w + 1/2) / 2^32 on either side of 2^-30 * 0.5
    assert quantize(x, "fp16", "stochastic", random=words).tolist() == [1 + 2.0**-10, 1 + 2.0**-10]
    words = np.array([3, 4], np.uint32)  # and of 2^-30 itself
    assert quantize(x, "fp16", "stochastic", random=words).tolist() == [1 + 2.0**-10, 1.0]


# 6. Exponents are read from bits: log2 rounds up just below a power of two.


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("fmt", NARROW, ids=lambda f: f.name)
def test_just_below_a_power_of_two_truncates_to_the_last_value_of_its_binade(fmt, dtype):
    """microxcaling and pychop scale such numbers by twice too much."""
    low = max(fmt.emin, np.finfo(dtype).minexp)
    exponents = np.arange(low + 1, fmt.emax + 1)
    powers = np.ldexp(dtype(1), exponents)
    below = np.nextafter(powers, dtype(0))
    last = np.ldexp(dtype(2 - fmt.eps), exponents - 1)
    assert same(quantize(below, fmt, "toward_zero"), np.minimum(last, below))
    if fmt.man_bits < np.finfo(dtype).nmant:
        assert same(quantize(below, fmt), powers)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "fmt", [f for f in NARROW if f.has_zero and f.name != "fp32"], ids=lambda f: f.name
)
def test_just_below_half_the_smallest_value_underflows(fmt, dtype):
    """microxcaling and QPyTorch round it up, elementwise."""
    half = dtype(fmt.smallest_subnormal / 2)
    around = np.array([np.nextafter(half, dtype(0)), half, np.nextafter(half, dtype(1))])
    assert quantize(around, fmt).tolist() == [0.0, 0.0, fmt.smallest_subnormal]


# 7. NaN bit patterns.


@pytest.mark.parametrize(
    ("fmt", "count"),
    [("e4m3", 2), ("e5m2", 6), ("e4m3_ieee", 14), ("e3m4", 30), ("e4m3fnuz", 1), ("e5m2fnuz", 1),
     ("e8m0", 1), ("e3m2", 0), ("e2m3", 0), ("e2m1", 0), ("fp16", 2046), ("bf16", 254)],
)  # fmt: skip
def test_number_of_nan_codes(fmt, count):
    codes = np.arange(2 ** format(fmt).bits)
    assert np.isnan(decode(codes, fmt)).sum() == count


# 8. NaN in a format that has none.


@pytest.mark.parametrize("fmt", ["e2m1", "e3m2", "e2m3"])
@pytest.mark.parametrize("rounding", MODES)
@pytest.mark.parametrize("overflow", ["ieee", "saturate"])
def test_nan_becomes_plus_zero_where_there_is_no_nan(fmt, rounding, overflow):
    """ml_dtypes gives -0, torchao 1.0, fpy2 the largest value."""
    x = np.array([math.nan, -math.nan, math.inf, -math.inf])
    got = quantize(x, fmt, rounding, overflow, random=1)
    largest = format(fmt).max
    assert same(got, [0.0, 0.0, largest, -largest])


# 9. Rounding on the bits must not carry out of a NaN.


@pytest.mark.parametrize("rounding", MODES)
@pytest.mark.parametrize("fmt", NARROW, ids=lambda f: f.name)
def test_every_nan_payload_stays_nan(fmt, rounding):
    """CPFloat made infinities and -0 of some, QPyTorch 131008."""
    payloads = np.array([0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF, 0x7F80FFFF],
                        np.uint32)  # fmt: skip
    got = quantize(payloads.view(np.float32), fmt, rounding, random=3)
    assert np.isnan(got).all() if fmt.has_nan else same(got, np.zeros(6))
    wide = np.array([0x7FF0000000000001, 0x7FFFFFFFFFFFFFFF, 0xFFF0000000000001], np.uint64)
    got = quantize(wide.view(np.float64), fmt, rounding, random=3)
    assert np.isnan(got).all() if fmt.has_nan else same(got, np.zeros(3))


# 10. Subnormals.


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fp16_subnormals_near_ties_are_those_of_numpy(dtype):
    """NumPy's own cast is right here, for both carriers; pychop is wrong for 1026 of these."""
    middles = (np.arange(1024) + 0.5) * 2.0**-24
    x = np.concatenate([middles.astype(dtype) + 0, middles.astype(dtype)])
    x[:1024] = np.nextafter(x[:1024], dtype(0))
    x = np.concatenate([x, np.nextafter(middles.astype(dtype), dtype(1))])
    assert same(quantize(x, "fp16"), x.astype(np.float16).astype(dtype))


def test_half_the_smallest_subnormal_is_a_tie_to_zero():
    assert same(q([2.0**-25, -(2.0**-25), 2.0**-25 * 1.001], "fp16"), [0.0, -0.0, 2.0**-24])


def test_float32_carries_the_subnormals_of_bf16():
    """A processor that flushes float32 subnormals loses these."""
    x = [2.0**-133, 1.5 * 2.0**-133, 2.0**-134, 2.0**-149]
    assert q(x, "bf16", dtype=np.float32) == [2.0**-133, 2.0**-132, 0.0, 0.0]


# 11. The sign of zero.


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rounding", ["nearest", "nearest_away", "toward_zero", "up"])
@pytest.mark.parametrize("fmt", [f for f in NARROW if f.has_negative_zero], ids=lambda f: f.name)
def test_minus_zero_and_negative_underflow_keep_their_sign(fmt, rounding, dtype):
    """pychop, microxcaling and QPyTorch drop it."""
    tiny = dtype(-fmt.smallest_subnormal / 4)
    got = quantize(np.array([-0.0, tiny, 0.0, -tiny * 0], dtype), fmt, rounding)
    assert same(got, np.array([-0.0, -0.0, 0.0, 0.0]))


# 12. e8m0 is a scale: powers of two, no zero, no sign.


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_e8m0_ties_go_up_and_nothing_becomes_zero(dtype):
    """gfloat does not clamp, and rounds ties by the parity of the code: 3 to 2, 0.75 to 0.5."""
    x = [1.5, 3.0, 0.75, 1.4999, 0.0, -0.0, 1e-45, 1.25 * 2.0**-127, 2.0**127]
    want = [2.0, 4.0, 1.0, 1.0] + [2.0**-127] * 4 + [2.0**127]
    assert q(x, "e8m0", dtype=dtype) == want
    assert np.isnan(q([-1.0, math.nan, math.inf, -math.inf, 1.5 * 2.0**127], "e8m0")).all()
    assert q(1.5 * 2.0**127, "e8m0", overflow="saturate") == 2.0**127


# 15. int8 is symmetric and does not wrap.


def test_int8_uses_minus_127_to_127_and_saturates():
    """NumPy's astype wraps 300 to 44; torchao clips at -128 though its scale is amax / 127."""
    x = np.array([-127.0, 127.0, -126.6, 0.5, 1.5, -2.5])  # scale 1
    assert quantize(x, "int8").tolist() == [-127.0, 127.0, -127.0, 0.0, 2.0, -2.0]
    element = format("int8").element
    assert q([-128.0, -1e9, 300.0, math.inf, -math.inf], element) == [-127, -127, 127, 127, -127]
    assert same(q([math.nan, -0.0, -0.4], element), [0.0, 0.0, 0.0])


def test_int8_scale_is_amax_over_127():
    codes, scale = encode(np.array([0.5, -1.0, 0.25]), "int8")
    assert scale == np.float32(1 / 127)
    assert codes.view(np.int8).tolist() == [64, -127, 32]  # 63.5 is a tie, to even


# 16. "e4m3" alone is three formats.


def test_the_three_e4m3_print_their_largest_value():
    assert [format(n).max for n in ("e4m3", "e4m3_ieee", "e4m3fnuz")] == [448.0, 240.0, 240.0]
    for name in ("e4m3", "e4m3_ieee", "e4m3fnuz"):
        assert f"max {format(name).max:g}" in repr(format(name))
    assert "NaN, no inf" in repr(format("e4m3"))
    assert "inf, NaN" in repr(format("e4m3_ieee"))
    assert "one NaN, no inf, no -0" in repr(format("e4m3fnuz"))


# 17. No floating-point exception escapes, whatever the caller's settings.


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("fmt", [*NARROW, format("int8")], ids=lambda f: f.name)
def test_no_warning_and_the_same_bits_under_the_strictest_settings(fmt, dtype):
    """NumPy's own half cast raises flags, and is 15 times slower where it does."""
    x = testing.specimens("fp16", dtype, per_binade=2)[::3]
    signalling = np.array([0x7F800001, 0xFFBFFFFF], np.uint32).view(np.float32)
    for rounding in MODES:
        want = quantize(x, fmt, rounding, random=5)
        codes = encode(x, fmt, rounding, random=5)
        with np.errstate(all="raise"), warnings.catch_warnings():
            warnings.simplefilter("error")
            assert same(quantize(x, fmt, rounding, random=5), want)
            again = encode(x, fmt, rounding, random=5)
            quantize(signalling, fmt, rounding, random=5)
            encode(signalling, fmt, rounding, random=5)
        assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(again, codes, strict=True))
