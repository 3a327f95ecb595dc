"""Stochastic rounding: every random word for up to 8 bits, against the closed form and gfloat."""

import itertools
import math
import operator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import precsim as ps
from precsim import testing
from precsim.backend import key, words
from precsim.formats import exact
from precsim.formats.format import Format, Specials
from precsim.formats.modes import Stochastic, rounding_mode
from precsim.formats.quantize import quantize
from precsim.formats.registry import format
from precsim.formats.stochastic import prob_up

DATA = Path(__file__).parent / "data"
GFLOAT = {"a": "StochasticFastest", "b": "StochasticFast", "c": "Stochastic"}
NAMES = ("fp16", "bf16", "tf32", "e5m2", "e4m3", "e4m3_ieee", "e3m4", "e4m3fnuz", "e5m2fnuz",
         "e4m3b11fnuz", "e3m2", "e2m3", "e2m1", "fp16_ftz", "e4m3_ftz", "e8m0")  # fmt: skip
FORMATS = [*map(format, NAMES), *(f for f in testing.GRIDS if f.is_integer),
           Format("ue4m3", 4, 3, Specials.FN, signed=False)]  # fmt: skip
EVERY = ["stochastic", "stochastic_equal",
         *(f"stochastic_{letter}{n}" for letter in "abc" for n in (1, 3, 8, 32))]  # fmt: skip
by_name = operator.attrgetter("name")


def places(fmt, parts):
    """Return numbers that cut the gaps at the ends of a format's range into `parts` equal parts.

    The gaps: from zero, below the smallest normal, above it, at 1, below `max`, beyond it, and far
    beyond (for formats that have a code for overflow).  Their ends are among the numbers; both
    signs.
    """
    top = fmt.ulp(fmt.max)
    starts = [0.0, fmt.smallest_normal - fmt.quantum, fmt.smallest_normal, 1.0,
              fmt.max - top, fmt.max, fmt.max + top, fmt.max * 8]  # fmt: skip
    cuts = np.arange(parts + 1) / parts
    x = np.unique(np.concatenate([start + fmt.ulp(start) * cuts for start in starts]))
    x = x if fmt.has_nan else x[x <= fmt.max]  # beyond it all saturate, whatever was drawn
    return np.concatenate([-x[::-1], x]) if fmt.signed else x


def all_words(bits, seed=0):
    """Return one word for every value of the first `bits` bits, the other bits at random."""
    low = np.random.default_rng(seed).integers(0, 2 ** (32 - bits), 2**bits, np.uint64)
    return (np.arange(2**bits, dtype=np.uint64) << np.uint64(32 - bits) | low).astype(np.uint32)


def grid_of(x, bits):
    """Return every number with every word, as two matrices: one row for each number."""
    matrix = np.broadcast_arrays(x[:, None], all_words(bits))
    return tuple(np.ascontiguousarray(m) for m in matrix)


def went_up(x, result):
    """Where a result is the upper neighbour: above x, or the NaN that an overflow upward gave."""
    return (result > x) | (np.isnan(result) & (x > 0))


# All words.


@pytest.mark.parametrize("fmt", FORMATS, ids=by_name)
@pytest.mark.parametrize("letter", "abc")
def test_all_words_together_are_the_closed_form(letter, fmt):
    """Cells halved twice show ties and quarters; 13 and 17 parts fall on no cell's edge."""
    for bits in range(1, 9):
        name = f"stochastic_{letter}{bits}"
        x = places(fmt, 2 ** (bits + 2) if bits < 5 else 13 + 4 * (bits % 2))
        if bits % 2 and fmt.exp_bits < 8:
            x = x.astype(np.float32)
        numbers, random = grid_of(x, bits)
        ups = went_up(numbers, quantize(numbers, fmt, name, "ieee", random))
        np.testing.assert_array_equal(ups.mean(axis=1), prob_up(x, fmt, name))


@pytest.mark.parametrize("fmt", FORMATS, ids=by_name)
def test_equal_takes_either_neighbour_for_half_of_the_words(fmt):
    x = places(fmt, 7)
    numbers, random = grid_of(x, 3)
    ups = went_up(numbers, quantize(numbers, fmt, "stochastic_equal", "ieee", random))
    chance = prob_up(x, fmt, "stochastic_equal")
    np.testing.assert_array_equal(ups.mean(axis=1), chance)
    assert set(chance) <= {0.0, 0.5, 1.0}
    assert (chance == 0.5).sum() >= 18


