"""Formulas: what Python's operators on NumPy's arrays give, step by step, in whatever way they run."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from precsim.backend import tier
from precsim.backend.formula import Formula, formula, places_of

TIERS = ("numpy", "numba")
DTYPES = (np.float32, np.float64)
SPECIALS = (0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, 5e-324, 3e38, 1.7e308, 1 + 2**-23)


def chained(x, y, z):
    return (x * y + z) * 0.044715 - 1 / y


def halves(x, y, z):
    first = (x + 1) * (1 - x * x)
    second = 3.0 - y
    return (second * z - first) / 2 + second * first


def copied_late(x, y, z):
    return 1.5 * x * y * z + x


FUNCTIONS = (chained, halves, copied_late)
KINDS = ("all", "row", "column")


@pytest.fixture(params=TIERS)
def each_tier(request):
    if request.param == "numba":
        pytest.importorskip("numba")
    with tier(request.param):
        yield


def same_bits(a, b):
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()


def draw(random, shape, dtype):
    """Return numbers of all sizes, some of them special."""
    x = np.ldexp(random.standard_normal(shape), random.integers(-30, 30, shape)).astype(dtype)
    with np.errstate(all="ignore"):
        special = np.array(SPECIALS).astype(dtype)
    return np.where(random.random(shape) < 0.1, random.choice(special, shape), x)


def without_payload(x):
    """Return x with one NaN for all: which of two a sum hands on, no standard says."""
    return np.where(np.isnan(x), x.dtype.type("nan"), x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("shape", [(5, 7), (64, 64), (3, 5, 33), (100,), (1, 1), (4, 0), (0, 4)])
@pytest.mark.usefixtures("each_tier")
def test_bits_are_those_of_operators(dtype, kind, function, shape):
    random = np.random.default_rng([len(shape), *shape])
    other = {"all": shape, "row": (*shape[:-1], 1), "column": shape[-1:]}[kind]
    operands = [draw(random, s, dtype) for s in (shape, other, shape)]
    out = np.empty(shape, dtype)
    with np.errstate(all="ignore"):
        want = function(*operands)
        assert Formula(function)(*operands, out=out) is out
        assert same_bits(without_payload(out), without_payload(want))


@pytest.mark.parametrize("written", range(3))
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.usefixtures("each_tier")
def test_the_result_may_be_one_of_the_operands(function, written):
    random = np.random.default_rng(written)
    operands = [draw(random, (9, 40), np.float32) for _ in range(3)]
    with np.errstate(all="ignore"):
        want = function(*operands)
        Formula(function)(*operands, out=operands[written])
    assert same_bits(without_payload(operands[written]), without_payload(want))


TURNS = {
    "transposed": lambda x: x.T,
    "strided": lambda x: x[::2],
    "wide": lambda x: x.astype(float),
}


@pytest.mark.parametrize("turn", TURNS.values(), ids=TURNS)
@pytest.mark.usefixtures("each_tier")
def test_arrays_that_no_loop_goes_over_are_left_to_numpy(turn):
    random = np.random.default_rng(0)
    x, y = turn(draw(random, (66, 66), np.float32)), draw(random, (66, 66), np.float32)
    y = turn(y)
    with np.errstate(all="ignore"):
        want = (x * y).astype(np.float32) + 1.0
        out = Formula(lambda x, y: x * y + 1.0)(x, y, out=np.empty(x.shape, np.float32))
    assert same_bits(without_payload(out), without_payload(want))


@given(
    hnp.arrays(np.float32, (3, 70), elements=st.floats(width=32)),
    hnp.arrays(np.float32, (3, 1), elements=st.floats(width=32)),
    st.floats(width=32, allow_nan=False),
)
def test_compiled_formulas_and_numpys_have_the_same_bits(x, row, number):
    pytest.importorskip("numba")
    found = []
    for name in TIERS:
        with tier(name), np.errstate(all="ignore"):
            found.append(FIXED(x, row, out=np.empty_like(x)))
            assert same_bits(
                without_payload(found[-1]), without_payload((x - row) * x / row + 0.1 * row)
            )
    assert same_bits(*map(without_payload, found))
    assert Formula(lambda x: x * number).steps[0].right == number


@pytest.mark.parametrize("columns", [7, 3000])
def test_a_formula_of_one_step_is_that_step_at_any_size(columns):
    pytest.importorskip("numba")
    x, y = np.random.default_rng(0).standard_normal((2, 3, columns), np.float32)
    row = y[:, :1].copy()
    for name in TIERS:
        with tier(name):
            assert same_bits(Formula(lambda x, y: x / y)(x, row, out=np.empty_like(x)), x / row)
            assert same_bits(Formula(lambda x, y: y - x)(x, y, out=np.empty_like(x)), y - x)
            assert same_bits(Formula(lambda x, y: x + 1.0)(x, y, out=np.empty_like(x)), x + 1)
            assert same_bits(Formula(lambda x, y: 0.0 - y)(x, y, out=np.empty_like(x)), 0 - y)
            assert same_bits(Formula(lambda x, y, z: x * y)(x, y, y, out=x.copy()), x * y)
            here = x.copy()
            assert Formula(lambda x, y: x - y)(here, row, out=here) is here
            assert same_bits(here, x - row)


@formula
def FIXED(x, row):
    return (x - row) * x / row + 0.1 * row


def test_no_step_writes_over_what_is_read_later():
    """Every formula of three operands and up to five steps, kept by hand in a dictionary."""
    random = np.random.default_rng(0)
    for _ in range(2000):
        steps = []
        for at in range(random.integers(1, 6)):
            left, right = random.integers(0, 3 + at, 2)
            steps.append(("+-*/"[random.integers(4)], int(left), int(right)))
        written = [None, 0, 1, 2][random.integers(4)]
        where = {n: f"operand {n}" for n in range(3)}
        if written is not None:
            where[written] = 0
        content = {place: number for number, place in where.items()}
        for at, (step, place) in enumerate(
            zip(steps, places_of(tuple(steps), 3, written), strict=True)
        ):
            for term in step[1:]:
                assert content[where[term]] == term
            where[3 + at], content[place] = place, 3 + at
        assert where[2 + len(steps)] == 0


@pytest.mark.parametrize(
    "function",
    [lambda x: x, lambda x: 2.0, lambda x: (x + 1, x * 2)[0]],
    ids=["nothing done", "a constant", "not the last"],
)
def test_a_function_whose_result_is_not_its_last_step_is_refused(function):
    with pytest.raises(ValueError, match="expected it to return what its last step gives"):
        Formula(function)
