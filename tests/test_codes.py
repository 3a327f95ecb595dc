"""Bit patterns of arrays: every code of every format up to 16 bits, and the peers' codes."""

import math
import operator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from precsim import testing
from precsim.formats import exact
from precsim.formats.codes import code_dtype, decode, encode
from precsim.formats.format import Format, Specials
from precsim.formats.quantize import quantize
from precsim.formats.registry import format

by_name = operator.attrgetter("name")
SPELLED = [format(name) for name in ("fp16_ftz", "e4m3_ftz", "e6m9", "e11m3")]
UNSIGNED = Format("ue4m3", 4, 3, Specials.FN, signed=False)
FORMATS = [*testing.GRIDS, *SPELLED, UNSIGNED]
DATA = Path(__file__).parent / "data"


@pytest.mark.parametrize("fmt", FORMATS, ids=by_name)
def test_every_code_survives_decode_and_encode(fmt):
    compared = testing.check_codes_round_trip(
        lambda values: encode(values, fmt), lambda codes: decode(codes, fmt), fmt
    )
    assert compared > min(2**fmt.bits, 2**16) * 0.85


@pytest.mark.parametrize("fmt", [f for f in FORMATS if f.bits <= 16], ids=by_name)
def test_every_code_reads_as_the_specification_says(fmt):
    codes = np.arange(2**fmt.bits, dtype=code_dtype(fmt))
    want = np.array([exact.decode(code, fmt) for code in codes.tolist()])
    assert testing.assert_same(decode(codes, fmt), want, codes) == 2**fmt.bits
    if format("fp32").contains(fmt):
        narrow = decode(codes, fmt, np.float32)
        assert narrow.dtype == np.float32
        testing.assert_same(narrow, want, codes)


@pytest.mark.parametrize("fmt", [f for f in FORMATS if f.bits <= 8], ids=by_name)
def test_every_value_gets_the_code_that_the_specification_gives(fmt):
    values = [*fmt.values(), *([math.nan] if fmt.has_nan else [])]
    want = [exact.encode(value, fmt) for value in values]
    for dtype in (np.float32, np.float64) if fmt.exp_bits < 11 else (np.float64,):
        got = encode(np.array(values, dtype), fmt)
        assert got.dtype == code_dtype(fmt)
        assert got.tolist() == want


@given(st.data())
def test_codes_of_made_up_formats_are_the_specification(data):
    fmt = data.draw(testing.formats(max_bits=19))
    codes = data.draw(st.lists(testing.codes(fmt), min_size=1, max_size=20))
    want = np.array([exact.decode(code, fmt) for code in codes])
    testing.assert_same(decode(codes, fmt), want, np.array(codes))
    finite = want[np.isfinite(want) & (want >= fmt.min)]
    assert encode(finite, fmt).tolist() == [exact.encode(value, fmt) for value in finite.tolist()]


def test_16_bit_codes_are_numpys_and_the_upper_half_of_a_float32():
    codes = np.arange(2**16, dtype=np.uint16)
    testing.assert_same(decode(codes, "fp16"), codes.view(np.float16).astype(np.float64), codes)
    upper = (codes.astype(np.uint32) << np.uint32(16)).view(np.float32)
    testing.assert_same(decode(codes, "bf16", np.float32), upper, codes)


@pytest.mark.parametrize(
    ("fmt", "dtype", "float_"), [("fp32", "u4", "f4"), ("fp64", "u8", "f8")], ids=str
)
def test_wide_codes_are_the_bits_of_the_array(fmt, dtype, float_):
    codes = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, 50_000, dtype, endpoint=True)
    values = codes.view(float_)
    testing.assert_same(decode(codes, fmt, float_), values, codes)
    numbers = ~np.isnan(values)
    np.testing.assert_array_equal(encode(values, fmt)[numbers], codes[numbers])
    x = testing.specimens(fmt, float_, per_binade=4)[:-1]
    np.testing.assert_array_equal(encode(x, fmt), x.view(dtype))


