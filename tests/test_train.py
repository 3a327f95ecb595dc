"""Runs: same config, same bits; every recipe learns; skipped steps, accumulation, death."""

from dataclasses import fields
from functools import cache
from hashlib import sha256

import numpy as np
import pytest

import precsim as ps
from precsim.nn import optim
from precsim.observe.counters import total
from precsim.runs.config import ConfigError
from precsim.runs.data import Batches, DataError, load

SMALL = ps.TrainConfig(
    data="reverse", layers=1, heads=2, width=16, context=16, batch=4, steps=4, warmup=1,
    lr=1e-2, eval_every=2,
)  # fmt: skip
FP64 = str(ps.Policy.uniform("fp64"))

corpus = cache(load)


def train(config, **options):
    return ps.train(config, corpus=corpus(config.data), **options)


def bits(run):
    """Return a hash of the weights and of everything that was recorded."""
    digest = sha256()
    for name, parameter in sorted(run.model.parameters.items()):
        digest.update(name.encode() + parameter.numpy().tobytes())
    for record in run.records:
        digest.update(repr((record.loss, record.valid_loss, record.scale, record.skipped)).encode())
    return digest.hexdigest()


def weights(run):
    return {name: p.numpy().astype(np.float64) for name, p in run.model.parameters.items()}


def with_recipe(name, **changes):
    return SMALL.change(**(ps.recipe(name).settings() | changes))


@pytest.mark.parametrize("data", ["reverse", "zen"])
@pytest.mark.parametrize("name", ps.RECIPES)
def test_every_recipe_trains_and_being_watched_changes_no_bit(name, data):
    config = with_recipe(name, data=data, eps=1e-4)  # Adam's 1e-8 is 0 in fp16, and deadly
    run = train(config)
    assert run.died_at is None
    assert len(run.records) == config.steps
    assert np.isfinite(run.steps["loss"]).all()
    assert [r.valid_loss is None for r in run.records] == [True, False, True, False]
    assert bits(train(config, observe=False)) == bits(run)


@pytest.mark.parametrize("name", ["fp16_scaled", "fp8", "int8"])
def test_observers_of_ones_own_change_no_bit_and_another_seed_does(name):
    config, counters, events = with_recipe(name), ps.Counters(), []
    want = bits(train(config, observe=False))
    assert bits(train(config, observers=(counters, events.append))) == want
    assert len(counters.rows) == len(events) > 0
    assert bits(train(config.change(seed=1))) != want


@pytest.mark.parametrize("arithmetic", ["exact", "fast"])
def test_a_run_learns(arithmetic):
    config = SMALL.change(data="zen", policy=f"arithmetic={arithmetic}", steps=60, batch=8)
    losses = train(config, observe=False).steps["loss"]
    assert losses[-10:].mean() < losses[0] - 0.8


def test_what_happens_around_a_run_does_not_matter():
    config = with_recipe("int8")
    want = bits(train(config))
    with ps.using("fp16:stochastic", seed=9, step=5, scope="elsewhere", observers=[lambda e: None]):
        ps.tensor([0.1]) + 1
        assert bits(train(config)) == want


def test_evaluating_more_often_changes_neither_the_run_nor_an_evaluation():
    """Also with stochastic rounding in the forward pass, whose draws must not depend on history."""
    config = SMALL.change(policy="bf16:stochastic")
    often, seldom = train(config.change(eval_every=1)), train(config.change(eval_every=4))
    assert [r.valid_loss for r in seldom.records[:3]] == [None] * 3
    assert often.records[3].valid_loss == seldom.records[3].valid_loss
    assert [r.loss for r in often.records] == [r.loss for r in seldom.records]


def test_the_learning_rate_is_the_schedule():
    steps = train(SMALL, observe=False).steps
    with pytest.raises(KeyError, match="no column 'los': expected one of step, loss, valid_loss"):
        steps["los"]
    cosine = steps["lr"]
    np.testing.assert_array_equal(
        cosine, [optim.learning_rate(step, 4, 1e-2, 1, floor=0.1) for step in range(4)]
    )
    constant = train(SMALL.change(schedule="constant"), observe=False).steps["lr"]
    np.testing.assert_array_equal(constant, [1e-2] * 4)


