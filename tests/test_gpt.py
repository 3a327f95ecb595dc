"""The GPT: PyTorch's loss and gradients, stored and fresh; initial weights, sampling, dropout."""

from dataclasses import replace
from math import sqrt
from pathlib import Path

import numpy as np
import pytest

import precsim as ps
from precsim.backend import to_numpy

GOLDEN = Path(__file__).parent / "data" / "gpt_torch213.npz"
"""From PyTorch 2.13 on a CPU: tokens, float32 parameters, and for each mode the loss and the
gradients, times the loss scale.  The modes are dtypes of the whole model, or autocast."""

SMALL = ps.GPTConfig(layers=1, heads=2, width=16, context=8, vocabulary=32)


def tokens(config, rows=3, time=None, seed=0):
    shape = (rows, (time or config.context) + 1)
    ids = np.random.default_rng(seed).integers(0, config.vocabulary, shape)
    return ids[:, :-1], ids[:, 1:].copy()


def in_our_layout(name, values):
    """Linear weights are (out, in) in PyTorch and (in, out) here; embeddings are the same."""
    values = values.astype(np.float64)
    return values.T if values.ndim == 2 and not name.startswith("w") else values


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as stored:
        return dict(stored)


def run_golden(golden, policy, scale=1.0):
    """Return the loss and, parameter by parameter, the scaled gradient."""
    with ps.using(policy):
        model = ps.GPT(SMALL)
        for name in model.parameters:
            model.set_parameter(name, in_our_layout(name, golden[f"param/{name}"]))
        loss = model.loss(golden["x"], golden["y"])
        (loss * scale).backward()
    return loss.item(), {n: p.grad.numpy() for n, p in model.parameters.items()}


def distance(gradients, golden, mode):
    """Return the norm of the difference of all gradients over the norm of PyTorch's."""
    theirs = {n: in_our_layout(n, golden[f"grad/{mode}/{n}"]) for n in gradients}
    difference = sum(((gradients[n] - theirs[n]) ** 2).sum() for n in gradients)
    return sqrt(difference / sum((g**2).sum() for g in theirs.values()))


FP32_FAST = ps.Policy(arithmetic="fast")
FP64_STEPS = ps.Policy.uniform("fp64", granularity="primitive")


@pytest.mark.parametrize(
    ("policy", "mode", "loss_error", "gradient_error"),
    [
        ("fp64", "f64", 1e-14, 1e-14),
        (FP64_STEPS, "f64", 1e-14, 1e-14),
        # PyTorch's own fp32 is 2.9e-7 from float64; two roundings of the same size may add up.
        ("fp32", "f64", 2.0**-22, 6e-7),
        ("fp32", "fp32", 2.0**-20, 6e-7),
        (FP32_FAST, "fp32", 2.0**-20, 6e-7),
        # Twice what PyTorch's kernels differ from "fp32 inside every op, rounded at its end" on a
        # GPT four times as wide (5.8e-4 and 4.6e-3); the losses by one unit in the last place.
        ("fp16", "half", 2.0**-9, 2 * 5.8e-4),
        ("bf16", "bfloat16", 2.0**-6, 2 * 4.6e-3),
    ],
    ids=str,
)
def test_loss_and_gradients_are_those_that_pytorch_gave(
    golden, policy, mode, loss_error, gradient_error
):
    loss, gradients = run_golden(golden, policy, golden[f"scale/{mode}"])
    assert abs(loss - golden[f"loss/{mode}"]) <= loss_error
    assert distance(gradients, golden, mode) < gradient_error


def test_the_tolerance_of_fp16_is_too_narrow_for_a_neighbour(golden):
    _, gradients = run_golden(golden, "e6m9", 256.0)
    assert distance(gradients, golden, "half") > 2 * 5.8e-4


def test_a_loss_scale_of_65536_overflows_every_gradient_in_fp16(golden):
    """As PyTorch's half() does: the seed of the backward pass is beyond 65504 itself."""
    loss, gradients = run_golden(golden, "fp16", 65536.0)
    assert np.isfinite(loss)
    assert not any(np.isfinite(g).any() for n, g in gradients.items() if n != "wte.weight")


