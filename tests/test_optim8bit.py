"""AdamW with an 8-bit state: torchao's code and quantiser to the bit, and what 8 bits cost."""

import numpy as np
import pytest

import precsim as ps
from precsim.nn import optim, optim8bit
from precsim.nn.optim8bit import BLOCK, FEWEST, code_in_blocks, dynamic_code


def values(count, signed=True, seed=0):
    """Return values over some twenty decades, as the state of an optimizer has them."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal(count) * np.exp(5 * generator.standard_normal(count))
    return (x if signed else x * x).astype(np.float32)


def coded(x, signed=True):
    with ps.using("fp32"):
        return code_in_blocks(ps.tensor(x), signed=signed).numpy()


@pytest.mark.parametrize("signed", [True, False])
def test_code_has_256_numbers_over_seven_decades(signed):
    code = dynamic_code(signed)
    assert code.dtype == np.float32
    assert len(np.unique(code)) == 256
    assert code[-1] == 1
    assert code[0] == (np.float32(-0.99296874) if signed else 0)
    smallest = code[code > 0].min()
    assert smallest == pytest.approx(5.5e-7 if signed else 3.25e-7)


def nearest(x, signed):
    """The rule in words, one value at a time, in float64."""
    code, result = dynamic_code(signed).astype(np.float64), []
    for start in range(0, len(x), BLOCK):
        block = x[start : start + BLOCK].astype(np.float64)
        largest = np.abs(block).max() or 1.0
        result += [largest * code[np.argmin(np.abs(code - v / largest))] for v in block]
    return np.array(result)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("count", [1, BLOCK, 3 * BLOCK + 7])
def test_each_value_becomes_the_nearest_of_its_block(signed, count):
    x = values(count, signed)
    np.testing.assert_allclose(coded(x, signed), nearest(x, signed), rtol=1e-6)


@pytest.mark.parametrize("signed", [True, False])
def test_code_and_coded_values_are_torchaos_to_the_bit(signed):
    torch = pytest.importorskip("torch")
    ao = pytest.importorskip("torchao.optim.quant_utils")
    code = torch.tensor(ao.create_dynamic_map(signed), dtype=torch.float32)
    np.testing.assert_array_equal(dynamic_code(signed), code.numpy())
    x = values(64 * BLOCK, signed)
    scaled, scale = ao.scale_tensor(torch.tensor(x), BLOCK)
    there = ao.dequant_with_qmap(ao.quantize_8bit_with_qmap(scaled, code), code, scale)
    np.testing.assert_array_equal(coded(x, signed), there.numpy())


def test_edges():
    block = np.zeros(BLOCK, np.float32)
    np.testing.assert_array_equal(coded(block), block)
    np.testing.assert_array_equal(coded(np.zeros((0, 3))), np.zeros((0, 3)))
    block[:4] = [1.0, 2.7e-7, 2.8e-7, -2.7e-7]
    np.testing.assert_allclose(coded(block)[:4], [1.0, 0.0, 5.5e-7, 0.0], rtol=1e-6)
    assert coded(block[:, None]).shape == (BLOCK, 1)
    for bad in (np.nan, np.inf):
        two = np.ones(2 * BLOCK, np.float32)
        two[3] = bad
        np.testing.assert_array_equal(~np.isfinite(coded(two)), np.arange(2 * BLOCK) < BLOCK)
    np.testing.assert_array_equal(coded(np.full(4, 1e-30)), np.zeros(4))


def test_small_tensors_keep_their_state_and_large_ones_store_it_after_use():
    """The first step of Adam is lr * sign(g), so it shows whether the stored state was used."""
    with ps.using("fp32"):
        given = {"small": values(FEWEST - 1), "large": values(FEWEST)}
        weights = {name: ps.tensor(np.zeros_like(g)) for name, g in given.items()}
        optimizer = optim8bit.AdamW8bit(weights, lr=1.0, eps=0.0)
        optimizer.step({name: ps.tensor(g) for name, g in given.items()})
    for name, g in given.items():
        np.testing.assert_allclose(weights[name].numpy(), -np.sign(g), rtol=1e-5)
    m = {name: state.numpy() for name, state in optimizer.state["m"].items()}
    np.testing.assert_allclose(m["small"], 0.1 * given["small"], rtol=1e-6)
    assert len(np.unique(m["large"][:BLOCK])) < 100
    np.testing.assert_allclose(m["large"], coded(np.float32(0.1) * given["large"]), rtol=1e-6)


def test_updates_are_torchaos():
    torch = pytest.importorskip("torch")
    adam = pytest.importorskip("torchao.optim.adam")
    there = torch.zeros(4 * FEWEST)
    states = [adam.OptimState8bit.zeros(there.shape, signed, BLOCK) for signed in (True, False)]
    with ps.using("fp32"):
        here = {"w": ps.tensor(np.zeros(4 * FEWEST))}
        optimizer = optim8bit.AdamW8bit(here, lr=0.01, betas=(0.9, 0.99), weight_decay=0.1)
        for step in range(8):
            g = values(4 * FEWEST, seed=step)
            optimizer.step({"w": ps.tensor(g)})
            adam.single_param_adam(
                there, torch.tensor(g), torch.tensor(step + 1.0), *states, None,
                torch.tensor(0.01), 0.9, 0.99, 0.1, 1e-8, True, False,
            )  # fmt: skip
    differs = ~np.isclose(here["w"].numpy(), there.numpy(), rtol=1e-4, atol=1e-7)
    assert differs.mean() < 1e-3  # a state half-way between two codes may go either way


def test_eight_bits_are_enough_to_learn_with():
    config = ps.TrainConfig(
        data="reverse", layers=1, heads=2, width=48, context=16, batch=8, steps=60, eval_every=60,
        policy="arithmetic=fast", lr=1e-2, observe="off",
    )  # fmt: skip
    wide, narrow = (
        ps.train(config.change(optimizer=name)).final_loss() for name in ("adamw", "adamw8bit")
    )
    assert narrow < 1.1 * wide
    assert narrow != wide


def test_it_is_an_adamw():
    assert issubclass(optim8bit.AdamW8bit, optim.AdamW)
