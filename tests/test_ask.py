"""Questions asked of a run in Python: the answers are those of the moment that it went through."""

import pytest

import precsim as ps
from precsim.analyse import blame, diff
from precsim.analyse.moment import relative_error
from precsim.analyse.recorded import moment_at
from precsim.runs.files import RunError

CONFIG = ps.TrainConfig(
    data="reverse", layers=1, heads=1, width=8, context=16, batch=2, steps=3, eval_every=3,
    checkpoint_every=2, observe="off", micro_batches=64,
    policy="gradients=e4m3:saturate weight_gradients=e4m3:saturate",
)  # fmt: skip
GUILTY = "gradients/loss/cross_entropy_grad"
SITES = "gradients/[lh]*"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return ps.train(CONFIG, out=tmp_path_factory.mktemp("runs") / "bad")


def test_the_first_abnormal_op_of_a_run(run, tmp_path):
    found = ps.diff(run, 1)
    assert found.first_abnormal().path == GUILTY
    assert {row.path.partition("/")[0] for row in found.rows} > {"activations", "optimizer_state"}
    gradient = diff.diff(moment_at(run, 1)).rows
    assert [r.total for r in found.rows[: len(gradient) - 10]] == [
        r.total for r in gradient[: len(gradient) - 10]
    ]
    assert ps.diff(run, 1, against=str(run.policy)).first_difference() is None
    other = ps.train(CONFIG.change(policy="bf16"), out=tmp_path / "other")
    assert {row.format for row in ps.diff(run, 1, other).rows} == {"bf16"}
    small = ps.train(CONFIG.change(width=4), out=tmp_path / "small")
    with pytest.raises(RunError, match="model of other sizes"):
        ps.diff(run, 1, small)


def test_an_epsilon_that_fp16_flushes_is_where_nan_begins(tmp_path):
    """Adam's 1e-8 is below half of 2^-24, fp16's smallest value: 0 / 0 where a gradient was 0."""
    config = CONFIG.change(data="zen", micro_batches=1, policy=str(ps.recipe("half").policy))
    run = ps.train(config, out=tmp_path / "half")
    found = ps.diff(run, 0)
    first = found.first_broken()
    assert first.path == "update/wte.weight/div"
    assert first.verdict is diff.Verdict.GENERATED
    after = [row for row in found.rows if row.broken and row.path.startswith("weights/wte")]
    assert {row.verdict for row in after} == {diff.Verdict.PROPAGATED}


def test_blame_and_search_of_a_run(run):
    shares = ps.blame(run, 1, SITES)
    moment = moment_at(run, 1)
    sites = [s for s in moment.sites() if s.name in {one.site.name for one in shares.shares}]
    assert shares == blame.blame(moment, sites)
    found = ps.search(run, 1, 0.5, "gradients/*")
    assert GUILTY in {site.name for site in found.keep}
    assert relative_error(moment.gradients(found.policy), moment.reference()) <= 0.5
    assert ps.search(run, 1, 0.5, "gradients/*").evaluations == 0
    with pytest.raises(RunError, match="no op of that step's gradient matches 'nosuch'"):
        ps.blame(run, 1, "nosuch")
    with pytest.raises(RunError, match="no state before step 9"):
        ps.search(run, 9, 0.5)


def test_a_run_that_cannot_be_written_is_searched_with_a_warning(run, monkeypatch):
    def full(*_args, **_named):
        msg = "no room"
        raise RunError(msg)

    monkeypatch.setattr("precsim.analyse.ask.Trials", full)
    with pytest.warns(RuntimeWarning, match="not kept: no room"):
        found = ps.search(run, 1, 0.5, "gradients/*")
    assert found.evaluations > 0


def test_figures_and_drift_are_at_hand(run):
    axes = ps.figure("blame", run, step=1, op=SITES, title="who")
    assert axes.get_title(loc="left") == "who"
    found = ps.drift(run, every=2)
    assert [point.step for point in found.points] == [0, 2]
    with pytest.raises(ValueError, match="no figure 'nosuch'"):
        ps.figure("nosuch", run)


@pytest.mark.parametrize(
    "question",
    [
        lambda run: run.ops(step=0),
        lambda run: run.replay(0),
        lambda run: ps.diff(run, 0),
        lambda run: ps.blame(run, 0),
        lambda run: ps.drift(run),
        lambda run: ps.figure("blame", run, step=0),
    ],
    ids=["ops", "replay", "diff", "blame", "drift", "figure"],
)
def test_a_run_that_was_not_recorded_says_how_to_record_it(question):
    run = ps.train(CONFIG.change(steps=1, eval_every=1))
    assert repr(run) == "Run(1 step on 'reverse', not recorded)"
    with pytest.raises(AttributeError, match=r"only a recorded run has .*out=DIR"):
        question(run)
    with pytest.raises(AttributeError, match="no attribute 'stesp'"):
        _ = run.stesp


def test_the_directory_of_a_run_stands_for_it(run, tmp_path):
    folder = str(run.path)
    assert ps.diff(folder, 1, other=run.path).rows == ps.diff(run, 1, run).rows
    assert ps.blame(folder, 1, GUILTY) == ps.blame(run, 1, GUILTY)
    assert ps.search(run.path, 1, 0.5, "gradients/*") == ps.search(run, 1, 0.5, "gradients/*")
    assert ps.drift(folder, every=2) == ps.drift(run, every=2)
    assert ps.figure("blame", [folder], step=1, op=GUILTY)
    for question in (lambda: ps.diff(tmp_path, 0), lambda: ps.drift(str(tmp_path))):
        with pytest.raises(RunError, match="is no run: it has no manifest"):
            question()
    for wrong in (3, None, CONFIG):
        with pytest.raises(TypeError, match="expected a recorded run or its directory; got"):
            ps.blame(wrong, 0)


@pytest.mark.parametrize("step", ["1", 1.0, None])
@pytest.mark.parametrize(
    "ask",
    [
        ps.diff,
        ps.blame,
        lambda run, step: ps.search(run, step, 0.1),
        lambda run, step: run.replay(step),
        lambda run, step: run.at(step),
        lambda run, step: run.fork(step, out="never"),
        lambda run, step: ps.figure("blame", run, step=step),
    ],
    ids=["diff", "blame", "search", "replay", "at", "fork", "figure"],
)
def test_what_is_no_step_is_said_to_be_none(run, ask, step):
    with pytest.raises((TypeError, ValueError), match=r"expected (the|its) number"):
        ask(run, step)


def test_amounts_that_are_text(run):
    with pytest.raises(ValueError, match=r"tolerance > 0.*'0.1'"):
        ps.search(run, 1, "0.1")
    with pytest.raises(ValueError, match=r"whole number of steps.*'7'"):
        ps.drift(run, every="7")
    with pytest.raises(TypeError, match="whole number; got 'a'"):
        ps.using(seed="a")
    with pytest.raises(TypeError, match=r"GPTConfig.*'small'"):
        ps.GPT("small")


def test_what_is_no_config_is_not_trained():
    with pytest.raises(TypeError, match=r"expected a TrainConfig.*; got \{'steps': 3\}"):
        ps.train({"steps": 3})
