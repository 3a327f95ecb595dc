"""Every op that is registered: its gradient, PyTorch's opinion, its grid; new ones fail until listed.

Gradients are compared in float64 with finite differences of the op's own forward, and values and
gradients with PyTorch's where it is installed.  An op without a sample in `SAMPLES` is a failure.
"""

import itertools
import math

import by_hand
import numpy as np
import pytest

import precsim as ps
from precsim.engine.tape import OPS
from precsim.formats.arrays import array_module

H = 1e-3
"""Step of the five-point stencil: truncation H^4 f'''''/30 and rounding 1e-16/H, both near 1e-13."""

SHAPES = [(), (1,), (3,), (2, 3), (0,), (2, 0)]
PAIRS = [((), ()), ((3,), ()), ((1,), (2, 3)), ((2, 3), (3,)), ((2, 1), (1, 3)), ((2, 3), (2, 3)),
         ((0, 3), (3,))]  # fmt: skip


def spread(*shape, low=-1.9, high=2.3):
    """Return values further apart than the stencil is wide and none of them 0, in disorder."""
    size = math.prod(shape)
    values = np.linspace(low, high, size + 2)[1:-1]
    return np.random.default_rng([size, *shape]).permutation(values).reshape(shape)


def positive(*shape):
    return spread(*shape, low=0.4, high=2.9)


def one(make, shapes=SHAPES, **params):
    return [((make(*shape),), params) for shape in shapes]


def two(left, right, pairs=PAIRS):
    return [((left(*a), right(*b)), {}) for a, b in pairs]


ALIKE = [(s, s) for s in SHAPES]
KEEP = np.array([[True, False, True], [True, True, False]])
SOME = np.array([[True, False, True, True], [False, False, True, False]])
ROWS = [(3,), (2, 3), (2, 2, 4), (0, 3)]
ROWS_OF_FOUR = [(4,), (2, 4), (3, 2, 4)]
MATRICES = [((2, 3), (3, 4)), ((1, 1), (1, 1)), ((2, 2, 3), (3, 4)), ((2, 2, 3), (2, 3, 4)),
            ((2, 1, 2, 3), (1, 3, 3, 2)), ((0, 3), (3, 2)), ((2, 0), (0, 3)), ((2, 2, 0), (0, 3)),
            ((0, 2, 3), (3, 2))]  # fmt: skip
TARGETS = np.array([4, 0, -1, 2, -100, 4])

