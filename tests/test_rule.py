"""Operands of matmuls: a format for each of them, in all three products of a layer."""

import by_hand
import numpy as np
import pytest

import precsim as ps
from precsim.engine.rule import Origin
from precsim.engine.tensor import Tensor

ROWS, INPUTS, OUTPUTS = 130, 256, 300
RANDOM = np.random.default_rng(5)
X = RANDOM.standard_normal((ROWS, INPUTS)) * 10.0 ** RANDOM.integers(-4, 2, (ROWS, 1))
W = RANDOM.standard_normal((INPUTS, OUTPUTS)) / 16
G = RANDOM.standard_normal((ROWS, OUTPUTS)) * 1e-5
ORIGINS = Origin.INPUT, Origin.WEIGHT, Origin.WEIGHT
X, W, G = (x.astype(np.float32).astype(np.float64) for x in (X, W, G))


def products(policy):
    """Return the operands of the three matmuls of one linear layer, and what they came to."""
    found = {}

    def note(event):
        if event.kind == "matmul":
            found[event.role] = (*event.inputs[:2], event.rounded)

    with ps.using(policy, observers=[note]):
        x, weight, bias = (
            Tensor(values, ps.format("fp32"), requires_grad=True, origin=origin)
            for values, origin in zip((X, W, np.zeros(OUTPUTS)), ORIGINS, strict=True)
        )
        ps.ops.linear(x, weight, bias).backward(G)
    return [found[role] for role in ("activations", "gradients", "weight_gradients")]


def compared(policy, *operands):
    for (left, right), (a, b, product) in zip(operands, products(policy), strict=True):
        np.testing.assert_array_equal(a, left)
        np.testing.assert_array_equal(b, right)
        np.testing.assert_allclose(product, left @ right, rtol=1e-6, atol=1e-12)


def tiles(x, height, width, values=by_hand.E4M3):
    return by_hand.in_blocks(x, height, width, by_hand.power_of_two(values), values)


def test_rows_of_128_times_tiles_of_128_in_forward_input_gradient_and_weight_gradient():
    """Float8BlockScaling and DeepSeek-V3: blocks run along whatever is summed over."""
    rule = "inputs=e4m3:1x128:pow2,weight_inputs=e4m3:128x128:pow2,saved=original"
    weight = tiles(W, 128, 128)
    compared(
        f"rule=op=matmul,{rule}",
        (tiles(X, 1, 128), weight),
        (tiles(G, 1, 128), weight.T),
        (tiles(X.T, 1, 128), tiles(G.T, 1, 128).T),
    )


def test_what_the_forward_pass_multiplied_is_quantized_once_more_for_the_weight_gradient():
    rule = "inputs=e4m3:1x128:pow2,weight_inputs=e4m3:128x128:pow2"
    weight = tiles(W, 128, 128)
    again = tiles(tiles(X, 1, 128).T, 1, 128)
    assert not np.array_equal(again, tiles(X.T, 1, 128))
    compared(
        f"rule=op=matmul,{rule}",
        (tiles(X, 1, 128), weight),
        (tiles(G, 1, 128), weight.T),
        (again, tiles(G.T, 1, 128).T),
    )


def test_hybrid_fp8_has_e5m2_for_gradients_alone():
    """A transposed weight and a transposed activation are no gradients, though made going backward."""

    def tensor(x, values):
        return tiles(x, len(x), len(x.T), values)

    e4m3, e5m2 = by_hand.E4M3, by_hand.E5M2
    compared(
        "rule=op=matmul,inputs=e4m3:tensor:pow2,gradient_inputs=e5m2:tensor:pow2",
        (tensor(X, e4m3), tensor(W, e4m3)),
        (tensor(G, e5m2), tensor(W, e4m3).T),
        (tensor(X, e4m3).T, tensor(G, e5m2)),
    )


def test_a_tensor_with_one_scale_is_cast_once():
    events = []
    with ps.using("rule=op=matmul,inputs=e4m3:tensor", observers=[events.append]):
        x, w = (Tensor(a, ps.format("fp32"), requires_grad=True) for a in (X, W))
        (x @ w).backward(G)
    casts = [(e.role, e.exact.shape) for e in events if e.op == "cast" and e.scope != "seed"]
    assert casts == [
        ("activations", X.shape),
        ("activations", W.shape),
        ("gradients", G.shape),  # for x's gradient ...
        ("gradients", G.shape),  # ... and again for w's: the same values
    ]
    first, second = [e.rounded for e in events if e.op == "cast"][-2:]
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("fmt", ["e4m3:row", "e4m3:1x32", "e4m3:64x16", "int8:column"])
def test_a_transposed_tensor_has_its_blocks_along_the_other_axis(fmt):
    with ps.using(f"activations={fmt}"):
        x = ps.tensor(np.ones((2, 64, 64)))
        turned = {"e4m3:row": "e4m3:column", "e4m3:1x32": "e4m3:32x1",
                  "e4m3:64x16": "e4m3:16x64", "int8:column": "int8:row"}[fmt]  # fmt: skip
        assert x.swapaxes(1, 2).format == x.swapaxes(-1, -2).format == ps.format(turned)
        assert x.swapaxes(0, 1).format == x.format
        assert x.swapaxes(1, 2).swapaxes(1, 2).format == x.format


def test_an_event_says_on_what_its_operands_lie():
    events = []
    with ps.using("rule=op=mul,inputs=fp16", observers=[events.append]):
        ps.tensor([1.0]) * 2.0
    assert [fmt and fmt.name for fmt in events[-1].input_formats] == ["fp16", None]


def test_a_rotation_changes_no_product_and_its_operands_are_those_of_the_rule():
    """NVFP4's weight gradient: both operands rotated along the tokens, 130 of them, filled up to 144."""
    rotation = by_hand.hadamard(16, by_hand.TE_SIGNS)

    def rotated(x):
        filled = np.zeros((144, x.shape[1]))
        filled[: len(x)] = x
        return np.einsum("kij,il->klj", filled.reshape(9, 16, -1), rotation).reshape(144, -1)

    *_, (a, b, product) = products("arithmetic=exact rule=op=matmul,role=w*,hadamard=16")
    np.testing.assert_allclose(a, rotated(X).T, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(b, rotated(G), rtol=1e-6, atol=1e-11)
    np.testing.assert_allclose(product, X.T @ G, atol=1e-6 * np.abs(X.T @ G).max())
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(16), atol=1e-15)
