"""Four faults, planted in a step: diff, blame and search name the op; healthy steps are left alone."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

import precsim as ps
from precsim.analyse import blame, diff, search
from precsim.analyse.moment import REFERENCE, Moment, promote, relative_error
from precsim.analyse.recorded import moment_at
from precsim.analyse.trials import Trials
from precsim.analyse.whole_step import whole_step
from precsim.engine import ops
from precsim.engine.delayed import Delays
from precsim.nn import functional, gpt

CONFIG = ps.TrainConfig(
    data="reverse", layers=1, heads=2, width=16, context=16, batch=8, steps=30, eval_every=30,
    checkpoint_every=10, observe="off",
)  # fmt: skip
E4M3 = "gradients=e4m3:saturate weight_gradients=e4m3:saturate"
MASTER = "weights=bf16 master_weights=fp32 activations=bf16 gradients=bf16 weight_gradients=bf16"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return ps.train(CONFIG, out=tmp_path_factory.mktemp("run") / "fp32")


@pytest.fixture(scope="module")
def moment(run):
    return moment_at(run, 29)


def names(sites):
    return [site.name for site in sites]


def check_search(moment, tolerance, sites, found):
    """What a search promises, by running the step under what it found, and under less."""
    truth = moment.reference()

    def error(kept):
        return relative_error(moment.gradients(promote(moment.policy, kept)), truth)

    assert found.policy is not None, found.reason
    assert error(found.keep) <= tolerance < error([])
    for site in found.keep:
        assert error([s for s in found.keep if s != site]) > tolerance


def test_gradients_below_e4m3s_range(moment):
    """Its smallest number is 2^-9, and gradients a 32nd of their size are mostly below half of it."""
    guilty = "gradients/loss/cross_entropy_grad"
    bad = moment.at(policy=ps.Policy.parse(E4M3), weight=2.0**-5)
    first = diff.diff(bad).first_abnormal()
    assert (first.path, first.verdict) == (guilty, diff.Verdict.GENERATED)
    assert first.flushed > 0.3
    sites = [site for site in bad.sites() if site.role == "gradients"]
    assert blame.blame(bad, sites).worst(1)[0].site.name == guilty
    found = search.search(bad, 0.3)
    assert guilty in names(found.keep)
    check_search(bad, 0.3, sites, found)


def test_scores_beyond_fp16(moment):
    """The product of queries and keys is beyond 65504, and within it again once it is scaled."""
    guilty = "activations/blocks.0.attn/matmul"
    parameters = dict(moment.parameters)
    largest = {}

    def note(event):
        largest.setdefault(event.path, float(np.abs(event.exact).max()))

    moment.gradients(observers=[note])
    factor = math.sqrt(2.5 * 65504 / largest[guilty])
    parameters["blocks.0.qkv.weight"] = parameters["blocks.0.qkv.weight"] * factor
    bad = moment.at(policy=ps.Policy.parse("fp16"), parameters=parameters)
    first = diff.diff(bad).first_abnormal()
    assert (first.path, first.verdict) == (guilty, diff.Verdict.GENERATED)
    assert first.overflowed > 0
    sites = [site for site in bad.sites() if site.phase == "forward"]
    shares = blame.blame(bad, sites)
    assert math.isinf(shares.total)
    worst = shares.worst(1)[0]
    assert worst.site.name == guilty
    assert math.isinf(worst.alone)
    assert (worst.share, worst.removes) == (1.0, 1.0)
    assert all(math.isinf(one.without) for one in shares.shares if one is not worst)
    found = search.search(bad, 0.5)
    assert names(found.keep) == [guilty]


def test_a_constant_for_minus_infinity_that_e4m3_does_not_have(moment, monkeypatch):
    """-10000 hides a score in fp32; in OCP's e4m3, which ends at 448 and has no infinity, it is NaN."""

    def hide_by_adding(x, keep):
        return functional.softmax(ops.add(x, np.where(keep, 0.0, -1e4)))

    monkeypatch.setattr(gpt, "softmax", hide_by_adding)
    guilty = "activations/blocks.0.attn/add"
    bad = moment.at(policy=ps.Policy.parse("activations=e4m3"))
    first = diff.diff(bad).first_abnormal()
    assert (first.path, first.verdict) == (guilty, diff.Verdict.GENERATED)
    assert first.overflowed > 0
    sites = [site for site in bad.sites() if ".attn/" in site.name]
    shares = blame.blame(bad, sites)
    worst = shares.worst(1)[0]
    assert (worst.site.name, worst.share, worst.removes) == (guilty, 1.0, 1.0)
    assert [one.site.name for one in shares.shares if math.isinf(one.alone)] == [guilty]
    assert names(search.search(bad, 0.9).keep) == [guilty]