SAMPLES = {
    "reshape": [
        ((spread(2, 3),), {"shape": (3, 2)}),
        ((spread(2, 3),), {"shape": (-1,)}),
        ((spread(),), {"shape": (1, 1)}),
        ((spread(1),), {"shape": ()}),
        ((spread(0, 3),), {"shape": (3, 0)}),
    ],
    "swapaxes": [
        ((spread(2, 3),), {"first": 0, "second": 1}),
        ((spread(2, 3, 4),), {"first": 0, "second": -1}),
        ((spread(2, 0),), {"first": -1, "second": -2}),
    ],
    "broadcast_to": [
        ((spread(3),), {"shape": (2, 3)}),
        ((spread(),), {"shape": (2,)}),
        ((spread(2, 1),), {"shape": (3, 2, 3)}),
        ((spread(1),), {"shape": (0,)}),
    ],
    "slice": [
        ((spread(3),), {"index": 1}),
        ((spread(4, 3),), {"index": (slice(1, 3), -1)}),
        ((spread(4, 3),), {"index": slice(None, None, -2)}),
        ((spread(2, 3, 4),), {"index": (..., slice(1, 3))}),
        ((spread(3),), {"index": (None, slice(0, 2))}),
        ((spread(3),), {"index": slice(2, 2)}),
    ],
    "unslice": [
        ((spread(3),), {"index": 1, "shape": (2, 3)}),
        ((spread(2),), {"index": (slice(1, 3), -1), "shape": (4, 3)}),
        ((spread(),), {"index": 0, "shape": (1,)}),
    ],
    "piece": [
        ((spread(3),), {"axis": 0, "place": 2}),
        ((spread(2, 3, 4),), {"axis": 1, "place": 0}),
        ((spread(2, 0, 3),), {"axis": 2, "place": 1}),
    ],
    "join": [
        ((spread(2), spread(2)), {"axis": 0, "places": (2, 0), "length": 3}),
        ((spread(2, 3), spread(2, 3)), {"axis": 1, "places": (0, 1), "length": 2}),
        ((spread(),), {"axis": 0, "places": (1,), "length": 4}),
    ],
    "gather": [
        ((spread(4, *row),), {"ids": np.array(ids, int)})
        for row in ((3,), (2, 3), ())
        for ids in ([2, 0, 2, 2], [[1, 1], [3, 0]], 2, [])
    ],
    "scatter_add": [
        ((spread(4, 3),), {"ids": np.array([2, 0, 2, 2]), "rows": 4}),
        ((spread(2, 2, 3),), {"ids": np.array([[1, 1], [3, 0]]), "rows": 5}),
        ((spread(0, 3),), {"ids": np.array([], int), "rows": 2}),
        ((spread(3, 2, 3),), {"ids": np.array([2, 0, 2]), "rows": 4}),
        ((spread(2, 2),), {"ids": np.array([[1, 1], [3, 0]]), "rows": 5}),
    ],
    "carry": one(spread),
    "cast": one(spread),
    "add": two(spread, positive),
    "accumulate": two(spread, positive, ALIKE),
    "apply_update": two(spread, positive, ALIKE),
    "sub": two(spread, positive),
    "mul": two(spread, positive),
    "div": two(spread, positive),
    "neg": one(spread),
    "exp": one(spread),
    "log": one(positive),
    "sqrt": one(positive),
    "square": one(spread),
    "tanh": one(spread),
    "relu": one(spread),
    "heaviside": one(spread),
    "mask": [
        ((spread(2, 3),), {"keep": KEEP}),
        ((spread(3),), {"keep": KEEP}),
        ((spread(),), {"keep": np.array(False)}),
        ((spread(2, 0),), {"keep": np.array(True)}),
    ],
    "hadamard": [
        ((spread(3, 16),), {"size": 16, "axis": -1}),
        ((spread(8, 3),), {"size": 4, "axis": 0}),
        ((spread(2, 3, 2),), {"size": 2, "axis": -2}),  # filled up to 4
        ((spread(2, 0),), {"size": 2, "axis": -1}),
    ],
    "sum": [
        *one(spread),
        ((spread(2, 3),), {"axis": 0}),
        ((spread(2, 3),), {"axis": -1, "keepdims": True}),
        ((spread(2, 3, 4),), {"axis": (0, 2)}),
        ((spread(2, 3, 4),), {"axis": (-1, 0), "keepdims": True}),
        ((spread(2, 3),), {"axis": ()}),
        ((spread(0, 3),), {"axis": 0}),
        ((spread(2, 3),), {"axis": np.int64(1)}),
    ],
    "sum_to": [
        ((spread(2, 3),), {"shape": (3,)}),
        ((spread(2, 3),), {"shape": ()}),
        ((spread(2, 3),), {"shape": (2, 3)}),
        ((spread(4, 2, 3),), {"shape": (2, 1)}),
        ((spread(0, 3),), {"shape": (1, 3)}),
    ],
    "amax": [
        *one(spread, [(3,), (2, 3), (0, 3)], axis=-1),
        ((spread(2, 3),), {"axis": 0}),
        ((spread(2, 3),), {"axis": -1, "keep": KEEP}),
    ],
    "matmul": two(spread, positive, MATRICES),
    "linear": [
        ((spread(*a), positive(*b), spread(b[-1])), {})
        for a, b in MATRICES
        if len(b) == 2
    ],
    "softmax": [
        *one(spread, [(3,), (2, 3), (2, 2, 4), (0, 3)]),
        ((spread(2, 3),), {"keep": KEEP}),
        ((spread(3, 2, 4),), {"keep": SOME}),
    ],
    "softmax_grad": two(spread, positive, [(s, s) for s in ROWS]),
    "layer_norm": [((spread(*s), positive(s[-1]), spread(s[-1])), {"eps": 1e-5}) for s in ROWS],
    "layer_norm_grad": [
        ((spread(*s), positive(*s), positive(s[-1])), {"eps": 1e-5}) for s in ROWS
    ],
    "layer_norm_weight_grad": [((spread(*s), positive(*s)), {"eps": 1e-5}) for s in ROWS],
    "gelu": one(spread),
    "gelu_grad": two(spread, positive, ALIKE),
    "cross_entropy": [
        ((spread(6, 5),), {"targets": TARGETS}),
        ((spread(1, 3),), {"targets": np.array([1])}),
    ],
    "cross_entropy_grad": [((spread(), spread(6, 5)), {"targets": TARGETS})],
    "log_softmax": one(spread, ROWS),
    "log_softmax_grad": two(spread, spread, [(s, s) for s in ROWS]),
    "nll_loss": [((spread(6, 5),), {"targets": TARGETS})],
    "nll_loss_grad": [((spread(),), {"targets": TARGETS, "classes": 5})],
    "code_in_blocks": [
        ((spread(*shape),), {"signed": signed}) for shape in SHAPES for signed in (True, False)
    ],
}  # fmt: skip

