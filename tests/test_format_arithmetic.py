"""Arithmetic: the exact result rounded once, in every format and mode; and where carriers fail."""

import math
import operator
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from precsim import testing
from precsim.formats import arithmetic, exact
from precsim.formats.modes import Overflow, Rounding
from precsim.formats.quantize import quantize
from precsim.formats.registry import format
from precsim.proofs.arithmetic import (
    OPERATIONS,
    all_codes,
    check_against_fractions,
    check_by_places,
    exact_result,
    pairs,
    samples,
)

by_name = operator.attrgetter("name")
MODES = list(Rounding)
DIRECTED = [Rounding.TOWARD_ZERO, Rounding.UP, Rounding.DOWN, Rounding.TO_ODD]
NARROW = [f for f in testing.GRIDS if f.bits <= 8]
WORD = 0x9E3779B1


def word_for(rounding):
    return WORD if rounding is Rounding.STOCHASTIC else None


# Equal to the exact result rounded once.


@pytest.mark.parametrize("rounding", MODES)
@pytest.mark.parametrize("fmt", NARROW, ids=by_name)
def test_all_pairs_of_narrow_formats(fmt, rounding):
    """Every value against every value, infinities, NaN and both zeros among them."""
    a, b = pairs(fmt)
    assert a.size >= (2**fmt.bits * 0.75) ** 2
    for op in ("add", "sub", "mul", "div"):
        assert check_by_places(op, (a, b), fmt, rounding, word=word_for(rounding)) == a.size
    check_by_places("sqrt", (all_codes(fmt),), fmt, rounding, word=word_for(rounding))


@pytest.mark.parametrize("rounding", MODES)
@pytest.mark.parametrize("name", ["e2m1", "e3m2", "e2m3"])
def test_all_triples_of_the_narrowest(name, rounding):
    values = all_codes(format(name))[:: 1 if name == "e2m1" else 2]
    triples = [x.ravel() for x in np.meshgrid(values, values, values)]
    check_by_places("fma", tuple(triples), format(name), rounding, word=word_for(rounding))


@pytest.mark.parametrize("rounding", MODES)
@pytest.mark.parametrize("name", ["fp16", "bf16", "tf32", "e6m9", "fp16_ftz", "e5m2", "e8m0"])
def test_hard_samples_of_every_operation(name, rounding):
    fmt = format(name)
    for op in OPERATIONS:
        compared = check_by_places(
            op, samples(fmt, op, 2000), fmt, rounding, Overflow.IEEE, word_for(rounding)
        )
        assert compared == 2000


@pytest.mark.parametrize(
    ("name", "rounding"),
    [
        (name, rounding)
        for name in ("fp16", "bf16", "tf32", "fp32", "e4m3", "e8m0", "e8m12")
        for rounding in MODES
        if name != "fp32" or rounding is not Rounding.STOCHASTIC  # exact up to 19 bits only
    ],
)
def test_hard_samples_against_fractions(name, rounding):
    fmt = format(name)
    for op in OPERATIONS:
        operands = samples(fmt, op, 150, seed=1)
        words = np.random.default_rng(2).integers(0, 2**32, 150, np.uint32)
        for overflow in Overflow:
            how = words if rounding is Rounding.STOCHASTIC else None
            check_against_fractions(op, operands, fmt, rounding, overflow, how)


@given(st.data())
def test_any_operands_in_any_format(data):
    fmt = data.draw(testing.formats(max_bits=16).filter(format("fp32").contains))
    op = data.draw(st.sampled_from(list(OPERATIONS)))
    rounding, overflow = data.draw(st.sampled_from(MODES)), data.draw(st.sampled_from(Overflow))
    wide = testing.doubles(np.float32)  # operands need not be values of the format
    rows = data.draw(st.lists(st.tuples(*[wide] * OPERATIONS[op]), min_size=1, max_size=8))
    operands = tuple(np.array(column) for column in zip(*rows, strict=True))
    words = None
    if rounding is Rounding.STOCHASTIC:
        words = np.array(data.draw(st.lists(st.integers(0, 2**32 - 1), min_size=len(rows),
                                            max_size=len(rows))), np.uint32)  # fmt: skip
    check_against_fractions(op, operands, fmt, rounding, overflow, words)


# The specification itself, by hand.