@pytest.fixture(scope="module")
def swamped(tmp_path_factory):
    config = CONFIG.change(policy="bf16", lr=1e-4, schedule="constant", warmup=0, steps=4)
    return ps.train(config, out=tmp_path_factory.mktemp("run") / "swamped")


def test_updates_that_bf16_weights_swallow(swamped):
    step = whole_step(swamped, moment_at(swamped, 2))
    found = diff.diff(step)
    first = found.first_abnormal()
    assert (first.path, first.verdict) == ("weights/wte.weight/apply_update", diff.Verdict.LOST)
    recorded = swamped.replay(2).ops.where(op="apply_update")
    lost = dict(zip(recorded["path"], recorded["swamped_share"], strict=True))
    assert {r.path: r.swamped for r in found.rows if r.path in lost} == lost
    abnormal = {r.path for r in found.rows if r.verdict is not diff.Verdict.OK}
    assert abnormal == {path for path, share in lost.items() if share > 0.5}

    sites = [site for site in step.sites() if site.phase == "update"]
    shares = blame.blame(step, sites)
    assert shares.total > 0.8
    updates = [one for one in shares.shares if one.site.op == "apply_update"]
    assert sum(one.share for one in updates) > 0.999
    assert all(one.site.op == "apply_update" for one in shares.worst(4))
    kept = search.search(step, 0.5, sites)
    assert {site.op for site in kept.keep} == {"apply_update"}
    check_search(step, 0.5, sites, kept)


@pytest.fixture(scope="module")
def swamped_master(tmp_path_factory):
    """The optimizer's own copy is bf16, too: that there is one helps nobody."""
    policy = MASTER.replace("master_weights=fp32", "master_weights=bf16")
    config = CONFIG.change(policy=policy, lr=1e-4, schedule="constant", warmup=0, steps=4)
    return ps.train(config, out=tmp_path_factory.mktemp("run") / "swamped_master")


def test_updates_that_a_master_copy_in_bf16_swallows(swamped_master):
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    before, after = swamped_master.at(2).model.parameters, swamped_master.at(3).model.parameters
    kept = {n: float(np.mean(w.numpy() == after[n].numpy())) for n, w in before.items()}
    step = whole_step(swamped_master, moment_at(swamped_master, 2))
    found = diff.diff(step)
    first = found.first_abnormal()
    assert (first.path, first.verdict) == (
        "master_weights/wte.weight/apply_update",
        diff.Verdict.LOST,
    )
    lost = {r.path.split("/")[1] for r in found.rows if r.verdict is not diff.Verdict.OK}
    assert lost == {name for name, share in kept.items() if share > 0.5}

    changes = step.reference()
    size = math.sqrt(sum(float(np.square(change).sum()) for change in changes.values()))
    sites = [site for site in step.sites() if site.role in ("master_weights", "weights")]
    shares = {one.site.name: one for one in blame.blame(step, sites).shares}
    for name, change in changes.items():
        exact = before[name].numpy().astype(float) + change
        lost = exact.astype(bfloat16).astype(float) - exact
        alone = shares[f"master_weights/{name}/apply_update"].alone
        assert alone == pytest.approx(float(np.linalg.norm(lost)) / size, rel=1e-6)
    assert shares["weights//cast"].alone == shares["weights//cast"].removes == 0  # all fit in bf16
    kept_high = search.search(step, 0.5)
    assert {site.name for site in kept_high.keep} <= {
        f"master_weights/{name}/apply_update" for name in before
    }
    check_search(step, 0.5, sites, kept_high)


