"""The laws must catch what they are for: each is given a rounding with the mistake of a peer."""

import math
import sys
from fractions import Fraction

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import find, given

from precsim import testing
from precsim.formats.codes import decode, encode
from precsim.formats.format import Format
from precsim.formats.quantize import quantize
from precsim.formats.registry import format


def e4m3(x):
    return quantize(x, "e4m3")


def ties_away(x):
    """The default of microxcaling and QPyTorch."""
    return quantize(x, "e4m3", "nearest_away")


def without_minus_zero(x):
    """``sign(x) * round(abs(x))``, as in pychop."""
    return quantize(x, "e4m3") + 0.0


def overflow_tested_first(x):
    """``x > max`` before rounding, as users of e4m3 expect."""
    with np.errstate(all="ignore"):
        return np.where(np.abs(x) > 448, np.nan, quantize(x, "e4m3"))


def through_float32(x):
    """Double rounding, as in the casts of ml_dtypes and torch from float64."""
    with np.errstate(all="ignore"):
        return quantize(x.astype(np.float32), "e4m3").astype(np.float64)


def exponent_by_log2(x):
    """Rounds up just below a power of two."""
    with np.errstate(all="ignore"):
        size = np.exp2(np.maximum(np.floor(np.log2(np.abs(x))), -6) - 3)
        near = np.where(np.isfinite(x) & (x != 0), np.rint(x / size) * size, quantize(x, "e4m3"))
        return np.where(np.abs(near) > 448, np.nan, near)


@pytest.mark.parametrize(
    "wrong", [ties_away, without_minus_zero, overflow_tested_first, through_float32]
)
def test_the_specification_check_finds_the_mistakes_of_the_peers(wrong):
    assert testing.check_rounding(e4m3, "e4m3") > 5000
    with pytest.raises(AssertionError, match=r"e4m3, nearest: .* gave .*, expected"):
        testing.check_rounding(wrong, "e4m3")


def test_the_specification_check_finds_log2_only_in_the_right_place():
    """To nearest it is nearly harmless, which is why nobody notices; truncation shows it."""

    def truncate(x):
        with np.errstate(all="ignore"):
            size = np.exp2(np.floor(np.log2(np.abs(x))) - 3)
            return np.where(np.abs(x) >= 2.0**-6, np.trunc(x / size) * size, 0)

    x = np.nextafter(np.exp2(np.arange(-5.0, 8)), 0)
    with pytest.raises(AssertionError, match="toward_zero"):
        testing.check_rounding(truncate, "e4m3", "toward_zero", inputs=x)
    testing.check_rounding(exponent_by_log2, "e4m3", inputs=x)


def test_idempotence_finds_rounding_that_drifts():
    values = np.array(format("e4m3").values())
    with pytest.raises(AssertionError, match="rounding twice"):
        testing.check_idempotent(lambda x: quantize(x * 1.1, "e4m3"), "e4m3", values)


def test_monotonicity_finds_the_subnormal_carry_that_falls_to_zero():
    """apytypes 0.5.1 cast what should be the smallest normal value to 0."""

    def wrong(x):
        y = quantize(x, "fp16")
        return np.where((np.abs(y) == 2.0**-14) & (np.abs(x) < 2.0**-14), 0.0, y)

    with pytest.raises(AssertionError, match=r"monotone after .* expected 'at least"):
        testing.check_monotone(wrong, "fp16")


def test_sign_symmetry_finds_a_directed_mode_and_a_swapped_tie():
    with pytest.raises(AssertionError, match="sign symmetry"):
        testing.check_sign_symmetric(lambda x: quantize(x, "fp16", "up"), "fp16")
    with pytest.raises(AssertionError, match="sign symmetry"):  # pychop swaps ties below zero
        testing.check_sign_symmetric(
            lambda x: quantize(x, "e4m3", np.where(x[0] < 0, "nearest_away", "nearest").item()),
            "e4m3",
            np.array([1.0625]),
        )


def test_scaling_finds_a_fixed_grid():
    with pytest.raises(AssertionError, match=r"scaling by 2\^1"):
        testing.check_scales(lambda x: np.rint(x * 8) / 8, "e4m3")


def test_codes_find_a_lost_sign_and_a_nan_that_became_a_number():
    def lost(values):
        return encode(values, "e4m3") & 0x7F

    def no_nan(values):
        return encode(np.where(np.isnan(values), 448.0, values), "e4m3")

    def read(codes):
        return decode(codes, "e4m3")

    with pytest.raises(AssertionError, match=r"code 0x80 of e4m3.*expected 'the same code'"):
        testing.check_codes_round_trip(lost, read, "e4m3")
    with pytest.raises(AssertionError, match=r"code 0x7f of e4m3.*expected 'NaN'"):
        testing.check_codes_round_trip(no_nan, read, "e4m3")


