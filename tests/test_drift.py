"""A run beside its twins: what is measured, recomputed another way; and what it is called."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import precsim as ps
from precsim.analyse.moment import relative_error
from precsim.analyse.recorded import moment_at
from precsim.analyse.twins import drifts
from precsim.runs.files import RunError
from precsim.show import drift_plot, plot
from precsim.show.heat_plot import heat_map

CONFIG = ps.TrainConfig(
    data="reverse", context=16, width=16, layers=1, heads=2, steps=20, batch=8, eval_every=20,
    observe="counts", checkpoint_every=20,
)  # fmt: skip
HEALTHY = "activations=bf16 gradients=bf16 weight_gradients=bf16 weights=fp64 update=fp64 optimizer_state=fp64"  # fmt: skip


def weights(run):
    return np.concatenate([p.numpy().ravel() for p in run.model.parameters.values()])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("drift")


@pytest.fixture(scope="module")
def healthy(folder):
    return ps.train(CONFIG.change(policy=HEALTHY), out=folder / "healthy")


@pytest.fixture(scope="module")
def swamped(folder):
    config = CONFIG.change(policy="bf16", lr=3e-4, warmup=0, schedule="constant")
    return ps.train(config, out=folder / "swamped")


@pytest.fixture(scope="module")
def died(folder):
    """A run that ends in its first step, in NaN."""
    return ps.train(CONFIG.change(policy="fp16", eps=1e-9, steps=3), out=folder / "half")


@pytest.fixture(scope="module")
def measured(healthy):
    return drifts(healthy, every=7)


def test_the_twin_is_the_same_training_in_float64(healthy, measured):
    """Trained on its own, by `ps.train`, from the same seed: the weights are float64 from the start."""
    twin = ps.train(CONFIG.change(policy=HEALTHY.replace("bf16", "fp64"), loss_scale="none"))
    start = ps.train(CONFIG.change(policy=HEALTHY.replace("bf16", "fp64"), lr=0.0, steps=1))
    assert [p.step for p in measured.points] == [0, 7, 14, 19]
    assert [p.twin_loss for p in measured.points] == [twin.records[k].loss for k in (0, 7, 14, 19)]
    assert [p.loss for p in measured.points] == [healthy.records[k].loss for k in (0, 7, 14, 19)]
    apart = np.linalg.norm(weights(healthy) - weights(twin))
    way = np.linalg.norm(weights(twin) - weights(start))
    assert measured.points[-1].distance == pytest.approx(apart / way, rel=1e-12)


def test_local_drift_is_that_of_the_moment_before_the_step(healthy, measured):
    moment = moment_at(healthy, 14)
    point = measured.points[2]
    assert point.gradient.rho == pytest.approx(
        relative_error(moment.gradients(), moment.reference()), rel=1e-9
    )
    made, truth = moment.gradients(), moment.reference()
    assert point.gradients.keys() == truth.keys()
    for name, one in point.gradients.items():
        error = np.linalg.norm(made[name] - truth[name]) / np.linalg.norm(truth[name])
        assert one.rho == pytest.approx(error, rel=1e-9)
    assert 0.5 < point.gradient.rho_u < 20


def test_the_parts_of_a_gradients_drift_obey_the_triangle(measured):
    assert measured.points[0].split.weights_moved == 0
    assert measured.points[0].split.rounding_now == pytest.approx(measured.points[0].gradient.rho)
    for point in measured.points[1:]:
        now, moved = point.split.rounding_now, point.split.weights_moved
        assert abs(now - moved) <= point.split.total <= now + moved
        assert moved > 0


def test_all_micro_batches_of_a_step_are_compared(folder):
    config = CONFIG.change(policy=HEALTHY, accumulation=2, steps=1, loss_scale="static:1024")
    run = ps.train(config, out=folder / "accumulated")
    first = moment_at(run, 0)
    batches = run.at(0).batches
    parts = [first.at(x=batches.train(k)[0], y=batches.train(k)[1]) for k in (0, 1)]
    truth = [part.reference() for part in parts]
    here = {n: (truth[0][n] + truth[1][n]) / 2 for n in truth[0]}
    found = drifts(run).points[0]
    seen = [part.gradients() for part in parts]
    mean = {n: (seen[0][n] + seen[1][n]) / 2 for n in seen[0]}
    # The sum of the two is rounded once more in the run, and not here.
    assert found.gradient.rho == pytest.approx(relative_error(mean, here), rel=0.2)
    assert found.gradient.rho < 0.02


def test_a_float64_run_is_its_own_twin(folder):
    found = drifts(ps.train(CONFIG.change(policy="fp64", steps=5), out=folder / "fp64"), every=2)
    assert found.verdict == "nothing"
    for point in found.points:
        assert point.distance == point.gradient.rho == point.update.rho == point.split.total == 0
        assert 0 < point.control < 1e-9


def test_swamped_updates_are_counted_and_called_a_bias(swamped):
    found = drifts(swamped, every=5)
    assert found.verdict == "bias"
    assert found.bias < -0.25
    for point in found.points:
        assert point.swamped == swamped.records[point.step].lost_updates > 0.2
        assert point.update.rho > 10 * point.gradient.rho
    last = found.points[-1]
    recorded = swamped.ops(step=19, op="apply_update")
    lost = dict(zip(recorded["scope"], recorded["swamped_share"], strict=True))
    assert last.lost == lost


def test_what_kahan_keeps_aside_is_not_lost(swamped, folder):
    config = swamped.config.change(weights_update="kahan", steps=4)
    kahan = drifts(ps.train(config, out=folder / "kahan"), every=1)
    plain = drifts(swamped, every=1).points[:4]
    for with_, without in zip(kahan.points, plain, strict=True):
        assert with_.update.rho < 0.2 * without.update.rho


def test_well_kept_weights_are_called_rounding_and_a_wild_rate_chaos(measured, healthy, folder):
    assert measured.verdict == "rounding"
    config = healthy.config.change(optimizer="sgd", lr=1.0, momentum=0.9, schedule="constant")
    wild = drifts(ps.train(config, out=folder / "wild"), every=5)
    assert wild.verdict == "chaos"
    assert wild.points[-1].growth > 100
    assert wild.points[-1].distance > 10 * wild.points[0].distance
    again = drifts(ps.open(folder / "wild"), every=5, seed=1)
    assert again.points[-1].distance == wild.points[-1].distance
    assert again.points[-1].growth != wild.points[-1].growth


def test_a_skipped_step_is_marked_and_its_drift_undefined(folder):
    policy = HEALTHY.replace("gradients=bf16", "gradients=fp16")
    config = CONFIG.change(policy=policy, loss_scale="dynamic:1048576:2000", steps=8)
    run = ps.train(config, out=folder / "skipped")
    skipped = [record.step for record in run.records if record.skipped]
    assert skipped
    found = drifts(run, every=1)
    for point in found.points:
        assert point.skipped == (point.step in skipped)
        assert math.isnan(point.gradient.rho) == point.skipped
        assert point.undefined.partition(" not finite in ")[1] if point.skipped else True
        assert point.skipped or point.undefined == ""
    assert found.verdict != "undefined"


def test_a_run_can_drift_out_of_the_numbers_and_a_run_without_steps_cannot(died):
    assert died.died_at == 0
    found = drifts(died)
    assert found.verdict == "undefined"
    assert not math.isfinite(found.points[-1].distance)
    with pytest.raises(ValueError, match="whole number of steps, 1 or more"):
        drifts(died, every=0)
    empty = ps.open(died.path)
    empty.records = []
    with pytest.raises(RunError, match="no step yet"):
        drifts(empty)


def test_a_schedule_changes_the_run_and_not_its_twin(folder):
    config = CONFIG.change(policy=HEALTHY, eval_every=5, steps=10)
    changed = HEALTHY.replace("=bf16", "=e4m3:saturate")
    config = config.change(precision_schedule=f"steps 5: {changed}")
    found = drifts(ps.train(config, out=folder / "scheduled"), every=4)
    assert [p.step for p in found.points] == [0, 4, 8, 9]
    early, late = found.points[1], found.points[2]
    assert late.gradient.rho > 5 * early.gradient.rho
    assert found.format == "e4m3"


def test_looking_at_a_gradient_leaves_delayed_factors_as_the_run_had_them(folder):
    config = CONFIG.change(steps=6, **ps.recipe("te_delayed").settings())
    run = ps.train(config, out=folder / "delayed")
    found = drifts(run, every=2)
    assert [p.loss for p in found.points] == [run.records[p.step].loss for p in found.points]
    moment = moment_at(run, 4)
    expected = relative_error(moment.gradients(), moment.reference())
    assert found.points[2].gradient.rho == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("columns", [80, 120])
def test_the_command_says_what_the_drift_is(swamped, call, columns):
    code, out, err = call("drift", swamped.path, "--every", 10, columns=columns)
    assert code == 0
    assert "bias: the errors of the updates point one way" in out
    rows = [line.split()[0] for line in out.splitlines() if line[:1].isdigit()]
    assert rows == ["0", "10", "19"]
    assert "step 20 of 20" in err
    assert max(len(line) for line in out.splitlines()) <= columns


def test_the_command_gives_json_a_figure_and_its_data(healthy, measured, call, tmp_path):
    picture = tmp_path / "new" / "d.svg"
    code, out, err = call("drift", healthy.path, "--every", 7, "--json", "-o", picture)
    assert code == 0
    assert "wrote" in err
    found = json.loads(out)
    assert found["verdict"] == "rounding"
    assert [p["distance"] for p in found["points"]] == [p.distance for p in measured.points]
    stored = json.loads(picture.with_suffix(".json").read_text())["data"]["run"]
    assert stored["rho"] == [p.gradient.rho for p in measured.points]
    assert plot.redraw(picture.with_suffix(".json"), {"drift": drift_plot.drift}).axes


def test_where_a_figure_cannot_be_is_told_before_the_work(healthy, call, tmp_path, monkeypatch):
    monkeypatch.setattr("precsim.cli_drift.drifts", lambda *args, **options: 1 / 0)
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).name != "closed")
    for name, told in (("d.gif", "expected a name that ends in .png"), ("closed/d.png", "denied")):
        code, out, err = call("drift", healthy.path, "-o", tmp_path / name)
        assert (code, out) == (2, "")
        assert told in err


def test_the_command_reports_what_is_not_finite(died, folder, call):
    code, out, err = call("drift", died.path)
    assert code == 1
    assert "not finite in" in err
    assert "undefined" in out
    assert call("drift", folder / "nothing")[0] == 2


def lines_of(axes):
    return [line for line in axes.get_lines() if len(line.get_xdata()) > 2]


def test_figures_show_the_data_and_leave_gaps_for_what_is_undefined(measured):
    data = drift_plot.drift_data(measured, "run")
    axes = drift_plot.local_error(runs=[data])
    assert lines_of(axes)[0].get_ydata().tolist() == data["rho"]
    assert np.all(np.array(data["rho_low"]) <= data["rho"])
    assert "max 3.3895e38" in axes.get_legend().get_texts()[0].get_text()
    axes = drift_plot.local_error(runs=[data], quantity="angle")
    assert lines_of(axes)[0].get_ydata().tolist() == data["angle"]
    chaos, apart = lines_of(drift_plot.distance(runs=[data]))
    assert chaos.get_ydata().tolist() == data["chaos"]
    assert apart.get_ydata().tolist() == data["distance"]
    now, moved = lines_of(drift_plot.split(run=data))
    assert now.get_ydata().tolist() == data["now"]
    assert math.isnan(moved.get_ydata()[0])
    points = tuple(replace(p, distance=float("nan")) for p in measured.points)
    gone = drift_plot.drift_data(replace(measured, points=points), "gone")
    assert np.isnan(lines_of(drift_plot.distance(runs=[gone]))[1].get_ydata()).all()


def test_the_map_has_each_parameters_drift_at_each_step(measured):
    data = drift_plot.drift_map_data(measured, "update")
    assert data["steps"] == [0, 7, 14, 19]
    assert data["paths"] == list(measured.points[0].updates)
    row = data["values"][data["paths"].index("head.weight")]
    assert row == [p.updates["head.weight"].rho for p in measured.points]
    mesh = heat_map(**data).collections[0]
    assert mesh.get_array().shape == (len(data["paths"]), 4)
    assert mesh.get_coordinates()[0, :, 0].tolist() == [-3.5, 3.5, 10.5, 16.5, 21.5]
    with pytest.raises(ValueError, match="the gradient or the update; got 'loss'"):
        drift_plot.drift_map_data(measured, "loss")
