"""`quantize` as its callers see it: shapes, dtypes, scalars, errors, and scaled formats."""

import math

import numpy as np
import pytest

import precsim as ps
from precsim import backend, testing
from precsim.formats import exact
from precsim.formats.quantize import quantize


@pytest.mark.parametrize("name", ["fp16", "bf16", "e8m0", "e4m3fnuz", "int8"])
def test_out_may_be_new_given_or_the_input_itself(name):
    x = testing.specimens("bf16", np.float32, per_binade=4)[:-3]  # finite
    before = x.copy()
    want = quantize(x, name)
    testing.assert_same(x, before, x)
    out = np.empty_like(x)
    assert quantize(x, name, out=out) is out
    testing.assert_same(out, want, x)
    assert quantize(x, name, out=x) is x
    testing.assert_same(x, want, before)


@pytest.mark.parametrize("tier", ["numpy", "numba"])
@pytest.mark.parametrize("fmt", ["e4m3", "bf16", "mxfp4", "int8:row"])
@pytest.mark.parametrize("ahead", [-7, 0, 1, 64])
def test_out_may_overlap_the_input(fmt, ahead, tier):
    if tier == "numba":
        pytest.importorskip("numba")
    n = 40_000  # more than one block of the cache
    buffer = np.random.default_rng(0).standard_normal(n + 128).astype(np.float32)
    x, out = buffer[64 : 64 + n], buffer[64 + ahead : 64 + ahead + n]
    with backend.tier(tier):
        want = quantize(x.copy(), fmt)
        quantize(x, fmt, out=out)
    np.testing.assert_array_equal(out, want)


@pytest.mark.parametrize("tier", ["numpy", "numba"])
@pytest.mark.parametrize("fmt", ["bf16", "mxfp4"])
def test_out_that_is_read_only_or_no_array_is_refused_and_left_alone(fmt, tier):
    if tier == "numba":
        pytest.importorskip("numba")
    x, out = np.full(5, 1.2, np.float32), np.zeros(5, np.float32)
    out.flags.writeable = False
    with backend.tier(tier):
        with pytest.raises(ValueError, match="read-only"):
            quantize(x, fmt, out=out)
        with pytest.raises(ValueError, match=r"out must be C-contiguous .* got \[0\]"):
            quantize(x, fmt, out=[0])
    assert not out.any()


@pytest.mark.filterwarnings("error")
def test_what_float64_cannot_hold_is_converted_without_a_warning():
    signalling = np.array([0x7F800001, 0xFF800001], np.uint32).view(np.float32)
    assert np.isnan(ps.prob_up(signalling, "bf16")).all()
    beyond = np.array([np.finfo(np.longdouble).max])
    assert quantize(beyond, "e4m3", overflow="saturate").tolist() == [448.0]


def test_every_layout_and_shape_is_rounded():
    x = np.random.default_rng(0).standard_normal((4, 6, 5)).astype(np.float32)
    want = x.astype(np.float16).astype(np.float32)
    for view in (np.s_[:], np.s_[::2, ::-1], np.s_[:, 3], np.s_[:0]):
        np.testing.assert_array_equal(quantize(x[view], "fp16"), want[view])
    np.testing.assert_array_equal(quantize(x.T, "fp16"), want.T)
    np.testing.assert_array_equal(quantize(np.asfortranarray(x), "fp16"), want)


@pytest.mark.parametrize(
    ("x", "dtype"),
    [(0.1, np.float64), (np.float32(0.1), np.float32), (3, np.float64), (np.int8(3), np.float64),
     (np.float16(0.1), np.float64), (True, np.float64), (np.array(0.1, "f4"), np.float32)],
)  # fmt: skip
def test_scalars_give_scalars_of_the_carrier(x, dtype):
    got = quantize(x, "e4m3")
    assert type(got) is dtype
    assert got == exact.round(x.item() if isinstance(x, np.ndarray) else x, "e4m3")