@pytest.mark.parametrize("fmt", FORMATS, ids=by_name)
def test_exact_goes_up_for_as_many_of_all_words_as_32_bits_can_say(fmt):
    """Up is a prefix of the words, so the last word that goes up and the first that does not do."""
    rng = np.random.default_rng(fmt.bits)
    x = np.concatenate([places(fmt, 5), places(fmt, 16), rng.normal(size=50) * fmt.max / 3])
    x = np.abs(x)
    ideal = [exact.prob_up(Fraction(v), fmt) * 2**32 for v in x.tolist()]
    count = np.array([math.ceil(p - Fraction(1, 2)) for p in ideal], np.int64)
    assert max(abs(n - p) for n, p in zip(count.tolist(), ideal, strict=True)) <= Fraction(1, 2)

    def up(word):
        random = np.clip(word, 0, 2**32 - 1).astype(np.uint32)
        return went_up(x, quantize(x, fmt, "stochastic", "ieee", random))

    settled = (not fmt.subnormals) & (x < fmt.smallest_normal) | (not fmt.has_zero) & (x < fmt.min)
    np.testing.assert_array_equal(up(count - 1)[~settled], (count > 0)[~settled])
    np.testing.assert_array_equal(up(count)[~settled], (count == 2**32)[~settled])


def test_exact_is_exact_for_float32_in_the_normal_range():
    rng = np.random.default_rng(0)
    for name in ("bf16", "tf32", "e6m2"):
        x = np.exp(rng.normal(size=500) * 8).astype(np.float32)
        x = x[x >= format(name).smallest_normal]
        for v in x.tolist():
            chance = exact.prob_up(Fraction(v), name)
            assert chance is not None
            assert (chance * 2**23).denominator == 1


def test_three_bits_give_the_published_table():
    """Probabilities in eighths for d = 0/16 .. 15/16."""
    x = 1 + np.arange(16) / 16 * 2.0**-10
    table = {
        "a": [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7],
        "b": [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8],
        "c": [0, 0, 1, 2, 2, 2, 3, 4, 4, 4, 5, 6, 6, 6, 7, 8],
    }
    for letter, eighths in table.items():
        assert (prob_up(x, "fp16", f"stochastic_{letter}3") * 8).tolist() == eighths


# Other implementations.


def gfloat_info(gfloat, fmt):
    nans = {Specials.IEEE: 2**fmt.man_bits - 1, Specials.FN: 1}.get(fmt.specials, 0)
    return gfloat.FormatInfo(
        fmt.name, fmt.bits, fmt.precision, bias=fmt.bias, is_signed=True, num_high_nans=nans,
        domain=gfloat.Domain.Extended if fmt.has_inf else gfloat.Domain.Finite,
        has_nz=fmt.has_negative_zero, has_subnormals=True, is_twos_complement=False,
    )  # fmt: skip


@pytest.mark.parametrize("letter", "abc")
@pytest.mark.parametrize(
    "fmt",
    [f for f in FORMATS if f.signed and f.subnormals and not f.is_integer],
    ids=by_name,
)
def test_all_words_agree_with_gfloat(fmt, letter):
    gfloat = pytest.importorskip("gfloat")
    info, mode = gfloat_info(gfloat, fmt), gfloat.RoundMode[GFLOAT[letter]]
    for bits in range(1, 9):
        parts = 2 ** (bits + 2) if bits < 5 else 13 + 4 * (bits % 2)
        x = np.concatenate([places(fmt, parts), [np.nan, np.inf, -np.inf]])
        x = x if fmt.has_nan else x[np.isfinite(x)]
        numbers, random = grid_of(x, bits)
        theirs_random = (2**bits - 1 - (random >> np.uint32(32 - bits))).astype(np.int64)
        for overflow in ("ieee", "saturate") if fmt.has_nan else ("saturate",):
            with np.errstate(all="ignore"):
                theirs = gfloat.round_ndarray(
                    info, numbers, mode, sat=overflow == "saturate",
                    srbits=theirs_random, srnumbits=bits,
                )  # fmt: skip
            ours = quantize(numbers, fmt, f"stochastic_{letter}{bits}", overflow, random)
            testing.assert_same(ours, theirs, numbers)


def test_stored_results_of_gfloat():
    """What gfloat 0.5.2 gave for all words, so that the comparison is made where it is missing."""
    with np.load(DATA / "stochastic_gfloat052.npz") as stored:
        results = [name for name in stored if "_stochastic_" in name]
        assert len(results) == 9
        for name in results:
            fmt, _, mode = name.partition("_")
            bits = int(mode[-1])
            numbers, random = grid_of(stored[f"{fmt}_x"], bits)
            ours = quantize(numbers, fmt, mode, "ieee", random)
            assert testing.assert_same(ours, stored[name], numbers) > 1000