PEERS = {
    "e5m2": "float8_e5m2", "e4m3": "float8_e4m3fn", "e4m3_ieee": "float8_e4m3",
    "e3m4": "float8_e3m4", "e4m3fnuz": "float8_e4m3fnuz", "e5m2fnuz": "float8_e5m2fnuz",
    "e4m3b11fnuz": "float8_e4m3b11fnuz", "e3m2": "float6_e3m2fn", "e2m3": "float6_e2m3fn",
    "e2m1": "float4_e2m1fn", "e8m0": "float8_e8m0fnu",
}  # fmt: skip


@pytest.mark.parametrize("name", PEERS)
def test_codes_are_those_of_ml_dtypes(name):
    """The positive NaN included: quiet, and with no payload."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    dtype = getattr(ml_dtypes, PEERS[name])
    codes = np.arange(2 ** format(name).bits, dtype=np.uint8)
    testing.assert_same(decode(codes, name), codes.view(dtype).astype(np.float64), codes)
    x = testing.specimens(name, np.float32)
    x = x[x >= 2.0**-126] if name == "e8m0" else x[~np.isnan(x)]
    with np.errstate(all="ignore"):
        theirs = x.astype(dtype).view(np.uint8)
    numbers = ~np.isnan(quantize(x, name))
    np.testing.assert_array_equal(encode(x, name)[numbers], theirs[numbers])
    if format(name).has_nan:
        assert encode(math.nan, name) == np.array(math.nan, dtype).view(np.uint8)


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz",
                                  "float8_e5m2fnuz"])  # fmt: skip
def test_all_65536_halves_become_the_codes_that_torch_gave(name):
    """Stored from torch 2.13, where e4m3fn saturates, even from infinity."""
    with np.load(DATA / "float16_to_float8_torch213.npz") as stored:
        theirs = stored[name]
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    policy = "saturate" if name == "float8_e4m3fn" else "ieee"
    ours = encode(halves, name, overflow=policy)
    nan = np.isnan(decode(theirs, name))
    np.testing.assert_array_equal(ours[~nan], theirs[~nan])
    assert np.isnan(decode(ours[nan], name)).all()
    assert nan.sum() >= 2046  # the NaNs among the halves


@pytest.mark.parametrize(
    ("fmt", "code"),
    [("fp64", 0x7FF8000000000000), ("fp32", 0x7FC00000), ("fp16", 0x7E00), ("bf16", 0x7FC0),
     ("e5m2", 0x7E), ("e4m3", 0x7F), ("e4m3_ieee", 0x7C), ("e3m4", 0x78), ("e4m3fnuz", 0x80),
     ("e5m2fnuz", 0x80), ("e4m3b11fnuz", 0x80), ("e8m0", 0xFF)],
)  # fmt: skip
def test_every_nan_has_the_one_canonical_code(fmt, code):
    payloads = np.array([0x7FF8000000000000, 0xFFF8000000000000, 0x7FF0000000000001,
                         0xFFFFFFFFFFFFFFFF], np.uint64).view(np.float64)  # fmt: skip
    assert encode(payloads, fmt).tolist() == [code] * 4


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("e2m1", "u1"), ("e3m2", "u1"), ("e4m3", "u1"), ("fp16", "u2"), ("e6m9", "u2"),
     ("tf32", "u4"), ("fp32", "u4"), ("e8m25", "u8"), ("fp64", "u8")],
)  # fmt: skip
def test_codes_come_in_the_smallest_unsigned_type(name, dtype):
    assert code_dtype(name) == dtype
    assert encode([0.5, 1.0], name).dtype == dtype


def test_shape_is_kept_and_scalars_give_scalars():
    assert encode(0.1, "e4m3") == 0x1D
    assert type(encode(0.1, "e4m3")) is np.uint8
    assert type(decode(0x1D, "e4m3")) is np.float64
    assert encode(np.zeros((2, 0, 3)), "fp16").shape == (2, 0, 3)
    assert decode(np.zeros((2, 0, 3), np.uint16), "fp16").shape == (2, 0, 3)
    x = np.arange(24.0).reshape(2, 3, 4)
    np.testing.assert_array_equal(decode(encode(x, "fp16"), "fp16"), x)
    np.testing.assert_array_equal(decode(encode(x[:, ::2].T, "fp16"), "fp16"), x[:, ::2].T)


def test_rounding_and_overflow_reach_the_codes():
    assert encode(1.01, "e4m3", "up") == 0x39
    assert encode(1.01, "e4m3", "down") == 0x38
    assert encode(1e9, "e4m3") == 0x7F
    assert encode(-1e9, "e4m3", overflow="saturate") == 0xFE
    words = np.array([0, 2**32 - 1], np.uint32)
    assert encode([1.0625, 1.0625], "e4m3", "stochastic", random=words).tolist() == [0x39, 0x38]


@pytest.mark.parametrize("spec", ["int8", "int4:row", "e4m3:column", "e5m2:tensor", "e2m1:row"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scaled_codes_and_scales_together_give_what_quantize_gives(spec, dtype):
    x = (np.random.default_rng(2).standard_normal((5, 7)) * 100).astype(dtype)
    codes, scales = encode(x, spec)
    assert codes.shape == x.shape
    assert scales.dtype == np.float32
    assert scales.size == {"tensor": 1, "row": 5, "column": 7}[str(format(spec).block)]
    testing.assert_same(decode(codes, spec, dtype, scales), quantize(x, spec), x)


def test_integer_codes_are_twos_complement():
    codes, scales = encode(np.array([127.0, 1.0, 0.0, -0.0, -1.0, -127.0]), "int8")
    assert codes.view(np.int8).tolist() == [127, 1, 0, 0, -1, -127]
    assert scales == 1
    lowest = np.array([-128], np.int8).view(np.uint8)
    assert decode(lowest, "int8", scales=1.0) == -128.0
    codes, _ = encode(np.array([7.0, -1.0, -7.0]), "int4")
    assert codes.tolist() == [0b0111, 0b1111, 0b1001]


def test_a_poisoned_group_stays_nan_through_its_codes():
    codes, scales = encode(np.array([[1.0, math.nan], [1.0, 2.0]]), "int8:row")
    got = decode(codes, "int8:row", scales=scales)
    assert np.isnan(got[0]).all()
    assert np.isfinite(got[1]).all()
    _, scales = encode(np.array([[math.nan], [math.inf], [0.0], [127.0]]), "int8:row")
    assert np.array_equal(scales.ravel(), [math.nan, math.nan, 1.0, 1.0], equal_nan=True)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: decode([0, 256], "e4m3"), ValueError, r"e4m3 in 0 \.\. 255; got 256$"),
        (lambda: decode([16], "e2m1"), ValueError, r"e2m1 in 0 \.\. 15; got 16"),
        (lambda: decode(np.array([-1], "i1"), "e4m3"), ValueError, "got -1; view.* as uint8"),
        (lambda: decode([2**64], "fp64"), TypeError, "expected integer codes.*dtype object"),
        (lambda: decode([1.0], "e4m3"), TypeError, "expected integer codes of e4m3.*float64"),
        (lambda: decode([1], "fp64", np.float32), ValueError, "float32 is no home.*use float64"),
        (lambda: decode([1], "e4m3", np.int32), ValueError, "int32 is no home"),
        (lambda: decode([1], "int8"), ValueError, "int8 takes the scales that encode.*got none"),
        (lambda: decode([1], "e4m3", scales=1.0), ValueError, "e4m3 takes no scales; got some"),
        (lambda: encode([1.0], "fp17"), ValueError, "unknown format 'fp17'"),
        (lambda: encode(["1"], "fp16"), ValueError, "expected real numbers"),
        (lambda: encode(["1"], "int8"), ValueError, "got dtype <U1"),
    ],
)
def test_wrong_input_says_what_would_be_right(call, error, message):
    with pytest.raises(error, match=message):
        call()