def test_an_overflow_skips_the_update_and_halves_the_scale():
    """2^24 overflows fp16 until it is small enough; no weight moves before."""
    snapshots, config = [], with_recipe("fp16_scaled", loss_scale="dynamic:16777216:3", steps=16)
    run = train(config, observers=(lambda e: snapshots.append(e) if e.op == "apply_update" else 0,))
    skipped = run.steps["skipped"]
    first = int(np.argmin(skipped))
    assert 1 < first < 12
    assert skipped[:first].all()
    for before, after in zip(run.records, run.records[1:], strict=False):
        if before.skipped:
            assert after.scale == before.scale / 2
    assert {event.step for event in snapshots} == set(np.flatnonzero(~skipped).tolist())
    grown = [b.scale / a.scale for a, b in zip(run.records, run.records[1:], strict=False)]
    assert 2.0 in grown, "three clean steps in a row double it"
    assert set(grown) <= {0.5, 1.0, 2.0}


@pytest.mark.parametrize("loss_scale", ["none", "static:16777216"])
def test_without_dynamic_scaling_nothing_is_skipped_and_overflow_kills(loss_scale):
    config = with_recipe("fp16", loss_scale=loss_scale)
    run = train(config)
    assert not run.steps["skipped"].any()
    assert (run.died_at is None) == (loss_scale == "none")


def test_a_scale_that_died_destroys_the_weights_as_in_pytorch():
    """At 2^-128 its inverse is infinite, and the gradients were finite when they were checked."""
    run = train(SMALL.change(loss_scale=f"dynamic:{2.0**-128!r}"))
    assert (run.died_at, run.records[0].skipped) == (0, False)
    alive = train(SMALL.change(loss_scale=f"dynamic:{2.0**-127!r}", steps=1))
    assert alive.died_at is None


def test_adam_in_pure_fp16_destroys_the_model_at_once():
    run = train(SMALL.change(policy="fp16", eps=1e-8, steps=10, eval_every=1))
    assert run.died_at == 0
    assert len(run.records) == 1
    assert np.isfinite(run.records[0].loss)
    assert np.isnan([run.final_loss(), run.valid_loss()]).all(), (
        "weights destroyed, no loss to tell"
    )
    assert run.trouble is not None
    assert (run.trouble.step, run.trouble.path.partition("/")[0]) == (0, "update")
    assert "not finite" in run.trouble.what
    assert train(SMALL.change(policy="fp16", eps=1e-4, warmup=3)).died_at is None


@pytest.fixture
def in_order(monkeypatch):
    """Let batch k of n rows be rows k*n to (k+1)*n of the text: four small ones make a large one."""

    def batch(self, step):
        rows = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        return self._rows(self.corpus.train, rows.astype(float))

    monkeypatch.setattr(Batches, "train", batch)


@pytest.mark.usefixtures("in_order")
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_four_micro_batches_are_one_batch_four_times_as_large(optimizer):
    config = SMALL.change(policy=FP64, optimizer=optimizer, clip=0.5)
    one = train(config.change(batch=8))
    four = train(config.change(batch=2, accumulation=4))
    np.testing.assert_allclose(four.steps["loss"], one.steps["loss"], rtol=1e-12)
    np.testing.assert_allclose(four.steps["grad_norm"], one.steps["grad_norm"], rtol=1e-12)
    for name, want in weights(one).items():
        # Adam divides even the noise of a gradient that is zero (a bias before softmax) by its size.
        np.testing.assert_allclose(weights(four)[name], want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("count", "tolerance"), [(1024, 0), (1000, 1e-11)])
def test_micro_batches_not_computed_change_nothing_in_float64(count, tolerance):
    config = SMALL.change(policy=FP64, optimizer="sgd")
    plain, divided = train(config), train(config.change(micro_batches=count))
    for name, want in weights(plain).items():
        np.testing.assert_allclose(
            weights(divided)[name], want, rtol=tolerance, atol=tolerance / 10
        )
    np.testing.assert_allclose(divided.steps["grad_norm"], plain.steps["grad_norm"], rtol=tolerance)