def test_a_distance_of_nearly_one_half_is_no_half():
    """gfloat 0.5.2 adds the random bits in float64, where this sum rounds to 1."""
    x = np.array([2.0**-9 * (0.5 - 2.0**-54)])
    word = np.array([0], np.uint32)
    assert prob_up(x, "e4m3", "stochastic_a1").tolist() == [0.0]
    assert quantize(x, "e4m3", "stochastic_a1", random=word).tolist() == [0.0]


# The specification.


@given(st.data())
def test_every_variant_is_the_specification(data):
    fmt = data.draw(testing.formats(max_bits=19))
    mode = data.draw(st.sampled_from(EVERY))
    dtype = data.draw(st.sampled_from([np.float32, np.float64]))
    if dtype is np.float32 and not format("fp32").contains(fmt):
        dtype = np.float64
    x = data.draw(testing.arrays(fmt, dtype))
    overflow = data.draw(st.sampled_from(["ieee", "saturate"]))
    edge = st.sampled_from([0, 1, 2**31 - 1, 2**31, 2**32 - 1])
    drawn = data.draw(st.lists(edge | st.integers(0, 2**32 - 1), min_size=x.size, max_size=x.size))
    random = np.array(drawn, np.uint32)

    def run(v):
        return quantize(v, fmt, mode, overflow, random)

    testing.check_rounding(run, fmt, mode, overflow, x, random)
    want = [exact.prob_up(v, fmt, mode) for v in x.tolist()]
    want = [math.nan if p is None else float(p) for p in want]
    np.testing.assert_array_equal(prob_up(x, fmt, mode), want)


@pytest.mark.parametrize("fmt", FORMATS, ids=by_name)
def test_values_infinities_and_nan_never_move(fmt):
    x = quantize(testing.specimens(fmt, per_binade=16), fmt)
    for mode in EVERY:
        for word in (0, 2**31, 2**32 - 1):
            random = np.full(x.shape, word, np.uint32)
            testing.assert_same(quantize(x, fmt, mode, random=random), x, x)
        assert not prob_up(x, fmt, mode)[np.isfinite(x)].any()
        assert np.isnan(prob_up(x, fmt, mode)[~np.isfinite(x)]).all()


@pytest.mark.parametrize(
    ("x", "fmt", "chance"),
    [
        (65504 + 0.25 * 32, "fp16", 0.25),  # max and the virtual next value, 65536
        (1e9, "fp16", 1),
        (-65504 - 0.25 * 32, "fp16", 0.75),  # up is toward zero
        (-1e9, "fp16", 0),
        (448 + 8.0, "e4m3", 0.25),
        (6 + 0.5, "e2m1", 0.25),
        (127.75, format("int8").element, 0.75),
        (0.25 * 2.0**-24, "fp16", 0.25),  # below half of the smallest subnormal
        (-0.25 * 2.0**-24, "fp16", 0.75),
        (1023.25 * 2.0**-24, "fp16", 0.25),  # a carry to the smallest normal
        (1023.25 * 2.0**-24, "fp16_ftz", 0.25),
        (1022.25 * 2.0**-24, "fp16_ftz", 0),  # would be a subnormal, up or down
        (-1022.25 * 2.0**-24, "fp16_ftz", 1),
        (2.0**-128, "e8m0", 1),  # no zero to go down to
        (1.25, "e8m0", 0.25),
        (5e-324, "fp64", 0),
    ],
)
def test_probabilities_at_the_ends_of_the_range(x, fmt, chance):
    assert prob_up(Fraction(x), fmt) == chance
    assert prob_up(x, fmt) == chance
    assert type(prob_up(x, fmt)) is np.float64
    assert ps.explain(x, fmt).prob_up == chance


def test_what_becomes_of_the_top():
    """Three in four words beyond 65504 + 8 stay at max; overflow has the fourth."""
    x, random = np.full(4, 65512.0), all_words(2)
    assert quantize(x, "fp16", "stochastic", "ieee", random).tolist() == [np.inf] + [65504.0] * 3
    assert quantize(x, "fp16", "stochastic", "saturate", random).tolist() == [65504.0] * 4
    result = quantize(np.full(4, 456.0), "e4m3", "stochastic", "ieee", random)
    assert np.isnan(result).tolist() == [True, False, False, False]


def test_prob_up_of_other_numbers():
    assert prob_up(Fraction(1, 3), "e4m3") == Fraction(2, 3)
    assert prob_up(Fraction(1, 3), "e4m3", "stochastic_a2") == Fraction(1, 2)
    assert prob_up(Fraction(-1, 3), "e8m0") is None
    assert prob_up(np.zeros((0, 2)), "e2m1").shape == (0, 2)
    assert prob_up(np.float32(0.25), "e2m1", Stochastic("a", 1)) == 0.5


