"""Weights and optimizer states in 16 bits: Kahan compensation as PyTorch's bf16 runs it, Adam's deaths."""

import numpy as np
import pytest

import precsim as ps
from precsim.nn import optim

SIZE, STEPS = 4000, 20
RATES = (2.0**-9, 1e-3, 3e-5)

REVERSE = ps.TrainConfig(
    data="reverse", layers=1, heads=2, width=16, context=16, batch=8, steps=100, eval_every=100,
    schedule="constant", warmup=0, beta2=0.999, observe="off",
)  # fmt: skip
FAST = "arithmetic=fast"


def draws(seed):
    generator = np.random.default_rng(seed)
    return generator.standard_normal(SIZE) * np.exp(2 * generator.standard_normal(SIZE))


def in_format(x, fmt):
    return ps.ops.cast(x, to=ps.Precision(fmt))


def here(fmt, lr, arithmetic):
    """Return the weights and what was left over, after SGD with Kahan compensation."""
    policy = ps.Policy(weights=fmt, optimizer_state=fmt, arithmetic=arithmetic)
    with ps.using(policy):
        weights = {"w": in_format(draws(0), fmt)}
        optimizer = optim.SGD(weights, lr, kahan=True)
        for step in range(1, STEPS + 1):
            optimizer.step({"w": in_format(draws(step), fmt)})
    return weights["w"].numpy(), optimizer.state["kahan"]["w"].numpy()


def in_torch(torch, dtype, lr):
    """Return the same from PyTorch's own elementwise ops: the recurrence that optimi runs."""
    w = torch.tensor(draws(0)).to(dtype)
    k = torch.zeros_like(w)
    for step in range(1, STEPS + 1):
        k.add_(torch.tensor(draws(step)).to(dtype), alpha=-lr)
        old = w.clone()
        w.add_(k)
        k.add_(old.sub_(w))
    return w.double().numpy(), k.double().numpy()


@pytest.mark.parametrize("lr", RATES)
def test_kahan_compensation_is_pytorchs_bf16_to_the_bit(lr):
    torch = pytest.importorskip("torch")
    lr = float(ps.quantize(lr, "bf16"))  # as PyTorch's `add_` on a CPU does with its alpha
    there = in_torch(torch, torch.bfloat16, lr)
    np.testing.assert_array_equal(here("bf16", lr, "fast"), there)
    # PyTorch computes in float32 and rounds again: once in 10^5, that is not the nearest number.
    assert np.mean(np.not_equal(here("bf16", lr, "exact"), there)) < 1e-3


@pytest.mark.parametrize("lr", RATES)
def test_kahan_compensation_is_pytorchs_fp16_to_the_bit(lr):
    torch = pytest.importorskip("torch")
    lr = float(ps.quantize(lr, "fp16"))
    np.testing.assert_array_equal(here("fp16", lr, "fast"), in_torch(torch, torch.float16, lr))


@pytest.mark.parametrize(
    ("fmt", "dtype", "apart"), [("bf16", "bfloat16", 0.04), ("fp16", "float16", 1e-2)]
)
def test_adamw_in_16_bits_takes_pytorchs_way_but_for_a_rounding_here_and_there(fmt, dtype, apart):
    """PyTorch rounds after each of its ops, and these are fewer: `lerp_` is one, here it is three."""
    torch = pytest.importorskip("torch")
    start = torch.tensor(draws(0)).to(getattr(torch, dtype))
    there = start.clone().requires_grad_()
    reference = torch.optim.AdamW([there], lr=0.01, eps=1e-4, weight_decay=0.0, foreach=False)
    with ps.using(ps.Policy.uniform(fmt, arithmetic="fast")):
        weights = {"w": in_format(draws(0), fmt)}
        optimizer = optim.AdamW(weights, 0.01, eps=1e-4)
        for step in range(1, 11):
            optimizer.step({"w": in_format(0.1 * draws(step), fmt)})
            there.grad = torch.tensor(0.1 * draws(step)).to(start.dtype)
            reference.step()
    expected, first = there.detach().double().numpy(), start.double().numpy()
    assert np.mean(weights["w"].numpy() == expected) > 0.75
    difference = np.linalg.norm(weights["w"].numpy() - expected)
    assert difference < apart * np.linalg.norm(expected - first)


def test_kahan_compensation_by_hand():
    """1 + 2^-10 is 1 in bf16; after eight of them the ninth bit is there, as it should be."""
    with ps.using(ps.Policy(weights="bf16")):
        weights = {"w": in_format(np.ones(1), "bf16")}
        optimizer = optim.SGD(weights, 2.0**-10, kahan=True)
        seen = []
        for _ in range(8):
            optimizer.step({"w": ps.tensor([-1.0])})
            seen.append(
                (weights["w"].item() - 1) * 2**10 + optimizer.state["kahan"]["w"].item() * 2**10
            )
    assert seen == [1, 2, 3, 4, 5, 6, 7, 8]
    assert weights["w"].item() == 1 + 2**-7
    assert weights["w"].format.name == "bf16"