def test_lists_and_big_endian_arrays_are_converted():
    assert quantize([1, 1.06, 1e9], "e4m3", overflow="saturate").tolist() == [1.0, 1.0, 448.0]
    assert quantize(np.array([0.1], ">f8"), "e4m3").tolist() == [0.1015625]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"fmt": "fp17"}, "unknown format 'fp17'"),
        ({"rounding": "even"}, "unknown rounding 'even': expected one of nearest, nearest_away"),
        ({"overflow": "wrap"}, "unknown overflow 'wrap': expected one of ieee, saturate"),
        ({"fmt": "e2m1", "overflow": "wrap"}, "unknown overflow 'wrap'"),
        ({"rounding": "stochastic"}, "needs `random`: a seed"),
        ({"rounding": "stochastic", "random": 1.5}, "`random` must be a seed, .*; got 1.5"),
        ({"rounding": "stochastic", "random": [1, 2]}, "or uint32 words; got .1, 2."),
        ({"rounding": "stochastic", "random": np.zeros(2)}, r"uint32 of shape \(2,\); got float64"),
        ({"rounding": "stochastic", "random": np.zeros(3, "u4")}, r"of shape \(2,\); got uint32"),
        ({"out": np.zeros(2, "f4")}, r"C-contiguous float64 of shape \(2,\); got float32"),
        ({"out": np.zeros(3)}, r"of shape \(2,\); got float64 of shape \(3,\)"),
        ({"out": np.zeros(4)[::2]}, "C-contiguous"),
        ({"x": np.zeros(2, "f4"), "fmt": "fp64"}, "float32 cannot carry fp64: expected float64"),
        ({"x": np.zeros(2, "f4"), "fmt": "e9m10"}, "float32 cannot carry e9m10"),
        ({"x": np.zeros(2, complex)}, "expected real numbers to round; got dtype complex128"),
        ({"x": ["0.1"]}, "expected real numbers to round; got dtype <U3"),
    ],
    ids=str,
)
def test_wrong_input_says_what_would_be_right(how, message):
    with pytest.raises(ValueError, match=message):
        quantize(**{"x": np.zeros(2), "fmt": "fp16"} | how)


# Scaled formats.


def scaled_by_hand(x, fmt, groups):
    """Round each group with fractions: the scale is amax / max in float32, by the processor."""
    out = np.empty_like(x)
    for group in groups:
        amax = np.float32(np.max(np.abs(x[group])))
        scale = amax / np.float32(fmt.max) if amax else np.float32(1)
        for i in np.ndindex(x[group].shape):
            element = exact.round(x[group][i] / scale, fmt, "nearest", "saturate")
            out[group][i] = np.float32(element) * scale
    return out


@pytest.mark.parametrize("name", ["int8", "int4", "e4m3", "e5m2", "e2m1"])
@pytest.mark.parametrize("sharing", ["tensor", "row", "column"])
def test_scaled_formats_share_one_float32_scale_per_group(name, sharing):
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((6, 8)) * 10.0 ** rng.integers(-6, 4, (6, 8))).astype(np.float32)
    x[2], x[:, 5] = 0, 0  # a row and a column of zeros
    groups = {
        "tensor": [np.s_[:, :]],
        "row": [np.s_[i, :] for i in range(6)],
        "column": [np.s_[:, j] for j in range(8)],
    }[sharing]
    element = next(f for f in testing.GRIDS if f.name == name)
    want = scaled_by_hand(x, element, groups)
    testing.assert_same(quantize(x, f"{name}:{sharing}"), want, x)


def test_a_nan_or_infinity_poisons_its_group_and_no_other():
    x = np.array([[1.0, 2.0], [math.nan, 1.0], [math.inf, 1.0], [0.0, 0.0]])
    got = quantize(x, "int8:row")
    assert np.isnan(got[1:3]).all()
    assert np.isfinite(got[[0, 3]]).all()
    assert np.isnan(quantize(x, "int8")).all()


def test_scaled_formats_keep_the_largest_value_and_take_it_as_their_unit():
    x = np.array([127.0, 63.4, -0.4, 0.6, -127.0])
    assert quantize(x, "int8").tolist() == [127.0, 63.0, 0.0, 1.0, -127.0]
    assert not np.signbit(quantize(x, "int8"))[2]  # integers have one zero


def test_scales_at_the_ends_of_float32():
    tiny = np.array([1e-45, 0.0], np.float32)
    assert np.isfinite(quantize(tiny, "int8")).all()
    assert np.isnan(quantize(np.array([1e300, 1.0]), "int8")).all()  # no float32 scale is so large
    assert quantize(np.zeros((0, 3)), "int8:row").shape == (0, 3)
    assert quantize(0.3, "int8") == pytest.approx(0.3, rel=1e-7)