def loss_in_torch(torch, config, p, x, y):
    """Return the loss of the same model, written with PyTorch's functions in our layout."""
    f = torch.nn.functional
    time, size = x.shape[1], config.width // config.heads
    h = p["wte.weight"][x] + p["wpe.weight"][:time]
    hidden = torch.ones(time, time, dtype=torch.bool).triu(1)

    def norm(h, name):
        return f.layer_norm(h, h.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"], 1e-5)

    def linear(h, name):
        return h @ p[f"{name}.weight"] + p[f"{name}.bias"]

    for layer in range(config.layers):
        b = f"blocks.{layer}"
        qkv = linear(norm(h, f"{b}.ln1"), f"{b}.qkv")
        q, k, v = (
            part.unflatten(-1, (config.heads, size)).transpose(1, 2) for part in qkv.chunk(3, -1)
        )
        scores = (q @ k.transpose(2, 3) / sqrt(size)).masked_fill(hidden, -torch.inf)
        mixed = (torch.softmax(scores, -1) @ v).transpose(1, 2).flatten(2)
        h = h + linear(mixed, f"{b}.proj")
        middle = f.gelu(linear(norm(h, f"{b}.ln2"), f"{b}.fc1"), approximate="tanh")
        h = h + linear(middle, f"{b}.fc2")
    head = p["wte.weight"].T if config.tied else p["head.weight"]
    logits = norm(h, "lnf") @ head
    return f.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=-1)


@pytest.mark.parametrize("granularity", ["kernel", "primitive"])
@pytest.mark.parametrize(
    ("config", "time"),
    [
        (SMALL, None),
        (replace(SMALL, layers=2, heads=4), None),
        (replace(SMALL, layers=2, tied=True), None),
        (replace(SMALL, layers=3, heads=1, width=6, vocabulary=5), 5),
        (replace(SMALL, heads=6, width=6, context=1, vocabulary=2, tied=True), None),
    ],
)
def test_float64_loss_and_gradients_are_pytorchs(config, time, granularity):
    torch = pytest.importorskip("torch")
    x, y = tokens(config, time=time)
    y[0, 0] = -1
    with ps.using(ps.Policy.uniform("fp64", granularity=granularity)):
        model = ps.GPT(config, seed=3)
        loss = model.loss(x, y)
        loss.backward()
    leaves = {
        n: torch.tensor(p.numpy(), dtype=torch.float64, requires_grad=True)
        for n, p in model.parameters.items()
    }
    theirs = loss_in_torch(torch, config, leaves, torch.tensor(x), torch.tensor(y))
    theirs.backward()
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-12)
    for name, parameter in model.parameters.items():
        want = leaves[name].grad.numpy()
        error = np.linalg.norm(parameter.grad.numpy() - want)
        assert error <= 1e-10 * np.linalg.norm(want) + 1e-14, name


def test_the_number_of_parameters_is_the_textbooks():
    # 2 (V + ...) + per layer 12 C^2 + 13 C + final norm 2 C, for V = 32, T = 8, C = 16
    assert ps.GPT(SMALL).size == (2 * 32 + 8) * 16 + 12 * 16**2 + 13 * 16 + 2 * 16
    assert ps.GPT(replace(SMALL, tied=True)).size == ps.GPT(SMALL).size - 32 * 16


def test_initial_weights_have_the_deviation_that_is_documented():
    config = ps.GPTConfig(layers=2, heads=2, width=64, context=64, vocabulary=64)
    residual = 1 / sqrt(2 * config.layers)
    expected = {"wte": 0.08, "wpe": 0.08, "qkv": 1 / 8, "proj": residual / 8, "fc1": 1 / 8,
                "fc2": residual / 16, "head": 1 / 8}  # fmt: skip
    with ps.using("fp64"):
        parameters = ps.GPT(config).parameters
    for name, parameter in parameters.items():
        values, kind = parameter.numpy(), name.split(".")[-2]
        if values.ndim == 1:
            assert (values == (kind.startswith("ln") and name.endswith("weight"))).all(), name
            continue
        deviation, n = expected[kind], values.size
        assert abs(values.std() / deviation - 1) < 5 / sqrt(2 * n), name
        assert abs(values.mean()) < 5 * deviation / sqrt(n), name


