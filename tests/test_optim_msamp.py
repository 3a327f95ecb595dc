"""MS-AMP: its AdamW and what it stores, against its Python optimizer written out in float32."""

import by_hand
import numpy as np

import precsim as ps
from precsim.engine.rule import Origin
from precsim.engine.tensor import Tensor
from precsim.nn.optim_msamp import AdamWMSAMP

FP16 = by_hand.values_of(5, 10, 15, 65504.0)
O2 = ps.recipe("msamp_O2").policy
BETAS, EPS, LR = (0.9, 0.99), 1e-8, 1e-2


def scaled(x, values):
    """Quantize a tensor with one scale: 1 / 2^floor(log2(largest / amax)) (ScalingMeta)."""
    amax = np.abs(x).max()
    factor = by_hand.power_below(values[-1] / amax) if amax else 1.0
    return by_hand.nearest(x * factor, values) / factor


def test_the_step_is_made_from_moments_in_full_which_are_stored_in_e4m3_and_fp16():
    random = np.random.default_rng(8)
    name = "blocks.0.fc1.weight"
    weight = scaled(random.standard_normal((6, 5)), FP16)
    sizes = np.float32(10.0) ** -np.array([[2], [3], [4], [5], [7], [10]])
    m, v = np.zeros((2, 6, 5))
    with ps.using(O2):
        fmt = ps.format("fp16:tensor:pow2")
        parameter = Tensor(weight.astype(np.float32), fmt, origin=Origin.WEIGHT, name=name)
        optimizer = AdamWMSAMP({name: parameter}, LR, BETAS, EPS)
        for step in range(1, 6):
            g = random.standard_normal((6, 5)).astype(np.float32) * sizes
            optimizer.step({name: Tensor(g, ps.format("fp32"))})
            m = np.float32(m * BETAS[0]) + np.float32(g * (1 - BETAS[0]))
            v = np.float32(v * BETAS[1]) + np.float32(np.float32(g * g) * (1 - BETAS[1]))
            root = np.sqrt(v) / np.sqrt(1 - BETAS[1] ** step) + EPS
            weight = weight - LR / (1 - BETAS[0] ** step) * m / root
            m, v = scaled(m.astype(float), by_hand.E4M3), scaled(v.astype(float), FP16)
            np.testing.assert_array_equal(optimizer.state["m"][name].numpy(), m)
            np.testing.assert_array_equal(optimizer.state["v"][name].numpy(), v)
            np.testing.assert_allclose(parameter.numpy(), weight, rtol=1e-3, atol=1e-4)
            np.testing.assert_array_equal(parameter.numpy(), scaled(parameter.numpy(), FP16))
            weight = parameter.numpy().astype(float)
    assert (v == 0).any(), "fp16 with one scale flushes some second moments"
    assert np.abs(parameter.numpy()).max() < 5, "and no update was divided by them"


def test_what_lives_in_which_format():
    sizes = ps.GPTConfig(layers=1, heads=2, width=16, context=16, vocabulary=11)
    tokens = np.arange(16)[None] % 11
    with ps.using(O2):
        model = ps.GPT(sizes)
        model.loss(tokens, tokens).backward()
        gradients = {n: p.grad for n, p in model.parameters.items()}
        optimizer = AdamWMSAMP(model.parameters, LR)
        optimizer.step(gradients)
    linear = {n for n in model.parameters if n.split(".")[-2] in ("qkv", "proj", "fc1", "fc2")
              and n.endswith("weight")}  # fmt: skip
    assert len(linear) == 4
    for name, parameter in model.parameters.items():
        wide = name not in linear
        assert parameter.format == ps.format("fp32" if wide else "fp16:tensor:pow2")
        assert gradients[name].format == ps.format("fp32" if wide else "e4m3:tensor:pow2"), name
        assert optimizer.state["m"][name].format == ps.format("e4m3:tensor:pow2")
        assert optimizer.state["v"][name].format == ps.format("fp16:tensor:pow2")
