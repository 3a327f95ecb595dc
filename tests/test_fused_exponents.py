"""Exponents that compiled loops count by bit planes, held to `math.frexp`, one number at a time."""

import math
from collections import Counter

import numpy as np
import pytest

pytest.importorskip("numba")

from precsim.backend import fused_counts

DTYPES = (np.float32, np.float64)


def counted(x, lowest, bins):
    """Return how many numbers have each exponent, as `fused_counts` says."""
    bits = np.uint32 if x.dtype == np.float32 else np.uint64
    infinity = np.array(np.inf, x.dtype).view(bits)
    found = np.zeros(bins, np.int64)
    fused_counts.count(x, x.copy(), np.array([0, 0, infinity, infinity], bits), found, lowest)
    return found.tolist()


def by_hand(x, lowest, bins):
    found = Counter(
        min(max(math.frexp(v)[1] - 1 - lowest, 0), bins - 1)
        for v in x.tolist()
        if v != 0 and math.isfinite(v)
    )
    return [found[place] for place in range(bins)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 63, 64, 65, 1000, 4095, 4096, 4097, 9000])
@pytest.mark.parametrize("spread", [0, 3, 17, 100, 250])
def test_every_exponent_is_counted_where_it_is(dtype, size, spread):
    random = np.random.default_rng([size, spread])
    x = random.standard_normal(size) * 2.0 ** random.integers(-spread, spread + 1, size)
    with np.errstate(all="ignore"):
        x = x.astype(dtype)
    for lowest, bins in ((-160, 320), (-4, 9), (-1074, 2100), (3, 1)):
        assert counted(x, lowest, bins) == by_hand(x, lowest, bins)


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_exponents_that_there_are_at_once(dtype):
    """From the smallest subnormal to the largest power of two, some of them a number of times."""
    limits = np.finfo(dtype)
    powers = range(limits.minexp - limits.nmant, limits.maxexp)
    x = np.array([math.ldexp((-1) ** n, e) for e in powers for n in range(1 + e % 3)], dtype)
    x = np.random.default_rng(0).permutation(x)
    assert counted(x, powers[0], len(powers)) == [1 + e % 3 for e in powers]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0.0, -0.0, np.nan, np.inf, -np.inf])
def test_what_has_no_exponent_is_not_counted(dtype, value):
    x = np.full(200, value, dtype)
    assert sum(counted(x, -160, 320)) == 0
    x[77] = -3
    assert counted(x, -160, 320) == [int(e == 1) for e in range(-160, 160)]
    x[78] = np.finfo(dtype).max
    assert sum(counted(x, -160, 320)) == 2


def test_zeros_among_the_smallest_normal_numbers_are_apart():
    """Their field is 0, the one below that of what is smallest."""
    x = np.resize(np.float32([2.0**-126, 0, -(2.0**-125), -0.0, 2.0**-149]), 640)
    found = counted(x, -149, 30)
    assert (found[0], found[23], found[24], sum(found)) == (128, 128, 128, 384)