@pytest.mark.parametrize("mode", EVERY)
def test_explain_shows_the_probability_of_the_variant(mode):
    for x in (0.1, -0.1, 1e-6, 470.0, 1e9):
        shown = ps.explain(x, "e4m3", mode, random=0.25)
        assert shown.prob_up == float(prob_up(Fraction(x), "e4m3", mode))
        np.testing.assert_equal(shown.value, exact.round(x, "e4m3", mode, random=0.25))


# Draws.


@pytest.mark.parametrize(
    "mode", ["stochastic", "stochastic_equal", "stochastic_b5", "stochastic_c20"]
)
@pytest.mark.parametrize("fmt", ["fp16", "bf16", "e4m3", "e2m1"])
def test_chunks_threads_and_carriers_change_nothing(fmt, mode):
    k, size = key(1, "blocks.0.mlp", 7, 0), 70_000
    x = np.random.default_rng(0).normal(size=size).astype(np.float32) ** 5
    whole = quantize(x, fmt, mode, random=words(k, size))

    def part(start, stop):
        return quantize(x[start:stop], fmt, mode, random=words(k, stop - start, start))

    edges = [0, 1, 7, 4096, 32_771, 65_537, size]
    chunks = list(itertools.pairwise(edges))
    testing.assert_same(np.concatenate([part(*chunk) for chunk in chunks]), whole, x)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda chunk: part(*chunk), chunks[::-1]))
    testing.assert_same(np.concatenate(parts[::-1]), whole, x)
    wide = quantize(x.astype(np.float64), fmt, mode, random=words(k, size))
    testing.assert_same(wide.astype(np.float32), whole, x)
    assert wide.dtype == np.float64


@pytest.mark.parametrize("mode", ["stochastic", "stochastic_a8"])
def test_the_engine_draws_the_same_for_every_carrier(mode):
    x = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    results = []
    for arithmetic in ("exact", "fast"):
        policy = ps.Policy(activations=f"bf16:{mode}", arithmetic=arithmetic)
        with ps.using(policy, seed=3, step=5):
            results.append((ps.tensor(x) * ps.tensor(np.float32(1))).numpy())
    testing.assert_same(*(r.astype(np.float64) for r in results), x)
    assert (results[0] != quantize(x, "bf16")).any()


def test_one_draw_means_the_same_to_every_variant():
    """With n bits the variants differ from "exact" for about 2^-n of all draws, not for half."""
    x = np.random.default_rng(0).normal(size=100_000)
    random = words(key(0, "x", 0, 0), x.size)
    ideal = quantize(x, "bf16", "stochastic", random=random)
    for letter in "abc":
        other = quantize(x, "bf16", f"stochastic_{letter}8", random=random)
        assert 0 < (other != ideal).mean() < 2.0**-7


def test_a_is_biased_toward_zero_and_the_others_are_not():
    x = 1 + (np.arange(2**12) + 0.5) / 2**12 * 2.0**-10
    bias = [(prob_up(x, "fp16", f"stochastic_{m}3") - prob_up(x, "fp16")).mean() for m in "abc"]
    assert bias == [-(2.0**-4), 0, 0]


# How it is spelled.


@pytest.mark.parametrize("beside", [1.0, 1e30, math.nan])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("mode", "x", "word"),
    [
        # The first 24 bits of the word are those of the distance; the last 8 decide.
        ("stochastic", 256_200 * 2.0**-41, 256_200),
        # n bits of 0.75 are 0.75 * 2^n: with half a step more they need one bit more than n.
        *((f"stochastic_{v}{n}", 1 + 0.75 / 8, 3 << 30) for v in "abc" for n in (23, 24, 25, 32)),
    ],
)
def test_words_beside_the_edge_go_where_fractions_say(mode, x, word, dtype, beside):
    """Beside an overflow, or a NaN, a block goes another way; the bits are the same."""
    step = 1 << 32 - (getattr(rounding_mode(mode), "bits", None) or 32)
    near = np.array([word + step * k for k in (-2, -1, 0, 1, 2)] + [0], np.uint32)
    inputs = np.array([x] * 5 + [beside], dtype)
    assert (inputs[:5] == x).all()

    def rounded(values):
        return quantize(values, "e4m3", mode, random=near).astype(np.float64)

    testing.check_rounding(rounded, "e4m3", mode, inputs=inputs, random=near)
    assert np.unique(rounded(inputs)[:5]).size == 2  # the edge is among them