def test_a_weight_gradient_that_stays_high_is_not_rounded_on_its_way_to_a_master_copy(run):
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    policy = ps.Policy.parse(MASTER)
    moment = moment_at(run, 29).at(policy=policy)

    def on_the_grid(gradient):
        return bool((gradient == gradient.astype(bfloat16).astype(float)).all())

    low = moment.gradients()
    assert all(on_the_grid(gradient) for gradient in low.values())
    site = next(s for s in moment.sites() if s.name == "weight_gradients/head/matmul")
    high = moment.gradients(promote(policy, [site]))
    assert [name for name, gradient in high.items() if not on_the_grid(gradient)] == ["head.weight"]
    assert np.array_equal(high["head.weight"].astype(bfloat16), low["head.weight"].astype(bfloat16))
    everything = moment.gradients(promote(policy, moment.sites()))
    assert relative_error(everything, moment.reference()) < 1e-7  # what is left is fp32's own


def test_integers_whose_scale_does_not_fit(moment):
    """The nearest integer of all embeddings is 0; with a scale of their own few become that."""
    assert np.abs(moment.parameters["wte.weight"]).max() < 0.4
    fits = diff.diff(moment.at(policy=ps.Policy.parse("activations=int8:row")))
    assert fits.first_abnormal() is None
    first_step = moment.at(policy=ps.Policy.parse("activations=int8:tensor:delayed"))
    first = diff.diff(first_step).first_abnormal()  # its factor is 1
    assert (first.path, first.verdict) == ("activations/wpe/add", diff.Verdict.GENERATED)
    assert first.local * first.u > 0.5


def test_a_narrow_accumulator(moment):
    """A running sum in e4m3 stands still as soon as a term is below half of its spacing."""
    rule = "rule=op=matmul,scope=head,role=activations,accumulator=e4m3"
    policy = ps.Policy.parse(f"activations=fp16 gradients=fp16 {rule}")
    first = diff.diff(moment.at(policy=policy)).first_abnormal()
    assert (first.path, first.verdict) == ("activations/head/matmul", diff.Verdict.GENERATED)
    assert diff.diff(moment.at(policy=replace(policy, rules=()))).first_abnormal() is None


def test_a_mean_that_hides_what_varies(moment):
    """layer_norm subtracts the mean: of rows at 100, bf16 keeps steps of 1/2."""
    parameters = moment.parameters | {"wpe.weight": moment.parameters["wpe.weight"] + 100.0}
    first = diff.diff(
        moment.at(policy=ps.Policy.parse("bf16"), parameters=parameters)
    ).first_abnormal()
    assert (first.path, first.verdict) == (
        "activations/blocks.0.ln1/layer_norm",
        diff.Verdict.AMPLIFIED,
    )


@pytest.mark.parametrize(("state", "lost"), [("fp16", True), ("bf16", False)])
def test_a_second_moment_that_is_flushed_and_divided_by(state, lost, tmp_path):
    """Adam's first step moves a weight by the learning rate, or less: m is g's size, so is sqrt(v)."""
    config = CONFIG.change(
        policy=f"optimizer_state={state}", schedule="constant", warmup=0, steps=2
    )
    run = ps.train(config.change(weight_decay=0.0), out=tmp_path / state)
    before, after = run.at(0).model.parameters, run.at(1).model.parameters
    moved = {n: np.abs(after[n].numpy().astype(float) - w.numpy()) for n, w in before.items()}
    off = {n: np.linalg.norm(far[far > 0] / config.lr - 1) for n, far in moved.items()}
    blown_up = {n for n, far in moved.items() if off[n] > diff.BLOWN_UP * np.sqrt((far > 0).sum())}
    assert bool(blown_up) is lost
    found = diff.diff(whole_step(run, moment_at(run, 0)))
    told = {(r.path, r.verdict) for r in found.rows if r.verdict is not diff.Verdict.OK}
    assert told == {(f"update/{name}/div", diff.Verdict.AMPLIFIED) for name in blown_up}