CASES = [
    pytest.param(name, *case, id=f"{name}-{i}")
    for name, cases in SAMPLES.items()
    for i, case in enumerate(cases)
]
DIFFERENTIABLE = [case for case in CASES if (op := OPS.get(case.values[0])) and op.vjps]
GRIDS = ("fp32", "fp16", "bf16", "e5m2", "e4m3", "int8:row")


def call(name, operands, params):
    if name == "cast":
        params = {"to": ps.current().policy.activations}
    return OPS[name].call(*operands, **params)


def gradients(name, operands, params):
    """Return value, the gradient that came from above, and those that came out below."""
    with ps.using("fp64"):
        leaves = [ps.tensor(x, requires_grad=True) for x in operands]
        out = call(name, leaves, params)
        above = np.cos(np.arange(out.size)).reshape(out.shape)
        out.backward(above)
    count = len(OPS[name].vjps)
    return out.numpy(), above, [leaf.grad.numpy() for leaf in leaves[:count]]


def test_every_op_has_a_sample_and_every_sample_an_op():
    assert set(SAMPLES) == set(OPS)


@pytest.mark.parametrize(("name", "operands", "params"), DIFFERENTIABLE)
def test_gradient_is_that_of_finite_differences(name, operands, params):
    _, above, found = gradients(name, operands, params)
    for position, got in enumerate(found):
        want = np.zeros_like(operands[position])
        for place in np.ndindex(want.shape):

            def at(step, place=place, position=position):
                moved = [x.copy() for x in operands]
                moved[position][place] += step
                with ps.using("fp64"):
                    return float((call(name, moved, params).numpy() * above).sum())

            want[place] = (8 * (at(H) - at(-H)) - (at(2 * H) - at(-2 * H))) / (12 * H)
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-10)


