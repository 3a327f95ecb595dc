"""Codes by table, by counting and by cutting bits off: NumPy's own bits are the oracle.

(`test_codes.py` has the specification for every format, element by element.)
"""

import numpy as np
import pytest

from precsim import testing
from precsim.formats.format import Format
from precsim.formats.patterns import codes_of, values_of
from precsim.formats.registry import format

LONG = 40_001
"""Elements of an array of several blocks, the last of them short."""


def bits(dtype, count, seed=0):
    """Return random bits of a float type, without NaN, which have one code only."""
    width = np.dtype(dtype).itemsize
    found = np.random.default_rng(seed).integers(0, 1 << 8 * width, count, f"u{width}")
    return found[~np.isnan(found.view(dtype))]


@pytest.mark.parametrize("carrier", [np.float32, np.float64])
def test_fp16_is_numpys_half(carrier):
    codes = np.resize(bits(np.float16, LONG), LONG)
    values = codes.view(np.float16).astype(carrier)
    np.testing.assert_array_equal(codes_of(values, format("fp16")), codes)
    testing.assert_same(values_of(codes, format("fp16"), np.dtype(carrier)), values, values)


@pytest.mark.parametrize(("fmt", "dropped"), [("fp32", 0), ("tf32", 13), ("bf16", 16)])
@pytest.mark.parametrize("carrier", [np.float32, np.float64])
def test_formats_with_float32s_exponents_are_its_first_bits(fmt, dropped, carrier):
    codes = bits(np.float32, LONG) >> dropped
    values = (codes << dropped).view(np.float32).astype(carrier)
    numbers = ~np.isnan(values)
    codes, values = codes[numbers], values[numbers]
    np.testing.assert_array_equal(codes_of(values, format(fmt)), codes)
    testing.assert_same(values_of(codes, format(fmt), np.dtype(carrier)), values, values)


def test_fp64_is_itself():
    codes = bits(np.float64, LONG)
    values = codes.view(np.float64)
    np.testing.assert_array_equal(codes_of(values, format("fp64")), codes)
    testing.assert_same(values_of(codes, format("fp64"), np.dtype(np.float64)), values, values)


def test_a_table_holds_what_ml_dtypes_has():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for fmt, dtype in (("e4m3", "float8_e4m3fn"), ("e5m2", "float8_e5m2")):
        codes = np.resize(np.arange(256, dtype=np.uint8), LONG)
        values = codes.view(getattr(ml_dtypes, dtype)).astype(np.float32)
        testing.assert_same(values_of(codes, format(fmt), np.dtype(np.float32)), values, values)
        numbers = ~np.isnan(values)
        np.testing.assert_array_equal(codes_of(values, format(fmt))[numbers], codes[numbers])


def test_a_short_format_far_from_float32_has_no_table():
    far = Format("far", 3, 3, bias=300)
    values = np.array([0.0, far.smallest_subnormal, far.smallest_normal, -far.max])
    assert codes_of(values, far).tolist() == [0, 1, 8, 0b1_110_111]


def test_views_that_skip_elements_and_single_numbers():
    values = np.arange(12.0).reshape(3, 4)[:, ::2]
    np.testing.assert_array_equal(codes_of(values, format("e4m3"))[1], [0x48, 0x4C])
    assert codes_of(np.array(1.0), format("e4m3")) == 0x38
    assert values_of(np.array(0x38), format("e4m3"), np.dtype(np.float32)) == 1
