"""Narrow accumulators against loops that add one number at a time, in exact arithmetic."""

from fractions import Fraction
from importlib.util import find_spec

import numpy as np
import pytest

import precsim as ps
from precsim.backend import key, tier, words
from precsim.engine.precision import Accumulator


def narrow(accumulator, **fields):
    return ps.Policy.uniform("fp64", accumulator=accumulator, **fields)


def total(x, accumulator, axis=None, **options):
    with ps.using(narrow(accumulator)):
        return ps.ops.sum(x, axis=axis, **options).numpy()


def product(a, b, accumulator):
    """Multiply with each kind of kernel that there is here; they must agree to the bit."""
    found = []
    for kernels in ("numpy", "numba") if find_spec("numba") else ("numpy",):
        with tier(kernels), ps.using(narrow(accumulator)):
            found.append(ps.ops.matmul(a, b).numpy())
    assert len({x.tobytes() for x in found}) == 1
    return found[0]


def in_fractions(terms, accumulator, random=None):
    """Add fractions one by one, as `Accumulator` says that the register does."""
    unit = Accumulator.parse(accumulator)
    held, outer = Fraction(0), Fraction(0)
    for start in range(0, len(terms), unit.every):
        arriving = sum(terms[start : start + unit.every], Fraction(0))
        at = None if random is None else Fraction(2 * int(random[start]) + 1, 2**33)
        held = Fraction(ps.exact.round(held + arriving, unit.format, unit.rounding, random=at))
        done = min(start + unit.every, len(terms))
        if unit.chunk and (done % unit.chunk == 0 or done == len(terms)):
            outer, held = Fraction(ps.exact.round(outer + held, unit.outer)), Fraction(0)
    return float(outer if unit.chunk else held)


def fractions(values):
    return [Fraction(v) for v in np.ravel(values).tolist()]


def halves(*shape, seed=0, low=-1.0, high=1.0):
    """Return numbers that fp16 holds exactly."""
    return np.random.default_rng([seed, *shape]).uniform(low, high, shape).astype(np.float16) + 0.0


ACCUMULATORS = [
    "fp16",
    "bf16",
    "e4m3",
    "e6m9:toward_zero",
    "fp16:up",
    "e8m13:to_odd",
    "bf16/4",
    "bf16/32",
    "e4m3>fp32@4",
    "e6m9>e6m9@8",
    "e8m13:toward_zero/2>fp16@6",
]


