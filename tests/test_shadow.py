"""The local error that a shadow reports, against sums of Python's own exact fractions."""

from fractions import Fraction
from math import exp, fsum, inf, isfinite, nan, pi, sqrt, tanh

import numpy as np
import pytest
from tiny_runs import tiny

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
    """Return the norm of rounded - truth over that of truth, where both are finite."""
    pairs = [
        (Fraction(float(r)), Fraction(t))
        for r, t in zip(rounded, truth, strict=True)
        if isfinite(r) and isfinite(t)
    ]
    square = fsum(float((r - t) ** 2) for r, t in pairs)
    return sqrt(square / fsum(float(t**2) for _, t in pairs))


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


def normalise(row, eps):
    mean = fsum(row) / len(row)
    scale = 1 / sqrt(fsum((v - mean) ** 2 for v in row) / len(row) + eps)
    return [(v - mean) * scale for v in row], scale


def softmax(x, keep):
    powers = [exp(v) if k else 0.0 for v, k in zip(x, keep, strict=True)]
    return [v / fsum(powers) for v in powers]


def softmax_grad(g, y):
    mean = fsum(map(float.__mul__, g, y))
    return [b * (a - mean) for a, b in zip(g, y, strict=True)]


def layer_norm(x, weight, bias, eps):
    return [v * w + b for v, w, b in zip(normalise(x, eps)[0], weight, bias, strict=True)]


def layer_norm_grad(g, x, weight, eps):
    y, scale = normalise(x, eps)
    gy = list(map(float.__mul__, g, weight))
    mean, slope = fsum(gy) / len(y), fsum(map(float.__mul__, gy, y)) / len(y)
    return [(a - mean - b * slope) * scale for a, b in zip(gy, y, strict=True)]


def gelu_slope(v):
    t = tanh(sqrt(2 / pi) * (v + 0.044715 * v**3))
    return 0.5 * (1 + t + v * (1 - t * t) * sqrt(2 / pi) * (1 + 3 * 0.044715 * v * v))


def gelu(v):
    return 0.5 * v * (1 + tanh(sqrt(2 / pi) * (v + 0.044715 * v**3)))


CAUSAL = np.tril(np.ones((3, 6), bool), 2)
EPS = {"eps": 1e-5}
ROWS = {  # op: shapes of its operands, its parameters, and a row of the result from rows of those
    "softmax": ([(40, 3, 6)], {}, lambda x: softmax(x, [True] * 6)),
    "softmax_grad": ([(40, 3, 6), (40, 3, 6)], {}, softmax_grad),
    "layer_norm": ([(40, 3, 6), (6,), (6,)], EPS, lambda *x: layer_norm(*x, **EPS)),
    "layer_norm_grad": ([(40, 3, 6), (40, 3, 6), (6,)], EPS, lambda *x: layer_norm_grad(*x, **EPS)),
    "gelu": ([(40, 3, 6)], {}, lambda x: [gelu(v) for v in x]),
    "gelu_grad": (
        [(40, 3, 6), (40, 3, 6)],
        {},
        lambda g, x: [a * gelu_slope(v) for a, v in zip(g, x, strict=True)],
    ),
}


def rows(x):
    """Return the rows of an operand, or the one that is the same for all, as lists of floats."""
    return x.reshape(-1, x.shape[-1]).astype(float).tolist()


@pytest.mark.parametrize(
    "policy",
    [*map(FAST.format, ("e4m3", "bf16", "fp32")), "activations=bf16 accumulator=fp16"],
    ids=["e4m3", "bf16", "fp32", "bf16, exact, accumulator"],
)
@pytest.mark.parametrize("op", ROWS)
def test_the_error_of_rows_is_that_of_exact_sums(kernels, op, policy):
    shapes, params, expected = ROWS[op]
    error, inputs, rounded = run(op, numbers(*shapes), policy, **params)
    each = [rows(x) if x.ndim > 1 else rows(x) * 120 for x in inputs]
    truth = [v for operands in zip(*each, strict=True) for v in expected(*operands)]
    assert error == pytest.approx(exact_error(rounded.ravel().tolist(), truth), rel=1e-7)


@pytest.mark.parametrize("hidden", [0.0, nan, inf, 1e30])
def test_the_error_of_a_softmax_is_that_of_what_is_shown(kernels, hidden):
    (x,) = numbers((40, 3, 6))
    x = np.where(CAUSAL, x, hidden)
    error, (x,), rounded = run("softmax", [x], FAST.format("bf16"), keep=CAUSAL)
    keep = CAUSAL.tolist() * 40
    truth = [
        v
        for row, kept in zip(rows(x), keep, strict=True)
        for v in softmax(np.where(kept, row, 0).tolist(), kept)
    ]
    assert error == pytest.approx(exact_error(rounded.ravel().tolist(), truth), rel=1e-9)