def test_an_update_is_lost_under_kahan_only_where_the_left_over_swallows_it():
    counters = ps.Counters()
    with ps.using(ps.Policy(weights="bf16"), observers=[counters]):
        plain, kept = ({"w": in_format(np.ones(4), "bf16")} for _ in range(2))
        optim.SGD(plain, 2.0**-12).step({"w": ps.tensor(np.ones(4))})
        lost_plain = counters.total(op="apply_update").swamped_share
        counters.drain()
        optimizer = optim.SGD(kept, 2.0**-12, kahan=True)
        optimizer.step({"w": ps.tensor(np.ones(4))})
        optimizer.step({"w": ps.tensor([1.0, 1.0, 2.0**-12, 2.0**-12])})
    lost_kahan = counters.total(op="apply_update")
    assert lost_plain == 1
    assert (lost_kahan.swamped, lost_kahan.updates) == (2, 8)


@pytest.mark.parametrize("master", ["none", "tf32"])
def test_what_is_left_over_lives_beside_the_weights_that_are_updated(master):
    events = []
    policy = ps.Policy(weights="bf16", master_weights=master, optimizer_state="e5m9")
    with ps.using(policy):
        weights = {"w": in_format(draws(0), "bf16" if master == "none" else master)}
        optimizer = optim.AdamW(weights, 0.1, kahan=True)
        with ps.using(observers=[events.append]):
            optimizer.step({"w": ps.tensor(draws(1))})
    stored = "bf16" if master == "none" else "tf32"
    role = "weights" if master == "none" else "master_weights"
    ours = [(e.op, e.format.name) for e in events if e.role == role]
    assert ours == [(op, stored) for op in ("apply_update", "add", "sub", "add")]
    assert optimizer.slots == ("m", "v", "kahan")
    assert optimizer.state["kahan"]["w"].format.name == stored


def test_a_run_with_kahan_compensation_resumes_with_the_same_bits(tmp_path):
    config = REVERSE.change(
        policy="weights=bf16 arithmetic=fast", weights_update="kahan", steps=6, checkpoint_every=3,
        lr=1e-3,
    )  # fmt: skip
    whole = ps.train(config)
    ps.train(config, out=tmp_path / "run")
    forked = ps.open(tmp_path / "run").fork(at=3, out=tmp_path / "fork")
    for name, weight in whole.model.parameters.items():
        np.testing.assert_array_equal(forked.model.parameters[name].numpy(), weight.numpy())


HALF = str(ps.Policy.uniform("fp16", arithmetic="fast"))
TEXT = ps.TrainConfig(
    context=32, batch=8, steps=1, eval_every=100, schedule="constant", warmup=0, beta2=0.999, lr=1e-3,
    observe="off", policy=HALF,
)  # fmt: skip


def test_pure_half_adam_destroys_every_tensor_in_one_step():
    """eps=1e-8 is 0 in fp16, the square of a small gradient too, and their quotient no number."""
    run = ps.train(TEXT)
    assert run.died_at == 0
    finite = {n for n, p in run.model.parameters.items() if np.isfinite(p.numpy()).all()}
    assert (len(run.model.parameters), finite) == (29, set())


def test_pure_half_adam_with_an_epsilon_that_half_has_lives_with_a_second_moment_of_zeros():
    v = []

    def keep(event):
        if event.role == "optimizer_state" and event.call == 1:
            v.append(event.rounded.copy())

    run = ps.train(TEXT.change(eps=1e-4, steps=3), observers=(keep,))
    assert run.died_at is None
    last = np.concatenate([a.ravel() for a in v[-29:]])
    assert 0.25 < np.mean(last == 0) < 0.99


def test_pure_half_adam_trains_with_an_epsilon_that_half_has():
    config = REVERSE.change(lr=3e-3, eps=1e-4, policy=HALF)
    wide = ps.train(config.change(policy=FAST, eps=1e-8))
    assert ps.train(config).final_loss() < 1.5 * wide.final_loss()


@pytest.mark.parametrize(("eps", "worse"), [(1e-7, 10), (1e-6, 1.5)])
def test_pure_half_adam_with_an_epsilon_just_above_zero_runs_away(eps, worse):
    state = "update=fp16 optimizer_state=fp16 weights=fp16"
    config = REVERSE.change(policy=f"{state} {FAST}", lr=3e-3, eps=eps, steps=60)
    assert not ps.train(config).final_loss() < worse


@pytest.mark.parametrize(("state", "dies"), [("fp16", True), ("e5m2", True), ("bf16", False)])
def test_a_second_moment_needs_range_not_precision(state, dies):
    """fp32 arithmetic: fp16's 12 to 18 % of zeros in v are enough; bf16 has fp32's range."""
    config = REVERSE.change(policy=f"optimizer_state={state} {FAST}", lr=3e-3)
    loss = ps.train(config).final_loss()
    assert dies != (loss < 1.5 * ps.train(config.change(policy=FAST)).final_loss())
