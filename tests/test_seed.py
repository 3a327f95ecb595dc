"""The procedures of introductions to mixed precision, as written: where they hold, and where they break."""

import numpy as np
import pytest

import precsim as ps
from precsim.nn.mlp import MLP
from precsim.recipes import snippet, table

HALF = ps.Policy.uniform("fp16", arithmetic="fast", update="fp32")
BF16 = ps.Policy.uniform("bf16", arithmetic="fast", update="fp32")
MASTER = ps.Policy.uniform("fp16", arithmetic="fast", update="fp32", master_weights="fp32")
CHANCE = ps.Policy.uniform("fp16", arithmetic="fast", update="fp32", weights="fp16:stochastic")
SINGLE = ps.Policy(arithmetic="fast")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("policy", [HALF, ps.recipe("seed_mixed").policy], ids=["half", "mixed"])
def test_the_code_as_written_cannot_tell_half_from_single_precision(policy, seed):
    """The loss agrees to 2e-3, nothing underflows, and yet a fifth of all updates is lost."""
    single, half = snippet.run(SINGLE, seed=seed), snippet.run(policy, seed=seed)
    assert abs(half.final_loss - single.final_loss) < 2e-3
    assert len(half.losses) == 10
    assert half.flushed < 1e-3
    assert half.lost > 0.2
    assert single.lost < 1e-3
    assert snippet.run(BF16, seed=seed).lost > 0.6
    assert snippet.run(MASTER, seed=seed).lost < 1e-3
    between_seeds = [snippet.run(SINGLE, seed=s).final_loss for s in range(3)]
    assert np.ptp(between_seeds) > 20 * abs(half.final_loss - single.final_loss)


def test_the_code_learns_nothing_since_its_labels_are_drawn_by_chance():
    x, labels = snippet.random_data(samples=3000)
    assert x.shape == (3000, 10)
    assert set(labels.tolist()) == {0, 1, 2}
    assert all(abs((labels == c).mean() - 1 / 3) < 0.05 for c in range(3))


def test_with_adam_instead_of_sgd_the_code_dies_in_its_second_step():
    outcome = snippet.run(ps.Policy.uniform("fp16", arithmetic="fast"), optimizer="adam", lr=1e-3)
    assert np.isfinite(outcome.losses[0])
    assert np.isnan(outcome.losses[1:]).all()


@pytest.fixture(scope="module")
def taught():
    """Return what some hundred steps on labels that can be learnt come to, by rate and policy."""
    data, kinds = snippet.teacher_data(), {"fp32": SINGLE, "half": HALF, "bf16": BF16}
    common = {"steps": 400, "data": data, "batch": 64}
    found = {(1e-2, name): snippet.run(policy, lr=1e-2, **common) for name, policy in kinds.items()}
    kinds |= {"master": MASTER, "chance": CHANCE}
    found |= {
        (1e-3, name): snippet.run(policy, lr=1e-3, **common) for name, policy in kinds.items()
    }
    found[1e-3, "kahan"] = snippet.run(HALF, lr=1e-3, kahan=True, **common)
    return found


def test_at_its_own_learning_rate_half_precision_holds_and_bfloat16_does_not(taught):
    fp32, half, bf16 = (taught[1e-2, name] for name in ("fp32", "half", "bf16"))
    start = np.log(30)
    assert half.final_loss == pytest.approx(fp32.final_loss, abs=0.01)
    assert half.lost > 0.2
    assert bf16.final_loss - fp32.final_loss > 0.2 * (start - fp32.final_loss)


def test_at_a_tenth_of_it_half_precision_stalls_without_a_zero_gradient(taught):
    fp32, half = taught[1e-3, "fp32"], taught[1e-3, "half"]
    assert half.lost > 0.7
    assert half.flushed < 1e-4
    assert half.final_loss > fp32.final_loss + 0.02


@pytest.mark.parametrize("remedy", ["master", "chance", "kahan"])
def test_a_master_copy_chance_and_compensation_each_cure_it(taught, remedy):
    fp32, half, cured = (taught[1e-3, name].final_loss for name in ("fp32", "half", remedy))
    assert abs(cured - fp32) < 0.1 * (half - fp32)