def test_a_law_that_would_compare_nothing_is_refused():
    with pytest.raises(ValueError, match="no sign to be symmetric in"):
        testing.check_sign_symmetric(lambda x: x, "e8m0")
    with pytest.raises(ValueError, match="far enough from both ends"):
        testing.check_scales(lambda x: x, "int8")
    with pytest.raises(ValueError, match="far enough from both ends"):
        testing.check_scales(lambda x: x, "e4m3", inputs=np.array([1e9]))


def test_same_tells_zeros_and_shapes_apart():
    zero = np.zeros(1)
    with pytest.raises(AssertionError, match=r"-0\.0"):
        testing.assert_same(zero, -zero, zero)
    with pytest.raises(AssertionError, match=r"expected shape \(1,\), got \(2,\)"):
        testing.assert_same(np.zeros(2), zero, zero)
    assert testing.assert_same(np.array([math.nan]), np.array([-math.nan]), zero) == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["e4m3", "e2m1", "e8m0", "int8", "bf16"])
def test_specimens_hold_every_place_where_rounding_changes(name, dtype):
    fmt = next(f for f in testing.GRIDS if f.name == name)
    x = testing.specimens(name, dtype)
    have = set(x.tolist())
    values = np.array(fmt.values())
    step = values[-1] - values[-2] if name != "e8m0" else values[-1]
    middles = np.append((values[1:] + values[:-1]) / 2, values[-1] + step / 2)
    for wanted in (values, middles, np.nextafter(middles.astype(dtype), dtype(np.inf))):
        carried = wanted.astype(dtype)
        assert have.issuperset(carried[carried == wanted].tolist())
    assert have.issuperset({math.inf, -math.inf, float(np.finfo(dtype).max)})
    assert np.isnan(x[-1])
    assert np.signbit(x[x == 0]).tolist() == [True, False]
    exponents = np.frexp(x[np.isfinite(x) & (x > 0)])[1]
    tiniest = int(np.finfo(dtype).minexp) - np.finfo(dtype).nmant
    assert set(exponents.tolist()) == set(range(tiniest + 1, np.finfo(dtype).maxexp + 1))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_doubles_include_what_matters(dtype):
    tiny = float(np.finfo(dtype).smallest_normal)
    strategy = testing.doubles(dtype)
    find(strategy, math.isnan)
    find(strategy, lambda x: x == 0 and math.copysign(1, x) < 0)
    find(strategy, lambda x: 0 < abs(x) < tiny)
    find(strategy, lambda x: float(np.finfo(dtype).max) / 2 < x < math.inf)


@given(st.data())
def test_near_ties_are_within_two_ulps_of_a_midpoint(data):
    fmt = data.draw(st.sampled_from([f for f in testing.GRIDS if f.man_bits < 23]))
    x = data.draw(testing.near_ties(fmt))
    inward = [x]
    for end in (-math.inf, math.inf):
        once = math.nextafter(x, end)
        inward += [once, math.nextafter(once, end)]
    middles = [v for v in inward if Fraction(v) / Fraction(fmt.ulp(v)) % 1 == Fraction(1, 2)]
    assert len(middles) == 1


@given(st.data())
def test_made_up_formats_arrays_and_codes_are_usable(data):
    fmt = data.draw(testing.formats(max_bits=10))
    assert isinstance(fmt, Format)
    assert fmt.bits <= 10
    x = data.draw(testing.arrays(fmt, np.float32))
    assert x.dtype == np.float32
    assert x.ndim == 1
    assert 0 <= data.draw(testing.codes(fmt)) < 2**fmt.bits


def test_registered_names_are_known_grids():
    assert format("e4m3") in testing.GRIDS
    assert format("int8").element in testing.GRIDS


def test_without_hypothesis_the_strategies_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "hypothesis.strategies", None)
    with pytest.raises(ModuleNotFoundError, match="pip install hypothesis"):
        testing.doubles()
    assert testing.check_idempotent(e4m3, "e4m3") > 5000  # the laws work without


def test_laws_hold_a_quantizer_to_what_it_was_given_though_it_works_in_place():
    def doubles(x):
        return np.multiply(x, 2.0, out=x)

    x = np.array([1.0, 1.25])
    with pytest.raises(AssertionError, match="rounding twice"):
        testing.check_idempotent(doubles, "e4m3", x)
    with pytest.raises(AssertionError, match=r"1\.0.* gave .*2\.0"):
        testing.check_rounding(doubles, "e4m3", inputs=x)
    assert x.tolist() == [1.0, 1.25]


def test_a_quantizer_that_returns_a_list_or_nothing_is_judged_like_any_other():
    assert testing.check_rounding(lambda x: e4m3(x).tolist(), "e4m3")
    with pytest.raises(AssertionError, match="expected shape"):
        testing.check_rounding(lambda x: None, "e4m3")
