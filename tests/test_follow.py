"""Following a run that is written meanwhile: nothing that can happen to its files is an error."""

import errno
import os
import shutil
import socket
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
from tiny_runs import Stop, tiny

import precsim as ps
from precsim.runs.files import DamagedError, RunError
from precsim.runs.follow import Follower, State
from precsim.runs.lines import encode_line
from precsim.runs.lock import NAME as LOCK
from precsim.runs.lock import Lock
from precsim.runs.store import STEPS, rewind


@pytest.fixture
def run(tmp_path):
    return ps.train(tiny(steps=6, observe="hist"), out=tmp_path / "run")


def looking(folder):
    """Poll after every step of a training, from its own process, as another one would."""
    seen, states = [], []
    followers = []

    def look(record, rows):
        if not followers:
            followers.append(Follower(folder))
        seen.append([r.step for r in followers[0].poll()])
        states.append(followers[0].state)

    return look, seen, states, followers


def test_each_step_is_seen_once_while_the_run_goes_on(tmp_path):
    look, seen, states, followers = looking(tmp_path)
    run = ps.train(tiny(steps=6), out=tmp_path, on_step=look)
    (follower,) = followers
    assert set(states) == {State.RUNNING}
    assert [*chain.from_iterable(seen)] == [0, 1, 2, 3, 4]  # a step is told before it is written
    assert [r.step for r in follower.poll()] == [5]
    assert follower.state is State.FINISHED
    assert follower.records == run.records
    assert follower.poll() == []


@pytest.mark.parametrize("cut", [1, 20, 200])
def test_a_line_that_is_half_written_is_waited_for(run, cut):
    steps = run.path / STEPS
    whole = steps.read_bytes()
    steps.write_bytes(whole[:-cut])
    follower = Follower(run.path)
    assert len(follower.poll()) == 5 - whole[-cut:-1].count(b"\n")
    with steps.open("ab") as file:
        file.write(whole[-cut:])
    follower.poll()
    assert follower.records == run.records


def test_a_run_that_is_rewound_is_read_from_its_start_again(run):
    follower = Follower(run.path)
    follower.poll()
    rewind(run.path, 2, 2)
    assert [r.step for r in follower.poll()] == [0, 1]
    assert follower.restarts == 1
    assert follower.reached == 2
    assert follower.state is State.INTERRUPTED
    ps.resume(run.path)
    follower.poll()
    assert follower.records == run.records
    assert follower.state is State.FINISHED


def test_a_run_that_is_begun_again_is_another_one(run):
    follower = Follower(run.path)
    follower.poll()
    ps.train(tiny(steps=3, seed=7), out=run.path, force=True)
    new = follower.poll()
    assert [r.step for r in new] == [0, 1, 2]
    assert follower.config.seed == 7
    assert follower.restarts == 1


def test_a_file_that_is_away_for_a_moment_is_waited_for(run):
    follower = Follower(run.path)
    follower.poll()
    with Lock(run.path):
        away = run.path.with_name("away")
        (run.path / "manifest.json").rename(away)
        assert follower.poll() == []
        away.rename(run.path / "manifest.json")
        assert follower.state is not State.KILLED or follower.poll() == []
    assert follower.records == run.records


def test_a_line_that_stays_damaged_is_an_error(run):
    steps = run.path / STEPS
    data = bytearray(steps.read_bytes())
    data[len(data) // 2] ^= 1
    steps.write_bytes(data)
    with pytest.raises(DamagedError):
        Follower(run.path).poll()


def test_no_run(tmp_path):
    with pytest.raises(RunError, match="no directory"):
        Follower(tmp_path / "nothing")
    with pytest.raises(RunError, match="is no run"):
        Follower(tmp_path)


def test_how_a_run_ended(tmp_path):
    dead = ps.train(tiny(policy="e4m3", lr=1e9, steps=5), out=tmp_path / "dead")
    assert dead.died_at is not None
    follower = Follower(tmp_path / "dead")
    follower.poll()
    assert follower.state is State.DIVERGED

    def stop(record, rows):
        if record.step == 3:
            raise Stop

    with pytest.raises(Stop):
        ps.train(tiny(), out=tmp_path / "killed", on_step=stop)
    # the lock of a process that is gone: one that has ended, and was waited for
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                          capture_output=True, check=True, text=True)  # fmt: skip
    lock = tmp_path / "killed" / LOCK
    assert lock.exists()
    lock.write_bytes(encode_line({"pid": int(gone.stdout), "host": socket.gethostname()}))
    follower = Follower(tmp_path / "killed")
    follower.poll()
    assert follower.state is State.KILLED
    lock.write_bytes(encode_line({"pid": os.getpid(), "host": socket.gethostname()}))
    follower.poll()
    assert follower.state is State.RUNNING


def test_until_end_ends_after_the_last_step(run):
    seen = [r.step for new in Follower(run.path).until_end(0.01) for r in new]
    assert seen == list(range(6))


def test_the_worst_ops_are_those_of_the_newest_recorded_step(run):
    follower = Follower(run.path)
    follower.poll()
    step, ops = follower.ops
    assert step == 5
    assert ops["flushed"].tolist() == run.ops(5)["flushed"].tolist()
    flushing = ps.train(
        tiny(policy="gradients=e4m3", loss_scale="static:0.001"), out=run.path.with_name("low")
    )
    follower = Follower(flushing.path)
    follower.poll()
    ops = flushing.ops(4)
    shares = sorted(ops["flushed_share"][ops["flushed"] > 0].tolist(), reverse=True)
    assert [row.flushed_share for row in follower.worst(3)] == shares[:3]
    assert follower.trouble == str(flushing.trouble)


def test_following_writes_nothing(run):
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in run.path.rglob("*")}
    copy = run.path.with_name("copy")
    shutil.copytree(run.path, copy)
    list(Follower(run.path).until_end(0.01))
    assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in run.path.rglob("*")} == before


def test_steps_that_cannot_be_read_are_an_error_in_one_sentence(tmp_path, monkeypatch):
    ps.train(tiny(steps=2), out=tmp_path / "run")
    follower, opened = Follower(tmp_path / "run"), Path.open

    def refuse(self, *args, **options):
        if self.name == "steps.jsonl":
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return opened(self, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(RunError, match=r"run/steps\.jsonl cannot be read: Permission denied"):
        follower.poll()