def test_the_snippets_model_is_torchs():
    torch = pytest.importorskip("torch")
    x, labels = snippet.random_data()
    with ps.using("fp64"):
        model = MLP(snippet.SIZES)
        loss = model.loss(ps.tensor(x), labels)
        loss.backward()
    layers = [torch.nn.Linear(10, 20).double(), torch.nn.Linear(20, 30).double()]
    for number, layer in enumerate(layers, 1):
        layer.weight.data = torch.tensor(model.parameters[f"layer{number}.weight"].numpy().T)
        layer.bias.data = torch.tensor(model.parameters[f"layer{number}.bias"].numpy())
        bound = 1 / np.sqrt(layer.in_features)
        for values in (layer.weight, layer.bias):
            assert 0.8 * bound < float(values.detach().abs().max()) <= bound
    there = torch.nn.CrossEntropyLoss()(
        torch.nn.Sequential(*layers)(torch.tensor(x)), torch.tensor(labels)
    )
    there.backward()
    assert loss.item() == pytest.approx(there.item(), rel=1e-12)
    np.testing.assert_allclose(
        model.parameters["layer1.weight"].grad.numpy(), layers[0].weight.grad.numpy().T, rtol=1e-10
    )


def test_the_model_and_the_code_refuse_what_cannot_be():
    with pytest.raises(ValueError, match="at least two sizes"):
        MLP((3,))
    with pytest.raises(ValueError, match="sgd or adam"):
        snippet.run(optimizer="lion")


def test_recipes_say_where_they_depart_from_standard_practice():
    for name in ("seed_mixed", "seed_low"):
        banner = ps.recipe(name).banner()
        assert f"{len(banner) - 1} ways" in banner[0]
        assert "loss is not scaled" in " ".join(banner)
    assert ps.recipe("fp32").banner() == []


def test_the_difference_to_autocast_is_found_op_by_op():
    found = {(d.where, d.what): (d.a, d.b) for d in table.diff("seed_mixed", "torch_amp_fp16")}
    assert found["weights", "stored"] == ("fp16", "fp32")
    assert found["forward", "linear"] == ("fp32", "fp16")
    assert found["loss scale", "kind"][0] == "none"
    assert ("backward", "linear") not in found


TRAINED = ps.TrainConfig(
    data="reverse", layers=1, heads=2, width=32, context=16, batch=8, steps=100, eval_every=100,
    schedule="constant", warmup=0, lr=3e-3, policy="arithmetic=fast", observe="off",
)  # fmt: skip


@pytest.fixture(scope="module")
def continued(tmp_path_factory):
    """Return the function that continues a trained model, and gives the loss that it comes to.

    The gradients are those of a run of 4096 micro-batches: 2^-12 of what they are in one.
    """
    base = tmp_path_factory.mktemp("seed") / "base"
    ps.train(TRAINED.change(seed=5), out=base)
    small = TRAINED.change(init=str(base), lr=1e-3, steps=60, micro_batches=4096)

    def go(recipe, **changes):
        settings = {k: v for k, v in ps.recipe(recipe).settings().items() if k in KEPT}
        return ps.train(small.change(**settings | changes))

    return go


KEPT = ("policy", "loss_scale", "precision_schedule")
"""What is taken from the recipes, so that all are trained by the same AdamW."""


def test_small_gradients_stall_the_mixed_procedure_in_silence_and_a_loss_scale_saves_it(continued):
    single = continued("fp32")
    autocast = continued("torch_amp_fp16")
    mixed = continued("seed_mixed", precision_schedule="none")
    scaled = continued("seed_mixed", precision_schedule="none", loss_scale="static:32768")
    assert mixed.final_loss() > 2 * single.final_loss()
    assert scaled.final_loss() < 1.1 * single.final_loss()
    assert autocast.final_loss() < 1.1 * single.final_loss()
    assert mixed.died_at is None
    assert np.isfinite(mixed.steps["grad_norm"]).all()
    assert not mixed.steps["skipped"].any()


def test_where_the_backward_pass_starts_in_fp16_the_scale_of_pytorch_is_infinite(continued):
    """65536 > 65504: the product with the loss scale is fp32 in PyTorch, and must be."""
    assert continued("seed_mixed", loss_scale="static:65536").died_at == 0


def test_gradients_as_they_are_do_the_mixed_procedure_no_harm(continued):
    single, mixed = (continued(name, micro_batches=1) for name in ("fp32", "seed_mixed"))
    assert mixed.final_loss() < 1.1 * single.final_loss()


def test_the_low_procedure_dies_of_adam_and_lives_with_its_own_sgd(continued):
    assert continued("seed_low", micro_batches=1).died_at == 0
    own = ps.TrainConfig(**ps.recipe("seed_low").settings())
    assert (own.optimizer, own.lr, own.momentum) == ("sgd", 0.01, 0.0)
    kept = {name: getattr(own, name) for name in ("optimizer", "lr", "momentum")}
    run = continued("seed_low", micro_batches=1, **kept)
    assert run.died_at is None
    assert run.final_loss() < 0.1
