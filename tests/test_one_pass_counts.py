"""The device's counting, compiled for the host: equal to the definitions, and to NumPy's counting."""

import math
from fractions import Fraction

import cupy_stand_in
import numpy as np
import pytest
from test_counters import specified

from precsim import testing
from precsim.backend import grid, one_pass, one_pass_counts
from precsim.engine.exponents import HIGHEST, LOWEST
from precsim.engine.tally import Tally
from precsim.formats.format import Format
from precsim.formats.modes import Overflow, Rounding, rounding_mode
from precsim.formats.quantize import quantize
from precsim.formats.registry import FORMATS, format

BINS = HIGHEST - LOWEST + 1
REAL = {np.float32: "float", np.float64: "double"}
BIG = np.float64(1e150)
ODD = [0.0, -0.0, math.inf, -math.inf, math.nan, 1e-45, -1e-45, 3e38, 5e-324, 1e140,
       448.0, 464.0, 465.0]  # fmt: skip

pytestmark = pytest.mark.skipif(
    cupy_stand_in.COMPILER is None, reason="no C compiler here to compile the device's code"
)


class Kernel(cupy_stand_in.RawKernel):
    """The kernel, for the host, whose threads come in the order that is asked for."""

    def __init__(self, real, *, rounding="", backward=False):
        code = one_pass_counts.source(real, LOWEST, BINS, rounding)
        code = one_pass.TYPES + code
        super().__init__(grid.DEVICE + code, "precsim_count")
        self.code = cupy_stand_in.on_host(code, backward=backward)


def count(x, r, fmt, *, histogram=True, backward=False):
    found = cupy_stand_in.ndarray(np.zeros(one_pass_counts.room(x.size, BINS), np.uint64))
    arrays = [cupy_stand_in.ndarray(np.ascontiguousarray(a)) for a in (x, r)]
    Kernel(REAL[x.dtype.type], backward=backward)(
        (one_pass_counts.blocks(x.size),), (grid.THREADS,),
        (arrays[0], np.int64(x.size), *limits(fmt), np.int32(histogram), found, arrays[1]),
    )  # fmt: skip
    return one_pass_counts.read(found.get(), BINS)


def limits(fmt):
    normal = fmt.smallest_normal if fmt.has_zero else 0.0
    return np.float64(normal), np.float64(fmt.max), np.float64(0)


def check(found, x, r, fmt):
    """Hold counts to their definitions, one pair of numbers at a time, sums to exact fractions."""
    want, histogram, _, _ = specified(x.tolist(), r.tolist(), fmt if fmt.has_zero else None)
    if not fmt.has_zero:
        after = np.abs(r) == fmt.max
        want["saturated"] = int((np.isfinite(x) & (np.abs(x) > fmt.max) & after).sum())
    names = (*one_pass_counts.NAMES, "amax", "amin")
    assert {n: getattr(found, n) for n in names} == {n: want[n] for n in names}
    places = np.flatnonzero(found.histogram)
    assert {LOWEST + int(i): int(found.histogram[i]) for i in places} == histogram
    both = np.isfinite(x) & np.isfinite(r)
    pairs = [
        (Fraction(a), Fraction(b)) for a, b in zip(x[both].tolist(), r[both].tolist(), strict=True)
    ]
    for got, total in (
        (found.square, sum(a * a for a, _ in pairs)),
        (found.error, sum((b - a) ** 2 for a, b in pairs)),
    ):
        assert got == pytest.approx(float(total), rel=1e-13, abs=1e-300)


