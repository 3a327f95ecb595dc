"""Precision schedules: what each decides, that a run records it, and that resuming decides the same."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import precsim as ps
from precsim.engine.rule import Rule
from precsim.observe.counters import HIGHEST, LOWEST, OpCounts
from precsim.runs import schedule as schedules
from precsim.runs.config import ConfigError, read
from precsim.runs.schedule import AtSteps, ByLoss, BySignal, Metrics, at_least, difference

FP16 = ps.Policy.uniform("fp16", arithmetic="fast")
FP32 = ps.Policy(arithmetic="fast")
SMALL = ps.TrainConfig(
    data="reverse", layers=1, heads=2, width=16, context=16, batch=4, steps=12, eval_every=3,
    schedule="constant", warmup=0, policy=str(FP16), optimizer="sgd", lr=0.1, observe="counts",
)  # fmt: skip


def metrics(*losses, policy=FP16, initial=FP16, step=99, skipped=False):
    return Metrics(step, losses, policy, initial, skipped)


def row(op="matmul", role="gradients", scope="head", fmt="fp16", exponent=-3, **counts):
    histogram = np.zeros(HIGHEST - LOWEST + 1, np.int64)
    histogram[exponent - LOWEST] = 100
    phase = {"activations": "forward", "weights": "update"}.get(role, "backward")
    return OpCounts(
        op=op, role=role, scope=scope, phase=phase, format=fmt, n=100, histogram=histogram, **counts
    )


@pytest.mark.parametrize(
    "text",
    [
        "loss",
        "loss improvement=0.01 lower_above=inf levels=fp16/fp32",
        "signal",
        "signal flushed=0.1 overflowed=0.01 lost=0.9 quiet=0.25 to=tf32",
        f"steps 100: {FP16}; 300: {FP32}",
    ],
)
def test_text_and_schedule_there_and_back(text):
    parsed = schedules.parse(text)
    assert str(parsed) == text
    assert schedules.parse(str(parsed)) == parsed


def test_none_is_none_and_policies_may_be_short():
    assert schedules.parse("none") is None
    assert schedules.parse("steps 100: bf16").changes == ((100, ps.Policy.uniform("bf16")),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lsos", "expected one of none, steps, loss, signal"),
        ("loss improvement", "unknown entry 'improvement': expected field=value"),
        ("loss patience=3", "with a field of improvement, lower_above, levels"),
        ("loss improvement=x", "could not convert"),
        ("loss improvement=0.5", "improvement <= lower_above"),
        ("signal to=fp99", "unknown format 'fp99'"),
        ("steps", "expected STEP: POLICY"),
        ("steps 100", "expected STEP: POLICY"),
        ("steps 100: bf16; 100: fp32", r"ascend from 1 or more; got \[100, 100\]"),
        ("steps 0: bf16", r"ascend from 1 or more; got \[0\]"),
        ("steps 100: half16", "unknown format"),
        ("none of it", "expected one of none"),
    ],
)
def test_text_that_names_no_schedule_is_refused(text, message):
    with pytest.raises(ConfigError, match=message) as raised:
        SMALL.change(precision_schedule=text)
    assert str(raised.value).startswith("precision schedule")


def test_steps_that_no_evaluation_precedes_are_refused_with_those_that_one_does():
    with pytest.raises(ConfigError, match=r"step 7 .* eval_every=3 try 6 or 9"):
        SMALL.change(precision_schedule="steps 7: fp32")
    with pytest.raises(ConfigError, match=r"step 2 .* try 3"):
        SMALL.change(precision_schedule="steps 2: fp32")


def test_at_least_raises_what_is_narrower_and_leaves_what_is_not():
    policy = ps.Policy.parse(
        "weights=bf16 activations=widest gradients=e5m2:stochastic update=fp32 optimizer_state=fp32 "
        "rule=op=matmul,inputs=e4m3,output=bf16"
    )
    raised = at_least(policy, "fp16")
    assert str(raised.gradients) == "fp16"
    assert str(raised.weights) == "bf16"
    assert str(raised.activations) == "widest"
    assert str(raised.update) == "fp32"
    assert (str(raised.rules[0].inputs), str(raised.rules[0].output)) == ("fp16", "bf16")
    assert at_least(raised, "fp16") == raised
    assert at_least(FP16, "fp32").weights.format == "fp32"
    assert str(at_least(ps.Policy.uniform("int8:row"), "fp32").weights) == "fp32"


@given(
    st.sampled_from(["e4m3", "e5m2", "bf16", "fp16", "tf32", "fp32"]),
    st.sampled_from(["fp16", "fp32"]),
)
def test_at_least_is_idempotent_and_difference_says_nothing_of_nothing(fmt, floor):
    raised = at_least(ps.Policy.uniform(fmt), floor)
    assert at_least(raised, floor) == raised
    assert difference(raised, raised) == ""


def test_difference_in_words():
    new = replace(FP16, weights="fp32", rules=("op=matmul,output=fp32",))
    assert difference(FP16, new) == "weights fp16 -> fp32, + rule op=matmul,output=fp32"
    assert difference(new, FP16) == "weights fp32 -> fp16, - rule op=matmul,output=fp32"


def test_by_loss_goes_up_where_the_loss_stands_and_down_where_it_falls():
    schedule = ByLoss(improvement=0.05, lower_above=0.25, levels=("fp32",))
    raised = at_least(FP16, "fp32")
    assert schedule.on_eval(metrics(2.0), []) is None
    assert schedule.on_eval(metrics(2.0, 1.8), []) is None
    assert schedule.on_eval(metrics(2.0, 1.96), []) == raised
    assert schedule.on_eval(metrics(2.0, np.nan), []) == raised
    assert schedule.on_eval(metrics(2.0, 3.0, policy=raised), []) is None
    assert schedule.on_eval(metrics(2.0, 1.4, policy=raised), []) == FP16
    assert schedule.on_eval(metrics(2.0, 1.0), []) is None


def test_by_loss_climbs_one_level_at_a_time():
    schedule = ByLoss(levels=("fp16", "fp32"))
    low = ps.Policy.uniform("e5m2")
    middle, top = (at_least(low, fmt) for fmt in ("fp16", "fp32"))
    for policy, expected in ((low, middle), (middle, top), (top, None)):
        assert schedule.on_eval(metrics(2.0, 2.0, policy=policy, initial=low), []) == expected


def test_by_signal_raises_what_flushes_or_overflows_and_lowers_it_when_quiet():
    schedule = BySignal(flushed=0.3, overflowed=0.0, quiet=0.5)
    flushing = row(flushed=40, exponent=-30)
    rule = Rule(op="matmul", role="gradients", scope="head", output="fp32")
    raised = schedule.on_eval(metrics(), [flushing])
    assert raised == replace(FP16, rules=(rule,))
    still = row(fmt="fp32", exponent=-30)  # in fp16 all of it would be zero
    assert schedule.on_eval(metrics(policy=raised), [still]) is None
    quiet = row(fmt="fp32", exponent=-3)
    assert schedule.on_eval(metrics(policy=raised), [quiet]) == FP16
    assert schedule.on_eval(metrics(policy=raised), []) is None  # nothing is known of it now
    assert schedule.on_eval(metrics(), [row(flushed=20)]) is None
    assert schedule.on_eval(metrics(), [row(overflowed=1)]) == raised
    assert schedule.on_eval(metrics(skipped=True), [row(overflowed=1)]) is None
    forward = row(role="activations", overflowed=1)
    assert schedule.on_eval(metrics(skipped=True), [forward]).rules[0].role == "activations"


def test_by_signal_adds_up_the_runs_of_an_op_and_keeps_the_policys_own_rules():
    own = replace(FP16, rules=("op=softmax,output=fp32",))
    rows = [row(flushed=10), row(flushed=50), row(op="softmax", fmt="fp32", flushed=90)]
    assert BySignal(flushed=0.4).on_eval(metrics(policy=own, initial=own), rows) is None
    new = BySignal(flushed=0.2).on_eval(metrics(policy=own, initial=own), rows)
    assert [str(rule) for rule in new.rules] == [
        "op=matmul,role=gradients,scope=head,output=fp32", "op=softmax,output=fp32",
    ]  # fmt: skip


def test_by_signal_raises_a_cast_with_the_op_that_asked_for_it():
    new = BySignal().on_eval(metrics(), [row(op="cast", role="activations", flushed=90)])
    assert str(new.rules[0]) == "role=activations,scope=head,inputs=fp32,output=fp32"


def test_by_signal_gives_weights_that_lose_their_updates_a_master_copy():
    losing = row(op="apply_update", role="weights", updates=100, swamped=60)
    new = BySignal(lost=0.5).on_eval(metrics(), [losing])
    assert new == replace(FP16, master_weights="fp32")
    assert BySignal(lost=0.7).on_eval(metrics(), [losing]) is None
    assert BySignal().on_eval(metrics(policy=new), [row(op="apply_update", fmt="fp32")]) is None
    chance = replace(FP16, weights="fp16:stochastic")
    assert BySignal().on_eval(metrics(policy=chance, initial=chance), [losing]) is None


def test_what_follows_its_operands_is_not_lowered_again():
    widest = replace(FP16, activations="widest", gradients="widest")
    schedule = BySignal()
    raised = schedule.on_eval(metrics(policy=widest, initial=widest), [row(flushed=90)])
    quiet = row(fmt="fp32", exponent=-3)
    assert schedule.on_eval(metrics(policy=raised, initial=widest), [quiet]) is None


def weights(run):
    return {name: (p.numpy(), p.format.name) for name, p in run.model.parameters.items()}


def assert_same_weights(run, other):
    for name, (values, fmt) in weights(other).items():
        np.testing.assert_array_equal(weights(run)[name][0], values)
        assert weights(run)[name][1] == fmt


STEPS = "steps 3: weights=bf16 activations=fp32; 6: weights=bf16 master_weights=fp32; 9: fp16"


def test_a_run_changes_at_its_steps_and_says_so():
    run = ps.train(SMALL.change(precision_schedule=STEPS))
    assert [change.step for change in run.changes] == [3, 6, 9]
    assert run.changes[0].before == FP16
    assert str(run.policy) == str(run.changes[-1].after) == str(ps.Policy.uniform("fp16"))
    assert {fmt for _, fmt in weights(run).values()} == {"fp16"}
    assert "master_weights none -> fp32" in str(run.changes[1])
    assert str(run.changes[1]).startswith("step 6 (validation loss ")
    assert set(run.steps) == set(ps.train(SMALL.change(steps=1)).steps)
    assert ps.train(SMALL).changes == []


def test_ops_run_in_the_formats_of_the_step():
    seen = {}

    def note(event):
        if event.op == "apply_update":
            seen.setdefault(event.step, set()).add((event.role, event.format.name))

    ps.train(SMALL.change(precision_schedule=STEPS), observers=(note,))
    expected = [
        ("weights", "fp16"),
        ("weights", "bf16"),
        ("master_weights", "fp32"),
        ("weights", "fp16"),
    ]
    assert [seen[step] for step in range(12)] == [{expected[step // 3]} for step in range(12)]


@pytest.mark.parametrize(
    ("text", "kahan"),
    [
        (STEPS, "kahan"),
        ("signal flushed=0.001 lost=0.05", "plain"),
        ("loss improvement=0.2", "plain"),
    ],
)
def test_a_scheduled_run_resumes_replays_and_is_watched_without_another_bit(tmp_path, text, kahan):
    config = SMALL.change(
        precision_schedule=text, weights_update=kahan, checkpoint_every=4, lr=0.02
    )
    whole = ps.train(config, out=tmp_path / "run")
    assert whole.changes
    assert_same_weights(ps.train(config, observe=False), whole)
    for step in (2, 7, 11):
        assert whole.replay(step).difference == ""
    half = ps.train(config.change(observe="off"), out=tmp_path / "half")
    for checkpoint in half.path.glob("ckpt/00001*.npz"):
        checkpoint.unlink()
    resumed = ps.resume(tmp_path / "half")
    assert [str(c) for c in resumed.changes] == [str(c) for c in half.changes]
    assert [c.after for c in resumed.changes] == [c.after for c in whole.changes]
    assert_same_weights(resumed, whole)


def test_a_fork_begins_with_the_policy_in_force(tmp_path):
    parent = ps.train(SMALL.change(precision_schedule=STEPS), out=tmp_path / "parent")
    fork = parent.fork(at=7, out=tmp_path / "fork")
    assert ps.Policy.parse(fork.config.policy) == parent.changes[1].after
    assert [change.step for change in fork.changes] == [9]
    assert_same_weights(fork, parent)
    other = parent.fork(at=7, out=tmp_path / "other", policy="fp32", precision_schedule="none")
    assert {fmt for _, fmt in weights(other).values()} == {"fp32"}


def test_ones_own_schedule_is_registered_and_named(monkeypatch):
    seen = []

    @dataclass(frozen=True)
    class Once:
        at: int
        to: str = "fp32"

        def on_eval(self, metrics, statistics):
            seen.append((metrics.step, len(metrics.valid_losses), len(statistics) > 50))
            return ps.Policy.uniform(self.to) if metrics.step == self.at else None

    monkeypatch.setitem(schedules.SCHEDULES, "once", Once)
    run = ps.train(SMALL.change(precision_schedule="once at=5 to=bf16"))
    assert [change.step for change in run.changes] == [6]
    assert seen == [(2, 1, True), (5, 2, True), (8, 3, True)]


SLOW = SMALL.change(
    policy="activations=bf16 gradients=bf16 weight_gradients=bf16 weights=bf16 arithmetic=fast",
    width=32, batch=8, steps=125, eval_every=25, optimizer="adamw", lr=1e-3, beta2=0.999,
    observe="off",
)  # fmt: skip


def test_a_loss_that_falls_slowly_says_nothing_and_the_rounding_says_it_at_once():
    """bf16 weights lose most of their updates; the loss still falls, only too slowly."""
    plain = ps.train(SLOW)
    by_loss = ps.train(SLOW.change(precision_schedule="loss"))
    by_signal = ps.train(SLOW.change(precision_schedule="signal"))
    wide = ps.train(SLOW.change(policy="arithmetic=fast"))
    assert by_loss.changes == []
    assert [change.after.master_weights.format for change in by_signal.changes] == ["fp32"]
    assert by_signal.changes[0].step <= 100
    assert plain.final_loss() > 1.3 * wide.final_loss()
    assert by_signal.final_loss() < 1.1 * wide.final_loss()


def test_a_toml_file_names_a_schedule(tmp_path):
    (tmp_path / "c.toml").write_text('precision_schedule = "signal lost=0.25"\n')
    config = ps.TrainConfig().change(**read(tmp_path / "c.toml"))
    assert schedules.parse(config.precision_schedule) == BySignal(lost=0.25)
    assert isinstance(schedules.parse("steps 50: fp32"), AtSteps)