@pytest.mark.parametrize(("fmt", "stops"), [("fp16", 2048), ("bf16", 256), ("e4m3", 16)])
def test_counting_by_ones_stops_where_one_is_half_a_step(fmt, stops):
    assert total(np.ones(stops + 100), fmt) == stops
    assert total(np.ones(stops // 2), fmt) == stops // 2
    assert product(np.ones((1, stops + 9)), np.ones((stops + 9, 1)), fmt) == stops


def test_a_sum_of_65536_numbers_of_mean_one_stops_at_4096():
    """Wang et al. 2018, figure 3(b): 10 significand bits; chunks of 64 save it."""
    wide = np.sqrt(3)
    x = np.random.default_rng(0).uniform(1 - wide, 1 + wide, (65536, 3))
    np.testing.assert_array_equal(total(x, "e6m9", axis=0), 4096)
    np.testing.assert_allclose(total(x, "e6m9>e6m9@64", axis=0), x.sum(axis=0), rtol=0.02)


def test_fourteen_bits_truncated_lose_percents_and_promotion_brings_them_back():
    """K = 4096 positive products, as in DeepSeek-V3's section 3.3.2: promoted every 128 to fp32."""
    a, b = halves(2, 4096, low=0), halves(4096, 2, seed=1, low=0)
    exact = a.astype(float) @ b
    kept = np.abs(product(a, b, "e8m13:toward_zero") / exact - 1).max()
    promoted = np.abs(product(a, b, "e8m13:toward_zero>fp32@128") / exact - 1).max()
    assert 0.05 < kept < 0.12
    assert promoted < 0.004


@pytest.mark.parametrize("accumulator", ACCUMULATORS)
@pytest.mark.parametrize(
    ("left", "right"),
    [((2, 7), (7, 3)), ((1, 1), (1, 1)), ((2, 3, 9), (9, 2)), ((2, 1, 2, 5), (3, 5, 2))],
)
def test_matmul_is_the_loop_over_its_contraction(left, right, accumulator):
    a, b = halves(*left), halves(*right, seed=1)
    got = product(a, b, accumulator)
    batch = np.broadcast_shapes(left[:-2], right[:-2])
    wide_a = np.broadcast_to(a, batch + left[-2:])
    wide_b = np.broadcast_to(b, batch + right[-2:])
    assert got.shape == (*batch, left[-2], right[-1])
    for *where, row, column in np.ndindex(got.shape):
        row_of_a = fractions(wide_a[(*where, row)])
        column_of_b = fractions(wide_b[(*where, slice(None), column)])
        terms = [x * y for x, y in zip(row_of_a, column_of_b, strict=True)]
        assert got[(*where, row, column)] == in_fractions(terms, accumulator)


@pytest.mark.parametrize("accumulator", ACCUMULATORS)
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", [None, 0, -1, (0, 2), (2, 0), (-2, -3), ()])
def test_sum_is_the_loop_over_its_axes_in_the_order_given(axis, keepdims, accumulator):
    x = halves(4, 3, 5)
    axes = tuple(a % 3 for a in ((0, 1, 2) if axis is None else np.atleast_1d(axis).astype(int)))
    got = total(x, accumulator, axis=axis, keepdims=keepdims)
    assert got.shape == x.sum(axis=axes, keepdims=keepdims).shape
    kept = [a for a in range(3) if a not in axes]
    want = np.empty([x.shape[a] for a in kept])
    for where in np.ndindex(want.shape):
        terms = []
        for along in np.ndindex(*(x.shape[a] for a in axes)):
            place = dict(zip(kept, where, strict=True)) | dict(zip(axes, along, strict=True))
            terms.append(Fraction(float(x[place[0], place[1], place[2]])))
        want[where] = in_fractions(terms, accumulator)
    np.testing.assert_array_equal(got.reshape(want.shape), want)


def test_a_sum_in_fp16_is_numpys_own():
    x = halves(500, 4, low=-0.1, high=9)
    want = np.add.accumulate(x.astype(np.float16), axis=0)[-1]
    np.testing.assert_array_equal(total(x, "fp16", axis=0), want)


@pytest.mark.parametrize(
    ("fmt", "theirs"), [("bf16", "bfloat16"), ("e4m3", "float8_e4m3fn"), ("e5m2", "float8_e5m2")]
)
def test_a_sum_in_a_narrow_format_is_ml_dtypes(fmt, theirs):
    dtype = getattr(pytest.importorskip("ml_dtypes"), theirs)
    x = halves(60, 4, low=-0.5, high=2).astype(dtype)
    want = np.add.accumulate(x, axis=0)[-1].astype(float)
    np.testing.assert_array_equal(total(x.astype(float), fmt, axis=0), want)


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 4, 4), (3, 1, 6), (2, 0, 3)])
@pytest.mark.parametrize("arithmetic", ["fast", "exact"])
def test_a_stack_of_transposed_matrices_is_multiplied_as_the_matrices_are(shape, arithmetic):
    whole = np.random.default_rng(0).integers(-9, 10, (2, *shape))  # whole numbers: no sum rounds
    a, b = whole[0], whole[1]
    with ps.using(ps.Policy.uniform("fp32", arithmetic=arithmetic)):
        c = ps.ops.matmul(ps.tensor(a), ps.tensor(b).swapaxes(-1, -2)).numpy()
    assert np.array_equal(c, np.einsum("...ij,...kj->...ik", a, b))


def test_an_accumulator_as_wide_as_the_carrier_changes_nothing():
    a, b = halves(5, 40), halves(40, 3, seed=1)
    np.testing.assert_allclose(product(a, b, "fp64"), a @ b.astype(float), rtol=1e-14)


def test_overflow_in_the_register_stays_in_the_sum():
    assert total([60000.0, 60000.0, -60000.0], "fp16") == np.inf
    assert total([60000.0, 60000.0, -60000.0], "fp16/3") == 60000
    assert np.isnan(total([448.0, 448.0, -448.0], "e4m3"))


