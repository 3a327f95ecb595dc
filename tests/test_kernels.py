"""The array kernels: equal to the specification everywhere, lawful, and equal to the peers."""

import itertools
import math
import operator
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from precsim import testing
from precsim.formats import exact
from precsim.formats.format import Format, Specials
from precsim.formats.modes import Overflow, Rounding
from precsim.formats.quantize import quantize
from precsim.formats.registry import format
from precsim.formats.scratch import BLOCK_BYTES

by_name = operator.attrgetter("name")
MODES = list(Rounding)
FIXED = [r for r in MODES if r is not Rounding.STOCHASTIC]
SPELLED = ("fp16_ftz", "bf16_ftz", "e4m3_ftz", "e6m9", "e11m3", "e8m5", "e7m22", "e10m50")
ODD_ONES = [
    Format("ue4m3", 4, 3, Specials.FN, signed=False),
    Format("ue3m2", 3, 2, Specials.FINITE, signed=False),
    Format("ue8m7", 8, 7, signed=False),
    Format("ue8m23", 8, 23, signed=False),
    Format("ue11m52", 11, 52, signed=False),
    Format("e7m3_bias135", 7, 3, bias=135),  # normal values among the subnormals of float32
]
FORMATS = [*testing.GRIDS, *map(format, SPELLED), *ODD_ONES]
CARRIED = [
    pytest.param(fmt, dtype, id=f"{fmt.name}-{np.dtype(dtype)}")
    for fmt in FORMATS
    for dtype in (np.float32, np.float64)
    if dtype is np.float64 or format("fp32").contains(fmt)
]


def sample(fmt, dtype):
    """All float64 specimens of a narrow format, 1500 of a wide one; a few of the far binades.

    Of the float32 ones a third: they are all compared with the float64 kernels further down.
    """
    narrow, thin = fmt.bits <= 8, 1 / 3 if dtype is np.float32 else 1
    x = testing.specimens(fmt, dtype, per_binade=128 if narrow else 8)
    size = np.abs(x).astype(np.float64)
    near = (size >= fmt.smallest_subnormal / 8) & (size <= fmt.max * 2.0**3)
    ends = ~np.isfinite(x) | (x == 0) | ((size >= fmt.max * (1 - fmt.eps)) & (size <= fmt.max * 2))
    share = np.where(near, 1.0 if narrow else 1500 / near.sum(), 0.05 if narrow else 0.02)
    return x[ends | (np.random.default_rng(fmt.bits).random(x.size) < share * thin)]


def words_for(x, seed=0):
    """Random words, with the lowest and the highest possible one among them."""
    words = np.random.default_rng(seed).integers(0, 2**32, x.shape, np.uint32)
    words[::7], words[3::7] = 0, 2**32 - 1
    return words


@pytest.mark.parametrize("rounding", MODES)
@pytest.mark.parametrize(("fmt", "dtype"), CARRIED)
def test_kernels_are_the_specification(fmt, dtype, rounding):
    x = sample(fmt, dtype)
    words = words_for(x) if rounding is Rounding.STOCHASTIC else None

    def run(v):
        return quantize(v, fmt, rounding, "ieee", random=words)

    assert testing.check_rounding(run, fmt, rounding, "ieee", x, words) > 100
    assert run(x).dtype == dtype


@pytest.mark.parametrize("rounding", MODES)
@pytest.mark.parametrize(("fmt", "dtype"), CARRIED)
def test_saturation_is_the_specification_and_changes_nothing_below_the_top(fmt, dtype, rounding):
    x = testing.specimens(fmt, dtype, per_binade=8)
    words = words_for(x)
    got = quantize(x, fmt, rounding, Overflow.SATURATE, random=words)
    size = np.abs(x).astype(np.float64)
    low = size <= fmt.max
    ieee = quantize(x, fmt, rounding, Overflow.IEEE, random=words)
    testing.assert_same(got[low], ieee[low], x[low])

    ends = ~low & ((size <= fmt.max * 4) | ~np.isfinite(x))
    ends[::97] = True
    stochastic = rounding is Rounding.STOCHASTIC

    def run(v):
        return quantize(v, fmt, rounding, "saturate", random=words[ends])

    random = words[ends] if stochastic else None
    testing.check_rounding(run, fmt, rounding, "saturate", x[ends], random)
    assert not np.isinf(got).any()


