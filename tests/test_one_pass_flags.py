"""The device's flags: as many as the specification raises, in every format and mode."""

import numpy as np
import pytest
from test_accounting import FORMATS, MODES, by_name, specified, trouble, words_for

from precsim.backend import cupy as device
from precsim.backend import one_pass_flags
from precsim.formats import accounting
from precsim.formats.accounting import quantize_counted
from precsim.formats.registry import format


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fmt", FORMATS, ids=by_name)
def test_accounts_are_the_flags_of_the_specification(cupy, monkeypatch, fmt, mode):
    monkeypatch.setattr(accounting, "_Tally", None)  # which array code counts with
    wide = fmt.exp_bits == 11
    for dtype, overflow in ((np.float64 if wide else np.float32, "ieee"), (np.float64, "saturate")):
        x = trouble(fmt, dtype, 40)
        words = words_for(x, mode)
        there = None if words is None else cupy.asarray(words)
        _, counts = quantize_counted(cupy.asarray(x), fmt, mode, overflow, there)
        assert counts.to_dict() == specified(x, fmt, mode, overflow, words)


def test_ties_at_the_end_of_the_carrier(cupy):
    """Where the virtual next value is no float64 number."""
    fmt = format("e11m3")
    x = np.array([1.9375 * 2.0**1023, np.nextafter(1.9375 * 2.0**1023, 0), 1.0625 * 2.0**-1022])
    _, counts = quantize_counted(cupy.asarray(x), fmt)
    assert counts.to_dict() == specified(x, fmt, "nearest")
    assert (counts.tie, counts.overflow) == (2, 1)


@pytest.mark.parametrize("size", [0, 1, 255, 100_003])
def test_every_number_is_counted_once(cupy, size):
    x = np.random.default_rng(0).standard_normal(size).astype(np.float32) * 300
    _, counts = quantize_counted(cupy.asarray(x), "e4m3")
    assert counts == quantize_counted(x, "e4m3")[1]
    assert counts.n == size


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_updates(cupy, dtype):
    """An update that is NaN is one; a weight that is NaN is not what it was."""
    weight = np.array([1, 1, 1, 0, np.nan, np.inf, -0.0, 2], dtype)
    delta = np.array([0, -0.0, 1e-9, 1, 1, 1, -1e-30, np.nan], dtype)
    rounded = np.array([1, 1, 1, 1, np.nan, np.inf, 0, np.nan], dtype)
    moved = device.updates(*map(cupy.asarray, (weight, delta, rounded)))
    assert moved() == {"updates": 6, "swamped": 3}
    assert tuple(moved()) == one_pass_flags.UPDATES


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("values", "largest"),
    [([np.nan], 0), ([0, -0.0], 0), ([1, -3, np.nan, 2], 3), ([1, -np.inf, np.nan], np.inf)],
)
def test_the_largest_of_what_are_numbers(cupy, dtype, values, largest):
    x = np.zeros(70_001, dtype)
    x[-len(values) :] = values
    assert device.largest(cupy.asarray(x))() == largest