def test_a_weight_depends_on_the_seed_and_its_name_and_nothing_else():
    one, two = ps.GPT(SMALL, 1), ps.GPT(replace(SMALL, tied=True), 1)
    for name, parameter in two.parameters.items():
        np.testing.assert_array_equal(parameter.numpy(), one.parameters[name].numpy())
    other = ps.GPT(SMALL, 2).parameters["wte.weight"].numpy()
    assert (other != one.parameters["wte.weight"].numpy()).mean() > 0.99
    assert (one.parameters["wte.weight"].numpy()[:8] != one.parameters["wpe.weight"].numpy()).all()


@pytest.mark.parametrize(
    ("policy", "stored"),
    [("bf16", "bf16"), (ps.Policy.uniform("fp16", master_weights="fp32"), "fp32")],
)
def test_weights_are_stored_in_the_master_format_where_there_is_one(policy, stored):
    with ps.using(policy):
        for name, parameter in ps.GPT(SMALL).parameters.items():
            assert parameter.format == ps.format(stored), name
            np.testing.assert_array_equal(ps.quantize(parameter.numpy(), stored), parameter.numpy())


def test_set_parameter_refuses_other_names_and_shapes_and_leaves_the_model_as_it_was():
    model = ps.GPT(SMALL)
    before = dict(model.parameters)
    with pytest.raises(ValueError, match=r"'blocks.1.fc1.bias'.*expected a name of \['wte.weight'"):
        model.set_parameter("blocks.1.fc1.bias", np.zeros(64))
    with pytest.raises(ValueError, match=r"'lnf.bias' of shape \(3,\): expected shape \(16,\)"):
        model.set_parameter("lnf.bias", [1, 2, 3])
    assert model.parameters == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 3}, "heads must divide the width: 16 is not a multiple of 3"),
        ({"layers": 0}, "layers must be a whole number from 1 on; got 0"),
        ({"vocabulary": -1}, "vocabulary must be a whole number from 1 on"),
        ({"width": 16.0}, "width must be a whole number from 1 on; got 16.0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\); got 1.0"),
        ({"dropout": float("nan")}, "dropout must be in"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.zeros(4, int), r"expected tokens of shape \(batch, time\); got \(4,\)"),
        (np.zeros((1, 4)), "tokens: expected integers; got float64"),
        ([["a"]], "tokens: expected integers; got <U1"),
        (np.zeros((1, 9), int), r"expected 1 to 8 tokens \(the context\); got 9"),
        (np.zeros((1, 0), int), "expected 1 to 8 tokens"),
        ([[0, 32]], "expected tokens from 0 to 31; got 0 to 32"),
        ([[-1, 0]], "expected tokens from 0 to 31; got -1 to 0"),
    ],
)
def test_tokens_that_the_model_cannot_read_are_refused(ids, message):
    with pytest.raises(ValueError, match=message):
        ps.GPT(SMALL)(ids)


def test_no_position_sees_a_later_one():
    model, (x, _) = ps.GPT(SMALL), tokens(SMALL)
    before, changed = model(x).numpy(), x.copy()
    changed[:, 5] = (changed[:, 5] + 1) % SMALL.vocabulary
    after = model(changed).numpy()
    np.testing.assert_array_equal(after[:, :5], before[:, :5])
    assert (after[:, 5:] != before[:, 5:]).any(axis=-1).all()


