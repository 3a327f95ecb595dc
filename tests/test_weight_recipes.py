"""Recipes for weights in 16 bits: what is lost without a second copy, and that each remedy saves it."""

import pytest

import precsim as ps

TASKS = {
    "reverse": {"data": "reverse", "lr": 1e-3, "batch": 8, "context": 16, "steps": 120},
    "pydoc": {"data": "pydoc", "lr": 3e-5, "batch": 8, "context": 16, "steps": 60},
}
LEFT = {"reverse": 0.0, "pydoc": 4.7}
"""What is subtracted from a loss before two are compared: most of it is there whoever learns."""

SETTING = ps.TrainConfig(
    layers=1, heads=2, width=32, beta2=0.999, schedule="constant", warmup=0, eval_every=1000,
    observe="off",
)  # fmt: skip


@pytest.fixture(scope="module", params=TASKS)
def runs(request):
    """Return the loss above what is left, and the lost share of the last updates, by recipe."""
    task, outcomes = request.param, {}
    last = TASKS[task]["steps"] - 5
    for name in ("fp32", "bf16_rne", "bf16_sr", "bf16_kahan", "bf16_master"):
        counters = ps.Counters(
            histograms=False, keep=lambda e: e.op == "apply_update" and e.step >= last
        )
        config = SETTING.change(**TASKS[task] | ps.recipe(name).settings())
        run = ps.train(config, observers=(counters,))
        lost = counters.total().swamped_share
        outcomes[name] = (run.final_loss() - LEFT[task], lost)
    return outcomes


def test_rounding_to_nearest_loses_updates_and_each_remedy_keeps_them(runs):
    loss = {name: outcome[0] for name, outcome in runs.items()}
    assert loss["bf16_rne"] > 1.3 * loss["fp32"]
    assert loss["bf16_sr"] < 1.25 * loss["fp32"]
    assert loss["bf16_kahan"] < 1.1 * loss["fp32"]
    assert loss["bf16_master"] < 1.1 * loss["fp32"]


def test_which_share_of_the_updates_is_lost(runs):
    lost = {name: outcome[1] for name, outcome in runs.items()}
    assert lost["bf16_rne"] > 0.6
    assert lost["bf16_kahan"] < 0.1  # the weight may stay as it is; what was left over does not
    assert max(lost["fp32"], lost["bf16_master"]) < 0.02


def test_what_the_state_can_do_with():
    config = SETTING.change(**TASKS["reverse"]).change(lr=3e-3)
    loss = {
        name: ps.train(config.change(**ps.recipe(name).settings())).final_loss()
        for name in ("fp32", "bf16_state", "fp16_state", "adamw8bit")
    }
    assert loss["bf16_state"] < 1.5 * loss["fp32"]
    assert loss["adamw8bit"] < 1.5 * loss["fp32"]
    assert not loss["fp16_state"] < 100


def test_entries_of_a_recipe_reach_the_config():
    settings = ps.recipe("bf16_kahan").settings()
    assert settings["weights_update"] == "kahan"
    assert ps.TrainConfig(**settings).weights_update == "kahan"
    assert ps.recipe("fp32").entries == {}
