"""Block scaling in one compiled pass: equal to the specification on fractions, and to NumPy's arrays."""

import numpy as np
import pytest
from test_blocks import MX, OTHERS, specified, specimens

from precsim import testing
from precsim.backend import tier
from precsim.formats import blocks
from precsim.formats.modes import Rounding, stochastic
from precsim.formats.modes import rounding_mode as mode
from precsim.formats.quantize import quantize
from precsim.formats.registry import format
from precsim.formats.tiling import Tiling

LEFT_TO_NUMPY = [name for name in OTHERS if "inverse" in name or "delayed" in name]
NAMES = [name for name in MX[::4] + MX[1:4] + OTHERS if name not in LEFT_TO_NUMPY]
MODES = [*Rounding, "stochastic_a3", "stochastic_equal"]
IN_TURN = [("mxfp4", np.float32), ("int4:1x7:affine", np.float64), ("nvfp4", np.float32)]
"""One after the other, mode by mode: every kernel takes seconds to compile."""


@pytest.fixture(autouse=True)
def numba():
    pytest.importorskip("numba")
    with tier("numba"):
        yield


def by_numpy(x, fmt, rounding="nearest", words=None):
    with tier("numpy"):
        return quantize(x, fmt, rounding, random=words)


def done(x, name, rounding=Rounding.NEAREST):
    """Whether compiled code does it."""
    fmt = format(name)
    words = np.zeros(x.shape, np.uint32) if stochastic(rounding) else None
    tiling = Tiling.of(x.shape, fmt.block)
    return blocks.ONE_PASS["numpy"](x, np.empty_like(x), tiling, fmt, rounding, words, 1.0)


def test_what_is_left_to_numpy():
    x = np.ones((2, 8))
    assert [name for name in NAMES + LEFT_TO_NUMPY if not done(x, name)] == LEFT_TO_NUMPY
    with tier("numpy"):
        assert not done(x, "mxfp4")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, np.float32) for name in NAMES] + [(name, np.float64) for name in NAMES[::3]],
)
def test_every_value_is_what_the_specification_says(name, dtype):
    fmt = format(name)
    for x in specimens(fmt, dtype, (3, 50), seed=len(name)):
        testing.assert_same(quantize(x, fmt), specified(x, fmt), x, name)


@pytest.mark.parametrize(("place", "rounding"), list(enumerate(MODES)), ids=str)
def test_it_has_the_bits_of_the_arrays_in_every_mode(place, rounding):
    (name, dtype), rounding = IN_TURN[place % 3], mode(rounding)
    for x in specimens(format(name), dtype, (5, 70), seed=len(name)):
        words = np.random.default_rng(2).integers(0, 2**32, x.shape, dtype=np.uint32)
        random = words if stochastic(rounding) else None
        got = quantize(x, name, rounding, random=random)
        testing.assert_same(got, by_numpy(x, name, rounding, random), x, name)


@pytest.mark.parametrize(
    "shape", [(), (1,), (5000,), (3, 1000), (33, 65), (130, 131), (2, 3, 40, 7), (300, 2100)]
)
@pytest.mark.parametrize(
    "block",
    ["tensor", "row", "column", "1x2", "1x16", "1x32", "1x300", "40x1", "3x5", "128x128", "1x3@0"],
)
def test_blocks_of_every_shape_lie_where_they_should(block, shape):
    """In place, too: short blocks at the ends, blocks longer than what is rounded at once."""
    if not shape and block == "1x3@0":
        pytest.skip("a scalar has no axis")
    x = np.random.default_rng(3).standard_normal(shape).astype(np.float32) ** 5
    x = np.asarray(x, np.float32)
    if x.size > 2000:
        x.flat[[7, 1300, -1]] = np.inf, np.nan, -1e30
    for name in (f"int8:{block}", f"int8:{block}:affine"):
        want, place = by_numpy(x, name), x.copy()
        testing.assert_same(quantize(x, name), want, x, name)
        testing.assert_same(quantize(place, name, out=place), want, x, name)


@pytest.mark.parametrize(
    "name",
    ["e4m3:1x16", "e2m1:1x16", "int8:1x16", "fp16:1x16", "nvfp4",
     "e5m11:1x16:e4m3+fp32", "fp16:1x16:fp16+fp32", "e7m5:1x16:e4m3+fp32"],
)  # fmt: skip
def test_quotients_beside_midpoints_are_rounded_as_exact_ones(name):
    """Midpoints times any scale, to float32, and its neighbours: only some of them are ties."""
    fmt, rng = format(name), np.random.default_rng(5)
    ends = np.sort(fmt.element.values())
    middles = ((ends[1:] + ends[:-1]) / 2)[ends[:-1] >= 0]
    for exponent in (-130, -90, -48, -3, 0, 40, 71, 100):
        amax = np.ldexp(1 + rng.random((4000, 1)), exponent).astype(np.float32)
        with np.errstate(all="ignore"):
            scale = blocks.find_scales(amax.reshape(4000, 1, 1, 1), fmt).total
        x = np.concatenate([amax, rng.choice(middles, (4000, 15)) * scale], axis=1)
        x = x.astype(np.float32)
        x[:, 5:10] = np.nextafter(x[:, 5:10], np.float32(0))
        x[:, 10:] = np.nextafter(x[:, 10:], np.float32(np.inf))
        want = by_numpy(x.astype(np.float64), fmt)
        with np.errstate(all="ignore"):
            want = want.astype(np.float32)
        testing.assert_same(quantize(x, fmt), want, x, f"{name} * 2^{exponent}")
