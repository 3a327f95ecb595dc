"""Every count is the number of elements for which the specification raises that flag."""

import operator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import precsim as ps
from precsim import testing
from precsim.formats import exact
from precsim.formats.accounting import Counts, quantize_counted, tally
from precsim.formats.format import Format, Specials
from precsim.formats.modes import Rounding, rounding_mode, stochastic
from precsim.formats.quantize import quantize
from precsim.formats.registry import format

MODES = [*map(str, Rounding), "stochastic_equal", "stochastic_a3", "stochastic_b1", "stochastic_c8"]
FORMATS = [
    *testing.GRIDS,
    *map(format, ("fp16_ftz", "e4m3_ftz", "e6m9", "e5m21", "e8m5")),
    Format("ue4m3", 4, 3, Specials.FN, signed=False),
    Format("ue3m2", 3, 2, Specials.FINITE, signed=False),
    Format("zeroless", 4, 3, Specials.FN, signed=False, has_zero=False),
    Format("deep", 8, 3, bias=135),  # subnormal in float32, and yet normal
]
by_name = operator.attrgetter("name")


def specified(x, fmt, mode, overflow=None, words=None):
    """Count the flags that the specification raises, one number at a time."""
    draws = [None] * x.size if words is None else ((words.ravel() + 0.5) * 2.0**-32).tolist()
    want = Counts(n=x.size).to_dict()
    for number, draw in zip(x.ravel().tolist(), draws, strict=True):
        for flag in exact.flags(number, fmt, mode, overflow, draw):
            want[flag] += 1
    return want


def words_for(x, mode, seed=0):
    draws = np.random.default_rng(seed).integers(0, 2**32, x.shape, np.uint32)
    return draws if stochastic(rounding_mode(mode)) else None


def trouble(fmt, dtype, size):
    """Return some specimens, and the numbers on either side of every line that a count draws."""
    x = testing.specimens(fmt, dtype, per_binade=4)
    x = np.random.default_rng(fmt.bits).choice(x, min(size, x.size), replace=False)
    below, quantum, half = fmt.smallest_normal, fmt.quantum, fmt.ulp(fmt.max) / 2
    lines = [below, below - quantum / 4, below - quantum / 2, quantum, quantum / 2, fmt.max]
    with np.errstate(all="ignore"):
        lines = np.array([*lines, fmt.max + half, fmt.max + 2 * half], dtype)
        near = [
            lines,
            np.nextafter(lines, np.inf, dtype=dtype),
            np.nextafter(lines, 0, dtype=dtype),
        ]
    ends = np.array([0.0, np.inf, np.nan], dtype)
    return np.concatenate([x, *near, *(-a for a in near), ends, -ends])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fmt", FORMATS, ids=by_name)
def test_counts_are_the_flags_of_the_specification(fmt, mode):
    wide = fmt.exp_bits == 11
    for dtype, overflow in ((np.float64 if wide else np.float32, "ieee"), (np.float64, "saturate")):
        x = trouble(fmt, dtype, 40)
        words = words_for(x, mode)
        values, counts = quantize_counted(x, fmt, mode, overflow, words)
        testing.assert_same(values, quantize(x, fmt, mode, overflow, words), x)
        assert counts.to_dict() == specified(x, fmt, mode, overflow, words)


@given(st.data())
def test_counts_of_formats_of_every_shape(data):
    fmt = data.draw(testing.formats(max_bits=19))
    mode, overflow = (
        data.draw(st.sampled_from(MODES)),
        data.draw(st.sampled_from(["ieee", "saturate"])),
    )
    dtype = data.draw(st.sampled_from([np.float32, np.float64]))
    if dtype is np.float32 and not format("fp32").contains(fmt):
        dtype = np.float64
    x = data.draw(testing.arrays(fmt, dtype))
    words = words_for(x, mode)
    _, counts = quantize_counted(x, fmt, mode, overflow, words)
    assert counts.to_dict() == specified(x, fmt, mode, overflow, words)


def raised(number, fmt, how):
    counts = quantize_counted(np.array([number]), fmt, *how)[1].to_dict()
    return {name for name, count in counts.items() if count} - {"n"}


