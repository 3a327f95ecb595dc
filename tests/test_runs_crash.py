"""The process dies, or the disk is full, at any moment: the run goes on with the same bits."""

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from tiny_runs import Stop, final, hashes, tiny

import precsim as ps
from precsim.runs import files
from precsim.runs.check import check
from precsim.runs.files import DiskFullError, RunError


class Dying:
    """Stands for `os`: the n-th call that changes the disk does half its work and never returns."""

    CHANGES = ("write", "fsync", "replace", "unlink", "ftruncate")

    def __init__(self, n, error=None):
        self.left = n
        self.error = error or Stop()
        self.calls = 0

    def __getattr__(self, name):
        real = getattr(os, name)
        return self._wrap(name, real) if name in self.CHANGES else real

    def _wrap(self, name, real):
        def call(*arguments):
            self.calls += 1
            if self.calls == self.left and name == "write":
                real(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
            if self.left and self.calls >= self.left:
                raise self.error
            return real(*arguments)

        return call


def count_changes(config, folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(files, "os", counter := Dying(0))
        ps.train(config, out=folder)
    return counter.calls


def some(quick):
    """Mark a test to run on every `quick`-th case, and on every single one if slow tests are run."""
    return pytest.mark.parametrize("stride", [quick, pytest.param(1, marks=pytest.mark.slow)])


@some(quick=7)
def test_whatever_change_of_the_disk_is_the_last_the_run_goes_on(stride, tmp_path, monkeypatch):
    config = tiny(steps=4, optimizer="sgd", max_trace=9_000, observe="tensors:gradients/head/*")
    changes = count_changes(config, tmp_path / "whole", monkeypatch)
    expected = final(tmp_path / "whole")
    assert changes > 60
    for n in range(1, changes + 1, stride):
        folder = tmp_path / str(n)
        with monkeypatch.context() as patch:
            patch.setattr(files, "os", Dying(n))
            with pytest.raises(Stop):
                ps.train(config, out=folder)
        if not (folder / "manifest.json").exists():
            with pytest.raises(RunError, match=r"is no run: it has no manifest"):
                ps.resume(folder)
            continue
        report = check(folder)
        assert report.ok, (n, report.problems)
        run = ps.open(folder)
        assert len(run.records) <= 4
        assert len(run.ops()) >= 0
        ps.resume(folder)
        assert final(folder) == expected, n
        report = check(folder)
        assert (report.ok, report.notes, report.finished) == (True, [], True), n


@some(quick=11)
def test_whenever_the_disk_is_full_the_run_says_so_and_goes_on(stride, tmp_path, monkeypatch):
    config = tiny(steps=4, optimizer="sgd")
    changes = count_changes(config, tmp_path / "whole", monkeypatch)
    for n in range(1, changes, stride):
        folder = tmp_path / str(n)
        with monkeypatch.context() as patch:
            patch.setattr(files, "os", Dying(n, OSError(28, "No space left on device")))
            with pytest.raises(DiskFullError, match="no room on the disk for") as caught:
                ps.train(config, out=folder)
        assert "\n" not in str(caught.value)
        if (folder / "ckpt").exists():
            assert f"make room, then `precsim resume {folder}`" in str(caught.value)
        if (folder / "manifest.json").exists():
            assert check(folder).ok
            ps.resume(folder)
            assert final(folder) == final(tmp_path / "whole")


def test_a_full_file_system_for_real(tmp_path):
    """On a small file system of its own, where this user may make one."""
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", str(small)]
    if (
        sys.platform != "linux"
        or subprocess.run(mount, check=False, capture_output=True).returncode
    ):
        pytest.skip("no right to mount a file system")
    try:
        with pytest.raises(DiskFullError, match="make room, then"):
            ps.train(tiny(steps=12), out=small / "run")
        subprocess.run(["mount", "-o", "remount,size=8m", str(small)], check=True)
        ps.resume(small / "run")
        ps.train(tiny(steps=12), out=tmp_path / "whole")
        assert final(small / "run") == final(tmp_path / "whole")
    finally:
        subprocess.run(["umount", str(small)], check=True)


PROGRAM = """
import sys, json
sys.path.insert(0, sys.argv[2])
import precsim as ps
if sys.argv[3] == "resume":
    ps.resume(sys.argv[1])
else:
    ps.train(ps.TrainConfig(**json.loads(sys.argv[3])), out=sys.argv[1])
"""


def start(folder, what):
    root = os.path.dirname(os.path.dirname(ps.__file__))
    command = [sys.executable, "-c", PROGRAM, str(folder), root, what]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def wait_for(path, seconds=60):
    for _ in range(seconds * 100):
        if path.exists():
            return
        time.sleep(0.01)
    raise TimeoutError(path)


def kill_and_resume(config, folder, kills, seed):
    """Kill a run again and again, at moments of its life that chance picks, until it is over."""
    chance = random.Random(seed)
    what, killed = ps.runs.lines.dump(config.to_dict()), 0
    while True:
        process = start(folder, what)
        if killed < kills:
            wait_for(folder / "LOCK")
            time.sleep(chance.uniform(0, 0.4))
            process.kill()
        _, errors = process.communicate()
        if process.returncode == 0:
            return killed
        assert process.returncode == -signal.SIGKILL, errors
        killed += 1
        what = "resume" if (folder / "manifest.json").exists() else what


@pytest.mark.parametrize("kills", [4, pytest.param(30, marks=pytest.mark.slow)])
def test_kill_9_at_random_moments(kills, tmp_path):
    config = tiny(steps=60, checkpoint_every=7, policy="activations=e4m3:stochastic")
    ps.train(config, out=tmp_path / "whole")
    total = 0
    for seed in range(100):
        total += kill_and_resume(config, tmp_path / str(seed), kills - total, seed)
        assert final(tmp_path / str(seed)) == final(tmp_path / "whole")
        assert np.array_equal(hashes(tmp_path / str(seed)), hashes(tmp_path / "whole"))
        if total >= kills:
            break
    assert total >= kills
