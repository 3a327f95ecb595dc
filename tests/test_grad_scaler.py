"""GradScaler beside PyTorch's: two optimizers, clipping, accumulation, death, and every mistake."""

import re

import numpy as np
import pytest

import precsim as ps
from precsim.engine.rule import Origin
from precsim.nn.grad_scaler import GradScaler
from precsim.nn.scaling import DynamicScale

SGD = ps.optim.SGD


def weight(*values, name="w", policy="fp32"):
    with ps.using(policy):
        leaf = ps.tensor(list(values), requires_grad=True, name=name)
    leaf.origin = Origin.WEIGHT
    return leaf


def optimizer(*values, lr=0.01, policy="fp32"):
    return SGD({"w": weight(*values, policy=policy)}, lr)


def backward(scaler, optimizer, factor):
    """The loss is the sum of factor * w, so the gradient is the factor."""
    scaler.scale((optimizer.parameters["w"] * np.asarray(factor)).sum()).backward()


def values(optimizer):
    return optimizer.parameters["w"].numpy().tolist()


def grad(optimizer):
    return optimizer.parameters["w"].grad.numpy().tolist()


def test_an_overflow_in_one_optimizer_skips_that_one_and_halves_the_scale_once():
    a, b = optimizer(1.0), optimizer(1.0)
    scaler = GradScaler()
    backward(scaler, a, np.inf)
    backward(scaler, b, 1.0)
    assert (scaler.step(a), scaler.step(b)) == (False, True)
    scaler.update()
    assert values(a) == [1.0]
    assert values(b) == pytest.approx([0.99])
    assert scaler.state.scale == 32768


def test_clipping_needs_unscaled_gradients():
    """Numbers of PyTorch 2.13: without unscale the step is 65536 times too small."""
    for first, want in ((True, [2.94, 3.92]), (False, [2.999999, 3.999999])):
        o = optimizer(3.0, 4.0, lr=0.1)
        scaler = GradScaler()
        backward(scaler, o, [3.0, 4.0])
        if first:
            scaler.unscale(o)
        clipped = ps.optim.clip({"w": o.parameters["w"].grad}, 1.0)
        o.parameters["w"].grad = clipped["w"]
        scaler.step(o)
        assert values(o) == pytest.approx(want, rel=3e-7)


def test_the_scale_must_stay_while_gradients_add_up():
    o = optimizer(1.0)
    scaler = GradScaler(DynamicScale(1024.0))
    backward(scaler, o, 1.0)
    scaler.state = DynamicScale(2048.0)
    backward(scaler, o, 1.0)
    scaler.unscale(o)
    assert grad(o) == [1.5], "1 + 1, and half of the first is lost"


def test_a_scale_of_2_to_the_minus_128_destroys_the_weights_and_skips_nothing():
    for power, survives in ((-127, True), (-128, False), (-149, False)):
        o = optimizer(1.0)
        scaler = GradScaler(DynamicScale(2.0**power))
        backward(scaler, o, 1.0)
        assert scaler.step(o)
        assert np.isfinite(values(o)).all() == survives
    scaler = GradScaler(DynamicScale(0.0))
    o = optimizer(1.0)
    backward(scaler, o, 1.0)
    assert scaler.step(o)
    assert np.isnan(values(o)).all()
    scaler.update()
    assert scaler.state.scale == 0


def test_a_half_loss_of_scale_65536_overflows_where_it_goes_back_to_half():
    """The scaled loss is fp32, but its gradient is cast to the loss's own format."""
    policy = "weights=fp16 activations=fp16 loss=fp32 gradients=widest weight_gradients=widest"
    with ps.using(policy):
        for scale, finite in ((65536.0, False), (32768.0, True)):
            w = weight(1.0, policy=policy)
            scaler = GradScaler(DynamicScale(scale))
            scaled = scaler.scale((w * 1.0).sum())
            assert scaled.item() == scale
            scaled.backward()
            assert np.isfinite(w.grad.numpy()).all() == finite


MISTAKES = {
    "unscaling twice": (
        lambda s, o: (s.unscale(o), s.unscale(o)),
        RuntimeError,
        "unscale_() has already been called on this optimizer since the last update()",
    ),
    "unscaling after the step": (
        lambda s, o: (s.step(o), s.unscale(o)),
        RuntimeError,
        "unscale_() is being called after step()",
    ),
    "stepping twice": (
        lambda s, o: (s.step(o), s.step(o)),
        RuntimeError,
        "step() has already been called since the last update()",
    ),
    "updating before anything": (
        lambda s, o: s.update(),
        RuntimeError,
        "No inf checks were recorded prior to update",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_those_that_pytorch_names(mistake):
    act, error, message = MISTAKES[mistake]
    scaler, o = GradScaler(), optimizer(1.0)
    backward(scaler, o, 1.0)
    with pytest.raises(error, match=re.escape(message)):
        act(scaler, o)


def test_a_scale_is_read_from_text_where_it_is_used_too():
    assert GradScaler("static:8").scale(weight(3.0).sum()).item() == 24.0
    assert GradScaler().state == DynamicScale(65536.0)
    with pytest.raises(ValueError, match="loss scale 'fixed': expected none, static:SCALE"):
        GradScaler("fixed")


def test_no_gradients_at_all_is_a_mistake():
    with pytest.raises(RuntimeError, match="No inf checks were recorded for this optimizer"):
        GradScaler().step(optimizer(1.0))


def test_gradients_in_fp16_cannot_be_unscaled_and_in_bf16_they_can():
    for fmt in ("fp16", "bf16"):
        with ps.using(fmt):
            scaler, o = GradScaler(DynamicScale(2.0)), optimizer(1.0, policy=fmt)
            backward(scaler, o, 1.0)
            if fmt == "fp16":
                with pytest.raises(ValueError, match="Attempting to unscale FP16 gradients"):
                    scaler.unscale(o)
            else:
                scaler.unscale(o)


def test_everything_that_pytorch_does_with_random_gradients():
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(3)
    theirs = torch.amp.GradScaler("cpu", growth_interval=3)
    ours = GradScaler(DynamicScale(interval=3))
    p = [torch.nn.Parameter(torch.tensor([1.0, 2.0])) for _ in range(2)]
    t = [torch.optim.SGD([x], 0.25) for x in p]
    o = [optimizer(1.0, 2.0, lr=0.25) for _ in range(2)]
    for _ in range(60):
        for i in range(2):
            g = random.integers(-4, 5, 2) / 8.0
            if random.random() < 0.2:
                g[0] = np.inf
            t[i].zero_grad()
            theirs.scale((p[i] * torch.tensor(g, dtype=torch.float32)).sum()).backward()
            o[i].parameters["w"].grad = None
            backward(ours, o[i], g)
            if random.random() < 0.5:
                theirs.unscale_(t[i])
                ours.unscale(o[i])
                np.testing.assert_array_equal(grad(o[i]), p[i].grad.numpy())
            theirs.step(t[i])
            ours.step(o[i])
        theirs.update()
        ours.update()
        assert ours.state.scale == theirs.get_scale()
        for i in range(2):
            np.testing.assert_array_equal(values(o[i]), p[i].detach().numpy())
