"""A search that is interrupted goes on from what it had tried, and answers what it would have."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest

import precsim as ps
from precsim.analyse import search as searching
from precsim.analyse import trials
from precsim.analyse.moment import relative_error
from precsim.analyse.recorded import moment_at
from precsim.analyse.trials import Trials
from precsim.runs.config import read

E4M3 = (
    "weights=fp32 activations=fp32 gradients=e4m3:saturate weight_gradients=e4m3:saturate loss=fp32"
)
CONFIG = ps.TrainConfig(
    data="reverse", layers=1, heads=1, width=8, context=16, batch=2, steps=3, eval_every=3,
    checkpoint_every=2, policy=E4M3, micro_batches=64,
)  # fmt: skip


@pytest.fixture
def run(tmp_path):
    return ps.train(CONFIG, out=tmp_path / "run")


class Enough(Exception):
    pass


def stop_after(count):
    def listen(number, _high):
        if number == count:
            raise Enough

    return listen


def test_a_search_that_was_stopped_goes_on_with_the_same_answer_and_fewer_steps(run):
    moment = moment_at(run, 1)
    whole = searching.search(moment, 0.3)
    with Trials(run.path, moment) as known, pytest.raises(Enough):
        searching.search(moment, 0.3, known=known, on_trial=stop_after(9))
    with Trials(run.path, moment) as known:
        assert known.found == 9
        rest = searching.search(moment, 0.3, known=known)
    assert (rest.keep, rest.error, rest.policy) == (whole.keep, whole.error, whole.policy)
    assert rest.evaluations == whole.evaluations - 9
    with Trials(run.path, moment) as known:
        assert searching.search(moment, 0.3, known=known).evaluations == 0
    with Trials(run.path, moment, fresh=True) as known:
        assert searching.search(moment, 0.3, known=known).evaluations == whole.evaluations


def test_answers_belong_to_one_question(run):
    moment = moment_at(run, 1)
    with Trials(run.path, moment) as known:
        known[frozenset({"a"})] = 0.25
    others = [
        (moment.at(scale=2.0), "fp64"),
        (moment.at(step=2), "fp64"),
        (moment.at(policy=ps.Policy.parse("bf16")), "fp64"),
        (moment.at(parameters={n: w * 2 for n, w in moment.parameters.items()}), "fp64"),
        (moment.at(x=moment.y), "fp64"),
        (moment, "fp32"),
    ]
    for other, to in others:
        with Trials(run.path, other, to) as known:
            assert known.found == 0
    with Trials(run.path, moment_at(run, 1)) as known:
        assert known.get(frozenset({"a"})) == 0.25
        assert known.get(frozenset({"a", "b"})) is None


def test_what_other_rules_found_is_no_answer(run, monkeypatch):
    moment = moment_at(run, 1)
    with Trials(run.path, moment) as known:
        known[frozenset({"a"})] = 0.25
    monkeypatch.setattr(trials, "EDITION", trials.EDITION + 1)
    with Trials(run.path, moment) as known:
        assert known.found == 0


def test_errors_come_back_to_the_bit_and_damage_is_no_answer(run):
    moment = moment_at(run, 1)
    errors = [0.1, 1 / 3, np.nextafter(1, 2), float("inf")]
    with Trials(run.path, moment) as known:
        for n, error in enumerate(errors):
            known[frozenset({str(n)})] = error
    path = run.path / "search.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    with Trials(run.path, moment) as known:
        assert [known.get(frozenset({str(n)})) for n in range(4)] == errors
    lines[1] = lines[1].replace(b"0.33", b"0.32")
    path.write_bytes(b"".join(lines)[:-5])
    with Trials(run.path, moment) as known:
        assert [known.get(frozenset({str(n)})) for n in range(4)] == [
            errors[0],
            None,
            errors[2],
            None,
        ]


def test_check_passes_over_the_file_and_force_removes_it(run):
    with Trials(run.path, moment_at(run, 1)) as known:
        known[frozenset()] = 1.0
    from precsim.runs.check import check

    assert check(run.path).ok
    ps.train(CONFIG, out=run.path, force=True)
    assert not (run.path / "search.jsonl").exists()


def test_another_tolerance_starts_from_what_is_known(run, call):
    code, out, _ = call("search", run.path, "--step", 1, "--tol", 0.3, "--json")
    assert code == 0
    first = json.loads(out)
    again = json.loads(call("search", run.path, "--step", 1, "--tol", 0.3, "--json")[1])
    assert again == first | {"evaluations": 0}
    alone = json.loads(call("search", run.path, "--step", 1, "--tol", 0.5, "--fresh", "--json")[1])
    other = json.loads(call("search", run.path, "--step", 1, "--tol", 0.5, "--json")[1])
    assert other["keep"] == alone["keep"]
    assert alone["evaluations"] > 0 == other["evaluations"]


def test_the_policy_that_is_written_trains_and_meets_the_tolerance(run, call, tmp_path):
    file = tmp_path / "kept.toml"
    words = ("search", run.path, "--step", 1, "--tol", 0.3, "--high", "fp32", "-o", file)
    code, out, err = call(*words)
    assert code == 0
    assert f"try `precsim train {file}`" in err
    config = ps.TrainConfig().change(**read(file))
    assert config == run.config.change(policy=config.policy)
    printed = out.splitlines()[-1].removeprefix("policy = ").strip('"')
    assert str(ps.Policy.parse(printed)) == config.policy
    moment = moment_at(run, 1)
    assert relative_error(moment.gradients(config.policy), moment.reference()) <= 0.3
    assert "output=fp32" in config.policy
    assert call("train", file, "--json")[0] == 0
    code, _, err = call(*words[:-4], "--high", "fp17")
    assert code == 2
    assert "fp17" in err


def test_ctrl_c_says_how_to_go_on(run, call, monkeypatch):
    def interrupted(*_args, **_named):
        raise KeyboardInterrupt

    monkeypatch.setattr(searching, "search", interrupted)
    code, _, err = call("search", run.path, "--step", 1, "--tol", 0.3)
    assert code == 130
    assert "the same command goes on" in err


def test_a_real_ctrl_c_leaves_trials_that_the_next_search_uses(run):
    program = (
        "import os, signal, sys\n"
        "from precsim.analyse import trials\n"
        "from precsim.cli import main\n"
        "keep = trials.Trials.__setitem__\n"
        "def kept(self, sites, error):\n"
        "    keep(self, sites, error)\n"
        "    self.seen = getattr(self, 'seen', 0) + 1\n"
        "    if self.seen == 5: os.kill(os.getpid(), signal.SIGINT)\n"
        "trials.Trials.__setitem__ = kept\n"
        "main(sys.argv[1:])\n"
    )
    words = ["search", str(run.path), "--step", "1", "--tol", "0.3"]
    stopped = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert stopped.returncode == 130, stopped.stderr
    assert "the same command goes on" in stopped.stderr
    with Trials(run.path, moment_at(run, 1)) as known:
        assert known.found == 5


@pytest.mark.filterwarnings("default")
def test_a_run_that_cannot_be_written_is_searched_all_the_same(run, call):
    (run.path / "search.jsonl").mkdir()
    code, out, err = call("search", run.path, "--step", 1, "--tol", 0.5, "--op", "gradients/*")
    assert code == 0
    assert "what is tried is not kept" in err
    assert "policy = " in out
