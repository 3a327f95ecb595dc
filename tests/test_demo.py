"""The demo, in small: what it trains, what it says, and that nothing is left of it after Ctrl-C."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

import precsim as ps
from precsim import demo
from precsim.cli import main
from precsim.observe.counters import LOWEST
from precsim.runs.data import load
from precsim.show import plot

RECIPES = ("fp32", "fp16")


@pytest.fixture(scope="module")
def config():
    return demo.configure(8, "zen")


@pytest.fixture(scope="module")
def corpus():
    return load("zen")


@pytest.fixture(scope="module")
def outcomes(config, corpus):
    return {name: demo.compute(name, config, corpus, lambda message: None) for name in RECIPES}


def test_a_run_of_the_demo_is_a_run_like_any_other(outcomes, config, corpus):
    for name, outcome in outcomes.items():
        run = ps.train(config.change(**ps.RECIPES[name].settings()), corpus=corpus)
        assert outcome.losses == [record.loss for record in run.records]
        assert outcome.summary.valid_loss == run.valid_loss()
        assert outcome.summary.flushed == pytest.approx(
            np.mean([r.flushed for r in run.records[:: demo.COUNTED_EVERY]]), abs=0.05
        )


def test_the_histogram_is_that_of_the_gradients_before_rounding(outcomes):
    counts = np.array(outcomes["fp32"].histogram)
    exponents = LOWEST + np.flatnonzero(counts > counts.sum() / 1000)
    assert -60 < exponents.min() < exponents.max() < -12  # a loss divided by 2^12
    assert counts.sum() > 10_000


def test_fp16_loses_gradients_and_its_verdict_says_so(outcomes):
    flushed = outcomes["fp16"].summary.flushed
    assert flushed > 0.3
    assert f"{flushed:.0%} of its gradients underflow" in demo.verdicts(outcomes)["fp16"]
    assert outcomes["fp16"].summary.trouble.path.startswith("gradients/")


def test_what_the_loss_hides_is_counted_in_the_histogram(outcomes, config):
    text = demo.hidden(config, outcomes)
    assert "4096 times larger" in text
    assert re.search(r"flush (<?[0-9.]+%) of them", text)


def test_the_title_names_those_that_do_not_learn(outcomes):
    assert demo.headline(outcomes) == "All 2 precisions learn"
    worse = replace(outcomes["fp16"], summary=replace(outcomes["fp16"].summary, valid_loss=9.0))
    assert demo.headline({**outcomes, "fp16": worse}) == "All learn but fp16, no loss scaling"
    lost = dict.fromkeys(("fp16", "bf16", "fp8"), worse)
    assert demo.headline({**outcomes, **lost}) == "3 of 4 precisions do not learn"


def test_the_labels_of_the_curves_are_the_losses_of_the_table(outcomes, config, tmp_path):
    paths = demo.figures(config, outcomes, tmp_path)
    figure = plot.redraw(next(path for path in paths if path.name == "demo_loss.json"))
    said = " ".join(text.get_text() for axes in figure.axes for text in axes.texts)
    low, high = sorted(outcome.summary.loss for outcome in outcomes.values())
    assert f"all 2, see below\n{low:.3f} to {high:.3f}" in said


def test_one_step_is_one(config, corpus):
    assert ": 1 step of 16 x 32 bytes" in demo.describe(config.change(steps=1), corpus)[0]
    assert ": 8 steps of" in demo.describe(config, corpus)[0]


def test_samples_begin_with_the_prompt_where_the_text_has_its_letters(outcomes, config, tmp_path):
    assert outcomes["fp32"].sample.startswith("The ")
    file = tmp_path / "digits.txt"
    file.write_text("0123456789" * 100)
    text = load(file)
    outcome = demo.compute("fp32", config.change(steps=1), text, lambda message: None)
    assert set(outcome.sample) <= set("0123456789")


def test_one_process_at_a_time_gives_the_same_bits(config, corpus, outcomes):
    told = []
    found = demo.run_all(config, corpus, told.append, recipes=("fp16",), processes=1)
    assert found["fp16"].losses == outcomes["fp16"].losses
    assert [(p.recipe, p.done) for p in told] == [("fp16", 5), ("fp16", 8)]


def test_the_whole_demo(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stopped:
        main(["demo", "--steps", "4", "--text", "zen", "-o", str(tmp_path)])
    out, err = capsys.readouterr()
    assert not stopped.value.code
    for name in demo.SHOWN:
        assert out.count(ps.RECIPES[name].title) >= 3  # table, verdict, sample
        assert f"{ps.RECIPES[name].title}: step 4 of 4" in err
    assert "micro_batches = 4096" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "demo_gradients.json", "demo_gradients.png", "demo_gradients.svg",
        "demo_loss.json", "demo_loss.png", "demo_loss.svg",
    ]  # fmt: skip


def test_the_demo_for_programs(outcomes, config, corpus):
    found = json.loads(json.dumps(demo.to_dict(config, corpus, outcomes, []), allow_nan=False))
    assert found["runs"]["fp16"]["verdict"] == demo.verdicts(outcomes)["fp16"]
    assert found["corpus"]["sha256"] == corpus.sha256


@pytest.mark.skipif(os.name == "nt", reason="process groups as on Unix")
@pytest.mark.parametrize("moment", ["A GPT", ": step"])  # while processes start, and later
def test_ctrl_c_leaves_no_process(tmp_path, moment):
    command = [sys.executable, "-m", "precsim", "demo", "--text", "zen", "-o", str(tmp_path)]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        line = ""
        while moment not in line:
            line = child.stderr.readline()
            assert line or child.poll() is None
        os.killpg(child.pid, signal.SIGINT)  # as a terminal does: to all of them
        out, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert out == ""
    assert err.splitlines()[-1] == "precsim: interrupted"
    assert "Traceback" not in err
    for _ in range(50):  # the tracker of multiprocessing ends when it finds its pipe closed
        try:
            os.killpg(child.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("a process is left")


@pytest.mark.skipif(os.name == "nt", reason="signals as on Unix")
def test_a_run_that_is_killed_is_reported(config, corpus):
    def kill(message):
        for process in demo.multiprocessing.active_children():
            os.kill(process.pid, signal.SIGKILL)

    long = config.change(steps=100_000)
    with pytest.raises(demo.DemoError, match=r"fp32 run was killed \(exit code -9\)"):
        demo.run_all(long, corpus, kill, recipes=("fp32",))
    assert demo.multiprocessing.active_children() == []


def test_a_run_that_fails_is_reported_with_its_place(config, corpus):
    with pytest.raises(demo.DemoError, match=r"(?s)Traceback.*too short for a context of 200"):
        demo.run_all(config.change(context=200), corpus, print, recipes=("fp32", "bf16"))
    assert demo.multiprocessing.active_children() == []