@given(st.data())
def test_formats_of_every_shape_round_as_specified(data):
    fmt = data.draw(testing.formats(max_bits=19))
    rounding, overflow = data.draw(st.sampled_from(MODES)), data.draw(st.sampled_from(Overflow))
    dtype = data.draw(st.sampled_from([np.float32, np.float64]))
    x = data.draw(testing.arrays(fmt, dtype))
    words = words_for(x) if rounding is Rounding.STOCHASTIC else None

    def run(v):
        return quantize(v, fmt, rounding, overflow, random=words)

    if dtype is np.float32 and not format("fp32").contains(fmt):
        with pytest.raises(ValueError, match="float32 cannot carry"):
            run(x)
    else:
        testing.check_rounding(run, fmt, rounding, overflow, x, words)


@pytest.mark.parametrize("rounding", MODES)
@pytest.mark.parametrize("fmt", [f for f in FORMATS if format("fp32").contains(f)], ids=by_name)
def test_both_carriers_give_the_same_bits(fmt, rounding):
    x = testing.specimens(fmt, np.float32, per_binade=128 if fmt.bits <= 8 else 8)
    words = words_for(x)
    narrow, wide = (quantize(x.astype(t), fmt, rounding, random=words) for t in ("f4", "f8"))
    testing.assert_same(narrow, wide, x)


def test_arrays_longer_than_a_block_round_like_their_parts():
    size = 2 * BLOCK_BYTES // 8 + 3
    x = np.resize(testing.specimens("fp16", per_binade=8), size)
    words = words_for(x)
    whole = quantize(x, "fp16", "stochastic", random=words)
    cuts = [0, 1000, BLOCK_BYTES // 8 - 1, size - 1, size]
    parts = [
        quantize(x[a:b], "fp16", "stochastic", random=words[a:b])
        for a, b in itertools.pairwise(cuts)
    ]
    testing.assert_same(whole, np.concatenate(parts), x)


# The laws.


@pytest.mark.parametrize("rounding", MODES)
@pytest.mark.parametrize(("fmt", "dtype"), CARRIED)
def test_rounding_is_idempotent_and_monotone(fmt, dtype, rounding):
    x = testing.specimens(fmt, dtype, per_binade=8)
    for word in (0, 2**30, 2**32 - 1):  # stochastic rounding too, as long as the word is the same

        def run(v, word=word):
            return quantize(v, fmt, rounding, random=np.full(v.shape, word, np.uint32))

        assert testing.check_idempotent(run, fmt, x) == x.size
        assert testing.check_monotone(run, fmt, x) > 250


@pytest.mark.parametrize("rounding", MODES)
@pytest.mark.parametrize(("fmt", "dtype"), [c for c in CARRIED if c.values[0].signed])
def test_rounding_commutes_with_negation(fmt, dtype, rounding):
    """Up and down are each other's mirror image; every other mode is its own."""
    x = testing.specimens(fmt, dtype, per_binade=8)
    words = words_for(x[:-1])
    mirror = {Rounding.UP: Rounding.DOWN, Rounding.DOWN: Rounding.UP}
    if rounding not in mirror:
        testing.check_sign_symmetric(lambda v: quantize(v, fmt, rounding, random=words), fmt, x)
    else:
        want = -quantize(-x[:-1], fmt, mirror[rounding]) + (0.0 if not fmt.has_negative_zero else 0)
        if not fmt.has_negative_zero:
            testing.assert_same(quantize(x[:-1], fmt, rounding), want, x)
        else:
            np.testing.assert_array_equal(quantize(x[:-1], fmt, rounding), want)


@pytest.mark.parametrize("power", [-1, 1, 3])
@pytest.mark.parametrize("rounding", FIXED)
@pytest.mark.parametrize(
    ("fmt", "dtype"),
    [c for c in CARRIED if not c.values[0].is_integer],
)
def test_rounding_commutes_with_powers_of_two(fmt, dtype, rounding, power):
    if fmt.max / fmt.smallest_normal < 2.0 ** abs(power) * 4:
        power = int(math.copysign(1, power))
    x = testing.specimens(fmt, dtype, per_binade=8)
    assert testing.check_scales(lambda v: quantize(v, fmt, rounding), fmt, power, x) > 10


@pytest.mark.parametrize(
    ("fmt", "wide"),
    [("fp16", "e6m13"), ("bf16", "e9m10"), ("e4m3", "e5m6"), ("e5m2", "e6m5"), ("e2m1", "e4m4"),
     ("fp32", "e9m26")],
)  # fmt: skip
def test_rounding_to_odd_first_makes_double_rounding_innocuous(fmt, wide):
    """Boldo and Melquiond 2008, theorem 3: two more bits and a larger range are enough."""
    x = testing.specimens(fmt, per_binade=16)
    once = quantize(x, fmt)
    twice = quantize(quantize(x, wide, "to_odd"), fmt)
    both = np.isfinite(quantize(x, wide, "to_odd")) | ~np.isfinite(x)
    testing.assert_same(twice[both], once[both], x[both])
    naive = quantize(quantize(x, wide), fmt)
    assert (naive[both] != once[both])[~np.isnan(once[both])].any()  # nearest twice is not enough


# Stochastic rounding.


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("fmt", "lower", "gap"), [("fp16", 1.0, 2.0**-10), ("bf16", 2.0, 2.0**-6),
                         ("e4m3", 2.0**-9, 2.0**-9), ("e4m3", 0.0, 2.0**-9), ("tf32", 1, 2**-10),
                         ("e5m2", 49152.0, 8192.0), ("e2m1", 0.0, 0.5), ("e8m0", 2.0, 2.0)])  # fmt: skip
