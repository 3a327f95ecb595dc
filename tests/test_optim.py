"""SGD, AdamW, clipping and the learning rate: PyTorch's numbers, stored and fresh, and the formats."""

import itertools
from math import sqrt
from pathlib import Path

import numpy as np
import pytest

import precsim as ps
from precsim.nn import optim

STORED = Path(__file__).parent / "data" / "optim_torch213.npz"
"""The weights that `in_torch` gave with PyTorch 2.13, after the first and the last step."""

STEPS = 20
SHAPES = {"matrix": (3, 4), "bias": (5,), "single": ()}
CASES = {
    "sgd": (ps.optim.SGD, {"lr": 0.1}),
    "sgd decay": (ps.optim.SGD, {"lr": 0.1, "weight_decay": 0.3}),
    "sgd momentum": (ps.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    "sgd momentum decay": (ps.optim.SGD, {"lr": 0.1, "momentum": 0.7, "weight_decay": 0.1}),
    "adamw": (ps.optim.AdamW, {"lr": 0.05}),
    "adamw decay": (ps.optim.AdamW, {"lr": 0.05, "betas": (0.8, 0.95), "weight_decay": 0.5}),
    "adamw eps": (ps.optim.AdamW, {"lr": 0.05, "betas": (0.0, 0.0), "eps": 0.1}),
}


def draws(*shape):
    """Return numbers that are the same in all versions of NumPy: sines, of all sizes."""
    count = int(np.prod(shape))
    return (np.sin(np.arange(1, count + 1) ** 2) * np.logspace(-3, 1, count)).reshape(shape)


def weights():
    return {name: draws(*shape) for name, shape in SHAPES.items()}


def gradients(step):
    return {name: np.roll(draws(STEPS, *shape), 3)[step] for name, shape in SHAPES.items()}


def rate(step, lr):
    return lr * (1 + step % 3)


def flat(arrays):
    return np.concatenate([np.ravel(a) for a in arrays.values()])


def here(case, policy="fp64"):
    """Return the flat weights after each step."""
    make, options = CASES[case]
    with ps.using(policy):
        parameters = {name: ps.tensor(w) for name, w in weights().items()}
        optimizer, history = make(parameters, **options), []
        for step in range(STEPS):
            given = {name: ps.tensor(g) for name, g in gradients(step).items()}
            optimizer.step(given, rate(step, options["lr"]))
            history.append(flat({name: p.numpy() for name, p in parameters.items()}))
    return np.array(history)


def in_torch(torch, case):
    make, options = CASES[case]
    parameters = {n: torch.tensor(w, requires_grad=True) for n, w in weights().items()}
    options = {"weight_decay": 0.0} | options  # AdamW's own default is 0.01
    optimizer, history = getattr(torch.optim, make.__name__)(parameters.values(), **options), []
    for step in range(STEPS):
        for name, gradient in gradients(step).items():
            parameters[name].grad = torch.tensor(gradient)
        optimizer.param_groups[0]["lr"] = rate(step, options["lr"])
        optimizer.step()
        history.append(flat({name: p.detach().numpy() for name, p in parameters.items()}))
    return np.array(history)


@pytest.mark.parametrize("case", CASES)
def test_weights_are_those_that_pytorch_gave(case):
    with np.load(STORED) as stored:
        np.testing.assert_allclose(here(case)[[0, -1]], stored[case], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("case", CASES)
def test_weights_are_pytorchs_at_every_step(case):
    torch = pytest.importorskip("torch")
    np.testing.assert_allclose(here(case), in_torch(torch, case), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("case", CASES)
def test_steps_in_which_a_parameter_has_no_gradient_are_none_of_its_own(case):
    torch = pytest.importorskip("torch")
    make, options = CASES[case]
    theirs = {n: torch.tensor(w, requires_grad=True) for n, w in weights().items()}
    other = getattr(torch.optim, make.__name__)(theirs.values(), **{"weight_decay": 0.0} | options)
    with ps.using("fp64"):
        mine = tensors(weights())
        optimizer = make(mine, **options)
        for step in range(STEPS):
            some = {n: g for k, (n, g) in enumerate(gradients(step).items()) if step % (k + 2) > 0}
            for name, parameter in theirs.items():
                parameter.grad = torch.tensor(some[name]) if name in some else None
            other.step()
            optimizer.step(tensors(some))
            np.testing.assert_allclose(
                flat({n: p.numpy() for n, p in mine.items()}),
                flat({n: p.detach().numpy() for n, p in theirs.items()}),
                rtol=1e-12, atol=1e-14,
            )  # fmt: skip


NORM = sqrt(sum((g**2).sum() for g in gradients(4).values()))
LIMITS = [1e-3, 0.5 * NORM, 2 * NORM]


def clipped(given, limit):
    with ps.using("fp64"):
        return flat({n: g.numpy() for n, g in optim.clip(tensors(given), limit).items()})


def tensors(arrays):
    return {name: ps.tensor(a) for name, a in arrays.items()}


def clipped_in_torch(torch, given, limit):
    leaves = [torch.zeros(g.shape, dtype=torch.float64, requires_grad=True) for g in given.values()]
    for leaf, gradient in zip(leaves, given.values(), strict=True):
        leaf.grad = torch.tensor(gradient, dtype=torch.float64)
    torch.nn.utils.clip_grad_norm_(leaves, limit)
    return flat({str(i): leaf.grad.numpy() for i, leaf in enumerate(leaves)})


def test_clipped_gradients_are_those_that_pytorch_gave():
    with np.load(STORED) as stored:
        for limit, want in zip(LIMITS, stored["clip"], strict=True):
            np.testing.assert_allclose(clipped(gradients(4), limit), want, rtol=1e-12)


@pytest.mark.parametrize("odd", [None, 0.0, np.inf, -np.inf, np.nan])
def test_clipping_is_pytorchs_where_the_norm_is_zero_or_no_number_too(odd):
    torch = pytest.importorskip("torch")
    given = gradients(4)
    if odd is not None:
        given |= {
            "bias": np.full(5, odd),
            "matrix": given["matrix"] * (odd != 0),
            "single": 0 * odd,
        }
    given = {name: np.asarray(g) for name, g in given.items()}
    for limit in LIMITS:
        want = clipped_in_torch(torch, given, limit)
        np.testing.assert_allclose(clipped(given, limit), want, rtol=1e-12)


def test_clipping_within_the_limit_costs_no_multiplication_and_beyond_it_hits_the_limit():
    with ps.using("fp64"):
        given = tensors(gradients(4))
        assert optim.clip(given, 1.001 * NORM) is given
        shrunk = optim.norm(optim.clip(given, NORM / 3))
        assert shrunk == pytest.approx(NORM / 3, abs=1e-6)
    assert optim.norm({}) == 0
    assert optim.clip({}, 1.0) == {}


def test_the_order_of_unscaling_and_clipping_matters_as_pytorchs_guide_says():
    """Clipping to 1 what is still 65536 times too large leaves next to nothing of it."""
    with ps.using("fp64"):
        scaled = {"p": ps.tensor(65536 * np.array([0.6, 0.8]) / 10)}
        wrong = optim.multiply(optim.clip(scaled, 1.0), 1 / 65536)["p"].numpy()
        right = optim.clip(optim.multiply(scaled, 1 / 65536), 1.0)["p"].numpy()
    np.testing.assert_allclose(right, [0.06, 0.08], rtol=1e-12)
    np.testing.assert_allclose(wrong, np.array([0.6, 0.8]) / 65536, rtol=1e-6)


def test_unscaling_by_one_is_no_op_and_else_one_op_for_each_gradient():
    events = []
    with ps.using("fp16", observers=[events.append]):
        given = tensors({"a": [1.0, 2.0], "b": [3.0]})
        events.clear()
        assert optim.multiply(given, 1) is given
        assert events == []
        halved = optim.multiply(given, 0.5)
    np.testing.assert_array_equal(halved["a"].numpy(), [0.5, 1.0])
    assert [e.path for e in events] == ["update/unscale.a/mul", "update/unscale.b/mul"]


@pytest.mark.parametrize("case", ["sgd momentum decay", "adamw decay"])
@pytest.mark.parametrize("master", ["none", "tf32"])
def test_weights_and_states_live_in_the_formats_that_the_policy_names(case, master):
    make, options = CASES[case]
    stored = "bf16" if master == "none" else master
    policy = ps.Policy(weights="bf16", update="fp16", optimizer_state="e5m9", master_weights=master)
    roles = {}
    with ps.using(policy, observers=[lambda e: roles.setdefault(e.role, set()).add(e.format.name)]):
        parameters = tensors(weights())
        optimizer = make(parameters, **options)
        roles.clear()
        for step in range(3):
            optimizer.step(tensors(gradients(step)))
    roles.pop("activations")  # the gradients themselves, made here
    assert roles == {
        "update": {"fp16"},
        "optimizer_state": {"e5m9"},
        "weights" if master == "none" else "master_weights": {stored},
    }
    kept = [(p, stored) for p in parameters.values()]
    kept += [(s, "e5m9") for slot in optimizer.state.values() for s in slot.values()]
    assert len(kept) == len(SHAPES) * (1 + len(make.slots))
    for tensor, fmt in kept:
        assert tensor.format == ps.format(fmt)
        np.testing.assert_array_equal(ps.quantize(tensor.numpy(), fmt), tensor.numpy())


def lost(policy, make, weight, gradient, **options):
    """Return the counts of `apply_update` in one step."""
    counters = ps.Counters()
    with ps.using(policy, observers=[counters]):
        optimizer = make(tensors({"w": weight}), **options)
        optimizer.step(tensors({"w": gradient}))
    return counters.total(op="apply_update")


def test_updates_that_change_nothing_are_counted():
    # Around 1, bf16's spacing is 2^-7 above and 2^-8 below: half of it is lost, more is not.
    gradient = [2.0**-9, -(2.0**-8), 2.0**-9 + 2.0**-16, 0.0, -(2.0**-7), np.nan]
    counts = lost(ps.Policy(weights="bf16"), optim.SGD, np.ones(6), gradient, lr=1.0)
    assert (counts.updates, counts.swamped) == (5, 2)
    assert counts.swamped_share == 2 / 5
    counts = lost("fp32", optim.SGD, np.ones(6), gradient, lr=1.0)
    assert (counts.updates, counts.swamped) == (5, 0)


@pytest.mark.parametrize("make", [optim.SGD, optim.AdamW])
def test_a_weight_decay_that_changes_nothing_is_counted(make):
    """1e-3 of a weight is less than half a unit in the last place of bf16: it decays never."""
    counts = lost("bf16", make, np.ones(7), np.zeros(7), lr=1e-2, weight_decay=0.1)
    assert (counts.updates, counts.swamped) == (7, 7)


def test_stochastic_rounding_moves_the_weights_by_the_update_on_average():
    n, update = 20_000, 2.0**-13  # a sixty-fourth of bf16's spacing above 1
    policy = ps.Policy(weights="bf16:stochastic")
    with ps.using(policy, seed=5):
        parameters = tensors({"w": np.ones(n)})
        optim.SGD(parameters, lr=1.0).step(tensors({"w": np.full(n, -update)}))
    moved = parameters["w"].numpy() - 1
    assert set(moved) == {0, 2.0**-7}
    assert abs(moved.mean() / update - 1) < 4 * sqrt(63 / n)


def test_adamw_in_fp16_divides_by_the_eps_that_rounded_to_zero():
    with ps.using("fp16"):
        parameters = tensors({"w": [1.0, 1.0]})
        optim.AdamW(parameters, lr=0.1, eps=1e-8).step(tensors({"w": [1e-4, 0.0]}))
        assert not np.isfinite(parameters["w"].numpy()).any()
        parameters = tensors({"w": [1.0, 1.0]})
        optim.AdamW(parameters, lr=0.1, eps=1e-4).step(tensors({"w": [1e-4, 0.0]}))
        assert np.isfinite(parameters["w"].numpy()).all()


@pytest.mark.parametrize("arithmetic", ["exact", "fast"])
def test_an_update_in_the_widest_format_is_in_that_of_the_weights(arithmetic):
    policy = ps.Policy.uniform(
        "bf16", update="widest", optimizer_state="widest", arithmetic=arithmetic
    )
    events = []
    with ps.using(policy):
        optimizer = optim.AdamW(tensors(weights()), lr=0.1)
        with ps.using(observers=[events.append]):
            optimizer.step(tensors(gradients(0)))
    assert {e.format.name for e in events if e.phase == "update"} == {"bf16"}


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda: optim.SGD({}, lr=float("nan")), "learning rate must be a finite number >= 0"),
        (lambda: optim.SGD({}, lr=-1e-3), "learning rate must be a finite number >= 0; got -0.001"),
        (lambda: optim.SGD({}, lr=1, momentum=-0.5), "momentum must be .* >= 0; got -0.5"),
        (lambda: optim.SGD({}, lr=1, momentum=float("nan")), "momentum must be .* got nan"),
        (lambda: optim.AdamW({}, lr=1, weight_decay=float("inf")), "weight decay .* got inf"),
        (lambda: optim.AdamW({}, lr=1, betas=(0.9, 1.0)), r"betas in \[0, 1\)"),
        (lambda: optim.AdamW({}, lr=1, eps=float("nan")), "eps >= 0"),
        (lambda: optim.clip({}, 0.0), "limit > 0; got 0.0"),
        (lambda: optim.clip({}, float("nan")), "limit > 0; got nan"),
    ],
    ids=itertools.count(),
)
def test_a_setting_that_cannot_be_is_refused(mistake, message):
    with pytest.raises(ValueError, match=message):
        mistake()


def test_learning_rate_warms_up_in_a_line_and_cools_in_a_cosine():
    rates = [optim.learning_rate(step, 30, 2.0, 10, floor=0.1) for step in range(31)]
    np.testing.assert_allclose(rates[:10], 0.2 * np.arange(1, 11))
    assert rates[10] == 2.0
    assert rates[20] == pytest.approx(2.0 * (0.1 + 0.9 / 2))
    assert rates[15] == pytest.approx(2.0 * (0.1 + 0.9 * (1 + sqrt(0.5)) / 2))
    assert rates[30] == pytest.approx(0.2)
    assert (np.diff(rates[10:]) < 0).all()


def test_learning_rate_at_the_edges():
    assert optim.learning_rate(0, 1, 3.0, 0) == 3.0
    assert optim.learning_rate(4, 5, 3.0, 10) == 1.5  # still warming up when the run ends
    assert optim.learning_rate(5, 5, 3.0, 5) == 3.0
    assert optim.learning_rate(99, 10, 3.0, 0, floor=0.5) == 1.5