@pytest.mark.parametrize("accumulator", ["fp16", "bf16:stochastic", "e8m13>fp32@4"])
def test_sums_over_nothing_are_zero(accumulator):
    assert total(np.ones((0, 3)), accumulator) == 0
    np.testing.assert_array_equal(total(np.ones((0, 3)), accumulator, axis=0), np.zeros(3))
    assert total(np.ones((0, 3)), accumulator, axis=1).shape == (0,)
    np.testing.assert_array_equal(
        product(np.ones((2, 0)), np.ones((0, 3)), accumulator), np.zeros((2, 3))
    )
    assert product(np.ones((4, 2, 0)), np.ones((0, 3)), accumulator).shape == (4, 2, 3)
    for left, right in (
        ((0, 3), (3, 2)),
        ((2, 3), (3, 0)),
        ((0, 2, 3), (3, 2)),
        ((2, 0, 3), (3, 2)),
    ):
        shape = (np.ones(left) @ np.ones(right)).shape
        assert product(np.ones(left), np.ones(right), accumulator).shape == shape
    assert total(np.array(3.0), accumulator) == 3


def test_stochastic_rounding_reads_the_words_of_its_key():
    """Element i of addition k is word k * size + i of the key (seed, path/accumulate, step, call)."""
    x = halves(6, 4)
    with ps.using(narrow("bf16:stochastic"), seed=7, step=2):
        got = ps.ops.sum(x, axis=0).numpy()
        again = ps.ops.sum(x, axis=0).numpy()
    for call, sums in enumerate((got, again)):
        drawn = words(key(7, "activations//sum/accumulate", 2, call), (6, 4))
        for column in range(4):
            terms = fractions(x[:, column])
            assert sums[column] == in_fractions(terms, "bf16:stochastic", drawn[:, column])


def test_stochastic_sums_are_reproducible_keyed_and_right_on_average():
    x = np.full((300, 2000), 0.25)  # from 64 on, an eighth of bf16's spacing or less

    def run(**where):
        with ps.using(narrow("bf16:stochastic"), **where):
            return ps.ops.sum(x, axis=0).numpy()

    here = run(seed=1, step=1)
    np.testing.assert_array_equal(run(seed=1, step=1, observers=[lambda event: None]), here)
    for elsewhere in ({"seed": 2, "step": 1}, {"seed": 1, "step": 2},
                      {"seed": 1, "step": 1, "scope": "a"}):  # fmt: skip
        assert (run(**elsewhere) != here).mean() > 0.5
    assert abs(here.mean() - 75) < 4 * here.std() / np.sqrt(2000)
    assert here.std() > 0
    nearest = total(x, "bf16", axis=0)
    assert (nearest == 64).all(), "rounding to nearest stops where 0.25 is half a step"


@pytest.mark.parametrize("arithmetic", ["exact", "fast"])
def test_the_sum_is_rounded_to_the_output_after_the_register(arithmetic):
    policy = ps.Policy(activations="e4m3", accumulator="fp16", arithmetic=arithmetic)
    with ps.using(policy):
        y = ps.ops.sum(np.array([1.0, 2.0**-11, 2.0**-11, 1.0]))  # lost one by one in fp16
        assert (y.item(), y.format.name, y.data.dtype) == (2.0, "e4m3", policy.carrier)


def test_the_backward_pass_and_scattered_rows_use_the_register_too():
    """Column sums of 3000 ones stop at 2048: a bias's and an embedding row's gradient."""
    with ps.using(narrow("fp16")):
        x = ps.tensor(np.ones((3000, 1)))
        weight, bias = (ps.tensor(np.ones(s), requires_grad=True) for s in ((1, 1), (1,)))
        ps.ops.linear(x, weight, bias).backward(np.ones((3000, 1)))
        table = ps.tensor(np.ones((2, 1)), requires_grad=True)
        ps.ops.gather(table, ids=np.ones(3000, int)).backward(np.ones((3000, 1)))
    assert weight.grad.item() == bias.grad.item() == 2048
    np.testing.assert_array_equal(table.grad.numpy(), [[0], [2048]])


def test_an_infinite_gradient_stays_with_its_token():
    """A product with a one-hot matrix would make 0 * inf = NaN in the rows of all other tokens."""
    x = np.array([[np.inf, 1.0], [2.0, 3.0]])
    for accumulator in (None, "fp16"):
        with ps.using(ps.Policy.uniform("fp32", accumulator=accumulator)):
            rows = ps.ops.scatter_add(x, ids=np.array([2, 0]), rows=3).numpy()
        np.testing.assert_array_equal(rows, [[2.0, 3.0], [0.0, 0.0], [np.inf, 1.0]])