def test_stochastic_rounding_goes_up_for_exactly_its_share_of_words(fmt, lower, gap, dtype):
    words = np.arange(256, dtype=np.uint32) << np.uint32(24)
    for share in range(257):
        x = np.full(256, lower + gap * share / 256, dtype)
        ups = quantize(x, fmt, "stochastic", random=words) == lower + gap
        assert ups.sum() == share


def test_stochastic_rounding_is_reproducible_and_unbiased():
    x = np.full(40_000, 1 + 0.3 * 2**-10)
    a, b = (quantize(x, "fp16", "stochastic", random=7) for _ in range(2))
    np.testing.assert_array_equal(a, b)
    generator = np.random.default_rng(7)
    np.testing.assert_array_equal(a, quantize(x, "fp16", "stochastic", random=generator))
    assert (a != quantize(x, "fp16", "stochastic", random=8)).any()
    share = (a > 1).mean()
    assert abs(share - 0.3) < 4 * math.sqrt(0.3 * 0.7 / x.size)


def test_random_words_mean_the_middle_of_their_cell():
    x = np.array([1 + 0.5 * 2**-10, 1 + 0.5 * 2**-10])
    got = quantize(x, "fp16", "stochastic", random=np.array([2**31 - 1, 2**31], np.uint32))
    assert got.tolist() == [1 + 2**-10, 1.0]


def test_exact_fraction_of_a_word_is_the_kernels():
    """The convention that ties the two: word w is the fraction (w + 1/2) / 2^32."""
    word = 3 * 2**30
    fraction = Fraction(2 * word + 1, 2**33)
    at = 1 + float(fraction) * 2.0**-10  # as far from 1 as the word says: not less, so not up
    x, words = np.array([at, math.nextafter(at, 2)]), np.full(2, word, np.uint32)
    assert quantize(x, "fp16", "stochastic", random=words).tolist() == [1.0, 1 + 2.0**-10]
    assert exact.round(at, "fp16", "stochastic", random=fraction) == 1.0