def test_micro_batches_push_fp16_gradients_into_zero_and_the_loss_scale_pulls_them_out():
    config, many = with_recipe("fp16", steps=1), 2**18
    plain, divided, rescued = (
        train(config.change(micro_batches=count, loss_scale=scale)).records[0].flushed
        for count, scale in ((1, "none"), (many, "none"), (many, f"static:{many}"))
    )
    assert divided > plain + 0.2
    assert rescued == pytest.approx(plain, abs=0.01)


@pytest.mark.parametrize("scale", ["static:1024", "dynamic:65536:2"])
def test_a_loss_scale_changes_no_bit_in_float64(scale):
    config = SMALL.change(policy=FP64)
    scaled = weights(train(config.change(loss_scale=scale)))
    for name, want in weights(train(config)).items():
        np.testing.assert_array_equal(scaled[name], want)


def test_listeners_get_every_record_and_its_counts():
    heard = []
    run = train(with_recipe("fp16"), on_step=lambda record, rows: heard.append((record, rows)))
    assert [record for record, _ in heard] == run.records
    for record, rows in heard:
        assert {row.step for row in rows} == {record.step}
        backward = total(row for row in rows if row.phase == "backward")
        assert record.flushed == backward.flushed_share
        updates = total(row for row in rows if row.op == "apply_update")
        assert updates.n == run.model.size
        assert record.lost_updates == updates.swamped_share
    for role, counts in run.counts.items():
        assert counts.n == sum(r.n for _, rows in heard for r in rows if r.role == role)
    silent = []
    train(SMALL, observe=False, on_step=lambda record, rows: silent.extend(rows))
    train(SMALL, observe="off", on_step=lambda record, rows: silent.extend(rows))
    assert silent == []
    assert train(SMALL, observe="counts").counts["activations"].histogram is None
    assert train(SMALL).counts["activations"].histogram is not None
    with pytest.raises(ConfigError, match="observe=close: expected off, counts"):
        train(SMALL, observe="close")


def test_records_are_columns_too():
    run = train(SMALL)
    columns = run.steps
    numbers = {f.name for f in fields(run.records[0])} - {"change"}  # a policy, see Run.changes
    assert set(columns) == numbers
    np.testing.assert_array_equal(columns["step"], range(4))
    np.testing.assert_array_equal(np.isnan(columns["valid_loss"]), [True, False, True, False])
    assert columns["skipped"].dtype == bool
    assert run.final_loss(2) == pytest.approx(columns["loss"][-2:].mean())
    assert run.valid_loss() == columns["valid_loss"][-1]


def test_a_sample_is_text_of_the_corpus_and_the_same_every_time():
    run = train(SMALL.change(data="zen"), observe=False)
    text = run.sample(40)
    assert text == run.sample(40)
    assert len(text.encode()) == 40
    assert set(text.encode()) <= set(run.corpus.alphabet)
    assert run.sample(40, prompt="Beautiful") == run.sample(40, prompt="Beautiful")
    with pytest.raises(DataError, match="'ß' has letters that 'zen' has not"):
        run.sample(1, prompt="ß")


def test_weights_live_where_the_policy_says_after_every_step():
    for name, stored in {"fp16_scaled": "fp32", "bf16": "bf16"}.items():
        run = train(with_recipe(name))
        for parameter in run.model.parameters.values():
            assert parameter.format == ps.format(stored)
            np.testing.assert_array_equal(ps.quantize(parameter.data, stored), parameter.data)


def test_a_run_without_its_text_or_with_one_too_short_cannot_start(tmp_path):
    with pytest.raises(DataError, match="no file"):
        ps.train(SMALL.change(data=str(tmp_path / "none.txt")))
    short = tmp_path / "short.txt"
    short.write_text("too short", encoding="utf-8")
    with pytest.raises(DataError, match="too short for a context of 16"):
        ps.train(SMALL.change(data=str(short)))