@pytest.mark.parametrize(
    ("number", "fmt", "how", "flags"),
    [
        (1.0, "fp16", (), ""),
        (np.nan, "fp16", (), ""),
        (np.inf, "fp16", (), ""),
        (0.1, "fp16", (), "inexact"),
        (1 + 2.0**-11, "fp16", (), "inexact tie"),
        (2.0**-24, "fp16", (), "subnormal tiny_before tiny_after"),
        (2.0**-24, "fp16_ftz", (), "inexact flushed tiny_before tiny_after"),
        (2.0**-25, "fp16", (), "inexact tie flushed tiny_before tiny_after"),
        (-1e-30, "fp16", (), "inexact flushed tiny_before tiny_after"),
        (2.0**-14 - 2.0**-25, "fp16", (), "inexact tie tiny_before tiny_after"),
        (2.0**-14 - 2.0**-26, "fp16", (), "inexact tiny_before"),
        (65519.0, "fp16", (), "inexact"),
        (65520.0, "fp16", (), "inexact tie overflow"),
        (65520.0, "fp16", ("nearest", "saturate"), "inexact tie overflow saturated"),
        (65530.0, "fp16", ("toward_zero",), "inexact"),
        (65536.0, "fp16", ("toward_zero",), "inexact overflow saturated"),
        (-65530.0, "fp16", ("up",), "inexact"),
        (-65505.0, "fp16", ("down",), "inexact overflow"),
        (np.inf, "fp16", ("nearest", "saturate"), "saturated"),
        (464.0, "e4m3", (), "inexact tie"),
        (465.0, "e4m3", (), "inexact overflow nan_created"),
        (-np.inf, "e4m3", (), "nan_created"),
        (np.nan, "e2m1", (), "nan_lost"),
        (100.0, "e2m1", (), "inexact overflow saturated"),
        (-2.0, "e8m0", (), "inexact nan_created"),
        (0.0, "e8m0", (), "inexact"),
        (0.25, format("int8").element, (), "inexact flushed"),
    ],
)
def test_flags_one_by_one(number, fmt, how, flags):
    assert raised(number, fmt, how) == set(flags.split())
    assert exact.flags(number, fmt, *how) == set(flags.split())


def test_what_a_draw_decides_is_counted_as_it_was_drawn():
    """65504 + 8: a quarter of the words overflow, whether that shows or not."""
    x, words = np.full(4, 65512.0), np.arange(4, dtype=np.uint32) << np.uint32(30)
    for overflow, saturated in (("ieee", 0), ("saturate", 1)):
        _, counts = quantize_counted(x, "fp16", "stochastic_a2", overflow, words)
        assert (counts.overflow, counts.saturated, counts.inexact) == (1, saturated, 4)


def test_counts_add_up_over_blocks_and_arrays():
    x = np.resize(testing.specimens("fp16", np.float32, per_binade=8), 100_003)
    _, whole = quantize_counted(x, "fp16")
    parts = [quantize_counted(part, "fp16")[1] for part in np.split(x, [1, 40_000, 40_001])]
    assert sum(parts, Counts()) == whole
    assert whole.n == x.size


def test_shapes_and_kinds_are_those_of_quantize():
    value, counts = quantize_counted(0.1, "e4m3")
    assert type(value) is np.float64
    assert (counts.n, counts.inexact) == (1, 1)
    values, counts = quantize_counted(np.zeros((0, 3), np.float32), "e4m3")
    assert (values.shape, values.dtype, counts) == ((0, 3), np.float32, Counts())
    x = np.arange(12.0).reshape(3, 4).T[::2] / 7
    values, counts = quantize_counted(x, "e2m1")
    np.testing.assert_array_equal(values, quantize(x, "e2m1"))
    assert counts.to_dict() == specified(x, "e2m1", "nearest")
    assert tally(x, values, format("e2m1"), Rounding.NEAREST) == counts
    drawn = quantize_counted(x, "e2m1", "stochastic", random=7)[0]
    np.testing.assert_array_equal(drawn, quantize(x, "e2m1", "stochastic", random=7))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"fmt": "int8"}, "int8 shares scales: expected its element format, and x / scale"),
        ({"rounding": "stochastic"}, "needs `random`"),
        ({"fmt": "fp64", "x": np.zeros(2, np.float32)}, "float32 cannot carry fp64"),
    ],
    ids=str,
)
def test_errors_are_those_of_quantize(how, message):
    with pytest.raises(ValueError, match=message):
        ps.quantize_counted(**{"x": np.zeros(2), "fmt": "fp16"} | how)


@pytest.mark.parametrize("man_bits", [0, 1, 3])
def test_ties_lie_halfway_between_two_values_of_which_a_format_without_a_zero_has_fewer(man_bits):
    fmt = Format("zeroless", 4, man_bits, Specials.FN, signed=False, has_zero=False)
    values = np.array(fmt.values())
    halfway = (values[:-1] + values[1:]) / 2
    below = np.arange(1, 32) / 32 * values[0]
    for x, ties in ((halfway, halfway.size), (values, 0), (below, 0)):
        assert quantize_counted(x, fmt)[1].tie == ties
        assert sum("tie" in exact.flags(number, fmt) for number in x.tolist()) == ties