def test_generated_text_depends_on_the_seed_only():
    model, events = ps.GPT(SMALL), []
    prompt = np.array([1, 2, 3])
    with ps.using("bf16:stochastic", observers=[events.append]) as context:
        calls = context.calls.copy()
        one = model.generate(prompt, 20, seed=1)
        again = model.generate(prompt, 20, seed=1)
        other = model.generate(prompt, 20, seed=2)
    np.testing.assert_array_equal(one, again)
    assert len(one) == 23
    assert (one[:3] == prompt).all()
    assert (one != other).any()
    assert events == []
    assert context.calls == calls, "sampling must not shift the random numbers of what follows"


def test_temperature_zero_takes_the_likeliest_token():
    model, text = ps.GPT(SMALL), np.array([4])
    greedy = model.generate(text, 6, temperature=0)
    for _ in range(6):
        text = np.append(text, model(text[None]).numpy()[0, -1].argmax())
    np.testing.assert_array_equal(greedy, text)


def test_sampling_follows_the_probabilities_and_survives_logits_that_are_not_numbers():
    config = replace(SMALL, vocabulary=3, context=1)
    model, odds = ps.GPT(config), np.array([0.7, 0.2, 0.1])
    model.set_parameter("lnf.weight", np.zeros(16))
    model.set_parameter("lnf.bias", np.ones(16))
    model.set_parameter("head.weight", np.tile(np.log(odds) / 16, (16, 1)))
    for temperature, expected in {1.0: odds, 0.5: odds**2 / (odds**2).sum()}.items():
        drawn = model.generate(np.array([0]), 400, temperature=temperature)[1:]
        share = np.bincount(drawn, minlength=3) / 400
        np.testing.assert_allclose(share, expected, atol=4 * sqrt(0.25 / 400))
    model.set_parameter("lnf.bias", np.full(16, np.nan))
    assert set(model.generate(np.array([0]), 50)) == {0, 1, 2}


@pytest.mark.parametrize(
    ("prompt", "temperature"), [([[1]], 1.0), ([], 1.0), ([0.5], 1.0), ([1], -1.0), ([1], np.nan)]
)
def test_a_prompt_or_temperature_that_cannot_be_is_refused(prompt, temperature):
    with pytest.raises(ValueError, match="expected"):
        ps.GPT(SMALL).generate(prompt, 1, temperature=temperature)


def test_dropout_zeroes_its_share_is_keyed_and_rests_outside_training():
    config, masks = replace(SMALL, dropout=0.25, layers=2), []
    model, (x, _) = ps.GPT(config), tokens(config, rows=16)

    def watch(event):
        if event.scope.endswith("dropout") and event.op == "mask":
            masks.append(event.rounded == 0)

    def logits(**where):
        with ps.using(observers=[watch], **where):
            return model(x).numpy()

    here = logits(seed=1, step=4)
    sites = list(masks)
    assert len(sites) == 3 * config.layers
    for i, site in enumerate(sites):
        if i % 3:  # the first of a layer is on attention, zero above the diagonal anyway
            assert abs(site.mean() - 0.25) < 5 * sqrt(0.25 * 0.75 / site.size)
    assert all((a != b).any() for a in sites for b in sites if a is not b and a.shape == b.shape)
    np.testing.assert_array_equal(logits(seed=1, step=4), here)
    assert (logits(seed=1, step=5) != here).any()
    assert (logits(seed=2, step=4) != here).any()
    resting = logits(taping=False)
    np.testing.assert_array_equal(resting, ps.GPT(replace(config, dropout=0.0))(x).numpy())
    assert (resting != here).any()


def test_dropout_keeps_the_expected_value():
    config = replace(SMALL, dropout=0.5)
    model, scaled = ps.GPT(config), []

    def watch(event):
        if event.scope == "blocks.0.dropout" and event.op == "mul":
            scaled.append(event)

    with ps.using(observers=[watch]):
        model(tokens(config)[0])
    for event in scaled:
        np.testing.assert_array_equal(to_numpy(event.rounded), to_numpy(2 * event.inputs[0]))
    assert len(scaled) == 2
