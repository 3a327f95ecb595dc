"""Analysis of a frozen step: planted faults are found, healthy steps raise no alarm."""

import math
from dataclasses import replace

import numpy as np
import pytest

import precsim as ps
from precsim.analyse import blame, diff, drift, search
from precsim.analyse.moment import (
    REFERENCE,
    Moment,
    promote,
    relative_error,
    typical_error,
    unit,
)
from precsim.observe import whatif
from precsim.observe.counters import HIGHEST, LOWEST, OpCounts
from precsim.runs.data import Batches, load

CONFIG = ps.TrainConfig(
    data="reverse", layers=1, heads=2, width=16, context=16, batch=8, steps=60, eval_every=60
)


@pytest.fixture(scope="module")
def trained():
    return ps.train(CONFIG, observe=False)


def moment(run, policy, **changes):
    x, y = Batches(load(CONFIG.data), CONFIG.batch, CONFIG.context, seed=1).train(0)
    parameters = {n: p.numpy().astype(np.float64) for n, p in run.model.parameters.items()}
    return Moment(run.model.config, parameters, x, y, ps.Policy.parse(policy), **changes)


E4M3 = (
    "weights=fp32 activations=fp32 gradients=e4m3:saturate weight_gradients=e4m3:saturate loss=fp32"
)
GUILTY = "gradients/loss/cross_entropy_grad"


@pytest.mark.parametrize("policy", ["fp16", "bf16", "tf32", "fp32"])
def test_a_healthy_step_gives_no_alarm(trained, policy):
    assert diff.diff(moment(trained, policy)).first_abnormal() is None


def test_a_backward_pass_below_e4m3s_range_is_found_where_it_starts(trained):
    """e4m3's smallest value is 2^-9; gradients a 32nd of their size are mostly below."""
    step = moment(trained, E4M3, weight=2.0**-5)
    first = diff.diff(step).first_abnormal()
    assert first.path == GUILTY
    assert first.verdict is diff.Verdict.GENERATED
    assert first.flushed > 0.3
    guilty = blame.blame(step).worst(1)[0]
    assert guilty.site.name == GUILTY
    assert guilty.without < guilty.alone
    found = search.search(step, tolerance=0.3)
    assert GUILTY in {site.name for site in found.keep}
    assert found.all_low > 0.3 >= found.error


def test_loss_scaling_removes_that_fault(trained):
    bad = moment(trained, E4M3, weight=2.0**-5)
    good = bad.at(scale=2.0**11)
    assert drift.local(good).rho < 0.5 * drift.local(bad).rho


def test_a_forward_overflow_in_fp16_is_found_in_the_op_that_overflows(trained):
    step = moment(trained, "fp16")
    parameters = dict(step.parameters)
    qkv = parameters["blocks.0.qkv.weight"]
    x = diff.diff(step)  # how large are the scores now?
    assert x.first_abnormal() is None
    parameters["blocks.0.qkv.weight"] = qkv * 150
    step = step.at(parameters=parameters)
    first = diff.diff(step).first_abnormal()
    assert first.path == "activations/blocks.0.attn/matmul"
    assert first.overflowed > 0
    assert math.isinf(blame.blame(step, sites=[]).total)


def test_lost_updates_and_a_constant_that_becomes_nan_are_named():
    config = CONFIG.change(policy=str(ps.recipe("bf16").policy), lr=1e-5, steps=2)
    assert "apply_update" in str(ps.train(config).trouble)
    with ps.using("e4m3", observers=[counters := ps.Counters()]):
        scores = ps.tensor([1.0, 2.0])
        ps.ops.exp(scores + np.array([0.0, -1e4]))
    first = next(row for row in counters.rows if row.overflowed)
    assert first.op == "add"


def test_search_says_why_there_is_nothing_to_find(trained):
    step = moment(trained, "fp16")
    assert "already" in search.search(step, tolerance=0.5).reason
    coarse = moment(trained, "weights=e2m1 activations=fp32 gradients=fp32")
    others = [site for site in coarse.sites() if site.role != "weights"]
    assert "still miss" in search.search(coarse, tolerance=1e-6, sites=others).reason
    assert [site.role for site in search.search(coarse, tolerance=1e-4).keep] == ["weights"]
    with pytest.raises(ValueError, match="tolerance"):
        search.search(step, tolerance=math.nan)


def test_search_is_one_minimal_and_resumes_from_its_cache(trained):
    step, known = moment(trained, E4M3), {}
    found = search.search(step, tolerance=0.3, known=known)
    truth = step.reference()
    for site in found.keep:
        rest = [s for s in found.keep if s != site]
        error = relative_error(step.gradients(promote(step.policy, rest)), truth)
        assert error > 0.3, f"{site.name} was not needed"
    again = search.search(step, tolerance=0.3, known=known)
    assert again.evaluations == 0
    assert again.keep == found.keep


def test_blame_adds_up_in_the_healthy_regime(trained):
    """Independent small errors: the squares of the parts make up the square of the whole."""
    result = blame.blame(moment(trained, "bf16"))
    assert 0.5 < result.accounted < 2.0
    assert sum(s.share for s in result.shares) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("recipe", "u", "typical"),
    [("fp16_scaled", 2**-11, 2**-11), ("apex_O2", 2**-11, 2**-11), ("bf16", 2**-8, 2**-8),
     ("keras_float16", 2**-11, 2**-11), ("te_current", 2**-3, 2**-3), ("int8", 2**-8, 2**-6)],
)  # fmt: skip
def test_errors_are_told_in_the_units_of_what_is_computed_in(recipe, u, typical):
    """A policy that follows its weights computes in their format (Apex's O2 casts them to fp16)."""
    policy = ps.recipe(recipe).policy
    assert (unit(policy), typical_error(policy)) == (u, typical)


