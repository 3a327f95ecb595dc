"""The local error that a shadow reports, against sums of Python's own exact fractions."""

from fractions import Fraction
from math import exp, fsum, inf, nan, sqrt, tanh

import numpy as np
import pytest

import precsim as ps
from precsim.backend import tier
from precsim.engine.tape import OPS
from precsim.observe.trace import Level, Tracer

FAST = "activations={} arithmetic=fast"


@pytest.fixture(params=["numpy", "numba"])
def kernels(request):
    """Compute with and without compiled kernels."""
    if request.param == "numba":
        pytest.importorskip("numba")
    with tier(request.param):
        yield request.param


def run(op, inputs, policy, **params):
    """Return the op's error, its operands as they came in, and its result."""
    seen, tracer = [], Tracer(Level("shadow"), hashes=False)
    with ps.using(policy):
        operands = [ps.tensor(x) for x in inputs]
        with ps.using(observers=[tracer, seen.append]):
            OPS[op].call(*operands, **params)
    (error,) = tracer.drain().errors
    return error, [x.numpy() for x in operands], seen[0].rounded


def exact_error(rounded, truth):
    """Return the norm of rounded - truth over that of truth; both lists, of numbers or fractions."""
    square = fsum(
        float((Fraction(float(r)) - Fraction(t)) ** 2) for r, t in zip(rounded, truth, strict=True)
    )
    return sqrt(square / fsum(float(Fraction(t) ** 2) for t in truth))


def numbers(*shapes, seed=0):
    random = np.random.default_rng(seed)
    return [random.standard_normal(shape) * 3 for shape in shapes]


PAIRS = {
    "add": float.__add__,
    "accumulate": float.__add__,
    "apply_update": float.__add__,
    "sub": float.__sub__,
    "mul": float.__mul__,
    "div": float.__truediv__,
}


@pytest.mark.parametrize("fmt", ["e4m3", "bf16", "fp32"])
@pytest.mark.parametrize(
    "shapes",
    [
        ((3, 777), (3, 777)),
        ((5000,), ()),
        ((), (77,)),
        ((5, 7), (7,)),
        ((9, 5), (5, 9)),
        ((), ()),
    ],
    ids=str,
)
@pytest.mark.parametrize("op", PAIRS)
def test_the_error_of_two_operands_is_that_of_exact_sums(kernels, op, shapes, fmt):
    inputs = numbers(*shapes)
    if shapes == ((9, 5), (5, 9)):
        inputs[1] = inputs[1].T  # not laid out as the other is
    if op == "div":
        inputs[1] = 1 + np.abs(inputs[1])
    error, (a, b), rounded = run(op, inputs, FAST.format(fmt))
    a, b = (x.ravel().tolist() for x in np.broadcast_arrays(a, b))
    truth = [PAIRS[op](x, y) for x, y in zip(a, b, strict=True)]  # Python's floats have 53 bits
    assert error == pytest.approx(exact_error(rounded.ravel().tolist(), truth), rel=1e-12)


@pytest.mark.parametrize("fmt", ["e4m3", "bf16"])
@pytest.mark.parametrize(
    "shapes",
    [
        ((2, 3, 40), (40, 9)),
        ((50, 3), (3, 50)),
        ((2, 2, 5, 7), (2, 2, 7, 3)),
        ((2, 5, 7), (2, 7, 3)),
    ],
    ids=str,
)
@pytest.mark.parametrize("turned", [False, True])
def test_the_error_of_a_product_is_that_of_exact_sums(kernels, shapes, fmt, turned):
    a, b = numbers(*shapes)
    if turned:
        a, b = (x.swapaxes(-1, -2).copy().swapaxes(-1, -2) for x in (a, b))
    error, (a, b), rounded = run("matmul", [a, b], FAST.format(fmt))
    b = np.broadcast_to(b, (*a.shape[:-2], *b.shape[-2:]))
    truth = [
        sum(Fraction(float(x)) * Fraction(float(y)) for x, y in zip(row, column, strict=True))
        for stack, other in zip(
            a.reshape(-1, *a.shape[-2:]), b.reshape(-1, *b.shape[-2:]), strict=True
        )
        for row in stack
        for column in other.T
    ]
    assert error == pytest.approx(exact_error(rounded.ravel().tolist(), truth), rel=1e-12)


@pytest.mark.parametrize("op", ["softmax", "gelu"])
def test_the_error_of_a_kernel_is_that_of_exact_sums(kernels, op):
    error, (x,), rounded = run(op, numbers((4, 3, 6)), FAST.format("bf16"))
    if op == "gelu":
        truth = [
            0.5 * v * (1 + tanh(sqrt(2 / np.pi) * (v + 0.044715 * v**3)))
            for v in x.ravel().tolist()
        ]
    else:
        powers = [[exp(v) for v in row] for row in x.reshape(-1, 6).tolist()]
        truth = [v / fsum(row) for row in powers for v in row]
    assert error == pytest.approx(exact_error(rounded.ravel().tolist(), truth), rel=1e-10)


@pytest.mark.parametrize("op", PAIRS)
@pytest.mark.parametrize("where", [0, 4999])
def test_what_is_not_finite_is_set_aside(kernels, op, where):
    a, b = numbers(5000, 5000, seed=1)
    clean = run(op, [np.delete(a, where), np.delete(b, where)], FAST.format("fp16"))[0]
    for value in (inf, -inf, nan, 65504.0):
        a[where], b[where] = value, -value if op == "sub" else value
        found = run(op, [a, b], FAST.format("fp16"))
        if not np.isfinite(found[2][where]):
            assert found[0] == pytest.approx(clean, rel=1e-12)


def test_nothing_has_no_error_and_zeros_have_none(kernels):
    for shape in ((0,), (3, 0)):
        assert run("add", [np.zeros(shape)] * 2, FAST.format("bf16"))[0] == 0
    assert run("mul", [np.zeros(9), np.ones(9)], FAST.format("bf16"))[0] == 0