def in_torch(torch):
    """Return every differentiable op in PyTorch's words."""
    f = torch.nn.functional

    def taken(x, index, **_):
        places = np.arange(x.numel()).reshape(x.shape)[index]
        return x.reshape(-1)[torch.tensor(places.copy())]

    def put(x, index, shape):
        whole = torch.zeros(shape, dtype=x.dtype)
        whole[index] = x
        return whole

    def shown(x, keep):
        return x if keep is None else x.masked_fill(~torch.tensor(keep), -torch.inf)

    def total(x, axis=None, keepdims=False):
        axes = range(x.ndim) if axis is None else np.ravel(np.array(axis, int))
        return x.sum(tuple(map(int, axes)), keepdim=keepdims) if len(axes) else x.clone()

    def rotated(x, size, axis):
        last = f.pad(x.movedim(axis, -1), (0, -x.shape[axis] % size))
        matrix = torch.tensor(by_hand.hadamard(size, by_hand.TE_SIGNS[:size]))
        runs = last.reshape(*last.shape[:-1], last.shape[-1] // size, size) @ matrix
        return runs.reshape(last.shape).movedim(-1, axis)

    def entropy(x, targets):
        return f.cross_entropy(x, torch.tensor(np.where(targets < 0, -100, targets)))

    return {
        "reshape": lambda x, shape: x.reshape(shape),
        "swapaxes": lambda x, first, second: x.swapaxes(first, second),
        "broadcast_to": lambda x, shape: x.broadcast_to(shape),
        "slice": taken,
        "unslice": put,
        "piece": lambda x, axis, place: x.select(axis, place),
        "gather": lambda x, ids: x[torch.tensor(ids)],
        "scatter_add": lambda x, ids, rows: torch.zeros(
            rows, *x.shape[ids.ndim :], dtype=x.dtype
        ).index_put((torch.tensor(ids),), x, accumulate=True),
        "carry": lambda x: x.clone(),
        "cast": lambda x: x.clone(),
        "add": torch.add,
        "sub": torch.sub,
        "mul": torch.mul,
        "div": torch.div,
        "neg": torch.neg,
        "exp": torch.exp,
        "log": torch.log,
        "sqrt": torch.sqrt,
        "square": torch.square,
        "tanh": torch.tanh,
        "relu": torch.relu,
        "mask": lambda x, keep: torch.where(torch.tensor(keep), x, 0.0),
        "hadamard": rotated,
        "sum": total,
        "sum_to": lambda x, shape: x.sum_to_size(shape),
        "amax": lambda x, axis, keep=None: shown(x, keep).amax(axis, keepdim=True),
        "matmul": torch.matmul,
        "linear": lambda x, w, b: f.linear(x, w.T, b),
        "softmax": lambda x, keep=None: torch.softmax(shown(x, keep), -1),
        "layer_norm": lambda x, w, b, eps: f.layer_norm(x, w.shape, w, b, eps),
        "gelu": lambda x: f.gelu(x, approximate="tanh"),
        "cross_entropy": entropy,
        "log_softmax": lambda x: f.log_softmax(x, -1),
        "nll_loss": lambda x, targets: f.nll_loss(
            x, torch.tensor(np.where(targets < 0, -100, targets))
        ),
    }


@pytest.mark.parametrize(("name", "operands", "params"), DIFFERENTIABLE)
def test_value_and_gradient_are_pytorchs(name, operands, params):
    torch = pytest.importorskip("torch")
    value, above, found = gradients(name, operands, params)
    leaves = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in operands]
    theirs = in_torch(torch)[name](*leaves, **params)
    theirs.backward(torch.tensor(above, dtype=torch.float64))
    np.testing.assert_allclose(value, theirs.detach().numpy(), rtol=1e-13, atol=1e-14)
    for got, leaf in zip(found, leaves, strict=False):
        np.testing.assert_allclose(got, leaf.grad.numpy(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("tied", [False, True])
def test_ties_of_amax_share_the_gradient_and_hidden_elements_get_none(tied):
    x = ps.tensor([3.0, 3.0 if tied else 1.0, 3.0], requires_grad=True)
    ps.ops.amax(x, axis=-1, keep=np.array([True, True, False])).backward()
    np.testing.assert_array_equal(x.grad.numpy(), [0.5, 0.5, 0] if tied else [1, 0, 0])


def test_a_row_of_amax_without_any_element_to_count_has_no_gradient():
    x = ps.tensor([[1.0, 2.0], [3.0, 5.0]], requires_grad=True)
    y = ps.ops.amax(x, axis=-1, keep=np.array([[False, False], [True, True]]))
    y.backward([[7.0], [7.0]])
    np.testing.assert_array_equal(y.numpy(), [[-np.inf], [5]])
    np.testing.assert_array_equal(x.grad.numpy(), [[0, 0], [0, 7]])


@pytest.mark.parametrize("arithmetic", ["exact", "fast"])
@pytest.mark.parametrize("fmt", GRIDS)
@pytest.mark.parametrize("name", [n for n in SAMPLES if OPS[n].kind != "movement"])
def test_every_result_is_a_value_of_the_format(name, fmt, arithmetic):
    with ps.using(ps.Policy.uniform(fmt, arithmetic=arithmetic)):
        for operands, params in SAMPLES[name]:
            inputs = operands if name == "cast" else [ps.tensor(x) for x in operands]
            out = call(name, inputs, params)
            assert out.format == ps.format(fmt)
            assert out.data.dtype == ps.current().policy.carrier
            np.testing.assert_array_equal(ps.quantize(out.numpy(), fmt), out.numpy())


@pytest.mark.parametrize("observers", [(), (lambda event: None,)])
@pytest.mark.parametrize("name", [n for n in SAMPLES if OPS[n].kind != "movement"])
def test_no_op_writes_to_its_operands(name, observers):
    """Results are rounded in place, so they must have memory of their own."""
    for operands, params in SAMPLES[name]:
        with ps.using("fp64"):
            tensors = [ps.tensor(x) for x in operands]
        with ps.using("e4m3", observers=observers):
            out = call(name, tensors, params)
        for tensor, x in zip(tensors, operands, strict=True):
            np.testing.assert_array_equal(tensor.numpy(), x)
            xp = array_module(out.data)
            assert not xp.shares_memory(out.data, tensor.data)


@pytest.mark.parametrize("name", [n for n in SAMPLES if OPS[n].kind == "movement"])
def test_movement_rounds_nothing_and_is_no_event(name):
    events = []
    for operands, params in SAMPLES[name]:
        with ps.using("fp64"):
            wide = [ps.tensor(x) for x in operands]
            want = call(name, wide, params).numpy()
        with ps.using("e4m3", observers=[events.append]):
            moved = call(name, wide, params)
        np.testing.assert_array_equal(moved.numpy(), want)
        assert moved.format == ps.format("fp64")
    assert events == []


@pytest.mark.parametrize("name", [n for n in SAMPLES if not OPS[n].vjps])
def test_ops_without_a_backward_rule_end_the_tape(name):
    for operands, params in SAMPLES[name]:
        leaves = [ps.tensor(x, requires_grad=True) for x in operands]
        assert not call(name, leaves, params).requires_grad


def test_operators_are_the_ops_and_numpy_on_the_left_gives_way():
    with ps.using("fp64"):
        a, b = ps.tensor([[1.0, 2.0], [3.0, 4.0]]), np.array([[5.0, 6.0], [7.0, 8.0]])
        for left, right in itertools.permutations([a, b]):
            x, y = (v.numpy() if v is a else v for v in (left, right))
            for ours, want in [(left + right, x + y), (left - right, x - y), (left * right, x * y),
                               (left / right, x / y), (left @ right, x @ y)]:  # fmt: skip
                assert isinstance(ours, ps.Tensor)
                np.testing.assert_allclose(ours.numpy(), want, rtol=1e-15)
        for scalar in (2, 2.0, np.float64(2), np.float32(2), np.int64(2)):
            for ours in (scalar * a, a * scalar):
                assert isinstance(ours, ps.Tensor)
                np.testing.assert_array_equal(ours.numpy(), 2 * a.numpy())
        np.testing.assert_array_equal((2 / a - 1 - a).numpy(), 2 / a.numpy() - 1 - a.numpy())
        np.testing.assert_array_equal((-a).numpy(), -a.numpy())
