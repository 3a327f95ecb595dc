"""Totals that go over a result in pieces: the same as over all of it at once, words included.

(`test_arithmetic.py` holds them to exact fractions.)
"""

import numpy as np
import pytest

import precsim as ps
from precsim.backend import tier
from precsim.engine.accumulate import add_up, multiply
from precsim.engine.precision import Accumulator
from precsim.formats.scratch import BLOCK_BYTES

UNITS = ("fp16", "bf16:toward_zero", "e4m3", "e2m1", "e8m13:to_odd>fp32@4", "fp16:stochastic",
         "bf16:stochastic_a8", "e4m3:stochastic>bf16@3")  # fmt: skip
ROOM = BLOCK_BYTES // 8
SHAPES = {
    "one": (1, 1, 5, 1), "rows of one matrix": (1, 300, 7, 90), "many matrices": (300, 9, 6, 9),
    "a row that is no piece": (2, 3, 5, ROOM + 7), "rows of some": (3, 260, 5, 65),
}  # fmt: skip


def operands(stack, rows, length, columns, dtype):
    random = np.random.default_rng(rows)
    a, b = random.normal(size=(stack, rows, length)), random.normal(size=(stack, length, columns))
    a[:, 0], b[..., 0] = -0.0, b[..., 0] * 1e-6  # totals that underflow, products of -0
    return a.astype(dtype), b.astype(dtype)


def draw(shape, start):
    """Words that depend on the place of an element alone."""
    places = np.arange(start, start + int(np.prod(shape)), dtype=np.uint64)
    return (places * np.uint64(2654435761) % np.uint64(1 << 32)).astype(np.uint32).reshape(shape)


def at_once(unit, a, b):
    """Add whole outer products, as the register is defined."""
    total, outer, drawn = np.zeros((len(a), a.shape[1], b.shape[2]), a.dtype), 0.0, 0
    random = "stochastic" in str(unit.rounding)
    for k in range(a.shape[2]):
        words = draw(total.shape, drawn) if random else None
        drawn += total.size
        term = a[:, :, k, None] * b[:, k, None, :] + 0.0
        total = ps.quantize(total + term, unit.format, unit.rounding, random=words)
        if unit.chunk and ((k + 1) % unit.chunk == 0 or k + 1 == a.shape[2]):
            outer = ps.quantize(outer + total, unit.outer)
            total = np.zeros_like(total)
    return outer if unit.chunk else total


@pytest.mark.parametrize("kernels", ["numpy", "numba"])
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_product_in_pieces_is_the_whole(shape, unit, kernels):
    if kernels == "numba":
        pytest.importorskip("numba")
    unit = Accumulator.parse(unit)
    for dtype in (np.float32, np.float64):
        a, b = operands(*shape, dtype)
        with tier("numpy"):
            want = at_once(unit, a, b)
        got = np.full_like(want, np.nan)
        with tier(kernels), np.errstate(all="ignore"):
            multiply(unit, a, b, got, draw)
        assert got.tobytes() == want.tobytes()


def test_terms_may_be_the_same_memory_each_time():
    memory = np.empty((50, 1000))

    def part(start, stop):
        memory[...] = start + 1
        return memory

    got = add_up(Accumulator.parse("fp16"), 4, part, None)
    np.testing.assert_array_equal(got, np.full((50, 1000), 10.0))
    assert not np.shares_memory(got, memory)


def test_a_total_that_draws_needs_random_words():
    a, b = operands(1, 2, 3, 4, np.float64)
    with pytest.raises(ValueError, match="stochastic rounding needs"):
        multiply(Accumulator.parse("fp16:stochastic"), a, b, np.empty((1, 2, 4)), None)
    with pytest.raises(ValueError, match="stochastic rounding needs"):
        add_up(Accumulator.parse("fp16:stochastic"), 3, lambda i, _: a[0, i % 2], None)


@pytest.mark.parametrize("unit", ["fp16", "bf16:stochastic", "e8m13:toward_zero/4>bf16@8"])
def test_compiled_totals_are_numpys(unit):
    """Of terms, -0 among them, that come several at a time; the first of a chunk is added to 0."""
    pytest.importorskip("numba")
    unit = Accumulator.parse(unit)
    for dtype in (np.float32, np.float64):
        terms = operands(1, 13, 50, 70, dtype)[1][0] * dtype(100)
        terms[0, ::3] = -0.0
        found = []
        for kernels in ("numpy", "numba"):
            with tier(kernels), np.errstate(all="ignore"):
                found.append(add_up(unit, 50, lambda i, end, t=terms: t[i:end].sum(axis=0), draw))
        assert found[0].tobytes() == found[1].tobytes()
