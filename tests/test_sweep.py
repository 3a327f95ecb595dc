"""A sweep: the grid is what was asked for, and each cell is the run that one call would give."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import Stop, final, tiny

import precsim as ps
from precsim.runs.config import ConfigError
from precsim.runs.data import DataError
from precsim.runs.files import RunError
from precsim.runs.grid import MOST, Grid, parse_over, parse_seeds, shown
from precsim.runs.lock import Lock
from precsim.runs.store import SWEEP
from precsim.runs.sweep import SweepInterrupted
from precsim.runs.sweep_results import Outcome, Sweep

OVER = {"recipe": ["fp32", "fp16_scaled"], "lr": [0.001, 0.003]}


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweeps") / "lr"
    return ps.sweep(tiny(), over=OVER, seeds=range(2), out=folder)


def press(monkeypatch, at):
    """Press Ctrl-C in the step of the sweep with this number, counted from 0 over all runs."""
    note, count = ps.Run.note, itertools.count()

    def pressed(self, *arguments):
        if next(count) == at:
            os.kill(os.getpid(), signal.SIGINT)
        return note(self, *arguments)

    monkeypatch.setattr(ps.Run, "note", pressed)


def test_the_grid_by_hand():
    grid = Grid.of(tiny(), OVER, range(2))
    assert [cell.name for cell in grid.cells] == [
        "fp32-lr=0.001-seed=0", "fp32-lr=0.003-seed=0",
        "fp16_scaled-lr=0.001-seed=0", "fp16_scaled-lr=0.003-seed=0",
        "fp32-lr=0.001-seed=1", "fp32-lr=0.003-seed=1",
        "fp16_scaled-lr=0.001-seed=1", "fp16_scaled-lr=0.003-seed=1",
    ]  # fmt: skip
    cell = grid.cells[-1]
    scaled = ps.recipe("fp16_scaled").settings()
    assert cell.config == tiny().change(**scaled, lr=0.003, seed=1)
    assert cell.title == "fp16_scaled, lr=0.003, seed 1"
    assert str(grid) == "2 recipes x 2 lr x 2 seeds"
    assert [point for point in grid.points if point[0] == "fp32"] == [
        ("fp32", {"lr": 0.001}), ("fp32", {"lr": 0.003}),
    ]  # fmt: skip


def test_two_numbers_and_what_wins():
    over = {"recipe": ["fp16_scaled"], "loss_scale": [1024, "dynamic"], "width": np.array([4, 8])}
    cells = Grid.of(tiny(), over, [7], fixed={"lr": 0.5, "eps": 0.1}).cells
    assert [(c.config.loss_scale, c.config.width) for c in cells] == [
        ("static:1024", 4), ("static:1024", 8), ("dynamic", 4), ("dynamic", 8),
    ]  # fmt: skip
    assert {(c.config.lr, c.config.eps, c.config.seed) for c in cells} == {(0.5, 0.1, 7)}
    assert cells[0].name == "fp16_scaled-loss_scale=1024-width=4-seed=7"
    (msamp,) = Grid.of(tiny(), {"recipe": ["msamp_O1"]}, fixed={"optimizer": "sgd"}).cells
    assert (msamp.config.optimizer, msamp.config.policy) == (
        "sgd", str(ps.recipe("msamp_O1").policy),
    )  # fmt: skip


def test_names_are_safe_and_no_two_are_the_same():
    policies = ["activations=fp16 gradients=fp16", "activations=fp16/gradients=fp16", "bf16"]
    with pytest.raises(ConfigError, match="policy"):
        Grid.of(tiny(), {"policy": policies})
    policies[1] = "activations=fp16  gradients=fp16"
    names = [cell.name for cell in Grid.of(tiny(), {"policy": policies}).cells]
    assert len(set(names)) == 3
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_.=-") for name in names)
    values = [1e-05, 0.1 + 0.2, 1.0, 65536.0, True, "static:3", 7]
    assert [shown(value) for value in values] == [
        "1e-05", "0.30000000000000004", "1", "65536", "true", "static:3", "7",
    ]  # fmt: skip


def test_a_cell_has_the_bits_of_a_single_run(swept, tmp_path):
    for cell in swept.grid.cells[1], swept.grid.cells[6]:
        ps.train(cell.config, out=tmp_path / cell.name)
        assert final(swept.path / cell.name) == final(tmp_path / cell.name)
        assert cell.config.observe == "off"
    run = swept.runs["fp32-lr=0.003-seed=1"]
    assert run.replay(3).compared == 0  # nothing was recorded of ops, and all can be seen
    assert len(run.replay(3).ops) > 100


def test_rows_and_the_best(swept):
    assert [(row["recipe"], row["lr"]) for row in swept.rows] == [
        ("fp32", 0.001), ("fp32", 0.003), ("fp16_scaled", 0.001), ("fp16_scaled", 0.003),
    ]  # fmt: skip
    row = swept.rows[2]
    losses = [swept.runs[name].valid_loss() for name in row["runs"]]
    assert (row["losses"], row["seeds"], row["diverged"]) == (losses, 2, 0)
    assert (row["loss"], row["low"], row["high"]) == (
        sum(losses) / 2, min(losses), max(losses),
    )  # fmt: skip
    best = swept.best("fp32")
    assert best["loss"] == min(row["loss"] for row in swept.rows[:2])
    assert [row["best"] for row in swept.rows].count(True) == 2
    with pytest.raises(ValueError, match="no recipe 'bf16' in this sweep: it has fp32, fp16_sc"):
        swept.best("bf16")
    assert json.loads(json.dumps(swept.to_dict()))["rows"][2] == row
    assert "fp32: best at lr=0.00" in repr(swept)
    assert "2 recipes x 2 lr x 2 seeds" in repr(swept)


def pretend(over, losses, seeds=1, recipe=""):
    """Return a sweep whose runs came to these losses, in the order of its cells."""
    grid = Grid.of(tiny(), {**({"recipe": [recipe]} if recipe else {}), **over}, range(seeds))
    cells = zip(grid.cells, losses, strict=True)
    return Sweep(Path("x"), grid, {c.name: Outcome(loss, 5, None) for c, loss in cells})


def test_the_best_by_hand():
    nan = float("nan")
    found = pretend({"lr": [1, 2, 3, 4]}, [3.0, 2.0, 5.0, nan, 3.5, nan, 1.0, nan], 2, "fp32")
    assert [row["diverged"] for row in found.rows] == [0, 1, 0, 2]
    assert found.best()["lr"] == 3  # of those of which no run diverged
    assert (found.best()["loss"], found.best()["low"], found.best()["high"]) == (3.0, 1.0, 5.0)
    assert np.isnan(found.rows[3]["loss"])
    assert found.diverged[0].title == "fp32, lr=4, seed 0"
    assert found.sentences() == [
        ("fp32", "best at lr=3: 3.000 (1.000 to 5.000); 3 of 8 runs diverged")
    ]
    assert pretend({"lr": [1, 2, 3]}, [2, 1, 0.5]).sentences() == [
        ("", "best at lr=3 (the largest tried): 0.500; none of 3 runs diverged")
    ]
    lost = pretend({"lr": [1, 2]}, [nan, nan])
    with pytest.raises(ValueError, match="every run diverged: there is no best"):
        lost.best()
    assert "every run diverged (2 of 2)" in repr(lost)


def test_a_run_that_diverges_does_not_end_the_sweep(tmp_path):
    config = tiny(policy="fp16", optimizer="sgd")
    found = ps.sweep(config, {"loss_scale": [2.0**40, 1.0]}, out=tmp_path / "a")
    assert [cell.values["loss_scale"] for cell in found.diverged] == [2.0**40]
    assert found.runs[found.diverged[0].name].died_at == 0
    assert found.best()["loss_scale"] == 1
    again = ps.sweep(out=tmp_path / "a", on_progress=pytest.fail)
    assert json.dumps(again.to_dict()) == json.dumps(found.to_dict())


@pytest.mark.parametrize("at", [0, 6, 9, 13])  # 9 is a run's last step, which ends it
def test_ctrl_c_at_any_step_and_on_with_the_same_bits(at, swept, tmp_path, monkeypatch):
    folder = tmp_path / "a"
    with monkeypatch.context() as patch:
        press(patch, at)
        with pytest.raises(SweepInterrupted, match="continue with `precsim sweep -o ") as stopped:
            ps.sweep(tiny(), OVER, range(2), out=folder)
    assert f"{(at + 1) // 5} of 8 runs are over" in str(stopped.value)
    assert not list(folder.rglob("LOCK"))
    told = []
    ps.sweep(out=folder, on_progress=told.append)
    assert told[0].over == (at + 1) // 5
    assert sum(p.outcome is None and p.done > 0 for p in told) == 40 - (at + 1)
    for cell in swept.grid.cells:
        assert final(folder / cell.name) == final(swept.path / cell.name)


def test_a_second_ctrl_c_stops_at_once(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        press(patch, 7)
        press(patch, 7)
        with pytest.raises(SweepInterrupted, match="1 of 2 runs are over"):
            ps.sweep(tiny(), {"lr": [1.0, 2.0]}, out=tmp_path / "a")
    assert len(ps.sweep(out=tmp_path / "a").rows) == 2


def test_another_grid_uses_the_runs_that_belong_to_it(tmp_path):
    folder = tmp_path / "a"
    ps.sweep(tiny(), {"lr": [1.0, 2.0]}, out=folder)
    told = []
    larger = ps.sweep(
        tiny(), {"lr": [2.0, 3.0]}, range(2), out=folder, observe="counts", on_progress=told.append
    )
    assert (told[0].over, told[0].total) == (1, 4)
    assert "lr=2-seed=0" not in {p.cell.name for p in told}
    assert [len(run.records) for run in larger.runs.values()] == [5] * 4
    assert [run.config.observe for run in larger.runs.values()] == ["off", *["counts"] * 3]
    assert (folder / "lr=1-seed=0" / "steps.jsonl").exists()
    assert ps.sweep(out=folder).grid == larger.grid


def test_damage_that_can_be_mended_is(swept, tmp_path):
    folder = tmp_path / "a"
    ps.sweep(tiny(), OVER, range(2), out=folder)
    name = swept.grid.cells[0].name
    (folder / name / "steps.jsonl").write_bytes(b"")
    ps.sweep(out=folder)
    assert final(folder / name) == final(swept.path / name)
    (folder / name / "manifest.json").write_bytes(b"{}")
    with pytest.raises(RunError, match="remove that directory, and the run begins again"):
        ps.sweep(out=folder)


def test_what_a_crash_leaves_of_a_new_run_is_no_obstacle(tmp_path):
    place = tmp_path / "a" / "lr=1-seed=0"
    place.mkdir(parents=True)
    for name in (tmp_path / "a" / "sweep.json.tmp", place / "manifest.json.tmp", place / "LOCK"):
        name.write_bytes(b"")
    with pytest.raises(RunError, match="is not empty"):
        ps.sweep(tiny(), {"lr": [1.0]}, out=tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "sweep.json.tmp").write_bytes(b"")
    ps.sweep(tiny(), {"lr": [2.0]}, out=tmp_path / "b")
    place.rename(tmp_path / "b" / place.name)
    assert len(ps.sweep(tiny(), {"lr": [1.0]}, out=tmp_path / "b").rows) == 1


BAD = [
    (ConfigError, {}, "the grid is empty: expected entries to sweep over"),
    (ConfigError, {"over": {"lr": []}}, "lr has no values: the grid is empty"),
    (ConfigError, {"over": {"lr": [1.0]}, "seeds": []}, "seeds has no values"),
    (ConfigError, {"over": {"lr": 1.0}}, "lr must have a list of values; got 1.0"),
    (ConfigError, {"over": {"recipe": "fp32"}}, "recipe must have a list of values; got 'fp32'"),
    (ConfigError, {"over": [1]}, "over must map entries to values"),
    (ConfigError, {"over": {"lrr": [1.0]}}, "'lrr': did you mean lr"),
    (ConfigError, {"over": {"lr": ["fast"]}}, "lr=fast: lr must be a number; got 'fast'"),
    (ConfigError, {"over": {"lr": [True]}}, "lr must be a number; got True"),
    (ConfigError, {"over": {"lr": [-1.0]}}, "lr must be a finite number >= 0"),
    (ConfigError, {"over": {"width": [4, 7], "heads": [2]}}, "width=7, heads=2: heads must divide"),
    (ConfigError, {"over": {"lr": [1, 1.0]}}, "lr has 1 twice"),
    (ConfigError, {"over": {"lr": [1.0]}, "seeds": [3, 3]}, "seeds has 3 twice"),
    (ConfigError, {"over": {"lr": [1.0]}, "seeds": ["a"]}, "seed must be a whole number"),
    (ConfigError, {"over": {"recipe": ["fp33"]}}, "unknown recipe 'fp33': did you mean"),
    (ConfigError, {"over": {"recipe": [3]}}, "unknown recipe"),
    (ConfigError, {"over": {"seed": [1, 2]}}, "seeds are averaged over, not swept"),
    (ConfigError, {"over": OVER, "fixed": {"lr": 1}}, "lr is set to 1 and swept over"),
    (ConfigError, {"over": OVER, "fixed": {"policy": "bf16"}}, "a recipe sets the policy"),
    (ConfigError, {"over": {"lr": [1.0]}, "fixed": {"stepz": 1}}, "'stepz': did you mean steps"),
    (ConfigError, {"over": OVER, "seeds": range(500)}, r"2,000 runs \(2 recipes x 2 lr x 500 seeds"),
    (ConfigError, {"over": OVER, "seeds": range(10**9)}, "seeds has 1,000,000,000 values"),
    (ConfigError, {"over": OVER, "seeds": itertools.count()}, "seeds has more than 1,000 values"),
    (ConfigError, {"over": {"lr": [1.0]}, "observe": "lots"}, "observe=lots"),
    (DataError, {"over": {"data": ["zen", "no.txt"]}}, "no file 'no.txt'"),
    (DataError, {"over": {"context": [8, 800]}}, "too short for a context of 800"),
    (ValueError, {"over": {"lr": [1.0]}, "fixed": {"init": "no.npz"}}, "no file 'no.npz'"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "asked", "sentence"), BAD, ids=[bad[2][:30] for bad in BAD])
def test_what_cannot_be_is_told_before_anything_is_trained(kind, asked, sentence, tmp_path):
    with pytest.raises(kind, match=sentence) as error:
        ps.sweep(tiny(), **asked, out=tmp_path / "a", on_progress=pytest.fail)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "a" / SWEEP).exists()


def test_no_config_and_nothing_to_go_on_with(tmp_path):
    with pytest.raises(TypeError, match=r"expected a TrainConfig.*; got None"):
        ps.sweep(over={"lr": [1.0]}, out=tmp_path / "a")
    with pytest.raises(TypeError, match=r"expected a TrainConfig.*; got \{'lr'"):
        ps.sweep({"lr": [1.0]}, out=tmp_path / "a")
    with pytest.raises(RunError, match="has no sweep to go on with: say what to sweep"):
        ps.sweep(out=tmp_path / "a")


def test_a_directory_that_holds_something_else_is_left_alone(swept, tmp_path):
    over = {"lr": [1.0]}
    ps.train(tiny(), out=tmp_path / "run")
    with pytest.raises(RunError, match="run holds a run: expected a new directory"):
        ps.sweep(tiny(), over, out=tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / SWEEP).write_text("{}")
    with pytest.raises(RunError, match="does not say that it is a precsim-sweep"):
        ps.sweep(tiny(), over, out=tmp_path / "other")
    (tmp_path / "other" / SWEEP).write_text("{")
    with pytest.raises(RunError, match="not valid JSON"):
        ps.sweep(tiny(), over, out=tmp_path / "other")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file"):
        ps.sweep(tiny(), over, out=tmp_path / "file")
    before = {path: path.stat().st_mtime_ns for path in swept.path.rglob("*")}
    with pytest.raises(RunError, match=r"holds another run \(width is 4, not 8\): move it away"):
        ps.sweep(tiny(width=8), OVER, range(2), out=swept.path)
    folders = [path for path in before if path.is_dir()]
    assert all(before[p] == p.stat().st_mtime_ns for p in before if p not in folders)
    (tmp_path / "b" / "lr=1-seed=0").mkdir(parents=True)
    ps.sweep(tiny(), {"lr": [2.0]}, out=tmp_path / "c")
    (tmp_path / "c" / "lr=1-seed=0").mkdir()
    (tmp_path / "c" / "lr=1-seed=0" / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"lr=1-seed=0 is no run \(it has notes.txt\)"):
        ps.sweep(tiny(), over, out=tmp_path / "c")
    version = (tmp_path / "c" / SWEEP).read_text().replace('"version": 1', '"version": 9')
    (tmp_path / "c" / SWEEP).write_text(version)
    with pytest.raises(RunError, match="expected version 1, got 9"):
        ps.sweep(out=tmp_path / "c")


def test_a_sweep_is_no_run_and_says_where_its_runs_are(swept):
    for ask in (ps.open, ps.resume):
        with pytest.raises(
            RunError, match=r"is no run but a sweep: its runs are in it, such as .*=0"
        ):
            ask(swept.path)


def test_two_sweeps_do_not_write_the_same_directory(tmp_path):
    with Lock(tmp_path / "a"), pytest.raises(RunError, match="is being written by process"):
        ps.sweep(tiny(), {"lr": [1.0]}, out=tmp_path / "a")


def test_a_text_that_changed_is_another_run(tmp_path):
    text = tmp_path / "text"
    text.write_bytes(b"abcd" * 400)
    ps.sweep(tiny(data=str(text)), {"lr": [1.0]}, out=tmp_path / "a")
    text.write_bytes(b"abce" * 400)
    with pytest.raises(RunError, match="holds another run"):
        ps.sweep(out=tmp_path / "a")


def test_words_of_the_command_line():
    assert parse_over(["lr=1e-3, 3e-3", "schedule=cosine,constant", "tied=true"]) == {
        "lr": [0.001, 0.003], "schedule": ["cosine", "constant"], "tied": [True],
    }  # fmt: skip
    rule = "rule=op=matmul,inputs=e4m3"
    assert parse_over([f'policy=["{rule}", "bf16"]']) == {"policy": [rule, "bf16"]}
    assert parse_seeds("0-2, 7,9-9") == [0, 1, 2, 7, 9]
    for text in ("", "2-0", "a", "0-", "-1", "1.5", "1,,2", f"0-{MOST}", "0-999999999999999999"):
        with pytest.raises(ConfigError, match="--seeds"):
            parse_seeds(text)


PROGRAM = """
import sys, json
sys.path.insert(0, sys.argv[2])
import precsim as ps
config = ps.TrainConfig(**json.loads(sys.argv[3]))
ps.sweep(config, over={"recipe": ["fp32", "bf16_sr"], "lr": [0.001, 0.01]}, out=sys.argv[1])
"""


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_kill_9_at_random_moments(kills, tmp_path):
    config = tiny(steps=40, checkpoint_every=7)
    over = {"recipe": ["fp32", "bf16_sr"], "lr": [0.001, 0.01]}
    whole = ps.sweep(config, over, out=tmp_path / "whole")
    root = os.path.dirname(os.path.dirname(ps.__file__))
    settings = ps.runs.lines.dump(config.to_dict())
    chance, killed, number = random.Random(0), 0, 0
    while killed < kills:
        folder = tmp_path / str(number)
        command = [sys.executable, "-c", PROGRAM, str(folder), root, settings]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        while not (folder / SWEEP).exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.6))
        process.kill()
        _, errors = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), errors
        killed += process.returncode != 0
        number += process.returncode == 0
    ps.sweep(config, over, out=tmp_path / str(number))
    for cell in whole.grid.cells:
        assert final(tmp_path / str(number) / cell.name) == final(whole.path / cell.name)


def test_an_exception_of_a_listener_is_the_callers(tmp_path):
    def stop(progress):
        if progress.done == 3:
            raise Stop

    with pytest.raises(Stop):
        ps.sweep(tiny(), {"lr": [1.0]}, out=tmp_path / "a", on_progress=stop)
    assert len(ps.sweep(out=tmp_path / "a").rows) == 1