@pytest.mark.parametrize(
    ("op", "operands", "rounding", "want"),
    [
        ("add", (1.5, -1.5), "nearest", 0.0),
        ("add", (1.5, -1.5), "down", -0.0),
        ("sub", (1.5, 1.5), "down", -0.0),
        ("add", (0.0, -0.0), "up", 0.0),
        ("add", (0.0, -0.0), "down", -0.0),
        ("add", (-0.0, -0.0), "nearest", -0.0),
        ("add", (0.0, 0.0), "down", 0.0),
        ("fma", (1.5, 2.0, -3.0), "down", -0.0),
        ("fma", (1.5, 2.0, -3.0), "toward_zero", 0.0),
        ("fma", (-1.0, 0.0, -0.0), "nearest", -0.0),
        ("fma", (math.inf, 0.0, math.nan), "nearest", math.nan),
        ("fma", (math.inf, 1.0, -math.inf), "nearest", math.nan),
        ("fma", (2.0**100, 2.0**100, -math.inf), "nearest", -math.inf),
        ("add", (math.inf, -math.inf), "nearest", math.nan),
        ("add", (math.inf, 1.0), "nearest", math.inf),
        ("mul", (-0.0, 3.0), "down", -0.0),
        ("mul", (0.0, math.inf), "nearest", math.nan),
        ("mul", (-2.0, math.inf), "nearest", -math.inf),
        ("div", (-1.0, 0.0), "nearest", -math.inf),
        ("div", (0.0, -0.0), "nearest", math.nan),
        ("div", (math.inf, math.inf), "nearest", math.nan),
        ("div", (-1.0, math.inf), "nearest", -0.0),
        ("div", (0.0, -5.0), "up", -0.0),
        ("sqrt", (-0.0,), "down", -0.0),
        ("sqrt", (-1.0,), "nearest", math.nan),
        ("sqrt", (math.inf,), "nearest", math.inf),
        ("sqrt", (2.25,), "nearest", Fraction(3, 2)),
        ("div", (1.0, 3.0), "nearest", Fraction(1, 3)),
        ("fma", (0.5, 0.5, 0.5), "nearest", Fraction(3, 4)),
    ],
)
def test_the_specification_follows_ieee_754(op, operands, rounding, want):
    got = exact_result(op, operands, rounding)
    assert repr(got) == repr(want)
    rounded = exact.round(want, "fp16", rounding, "ieee")
    ours = getattr(arithmetic, op)(*operands, "fp16", rounding, "ieee")
    assert repr(float(ours)) == repr(rounded)


def test_the_specification_cuts_a_root_far_below_any_place():
    root = exact_result("sqrt", (2.0,))
    assert root * root < 2 < (root + Fraction(1, 2**250)) ** 2 or 2 < root * root < 2 + Fraction(
        1, 2**250
    )


def test_the_specification_knows_its_operations():
    with pytest.raises(ValueError, match=r"expected one of \{'add': 2.*got 'pow'"):
        exact_result("pow", (1.0, 2.0))


@pytest.mark.parametrize("mistake", ["add", "div", "sqrt", "fma"])
def test_the_checks_notice_an_operation_that_rounds_twice(monkeypatch, mistake):
    def twice(*how):
        *operands, fmt, rounding, overflow, words = how
        with np.errstate(all="ignore"):
            plain = {"add": np.add, "div": np.divide, "sqrt": np.sqrt,
                     "fma": lambda a, b, c: a * b + c}[mistake](*operands)  # fmt: skip
        return quantize(quantize(plain, "e8m9"), fmt, rounding, overflow, words)

    monkeypatch.setattr(arithmetic, mistake, twice)
    for check in (check_against_fractions, check_by_places):
        with pytest.raises(
            AssertionError, match=rf"{mistake} in bf16, down, ieee: operands .* gave"
        ):
            check(mistake, samples(format("bf16"), mistake, 600), format("bf16"), Rounding.DOWN)


# Where computing in a carrier and rounding afterwards is not the same: the cases that the module
# docstring lists.  Each shows the carrier's answer and the right one.