def test_a_whole_step_does_what_the_run_did(swamped):
    """The weights' changes are those between the states that the run itself went through."""
    step = whole_step(swamped, moment_at(swamped, 2))
    before, after = swamped.at(2).model.parameters, swamped.at(3).model.parameters
    made = step.gradients()
    for name, change in made.items():
        expected = after[name].numpy().astype(float) - before[name].numpy().astype(float)
        assert np.array_equal(change, expected), name
    again, told = step.gradients(), step.gradients_with(Delays())
    assert all(np.array_equal(made[name], again[name]) for name in made)
    assert all(np.array_equal(made[name], told[name]) for name in made)
    twin = step.gradients(REFERENCE)
    assert relative_error(twin, step.reference()) == 0
    assert "weights//cast" not in names(step.sites())
    assert isinstance(step, Moment)


def test_a_skipped_step_changes_nothing_and_its_trials_are_its_own(run, tmp_path):
    policy = ps.recipe("torch_amp_fp16").settings()["policy"]
    config = CONFIG.change(policy=policy, loss_scale="dynamic:1099511627776:2000", steps=2)
    skipped = ps.train(config, out=tmp_path / "skipped")
    assert skipped.records[0].skipped
    moment = moment_at(skipped, 0)
    step = whole_step(skipped, moment)
    assert all(not change.any() for change in step.gradients().values())
    with Trials(skipped.path, moment) as known:
        known[frozenset()] = 1.0
    with Trials(skipped.path, step) as known:
        assert known.found == 0
        known[frozenset()] = 2.0
    other = whole_step(skipped, moment_at(skipped, 1))
    with Trials(skipped.path, other) as known:
        assert known.found == 0


POLICIES = ("fp32", "tf32", MASTER, "bf16:stochastic")
HEALTHY = (
    "torch_amp_bf16", "torch_amp_fp16", "fp16_scaled", "apex_O2", "bf16_kahan", "adamw8bit",
    "deepseek_v3", "te_mxfp8", "te_nvfp4", "fp8", "int8", "switchback", "torchao_int8_mixed",
)  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [{"policy": policy} for policy in POLICIES] + [ps.recipe(name).settings() for name in HEALTHY],
    ids=POLICIES + HEALTHY,
)
def test_a_healthy_run_gives_no_alarm(settings, tmp_path):
    run = ps.train(CONFIG.change(**settings, steps=12), out=tmp_path / "run")
    calm = [record.step for record in run.records if not record.skipped]
    for step in calm[-4::3]:
        found = diff.diff(whole_step(run, moment_at(run, step)))
        assert found.first_abnormal() is None
    moment = moment_at(run, calm[-1])
    error = relative_error(moment.gradients(), moment.reference())
    assert search.search(moment, 2 * error + 1e-12).keep == ()


def test_the_commands_name_the_swamped_update(swamped, call):
    guilty = "weights/wte.weight/apply_update"
    code, out, err = call("diff", swamped.path, "--step", 2)
    assert code == 1
    assert err == f"precsim: first abnormal op: {guilty}: updates lost\n"
    assert "of the updates lost" in out
    glob = "weights/*"
    words = (swamped.path, "--step", 2, "--update", "--op", glob)
    code, out, _ = call("blame", *words)
    assert code == 0
    assert "the update's error is" in out
    rows = [line.split()[0] for line in out.splitlines() if line.startswith("weights/")]
    assert rows[0].endswith("/apply_update")
    code, out, _ = call("search", *words, "--tol", 0.5, "--json")
    assert code == 0
    found = json.loads(out)
    assert found["keep"]
    assert all(name.endswith("/apply_update") for name in found["keep"])
    assert ps.Policy.parse(found["policy"])