@pytest.mark.parametrize("op", ["layer_norm_weight_grad", "sum_to"])
def test_the_error_of_a_sum_over_rows_is_that_of_exact_sums(kernels, op):
    shapes = [(40, 3, 6)] * (1 if op == "sum_to" else 2)
    params = {"shape": (6,)} if op == "sum_to" else EPS
    error, inputs, rounded = run(op, numbers(*shapes), FAST.format("bf16"), **params)
    if op == "sum_to":
        terms = rows(inputs[0])
    else:
        g, x = map(rows, inputs)
        terms = [map(float.__mul__, a, normalise(b, **EPS)[0]) for a, b in zip(g, x, strict=True)]
    truth = [fsum(column) for column in zip(*terms, strict=True)]
    assert error == pytest.approx(exact_error(rounded.ravel().tolist(), truth), rel=1e-10)


@pytest.mark.parametrize("shape", [(3, 6), (3, 1), (40, 1, 6), (1, 1, 1)])
def test_the_error_of_other_sums_is_that_of_exact_sums(kernels, shape):
    error, (x,), rounded = run("sum_to", numbers((40, 3, 6)), FAST.format("bf16"), shape=shape)
    cells = {}
    for place, value in np.ndenumerate(x):
        kept = tuple(i if n > 1 else 0 for i, n in zip(place[3 - len(shape) :], shape, strict=True))
        cells.setdefault(kept, []).append(float(value))
    truth = [fsum(cells[place]) for place in np.ndindex(shape)]
    assert error == pytest.approx(exact_error(rounded.ravel().tolist(), truth), rel=1e-10)


def test_a_row_that_is_not_finite_is_set_aside(kernels):
    (x,) = numbers((40, 3, 6))
    clean = run("softmax", [x[1:]], FAST.format("bf16"))[0]
    for value in (nan, inf):
        x[0, :, 2] = value
        assert run("softmax", [x], FAST.format("bf16"))[0] == pytest.approx(clean, rel=1e-12)


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


def test_a_shadow_changes_no_bit(kernels):
    weights = {}
    for level in ("off", "shadow"):
        trained = ps.train(
            tiny(policy="weights=bf16 activations=bf16 arithmetic=fast", steps=3, observe=level)
        )
        weights[level] = [p.numpy().tobytes() for p in trained.model.parameters.values()]
    assert weights["off"] == weights["shadow"]


LARGE = {
    "mul": [(300, 64), (300, 64)],
    "softmax": [(6, 64, 64)],
    "softmax_grad": [(300, 64), (300, 64)],
    "layer_norm": [(300, 64), (64,), (64,)],
    "layer_norm_grad": [(300, 64), (300, 64), (64,)],
    "layer_norm_weight_grad": [(300, 64), (300, 64)],
    "gelu": [(300, 64)],
    "gelu_grad": [(300, 64), (300, 64)],
    "sum_to": [(300, 64)],
}
"""Operands of ops with compiled loops, of more than one piece."""


def test_compiled_loops_agree_with_the_ops_and_do_without_their_arrays(monkeypatch):
    pytest.importorskip("numba")
    from precsim.backend import fused_errors
    from precsim.observe import fused_rows, shadow

    assert LARGE.keys() == fused_rows.OPS.keys() | {"mul"}
    assert fused_errors.KINDS.keys() <= PAIRS.keys()
    params = {"sum_to": {"shape": (64,)}, "softmax": {"keep": np.tril(np.ones((64, 64), bool))}}
    params |= {op: EPS for op in LARGE if op.startswith("layer_norm")}
    for op, shapes in LARGE.items():
        found = {}
        for name in ("numpy", "numba"):
            with tier(name), monkeypatch.context() as patch:
                if name == "numba":
                    patch.delattr(shadow, "reference")
                found[name] = run(op, numbers(*shapes), FAST.format("bf16"), **params.get(op, {}))[
                    0
                ]
        assert found["numba"] == pytest.approx(found["numpy"], rel=1e-11), op


def test_a_row_of_which_nothing_is_shown_is_set_aside(kernels):
    (x,) = numbers((40, 3, 6))
    keep = CAUSAL.copy()
    clean = run("softmax", [x[:, 1:]], FAST.format("bf16"), keep=keep[1:])[0]
    keep[0] = False
    assert run("softmax", [x], FAST.format("bf16"), keep=keep)[0] == pytest.approx(clean, rel=1e-12)
