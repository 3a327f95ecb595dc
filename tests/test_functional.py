"""Kernel and primitive granularity are one function in float64; what a user can get wrong says so."""

import itertools

import numpy as np
import pytest

import precsim as ps
from precsim.engine import kernels
from precsim.engine.dispatch import primitive
from precsim.nn.functional import cross_entropy, gelu, layer_norm, linear, softmax

CAUSAL = np.tri(5, dtype=bool)
EXACT = ps.Policy.uniform("fp64")
SPELLED_OUT = ps.Policy.uniform("fp64", granularity="primitive")


def normal(*shape, seed=0, scale=1.0):
    return scale * np.random.default_rng([seed, *shape]).standard_normal(shape)


def values_and_gradients(function, arrays, policy):
    with ps.using(policy):
        leaves = [ps.tensor(x, requires_grad=True) for x in arrays]
        out = function(*leaves)
        out.backward(normal(*out.shape, seed=1))
    return out.numpy(), *(leaf.grad.numpy() for leaf in leaves)


@pytest.mark.parametrize(
    ("function", "arrays"),
    [
        (softmax, [normal(4, 5)]),
        (softmax, [normal(7)]),
        (softmax, [normal(4, 5, scale=200)]),
        (lambda x: softmax(x, keep=CAUSAL), [normal(2, 5, 5)]),
        (lambda x: softmax(x, keep=CAUSAL), [normal(2, 5, 5, scale=1000)]),
        (layer_norm, [normal(2, 3, 8), normal(8), normal(8)]),
        (layer_norm, [normal(3, 2) + 1e4, normal(2), normal(2)]),
        (gelu, [normal(2, 9, scale=3)]),
        (gelu, [normal()]),
        (lambda x: cross_entropy(x, np.array([0, 6, 3])), [normal(3, 7)]),
        (lambda x: cross_entropy(x, np.array([[0, -1], [-100, 6]])), [normal(2, 2, 7, scale=30)]),
        (linear, [normal(2, 3, 4), normal(4, 5), normal(5)]),
    ],
    ids=itertools.count(),
)
@pytest.mark.parametrize("block", [1, 80, kernels.BLOCK_BYTES])
def test_both_granularities_are_one_function_in_float64(function, arrays, block, monkeypatch):
    monkeypatch.setattr(kernels, "BLOCK_BYTES", block)  # a row, a few, all of them at a time
    fused = values_and_gradients(function, arrays, EXACT)
    steps = values_and_gradients(function, arrays, SPELLED_OUT)
    for got, want in zip(steps, fused, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


def test_a_fused_kernel_rounds_once_and_its_formula_at_every_step():
    for granularity, expected in {"kernel": 1, "primitive": 5}.items():
        events = []
        with ps.using(ps.Policy.uniform("fp16", granularity=granularity)):
            x = ps.tensor(normal(2, 3))
            with ps.using(observers=[events.append]):
                softmax(x)
        assert len(events) == expected


@pytest.mark.parametrize("granularity", ["kernel", "primitive"])
def test_what_a_mask_hides_cannot_overflow(granularity):
    """In fp16 exp overflows from 11.09: a hidden score of 20 above the others must not matter."""
    with ps.using(ps.Policy.uniform("fp16", granularity=granularity)):
        x = ps.tensor([[1.0, 21.0], [1.0, 1.0]], requires_grad=True)
        y = softmax(x, keep=np.tri(2, dtype=bool))
        y.backward(np.array([[1.0, 2.0], [3.0, 5.0]]))
    np.testing.assert_array_equal(y.numpy(), [[1, 0], [0.5, 0.5]])
    np.testing.assert_array_equal(x.grad.numpy(), [[0, 0], [-0.5, 0.5]])


@pytest.mark.parametrize("granularity", ["kernel", "primitive"])
def test_rows_without_an_answer_are_nan(granularity):
    with ps.using(ps.Policy.uniform("fp32", granularity=granularity)):
        hidden = softmax(ps.tensor([[1.0, 2.0]]), keep=np.array([False, False]))
        assert np.isnan(hidden.numpy()).all()
        for odd in (np.nan, np.inf):
            y = softmax(ps.tensor([[1.0, odd], [0.0, 0.0]])).numpy()
            assert np.isnan(y[0]).all()
            np.testing.assert_array_equal(y[1], [0.5, 0.5])
            two = [[odd, 1.0], [1.0, odd]]  # shown in the first row, hidden in the second
            y = softmax(ps.tensor(two), keep=np.array([True, False])).numpy()
            np.testing.assert_array_equal(y, [[np.nan, np.nan], [1, 0]])
        nobody = cross_entropy(ps.tensor(normal(2, 3)), np.array([-1, -1]))
        assert np.isnan(nobody.item())


@pytest.mark.parametrize("sharing", ["tensor", "row"])
def test_a_rounded_maximum_is_still_found(sharing):
    """With a shared scale the rounded maximum need not equal any element that it was taken from."""
    policy = ps.Policy.uniform(f"int8:{sharing}", granularity="primitive")
    with ps.using(policy):
        x = ps.tensor(normal(6, 5), requires_grad=True)
        cross_entropy(x, np.arange(6) % 5).backward()
    assert np.isfinite(x.grad.numpy()).all()


X = ps.tensor(np.ones((2, 3)), requires_grad=True)
SQUARE = np.ones((3, 3))


@pytest.mark.parametrize(
    ("mistake", "kind", "message"),
    [
        (lambda: X @ np.ones((4, 5)), ValueError, r"matmul: expected .*got \(2, 3\) and \(4, 5\)"),
        (lambda: X @ np.ones(3), ValueError, r"matmul: expected"),
        (lambda: X[0] @ SQUARE, ValueError, r"matmul: expected"),
        (lambda: linear(X, np.ones((4, 5)), np.ones(5)), ValueError, "matmul: expected"),
        (lambda: linear(X, SQUARE, np.ones(4)), ValueError, "broadcast"),
        (lambda: X + np.ones((4,)), ValueError, "broadcast"),
        (lambda: X.reshape(4), ValueError, "size 6 into shape"),
        (lambda: X.sum(2), ValueError, "axis 2 is out of bounds"),
        (lambda: ps.ops.sum(X, axis=(0, 0)), ValueError, "duplicate|repeated"),
        (lambda: X.swapaxes(0, 2), ValueError, "out of bounds"),
        (lambda: X[[0, 1]], TypeError, r"index \[0, 1\]: expected integers and slices"),
        (lambda: X[np.array([0, 0])], TypeError, "expected integers and slices"),
        (lambda: X[True], TypeError, "expected integers and slices"),
        (lambda: X[5], IndexError, "index 5 is out of bounds"),
        (lambda: layer_norm(X, np.ones(2), np.ones(3)), ValueError, "broadcast"),
        (lambda: softmax(X, keep=np.ones((2, 4), bool)), ValueError, "broadcast"),
        (lambda: ps.ops.gather(X, ids=np.array([2])), ValueError, "ids from 0 to 1; got .* 2 to 2"),
        (lambda: ps.ops.gather(X, ids=np.array([-1])), ValueError, "ids from 0 to 1"),
        (lambda: ps.ops.gather(X, ids=np.array([0.0])), ValueError, "integer ids.*float64"),
        (lambda: ps.ops.gather(X, ids=np.array([True])), ValueError, "integer ids.*bool"),
        (lambda: ps.ops.scatter_add(X, ids=np.array([0, 7]), rows=4), ValueError, "from 0 to 7"),
        (lambda: cross_entropy(X, np.array([0])), ValueError, r"targets of shape \(2,\); got \(1,"),
        (lambda: cross_entropy(X, np.array([0, 3])), ValueError, "target 3 .* vocabulary of 3"),
        (lambda: cross_entropy(X, np.array([0.0, 1.0])), ValueError, "expected integers; got float"),
        (lambda: X.backward(), ValueError, r"backward\(\) of shape \(2, 3\) needs a gradient"),
        (lambda: X.backward(np.ones(3)), ValueError, r"shape \(2, 3\); got \(3,\)"),
        (lambda: ps.tensor(1.0).backward(), ValueError, "no parameter went into"),
        (lambda: X.item(), ValueError, "one element"),
        (lambda: ps.tensor("abc"), TypeError, "expected a tensor, an array or a number; got str"),
        (lambda: ps.tensor([1j]), TypeError, "got list"),
        (lambda: ps.tensor(None), TypeError, "got NoneType"),
        (lambda: X + "a", TypeError, "got str"),
        (lambda: primitive()(kernels.softmax), ValueError, "'softmax' is registered already"),
    ],
    ids=itertools.count(),
)  # fmt: skip
@pytest.mark.host_only
def test_a_mistake_gets_one_clear_sentence(mistake, kind, message):
    for accumulator in (None, "fp32"):
        with ps.using(ps.Policy(accumulator=accumulator)):
            with pytest.raises(kind, match=message) as error:
                mistake()
            assert "\n" not in str(error.value)


def test_lists_of_integers_are_targets_too():
    assert cross_entropy(X, [0, 1]).item() == pytest.approx(np.log(3))


def test_backward_twice_adds_up():
    with ps.using("fp64"):
        x = ps.tensor([1.0, 2.0], requires_grad=True)
        y = (x * x).sum()
        y.backward()
        y.backward()
    np.testing.assert_array_equal(x.grad.numpy(), [4, 8])


@pytest.mark.parametrize("granularity", ["kernel", "primitive"])
def test_primitive_layer_norm_of_a_constant_row_needs_an_eps_that_the_format_has(granularity):
    """1e-8 is 0 in fp16 (smallest subnormal 6e-8): the formula divides 0 by 0, the kernel cannot."""
    with ps.using(ps.Policy.uniform("fp16", granularity=granularity)):
        y = layer_norm(
            ps.tensor(np.ones((1, 4))), ps.tensor(np.ones(4)), ps.tensor(np.ones(4)), 1e-8
        )
    assert np.isnan(y.numpy()).all() == (granularity == "primitive")
