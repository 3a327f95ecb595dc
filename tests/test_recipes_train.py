"""Training beside PyTorch: the same text, weights, AdamW and GradScaler, step by step.

Loss scales are compared exactly: an overflow that one of the two did not see, a step that one did
not skip, or a clean step miscounted would set them apart for good.
"""

import importlib.util
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

import precsim as ps
from precsim.runs.data import Batches, load

STEPS = 40
SETTING = ps.TrainConfig(
    data="zen", layers=1, heads=2, width=32, context=32, batch=4, lr=1e-3, schedule="constant", warmup=0,
    steps=STEPS, eval_every=STEPS + 1,
)  # fmt: skip


@pytest.fixture(scope="module")
def peer():
    pytest.importorskip("torch")
    path = Path(__file__).parent / "torch_peer.py"
    spec = importlib.util.spec_from_file_location("torch_peer", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def in_torch(peer, name, config, corpus, interval):
    """Return loss and loss scale of every step."""
    import torch

    batches, how = Batches(corpus, config.batch, config.context, config.seed), peer.PEERS[name]
    with ps.using(config.policy):
        start = ps.GPT(config.model(corpus.vocabulary_size), config.seed).parameters
    leaves = {}
    for parameter, tensor in start.items():
        values = tensor.numpy()
        turned = values.ndim == 2 and not parameter.startswith("w")
        values = np.ascontiguousarray(values.T if turned else values)
        leaves[parameter] = torch.tensor(values).to(how.parameters).requires_grad_()
    betas = (config.beta1, config.beta2)
    adam = torch.optim.AdamW(leaves.values(), config.lr, betas, config.eps, weight_decay=0.0)
    scaler = torch.amp.GradScaler("cpu", growth_interval=interval or 2000, enabled=interval > 0)
    history = []
    for step in range(config.steps):
        x, y = (torch.tensor(ids) for ids in batches.train(step))
        scale = scaler.get_scale()
        adam.zero_grad()
        with torch.autocast("cpu", how.autocast) if how.autocast else nullcontext():
            loss = peer.loss_of(how, leaves, x, y, config.layers, config.heads)
        scaler.scale(loss).backward()
        scaler.step(adam)
        scaler.update()
        history.append((loss.item(), scale))
    return np.array(history).T


@pytest.mark.parametrize(
    ("name", "interval", "allowed"),
    [("torch_amp_cpu_fp16", 3, 1e-3), ("torch_amp_cpu_bf16", 0, 1e-2)],
)
def test_forty_steps_of_autocast_are_those_of_pytorch(name, interval, allowed, peer):
    scale = {"loss_scale": f"torch:65536:{interval}"} if interval else {}
    config = SETTING.change(**ps.recipe(name).settings() | scale)
    corpus = load(config.data)
    losses, scales = in_torch(peer, name, config, corpus, interval)
    run = ps.train(config, corpus=corpus)
    np.testing.assert_array_equal(run.steps["scale"], scales)
    assert not interval or 0 < run.steps["skipped"].sum() < STEPS / 2
    np.testing.assert_allclose(run.steps["loss"], losses, atol=allowed)
