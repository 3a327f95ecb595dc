"""`precsim watch`: what it shows, where there is a terminal and where there is none, and its end."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from io import StringIO

import pytest
from rich.console import Console
from tiny_runs import tiny

import precsim as ps
from precsim.runs.follow import Follower, State
from precsim.show import watching
from precsim.show.watching import Speed, curve, line, page, worth_a_line

LONG = ["--set", "data=zen", "--set", "layers=1", "--set", "width=8", "--set", "heads=1", "--set",
        "context=8", "--set", "batch=1", "--steps", "100000", "--set", "checkpoint_every=50"]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("watched") / "fine"
    policy = "gradients=fp16 weight_gradients=fp16"
    return ps.train(
        tiny(policy=policy, loss_scale="dynamic:1e9:4", steps=12, observe="hist"), out=folder
    )


def shown(run, width=100, height=40, encoding="utf-8", state=None):
    follower = Follower(run.path)
    follower.poll()
    follower.state = state or follower.state
    speed = Speed()
    speed.see(0)
    speed.see(follower.reached)
    out = StringIO()
    out_console = Console(file=out, width=width, height=height, color_system=None)
    out_console._encoding = encoding  # as a terminal that has no more letters
    out_console.print(page(follower, speed, "fine", "fp16", out_console))
    return out.getvalue()


def test_the_page_has_the_numbers_of_the_run(run):
    text = shown(run)
    last = run.records[-1]
    mean = sum(r.loss for r in run.records) / 12
    assert "step 12 of 12" in text
    for number in (f"{mean:.4f}", f"{last.valid_loss:.4f}", f"{last.grad_norm:.3g}"):
        assert number in text
    skipped = sum(r.skipped for r in run.records)
    assert re.search(rf"skipped\n.* {skipped} *\n", text)
    assert text.count("x") >= skipped
    assert "finished" in text


def test_updates_that_bf16_swamps_are_among_what_is_lost(tmp_path):
    """Half a step of a gain of 1 is 2^-9, and an update of it is 1e-5."""
    run = ps.train(tiny(policy="bf16", lr=1e-5, observe="counts"), out=tmp_path / "run")
    for width in (80, 100):
        assert re.search(r"weights/\S*ln\S*.weight/apply_update .* 100%", shown(run, width))


@pytest.mark.parametrize("size", [(100, 40), (80, 24), (60, 12), (40, 10)])
def test_the_page_fits(run, size):
    width, height = size
    lines = shown(run, width, height).splitlines()
    assert max(map(len, lines)) <= width
    if height > 20:
        assert len(lines) <= height


def test_a_terminal_without_blocks_gets_plain_letters():
    columns = curve([5.0, 4.0, 3.0], 40, "", height=3, plain=True)
    text = "\n".join(str(part) for part in columns)
    assert text.isascii()
    assert "5.000" in text.splitlines()[0]
    assert "3.000" in text.splitlines()[-1]


def test_the_curve_is_as_high_as_its_values():
    (row,) = curve([0.0, 1.0, 2.0, 4.0, float("nan")], 40, "", height=1, plain=False)
    drawn = str(row)[9:]
    levels = [
        "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588".index(letter) + 1 for letter in drawn[:4]
    ]
    assert levels[0] == 1
    assert levels[3] == 8
    assert levels == sorted(levels)
    assert drawn[4] == " "
    assert "no loss is a number" in str(curve([float("nan")], 40, "", height=3, plain=False)[0])
    many = curve(list(map(float, range(1000))), 40, "", height=2, plain=False)
    assert all(len(str(part)) <= 40 for part in many)


def test_which_steps_get_a_line_and_what_it_says(run):
    told = [r.step for r in run.records if worth_a_line(r, 1000)]
    assert told == []
    every = [s for s in range(1000) if worth_a_line(run.records[0].__class__(
        **{**run.records[0].to_dict(), "step": s}), 1000)]  # fmt: skip
    assert every == list(range(49, 1000, 50))
    first = line(run.records[0], 12)
    assert first.startswith(f"step 1 of 12: loss {run.records[0].loss:.4f}")
    assert first.endswith(", skipped")


def watch(*words, **kwargs):
    command = [sys.executable, "-m", "precsim", "watch", *map(str, words)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs
    )


def test_a_finished_run_in_lines_and_in_json(run):
    process = watch(run.path, "--every", "0.05")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert f"step 12 of 12: loss {run.records[-1].loss:.4f}" in out
    assert "finished" in err
    process = watch(run.path, "--json", "--every", "0.05")
    out, err = process.communicate(timeout=60)
    steps = [json.loads(text) for text in out.splitlines()]
    assert [s["step"] for s in steps] == list(range(12))
    assert [s["loss"] for s in steps] == [r.loss for r in run.records]


def test_no_run_is_a_sentence(tmp_path):
    process = watch(tmp_path / "nothing")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "no directory" in err
    assert "Traceback" not in err


def test_a_run_that_diverged_is_a_finding(tmp_path):
    dead = ps.train(tiny(policy="e4m3", lr=1e9, steps=5), out=tmp_path / "dead")
    assert dead.died_at is not None
    process = watch(tmp_path / "dead", "--every", "0.05")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "no longer finite" in err


@pytest.fixture
def training(tmp_path):
    """A training in a process of its own, which goes on until it is told to stop."""
    folder = tmp_path / "live"
    command = [sys.executable, "-m", "precsim", "train", *LONG, "-o", str(folder), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    steps = folder / "steps.jsonl"  # with its first line the run has begun, and minds Ctrl-C
    while not (steps.exists() and steps.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.1)
    yield folder, process
    if process.poll() is None:
        process.kill()
    process.wait()


def test_ctrl_c_ends_the_watching_and_not_the_training(training):
    folder, process = training
    watcher = watch(folder, "--json", "--every", "0.05")
    assert json.loads(watcher.stdout.readline())["step"] == 0
    watcher.send_signal(signal.SIGINT)
    _, err = watcher.communicate(timeout=60)
    assert watcher.returncode == 130
    assert "Traceback" not in err
    assert process.poll() is None


def test_watching_ends_when_the_training_is_stopped(training):
    folder, process = training
    watcher = watch(folder, "--every", "0.05")
    process.send_signal(signal.SIGINT)
    process.wait(timeout=60)
    _, err = watcher.communicate(timeout=60)
    assert watcher.returncode == 0
    assert f"precsim resume {folder}" in " ".join(err.split())


def test_watching_ends_when_the_training_is_killed(training):
    folder, process = training
    watcher = watch(folder, "--every", "0.05")
    process.kill()
    process.wait(timeout=60)
    _, err = watcher.communicate(timeout=60)
    assert watcher.returncode == 1
    assert "its process is gone" in " ".join(err.split())


def test_on_a_terminal_the_page_is_drawn_in_place(run):
    screen, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}
    command = [sys.executable, "-m", "precsim", "watch", str(run.path), "--every", "0.05"]
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    seen = b""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and select.select([screen], [], [], 20)[0]:
        try:
            part = os.read(screen, 65536)
        except OSError:  # the other end is closed
            break
        seen += part
    os.close(screen)
    assert process.wait(timeout=60) == 0
    text = seen.decode()
    assert "\x1b[?25l" in text  # the cursor goes ...
    assert "\x1b[?25h" in text  # ... and comes back
    assert "step 12 of 12" in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def test_endings_name_the_way_on(run):
    follower = Follower(run.path)
    follower.poll()
    for state in State:
        if state is not State.RUNNING:
            follower.state = state
            assert watching.ending(follower).startswith("step 12 of 12: ")
