"""What quantizing recipes multiply: all three products of a linear layer, bit for bit PyTorch's."""

from dataclasses import replace

import by_hand
import numpy as np
import products_peer
import pytest

import precsim as ps
from precsim.engine.rule import Origin
from precsim.engine.tensor import Tensor

ROLES = ("activations", "gradients", "weight_gradients")
ORIGINS = Origin.INPUT, Origin.WEIGHT, Origin.WEIGHT


def products(name, x, w, g, stochastic=True):
    """Run a linear layer under a recipe; return (left, right, product) of its three matmuls."""
    found = {}

    def note(event):
        if event.kind == "matmul":
            found[event.role] = (*event.inputs[:2], event.rounded)

    policy = ps.recipe(name).policy
    if not stochastic:
        policy = ps.Policy.parse(str(policy).replace(":stochastic", ""))
    as_it_is = ps.Rule(op="cast", scope="seed", output="fp32")
    policy = replace(policy, arithmetic="exact", rules=(*policy.rules, as_it_is))
    with ps.using(policy, observers=[note], scope="blocks.0.fc1"):
        left, weight, bias = (
            Tensor(a.astype(policy.carrier), ps.format("fp32"), requires_grad=True, origin=origin)
            for a, origin in zip((x, w, np.zeros(w.shape[1])), ORIGINS, strict=True)
        )
        ps.ops.linear(left, weight, bias).backward(g)
    return [found[role] for role in ROLES]


PEERS = ("torchao_fp8_tensorwise", "torchao_fp8_rowwise", "torchao_fp8_rowwise_gw_hp",
         "torchao_int8_mixed", "switchback")  # fmt: skip


@pytest.mark.parametrize("name", PEERS)
def test_products_are_those_of_pytorch(name):
    stored = np.load(products_peer.STORED)
    for i, (*_, product) in enumerate(products(name, *products_peer.operands(name))):
        np.testing.assert_array_equal(product, stored[f"{name}/{i}"], err_msg=ROLES[i])


def test_pytorch_still_gives_what_is_stored():
    torch = pytest.importorskip("torch")
    stored = np.load(products_peer.STORED)
    for name, found in products_peer.in_torch(torch).items():
        for i, product in enumerate(found):
            np.testing.assert_array_equal(product, stored[f"{name}/{i}"], err_msg=f"{name} {i}")


def blocks(x, height, width, scale):
    return by_hand.in_blocks(x.astype(np.float64), height, width, scale, by_hand.E4M3)


def mxfp8(x):
    return blocks(x, 1, 32, by_hand.in_e8m0)


def tiles(x, height, width):
    return blocks(x, height, width, by_hand.power_of_two(by_hand.E4M3))


def deepseek(x, height, width):
    return blocks(x, height, width, lambda amax: np.float32(max(amax, 1e-4) / 448))


def rotated(x):
    """Rotate columns (tokens) in runs of 16, rounded to bf16."""
    runs = x.astype(np.float64).reshape(-1, 16, x.shape[1])
    rotation = by_hand.hadamard(16, by_hand.TE_SIGNS)
    return by_hand.bf16(np.einsum("kij,il->klj", runs, rotation).reshape(x.shape))


def operands_by_hand(name, x, w, g):
    """Return the operands of the three products."""
    match name:
        case "te_mxfp8":
            return ((mxfp8(x), mxfp8(w.T).T), (mxfp8(g), mxfp8(w).T), (mxfp8(x.T), mxfp8(g.T).T))
        case "te_block":
            weight = tiles(w, 128, 128)
            gradient = tiles(x.T, 1, 128), tiles(g.T, 1, 128).T
            return (tiles(x, 1, 128), weight), (tiles(g, 1, 128), weight.T), gradient
        case "te_nvfp4":
            weight, row = by_hand.nvfp4(w, 16, 16), lambda a: by_hand.nvfp4(a, 1, 16)
            gradient = row(rotated(x).T), row(rotated(g).T).T
            return (row(x), weight), (row(g), weight.T), gradient
        case "deepseek_v3":
            weight = deepseek(w, 128, 128)
            turned = deepseek(deepseek(x, 1, 128).T, 1, 128)
            gradient = turned, deepseek(g.T, 1, 128).T
            return (deepseek(x, 1, 128), weight), (deepseek(g, 1, 128), weight.T), gradient