PLAIN = [name for name, fmt in FORMATS.items() if isinstance(fmt, Format)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", [*PLAIN, "fp16_ftz", "e6m9"])
def test_counts_are_what_they_are_said_to_be(name, dtype):
    """The values around every edge of a format, the odd ones, and pairs that no rounding makes."""
    fmt = format(name)
    if name == "fp64" and dtype is np.float32:
        pytest.skip("float32 does not carry fp64")
    x = testing.specimens(fmt, np.float64, per_binade=4)
    x = np.concatenate([x[:: 1 + x.size // 3000], ODD])
    x = x[~(np.isfinite(x) & (np.abs(x) > BIG))]  # of which the squares are no numbers
    with np.errstate(over="ignore"):
        x = x.astype(dtype)
    for overflow in Overflow:
        r = quantize(x, fmt, overflow=overflow)
        check(count(x, r, fmt), x, r, fmt)
    unrelated = np.random.default_rng(0).permutation(np.where(np.abs(r) > BIG, np.inf, r))
    check(count(x, unrelated, fmt), x, unrelated, fmt)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1, 31, 256, 257, 1025, 70_001, 1_100_000])
def test_counts_are_numpys_and_the_order_of_threads_makes_no_difference(size, dtype):
    rng = np.random.default_rng(size)
    x = (rng.standard_normal(size) * 2.0 ** rng.integers(-40, 20, size)).astype(dtype)
    x[rng.random(size) < 0.1] = 0
    x[rng.random(size) < 0.001] = np.nan
    for name in ("e4m3", "fp16"):
        fmt = format(name)
        r = quantize(x, name)
        found, numpys = count(x, r, fmt), Tally.of(x, r, fmt, histogram=True)
        for field in (*one_pass_counts.NAMES, "amax", "amin"):
            assert getattr(found, field) == getattr(numpys, field), field
        np.testing.assert_array_equal(found.histogram, numpys.histogram)
        assert found.square == pytest.approx(numpys.square, rel=1e-5)
        assert found.error == pytest.approx(numpys.error, rel=1e-5)
        again = count(x, r, fmt, backward=True)
        assert again[:-1] == found[:-1]  # the sums of squares, too: to the bit
        np.testing.assert_array_equal(again.histogram, found.histogram)


def test_without_a_histogram_the_rest_is_the_same():
    x = np.random.default_rng(1).standard_normal(3000)
    r = quantize(x, "e4m3")
    found, without = count(x, r, format("e4m3")), count(x, r, format("e4m3"), histogram=False)
    assert without[:-1] == found[:-1]
    assert found.histogram.sum() == 3000
    assert without.histogram.sum() == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rounding", [*Rounding, "stochastic_a8"])
@pytest.mark.parametrize("name", ["e4m3", "fp16", "e8m0", "e2m1", "fp16_ftz"])
def test_rounding_and_counting_in_one_kernel(name, rounding, dtype):
    """The results are those of rounding, the counts those of the results."""
    fmt = format(name)
    x = testing.specimens(fmt, np.float32, per_binade=8).astype(dtype)
    words = np.random.default_rng(2).integers(0, 2**32, x.size, np.uint32)
    draws = "stochastic" in str(rounding)
    for overflow in Overflow if fmt.has_nan else (Overflow.SATURATE,):
        expected = quantize(x, fmt, rounding, overflow, random=words if draws else None)
        found = cupy_stand_in.ndarray(np.zeros(one_pass_counts.room(x.size, BINS), np.uint64))
        source, out, drawn = (cupy_stand_in.ndarray(a) for a in (x, np.empty_like(x), words))
        rule = one_pass.rule(fmt, rounding_mode(rounding), overflow)
        Kernel(REAL[dtype], rounding=one_pass.settled(rule))(
            (one_pass_counts.blocks(x.size),), (grid.THREADS,),
            (source, np.int64(x.size), *limits(fmt), np.int32(True), found, out, drawn,
             np.int32(draws), *map(dtype, rule[:3]), *map(np.int32, rule[3:])),
        )  # fmt: skip
        nan = np.isnan(expected)
        np.testing.assert_array_equal(np.isnan(out.get()), nan)
        uint = f"u{x.itemsize}"
        np.testing.assert_array_equal(out.get().view(uint)[~nan], expected.view(uint)[~nan])
        counted = one_pass_counts.read(found.get(), BINS)
        separately = count(x, expected, fmt)
        assert counted[:-1] == separately[:-1]
        np.testing.assert_array_equal(counted.histogram, separately.histogram)