@pytest.mark.parametrize(
    ("op", "operands", "fmt", "rounding", "carrier", "wrong", "right"),
    [
        # To nearest, 24 bits are not 2p + 2 for p = 12: the root is 2048 - 0.25 - 0.000015.
        ("sqrt", (2.0**22 - 2**10,), "e8m11", "nearest", np.float32, 2048.0, 2047.5),
        ("add", (3.0, 2.0**-11 - 2.0**-22), "e8m11", "nearest", np.float32, 3.0, 3.0),
        # Fused: done as two operations, the sum rounds away what breaks the tie.
        ("fma", (683.0, 3.0, 2.0**-14), "fp16", "nearest", np.float32, 2048.0, 2050.0),
        ("fma", (96.0, 96.0, 2.0**-14), "e5m2", "nearest", np.float32, 8192.0, 10240.0),
        ("fma", (7.0, 37.0, -(2.0**-60)), "bf16", "nearest", np.float64, 260.0, 258.0),
        # Directed: the small addend decides, and float32 has lost it.
        ("add", (1.0, 2.0**-24), "fp16", "up", np.float32, 1.0, 1 + 2**-10),
        ("add", (1.0, -(2.0**-40)), "bf16", "toward_zero", np.float32, 1.0, 1 - 2**-8),
        ("add", (57344.0, -(2.0**-16)), "e5m2", "down", np.float32, 57344.0, 49152.0),
        ("add", (16384.0, 2.0**-16), "e5m2", "to_odd", np.float32, 16384.0, 20480.0),
        # float64 keeps 53 bits: enough for sums of fp16, not for its fma, nor for bf16's exponents.
        ("add", (2.0**100, 2.0**-100), "bf16", "up", np.float64, 2.0**100, 2.0**100 * (1 + 2**-7)),
        ("fma", (2.0**-24, 2.0**-24, 32768.0), "fp16", "up", np.float64, 32768.0, 32800.0),
        # The carrier overflows, and truncation cannot tell its infinity from a real one.
        ("mul", (2.0**100, 2.0**100), "bf16", "toward_zero", np.float32, math.inf,
         format("bf16").max),
        # The carrier underflows: below 2^-126 float32 has fewer than 24 bits.
        ("mul", (float.fromhex("0x1.bccp-60"), float.fromhex("0x1.ac4p-72")), "tf32", "nearest",
         np.float32, 23 * 2.0**-135, 47 * 2.0**-136),
        # An exact zero sum has a sign of its own when rounding down.
        ("sub", (1.5, 1.5), "e4m3", "down", np.float64, 0.0, -0.0),
        # Operands with more bits than the result.
        ("add", (1 + 2.0**-8, 2.0**-60), "bf16", "nearest", np.float64, 1.0, 1 + 2**-7),
    ],
)  # fmt: skip
def test_cases_in_which_a_carrier_is_not_innocuous(
    op, operands, fmt, rounding, carrier, wrong, right
):
    compute = {"add": operator.add, "sub": operator.sub, "mul": operator.mul, "sqrt": np.sqrt,
               "fma": lambda a, b, c: a * b + c}[op]  # fmt: skip
    with np.errstate(all="ignore"):
        plain = quantize(compute(*map(carrier, operands)), fmt, rounding)
    assert repr(float(plain)) == repr(wrong)
    assert repr(float(getattr(arithmetic, op)(*operands, fmt, rounding))) == repr(float(right))
    assert right == exact.round(exact_result(op, operands, rounding), fmt, rounding)


@pytest.mark.parametrize(("name", "carrier", "ops"), [
    ("e4m3", np.float32, "add mul div sqrt"), ("e5m2", np.float32, "add mul div sqrt"),
    ("fp16", np.float32, "add mul div sqrt"), ("bf16", np.float32, "add mul div sqrt"),
    ("fp16", np.float64, "add mul div sqrt fma"), ("bf16", np.float64, "add mul div sqrt"),
    ("tf32", np.float64, "add mul div sqrt"), ("fp32", np.float64, "add mul div sqrt"),
])  # fmt: skip
def test_to_nearest_a_carrier_of_2p_plus_2_bits_is_as_good(name, carrier, ops):
    """What the engine relies on, in both of its carriers."""
    for op in ops.split():
        operands = [x.astype(carrier) for x in samples(format(name), op, 20_000)]
        compute = {"add": operator.add, "mul": operator.mul, "div": operator.truediv,
                   "sqrt": np.sqrt, "fma": lambda a, b, c: a * b + c}[op]  # fmt: skip
        for rounding in ("nearest", "nearest_away"):
            with np.errstate(all="ignore"):
                plain = quantize(compute(*operands), name, rounding)
            once = getattr(arithmetic, op)(*operands, name, rounding)
            testing.assert_same(plain, once, operands[0], f"{op} in {name} by {carrier.__name__}")


@pytest.mark.parametrize("rounding", DIRECTED)
def test_in_directed_modes_float64_serves_where_sums_are_exact(rounding):
    """Their sums have at most 53 bits, and quotients and roots keep to their side of every value.

    The one thing that float64 has wrong is the sign of zero when rounding down.
    """
    for fmt in [f for f in NARROW if not f.is_integer and f.name != "e8m0"]:
        a, b = pairs(fmt)
        for compute, op in ((np.add, "add"), (np.multiply, "mul"), (np.divide, "div")):
            with np.errstate(all="ignore"):
                plain = quantize(compute(a, b), fmt, rounding)
            once = getattr(arithmetic, op)(a, b, fmt, rounding)
            np.testing.assert_array_equal(plain, once)


