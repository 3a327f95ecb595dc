"""A failing observer is left out, with one warning that names it, and no bit of the run changes."""

import functools
import re
import warnings

import pytest
from tiny_runs import final, tiny

import precsim as ps
from precsim.analyse.recorded import walk
from precsim.observe.guard import Breakpoint, Guard, name_of
from precsim.runs.data import load


class Fails:
    """Raises on its nth call and counts how often it was called."""

    def __init__(self, after=3, error=ZeroDivisionError):
        self.calls, self.after, self.error = 0, after, error

    def __call__(self, event):
        self.calls += 1
        if self.calls > self.after:
            raise self.error("of its own making")


@pytest.mark.parametrize("arithmetic", ["exact", "fast"])
@pytest.mark.parametrize("after", [0, 3, 300])
def test_a_failing_observer_does_not_end_a_run_and_changes_no_bit(arithmetic, after, tmp_path):
    policy = "weights=bf16 activations=e4m3:stochastic gradients=e5m2 master_weights=fp32"
    config = tiny(policy=f"{policy} arithmetic={arithmetic}")
    ps.train(config, out=tmp_path / "alone")
    bad, good = Fails(after), ps.Counters()
    with pytest.warns(
        RuntimeWarning, match=r"test_guard\.Fails failed at step .*goes on"
    ) as caught:
        ps.train(config, observers=(bad, good), out=tmp_path / "watched")
    assert len(caught) == 1
    assert bad.calls == after + 1
    assert "of its own making" in str(caught[0].message)
    assert good.rows[-1].step == config.steps - 1
    assert final(tmp_path / "watched") == final(tmp_path / "alone")


def test_the_warning_says_where():
    seen = []

    def notes(event):
        seen.append(event)
        if event.op == "matmul":
            raise KeyError(event.path)

    with pytest.warns(
        RuntimeWarning, match=r"observer notes \(.*test_guard.py:\d+\) failed"
    ) as caught:
        ps.train(tiny(steps=2), observers=(notes,))
    place = f"failed at step {seen[-1].step}, op {seen[-1].path}: KeyError"
    assert place in str(caught[0].message)


def test_replay_and_resume_and_fork_are_guarded_too(tmp_path):
    run = ps.train(tiny(), out=tmp_path / "run")
    with pytest.warns(RuntimeWarning, match="Fails failed at step 3"):
        assert run.replay(3, observers=(Fails(),)).compared > 0
    with pytest.warns(RuntimeWarning, match="Fails failed at step"):
        fork = run.fork(2, tmp_path / "fork", observers=(Fails(),))
    assert fork.steps["loss"].tobytes() == run.steps["loss"][2:].tobytes()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, Breakpoint])
def test_what_means_to_end_the_run_does(error):
    with pytest.raises(error):
        ps.train(tiny(), observers=(Fails(error=error),))


def test_breakpoints_of_step_are_no_failure():
    config = tiny(policy="e4m3", loss_scale="static:1e-06")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stopped = walk(config, load("zen"), stop=True)
    whole = walk(config, load("zen"))
    assert 0 < len(stopped) < len(whole)
    assert [op.counts.path for op in stopped] == [op.counts.path for op in whole[: len(stopped)]]


def test_outside_of_a_run_an_observer_fails_as_any_code_does():
    with ps.using(observers=[Fails(0)]), pytest.raises(ZeroDivisionError):
        ps.tensor([1.0]) * 2


def test_names():
    class Watcher:
        def look(self, event):
            pass

    def plain(event):
        pass

    place = r" \((tests/)?test_guard.py:\d+\)"
    assert re.fullmatch("plain" + place, name_of(plain))
    assert re.fullmatch("Watcher.look" + place, name_of(Watcher().look))
    assert re.fullmatch("<lambda>" + place, name_of(lambda e: None))
    assert name_of([].append) == "list.append"
    assert name_of(functools.partial(plain)) == "functools.partial"
    assert name_of(ps.Counters()) == "precsim.observe.counters.Counters"


def test_a_guard_is_not_guarded_again():
    from precsim.observe.guard import guarded

    one = Guard(print)
    assert guarded([one]) == (one,)
