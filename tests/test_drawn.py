"""Stochastic rounding by subtracting words: what their first bits leave open, and the top."""

from fractions import Fraction

import numpy as np
import pytest

from precsim import testing
from precsim.formats.kernels import plan_for
from precsim.formats.modes import Rounding
from precsim.formats.quantize import quantize
from precsim.formats.registry import element_of, format


def element(name):
    return element_of(format(name))


def test_float32_goes_that_way_and_float64_does_not():
    assert Rounding.STOCHASTIC in plan_for(np.dtype("f4"), format("fp16")).shorter
    assert Rounding.STOCHASTIC not in plan_for(np.dtype("f8"), format("fp16")).shorter
    assert Rounding.STOCHASTIC not in plan_for(np.dtype("f4"), format("fp16_ftz")).shorter


@pytest.mark.parametrize("name", ["fp16", "e4m3", "e5m2", "e2m1", "int8", "e3m2"])
@pytest.mark.parametrize("word", [0, 1, 2, 1000, 2**13, 2**19 - 1, 2**31, 2**32 - 1])
def test_later_bits_of_a_word_decide_where_the_first_are_equal(name, word):
    """A magnitude below the quantum goes up iff it exceeds (word + 1/2) / 2^32 of it."""
    fmt = element(name)
    edge = Fraction(2 * word + 1, 2**33) * Fraction(fmt.quantum)
    near = np.float32(float(edge))
    below, above = np.nextafter(near, np.float32(0)), np.nextafter(near, np.float32(np.inf))
    x = np.array([below, near, above], np.float32)
    want = [fmt.quantum if Fraction(float(v)) > edge else 0.0 for v in x]
    words = np.full(3, word, np.uint32)
    assert quantize(x, fmt, "stochastic", random=words).tolist() == want
    assert quantize(-x, fmt, "stochastic", random=words).tolist() == [-v for v in want]


@pytest.mark.parametrize("name", ["fp16", "e4m3", "e5m2", "e2m1", "int8", "e3m2", "e4m3fnuz"])
def test_words_next_to_the_distance_from_the_lower_neighbour(name):
    """Below the smallest normal number, where a float32 has bits that a sum with it has not."""
    fmt = element(name)
    rng = np.random.default_rng(0)
    steps = rng.integers(0, 2**fmt.man_bits + 1, 2000) + 2.0 ** -rng.integers(1, 34, 2000)
    x = (steps * fmt.quantum).astype(np.float32) * np.where(rng.random(2000) < 0.5, 1, -1)
    x[::2] = np.nextafter(x[::2], rng.choice([-np.inf, np.inf], 1000), dtype=np.float32)
    distance = np.abs(x.astype(np.float64)) / fmt.quantum % 1
    words = (distance * 2**32).astype(np.int64) + rng.integers(-2, 3, 2000)
    words = np.clip(words, 0, 2**32 - 1).astype(np.uint32)

    def run(v):
        return quantize(v, fmt, "stochastic", "saturate", random=words)

    assert testing.check_rounding(run, fmt, "stochastic", "saturate", x, words) == x.size


@pytest.mark.parametrize("name", ["fp16", "e4m3", "e5m2", "e2m1", "e4m3fnuz"])
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e4, 1e12, 1e38])
@pytest.mark.parametrize("word", [0, 2**31 + 5, 2**32 - 1])
def test_blocks_of_one_size_of_numbers_are_the_specification(name, scale, word):
    fmt = element(name)
    x = np.random.default_rng(0).standard_normal(300).astype(np.float32)
    with np.errstate(over="ignore"):
        x *= np.float32(scale)
    words = np.full(x.size, word, np.uint32)
    for overflow in ("ieee", "saturate"):
        where = overflow if fmt.has_nan else "saturate"

        def run(v, where=where):
            return quantize(v, fmt, "stochastic", where, random=words)

        assert testing.check_rounding(run, fmt, "stochastic", where, x, words) == x.size


def test_a_nan_in_a_block_changes_nothing_for_the_others():
    x = np.random.default_rng(0).standard_normal(1000).astype(np.float32) * 1e5
    words = np.random.default_rng(1).integers(0, 2**32, x.size, np.uint32)
    want = quantize(x, "fp16", "stochastic", random=words)
    x[500] = np.nan
    got = quantize(x, "fp16", "stochastic", random=words)
    assert np.isnan(got[500])
    kept = np.arange(1000) != 500
    testing.assert_same(got[kept], want[kept], x[kept])