def test_drift_by_hand():
    truth, measured = {"w": np.array([3.0, 4.0])}, {"w": np.array([3.0, 0.0])}
    d = drift.compare(measured, truth, u=0.5)
    assert (d.rho, d.rho_u, d.ratio) == pytest.approx((0.8, 1.6, 0.6))
    assert d.bias == pytest.approx(-16 / 25)
    assert d.spread == pytest.approx(math.sqrt(0.64 - (16 / 25) ** 2))
    assert d.angle == pytest.approx(math.atan2(4, 3))


def test_the_angle_resolves_what_an_arccosine_cannot():
    truth = {"w": np.array([1.0, 0.0])}
    measured = {"w": np.array([1.0, 9.6e-10])}
    assert drift.compare(measured, truth, u=1.0).angle == pytest.approx(9.6e-10, rel=1e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_drift_with_values_that_are_not_finite_is_undefined(bad):
    d = drift.compare({"w": np.array([bad, 1.0])}, {"w": np.ones(2)}, u=1.0)
    assert d.nonfinite == 1
    assert math.isnan(d.rho)


def test_drift_of_zero_and_empty_gradients():
    zero = {"w": np.zeros(2)}
    none = drift.Drift(rho=0, rho_u=0, angle=0, ratio=1, bias=0, spread=0)
    assert drift.compare(zero, zero, u=1.0) == drift.compare({}, {}, u=1.0) == none
    far = drift.compare({"w": np.ones(2)}, zero, u=1.0)
    assert (far.rho, far.rho_u, far.ratio, far.spread) == (math.inf,) * 4
    lost = drift.compare(zero, {"w": np.array([3.0, 4.0])}, u=0.25)  # the error is all of it
    assert (lost.rho, lost.rho_u, lost.ratio, lost.bias, lost.spread) == pytest.approx(
        (1, 4, 0, -1, 0)
    )
    assert lost.angle == pytest.approx(math.pi / 2)


def test_the_split_is_exact_and_a_twin_at_the_same_place_has_not_moved(trained):
    step = moment(trained, "bf16")
    here = drift.split(step, twin=step.parameters)
    assert here.weights_moved == 0
    assert here.total == pytest.approx(here.rounding_now)
    moved = {n: w + 1e-3 for n, w in step.parameters.items()}
    apart = drift.split(step, twin=moved)
    assert apart.weights_moved > 0
    assert apart.total <= apart.rounding_now + apart.weights_moved + 1e-12


def test_a_perturbed_twin_is_one_unit_in_the_last_place_away():
    w = {"w": np.array([1.0, -2.0, 0.0])}
    moved = drift.perturbed(w)["w"]
    assert np.all(np.abs(moved - w["w"]) <= np.spacing(np.abs(w["w"])))
    assert np.all(moved != w["w"])


def test_stochastic_rounding_has_less_bias_than_spread(trained):
    policy = ps.Policy.uniform("bf16:stochastic", weights="fp32")
    bias, spread = drift.stochastic(moment(trained, str(policy)), draws=16)
    assert bias < 0.6 * spread  # the mean of 16 draws is 4 times as sharp


def test_a_float64_policy_is_its_own_reference(trained):
    step = moment(trained, "fp64")
    assert drift.local(replace(step, policy=REFERENCE)).rho == 0


@pytest.mark.parametrize("name", ["fp16", "e5m2", "e4m3", "bf16", "e2m1"])
@pytest.mark.parametrize("scale", [1.0, 2.0**-12, 2.0**10])
def test_what_if_agrees_with_rounding_the_values(name, scale):
    values = np.random.default_rng(0).standard_normal(4000) * 2.0 ** np.arange(-40, 40).repeat(50)
    exponents = np.clip(np.frexp(np.abs(values))[1] - 1, LOWEST, HIGHEST) - LOWEST
    histogram = np.bincount(exponents, minlength=HIGHEST - LOWEST + 1)
    fmt = ps.format(name)
    lost = whatif.what_if(OpCounts(histogram=histogram), fmt, scale)
    rounded = ps.quantize(values * scale, fmt, overflow="ieee")
    beyond = np.abs(values * scale) > fmt.max
    edge = 1 / 60  # what one binade of these values holds, which a histogram cannot split
    assert lost.flushed == pytest.approx(np.mean(rounded == 0), abs=edge)
    assert lost.overflowed == pytest.approx(np.mean(beyond), abs=edge)


def test_what_if_places_each_binade_where_numpy_rounds_its_values():
    for exponent in range(-30, 20):
        histogram = np.zeros(HIGHEST - LOWEST + 1, int)
        histogram[exponent - LOWEST] = 1
        with np.errstate(over="ignore"):
            rounded = np.float16(1.5 * 2.0**exponent)
        want = whatif.Loss(rounded == 0, 0 < rounded < 2.0**-14, np.isinf(rounded))
        assert whatif.what_if(histogram, ps.format("fp16")) == want, exponent
        assert whatif.what_if(np.roll(histogram, -3), ps.format("fp16"), 8.0) == want, exponent


def test_what_if_needs_a_histogram_and_a_power_of_two():
    with pytest.raises(ValueError, match="histogram"):
        whatif.what_if(OpCounts(), ps.format("fp16"))
    with pytest.raises(ValueError, match="power of two"):
        whatif.what_if(np.zeros(HIGHEST - LOWEST + 1, int), ps.format("fp16"), scale=3.0)
    empty = np.zeros(HIGHEST - LOWEST + 1, int)
    assert whatif.what_if(empty, ps.format("fp16")) == whatif.Loss(0, 0, 0)