@pytest.mark.parametrize("name", ["te_mxfp8", "te_block", "te_nvfp4", "deepseek_v3"])
def test_operands_and_products_are_those_of_the_rules_written_out(name):
    random = np.random.default_rng(3)
    x = by_hand.bf16(random.standard_normal((160, 192)) * 4.0 ** random.integers(-3, 3, (160, 1)))
    w = by_hand.bf16(random.standard_normal((192, 144)) / 8)
    g = by_hand.bf16(random.standard_normal((160, 144)) * 1e-2)
    multiply = by_hand.tensor_core if name == "deepseek_v3" else np.matmul
    found = products(name, x, w, g, stochastic=False)
    for i, (left, right) in enumerate(operands_by_hand(name, x, w, g)):
        np.testing.assert_array_equal(found[i][0], left, err_msg=f"{ROLES[i]}, left")
        np.testing.assert_array_equal(found[i][1], right, err_msg=f"{ROLES[i]}, right")
        wide = name == "deepseek_v3" and i == 2
        product = multiply(left.astype(np.float64), right.astype(np.float64))
        np.testing.assert_array_equal(found[i][2], product if wide else by_hand.bf16(product))


GRID = np.concatenate([-by_hand.E2M1[:0:-1], by_hand.E2M1])


def down(v):
    return GRID[np.clip(np.searchsorted(GRID, v, side="right") - 1, 0, None)]


def up(v):
    return GRID[np.clip(np.searchsorted(GRID, v, side="left"), None, len(GRID) - 1)]


def test_nvfp4_gradients_round_by_chance_to_a_neighbour_and_are_right_on_average():
    _, _, g = products_peer.operands("te_nvfp4")
    x, w = np.ones((48, 64), np.float32), np.ones((64, 32), np.float32)
    below = by_hand.nvfp4(g, 1, 16, lambda v, _: down(v))
    above = by_hand.nvfp4(g, 1, 16, lambda v, _: up(v))
    drawn = []
    for seed in range(200):
        with ps.using(seed=seed):
            drawn.append(products("te_nvfp4", x, w, g)[1][0])
    drawn = np.array(drawn)
    assert ((drawn == below) | (drawn == above)).all()
    gap = above - below
    chance = np.where(gap > 0, (g - below) / np.where(gap > 0, gap, 1), 0)
    off = (drawn == above).mean(axis=0) - chance
    sure = gap > 0
    deviation = np.sqrt(chance * (1 - chance) / len(drawn))
    assert np.abs(off[sure]).mean() < 1.2 * deviation[sure].mean()
    assert np.abs(off[sure].mean()) < 5 * deviation[sure].mean() / np.sqrt(sure.sum())


def test_deepseek_hands_over_weight_gradients_in_fp32():
    sizes = ps.GPTConfig(layers=1, heads=2, width=16, context=16, vocabulary=11)
    with ps.using(ps.recipe("deepseek_v3").policy):
        model = ps.GPT(sizes)
        model.loss(np.arange(16)[None] % 11, np.arange(16)[None] % 11).backward()
    assert {p.grad.format.name for p in model.parameters.values()} == {"fp32"}
    gradient = model.parameters["blocks.0.fc1.weight"].grad.numpy()
    assert not np.array_equal(gradient, by_hand.bf16(gradient))


def test_the_mxfp8_scale_of_every_bf16_amax_is_transformer_engines():
    bits = np.arange(0x0D00, 0x7200, dtype=np.uint32) << 16  # 2^-101 to 2^101
    amax = bits.view(np.float32).astype(np.float64)
    _, scales = ps.encode(amax[:, None], "mxfp8_e4m3:rceil")
    exponents = np.log2([by_hand.in_e8m0(a) for a in amax])
    np.testing.assert_array_equal(scales[:, 0], exponents + 127)