@pytest.mark.parametrize("rounding", ["up", "down", "to_odd", "toward_zero"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_remainder_too_small_for_the_carrier_still_counts(dtype, rounding):
    """The smallest value is 2^18 or 2^118, and of the smallest carrier values nothing is left."""
    fmt = Format("large", 4, 3, bias=-20 if dtype is np.float32 else -120)
    tiny = np.finfo(dtype).smallest_subnormal
    x = np.array([tiny, -tiny, 3 * tiny, 1.0, -1.0, 0.0], dtype)
    assert testing.check_rounding(lambda v: quantize(v, fmt, rounding), fmt, rounding, None, x)


# The peers.  All are fed float32 numbers: from float64 several of them round twice.


def ours(x, fmt, **how):
    return quantize(x.astype(np.float32), fmt, **how).astype(np.float64)


ML_DTYPES = {
    "bf16": "bfloat16", "e5m2": "float8_e5m2", "e4m3": "float8_e4m3fn", "e4m3_ieee": "float8_e4m3",
    "e3m4": "float8_e3m4", "e4m3fnuz": "float8_e4m3fnuz", "e5m2fnuz": "float8_e5m2fnuz",
    "e4m3b11fnuz": "float8_e4m3b11fnuz", "e3m2": "float6_e3m2fn", "e2m3": "float6_e2m3fn",
    "e2m1": "float4_e2m1fn", "e8m0": "float8_e8m0fnu",
}  # fmt: skip


@pytest.mark.parametrize("name", ML_DTYPES)
def test_agrees_with_ml_dtypes(name):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = testing.specimens(name, np.float32)
    if not format(name).has_nan:
        x = x[~np.isnan(x)]  # ml_dtypes turns NaN into -0 there
    if name == "e8m0":  # and zero into NaN here, and all of (2^-127, 2^-126) into 2^-126
        x = x[(x < 0) | (x >= 2.0**-126) | np.isnan(x)]
    with np.errstate(all="ignore"):
        theirs = x.astype(getattr(ml_dtypes, ML_DTYPES[name])).astype(np.float64)
    assert testing.assert_same(ours(x, name), theirs, x) > 700


@pytest.mark.parametrize("name", ["fp16", "bf16", "e5m2", "e4m3", "e4m3fnuz", "e5m2fnuz"])
def test_agrees_with_torch(name):
    torch = pytest.importorskip("torch")
    dtype = {"fp16": "float16", "bf16": "bfloat16", "e5m2": "float8_e5m2",
             "e4m3": "float8_e4m3fn"}.get(name, f"float8_{name}")  # fmt: skip
    x = testing.specimens(name, np.float32)
    if name == "e4m3":  # beyond 464 the answer changed between versions
        x = x[~(np.abs(x) > 464)]
    theirs = torch.from_numpy(x).to(getattr(torch, dtype)).to(torch.float64).numpy()
    assert testing.assert_same(ours(x, name), theirs, x) > 3000


@pytest.mark.parametrize("overflow", list(Overflow))
@pytest.mark.parametrize("rounding", ["nearest", "nearest_away", "toward_zero", "up", "down"])
@pytest.mark.parametrize(
    "fmt", [f for f in FORMATS if f.signed and f.subnormals and not f.is_integer], ids=by_name
)
def test_agrees_with_gfloat_in_five_modes(fmt, rounding, overflow):
    gfloat = pytest.importorskip("gfloat")
    nans = {Specials.IEEE: 2**fmt.man_bits - 1, Specials.FN: 1}.get(fmt.specials, 0)
    info = gfloat.FormatInfo(
        fmt.name, fmt.bits, fmt.precision, bias=fmt.bias, is_signed=True, num_high_nans=nans,
        domain=gfloat.Domain.Extended if fmt.has_inf else gfloat.Domain.Finite,
        has_nz=fmt.has_negative_zero, has_subnormals=True, is_twos_complement=False,
    )  # fmt: skip
    mode = {"nearest": "TiesToEven", "nearest_away": "TiesToAway", "toward_zero": "TowardZero",
            "up": "TowardPositive", "down": "TowardNegative"}[rounding]  # fmt: skip
    x = testing.specimens(fmt, per_binade=8)[:-1]
    saturate = overflow == "saturate" or not fmt.has_nan
    with np.errstate(all="ignore"):
        theirs = gfloat.round_ndarray(info, x, gfloat.RoundMode[mode], sat=saturate)
    testing.assert_same(quantize(x, fmt, rounding, overflow), theirs, x)