def test_bf16_products_are_exact_in_float32_even_where_it_is_subnormal():
    a, b = samples(format("bf16"), "mul", 200_000)
    a, b = np.abs(a[np.isfinite(a) & np.isfinite(b)]), np.abs(b[np.isfinite(a) & np.isfinite(b)])
    with np.errstate(all="ignore"):
        down = np.where(a * b > 2.0**-126, np.ldexp(a, -140), a).astype(np.float32)
        plain = quantize(down * b.astype(np.float32), "bf16")
    once = arithmetic.mul(quantize(down, "bf16"), b.astype(np.float32), "bf16")
    assert ((once > 0) & (once < 2.0**-126)).sum() > 1000
    on_grid = quantize(down, "bf16") == down
    testing.assert_same(plain[on_grid], once[on_grid], a[on_grid])


# The interface.


def test_results_come_in_the_shape_and_type_of_the_operands():
    one, row = np.float32([[1.0], [2.0]]), np.float32([1.0, 2.0, 3.0])
    got = arithmetic.add(one, row, "fp16")
    assert got.dtype == np.float32
    assert got.tolist() == [[2.0, 3.0, 4.0], [3.0, 4.0, 5.0]]
    assert arithmetic.add(one, row.astype(np.float64), "fp16").dtype == np.float64
    assert arithmetic.fma(one, row, 1, "fp16").shape == (2, 3)
    for x, kind in ((2.0, np.float64), (2, np.float64), (np.float32(2), np.float32)):
        assert type(arithmetic.sqrt(x, "fp16")) is kind
        assert type(arithmetic.add(x, x, "fp16", "down")) is kind
    assert arithmetic.mul(np.zeros((2, 0)), np.zeros(0), "bf16").shape == (2, 0)


def test_operands_are_left_alone():
    a, b = np.array([1.0, 2.0]), np.array([3.0, 2.0**-60])
    arithmetic.div(a, b, "fp16", "up")
    assert a.tolist() == [1.0, 2.0]
    assert b.tolist() == [3.0, 2.0**-60]


def test_overflow_and_division_by_zero_follow_the_overflow_rule():
    assert arithmetic.mul(448.0, 2.0, "e4m3", overflow="saturate") == 448.0
    assert math.isnan(arithmetic.mul(448.0, 2.0, "e4m3"))
    assert arithmetic.div(-1.0, 0.0, "e5m2") == -math.inf
    assert arithmetic.div(-1.0, 0.0, "e5m2", overflow="saturate") == -57344.0
    assert arithmetic.div(0.0, 0.0, "e2m1") == 0.0  # no NaN there
    assert arithmetic.mul(2.0**127, 2.0**127, "bf16", "toward_zero") == format("bf16").max


def test_stochastic_rounding_has_the_probability_of_the_exact_result():
    """1/3 lies between 0.328125 and 0.34375 in e4m3: up with probability 1/3 of the gap."""
    words = np.arange(2**12, dtype=np.uint32) << np.uint32(20)
    got = arithmetic.div(np.ones(words.size), 3.0, "e4m3", "stochastic", random=words)
    lower, upper = np.unique(got)
    distance = (Fraction(1, 3) - Fraction(lower)) / (Fraction(upper) - Fraction(lower))
    assert (got == upper).sum() == math.ceil(distance * words.size)


def test_the_variants_of_stochastic_rounding_work_too():
    words = np.arange(256, dtype=np.uint32) << np.uint32(24)
    got = arithmetic.add(np.ones(256), 2.0**-12, "fp16", "stochastic_a3", random=words)
    assert (got > 1).sum() == 64  # a quarter of a step has 2 bits


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: arithmetic.add(0.1, 1.0, "fp16"), "values of fp32 or of a narrower.*got .*0.1"),
        (lambda: arithmetic.mul(1.0, 1e300, "fp16"), r"got .*1e\+300.*: quantize them first"),
        (lambda: arithmetic.sqrt([2.0], "int8"), r"int8 has a scale.*format\('int8'\).element"),
        (lambda: arithmetic.add(1.0, 1.0, "fp64"), "values are all float32 values; got fp64"),
        (lambda: arithmetic.add(1.0, 1.0, "e9m2"), "values are all float32 values; got e9m2"),
        (lambda: arithmetic.add(1.0, 1.0, "fp17"), "unknown format 'fp17'"),
        (lambda: arithmetic.add(1.0, 1.0, "fp16", "even"), "unknown rounding 'even'"),
        (lambda: arithmetic.add(1.0, 1.0, "fp16", "stochastic"), "needs `random`"),
        (lambda: arithmetic.add("1", 1.0, "fp16"), "expected real numbers"),
    ],
)
def test_wrong_input_says_what_would_be_right(call, message):
    with pytest.raises(ValueError, match=message):
        call()
