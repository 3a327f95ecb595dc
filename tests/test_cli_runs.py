"""Recorded runs on the command line: resume, check, replay, fork, export."""

import csv
import errno
import io
import json
import os
import signal

import pytest
from tiny_runs import TINY, Stop, bend_gelu, final, tiny

import precsim as ps
from precsim.runs import files


@pytest.fixture
def recorded(tmp_path):
    ps.train(tiny(), out=tmp_path / "a")
    return tmp_path / "a"


def settings():
    return [word for name, value in TINY.items() for word in ("--set", f"{name}={value}")]


def test_train_records_where_it_is_told(call, tmp_path, recorded):
    assert call("train", *settings(), "-o", tmp_path / "b")[0] == 0
    assert final(tmp_path / "b") == final(recorded)
    code, _, err = call("train", *settings(), "-o", tmp_path / "b")
    assert code == 2
    assert f"holds a run already: continue it with `precsim resume {tmp_path / 'b'}`" in err
    assert call("train", *settings(), "-o", tmp_path / "b", "--force")[0] == 0


def test_ctrl_c_exits_with_130_and_the_command_that_goes_on(call, tmp_path, recorded, monkeypatch):
    step = ps.Run.note

    def press(self, record, *rest):
        if record.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, record, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(ps.Run, "note", press)
        code, out, err = call("train", *settings(), "-o", tmp_path / "b")
    assert (code, out) == (130, "")
    assert f"continue with `precsim resume {tmp_path / 'b'}`" in err
    code, out, _ = call("resume", tmp_path / "b", "--json")
    assert code == 0
    assert json.loads(out)["summary"]["steps"] == 5
    assert final(tmp_path / "b") == final(recorded)


def test_check(call, recorded):
    code, out, err = call("check", recorded)
    assert (code, err) == (0, "")
    assert out.split()[:3] == ["intact", "10", "files,"]
    assert "5 steps, finished" in out
    (recorded / "ckpt/000004.npz").write_bytes(b"")
    code, out, err = call("check", recorded, "--json")
    assert code == 1
    assert json.loads(out)["problems"] == [
        "ckpt/000004.npz is not what was written: 0 bytes, and its sha256 differs"
    ]
    assert "1 problem in" in err
    code, out, _ = call("check", recorded)
    assert code == 1
    assert out.startswith("damaged  ckpt/000004.npz")


def test_a_run_that_is_over_is_said_to_be(call, tmp_path, recorded):
    code, out, err = call("resume", recorded)
    assert (code, "first op in trouble" in out) == (0, True)
    assert f"{recorded} is over, and has nothing left to train" in err
    lost = call(
        "train", *settings(), "--set", "policy=e4m3", "--set", "lr=1e9", "-o", tmp_path / "b"
    )
    assert lost[0] == 1
    assert "writes" not in lost[1]  # weights that are no numbers have nothing to say
    died = ps.open(tmp_path / "b").died_at
    code, out, err = call("check", tmp_path / "b")
    assert (code, err) == (0, "")
    assert f"over: its weights are no longer finite after step {died}" in out
    assert json.loads(call("check", tmp_path / "b", "--json")[1])["died_at"] == died
    assert "is over" in call("resume", tmp_path / "b")[2]


def test_where_an_op_is_in_trouble_it_is_said_which_ones_are_passed_over(call):
    small = "passed over: ops that make less than 1% of their role's values"
    for policy, said in (("bf16", True), ("fp32", False)):
        out = call("train", *settings(), "--set", "lr=1e-5", "--set", f"policy={policy}")[1]
        assert ("apply_update" in out, small in out) == (said, said)


def test_what_nobody_watched_is_not_said_to_be_zero(call):
    code, out, _ = call("train", *settings(), "--set", "observe=off", "--set", "policy=bf16")
    assert code == 0
    row = next(line for line in out.splitlines() if line.startswith("run  ") and "." in line)
    assert row.split()[3:6] == ["-", "-", "0"]


def test_check_of_a_run_that_was_killed(call, tmp_path):
    def stop(record, rows):
        if record.step == 3:
            raise Stop

    with pytest.raises(Stop):
        ps.train(tiny(), out=tmp_path, on_step=stop)
    code, out, _ = call("check", tmp_path)
    assert code == 0
    assert "resumes at step 2" in out


def test_replay(call, recorded):
    code, out, err = call("replay", recorded, "--step", "3")
    assert (code, err) == (0, "")
    assert "step 3: loss" in out
    assert "ops have the hashes that were recorded" in out
    code, out, _ = call("replay", recorded, "--step", "3", "--op", "head", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["compared"] > 100
    assert {row["scope"] for row in found["ops"]} == {"head"}
    assert found["record"]["step"] == 3


def test_a_replay_that_differs_is_a_finding(call, recorded, monkeypatch):
    bend_gelu(monkeypatch)
    code, out, err = call("replay", recorded, "--step", "3")
    assert code == 1
    assert "did not come out as recorded" in err
    assert "step 3: loss" in out
    assert call("replay", recorded, "--step", "3", "--no-verify")[0] == 0


def test_fork(call, recorded, tmp_path):
    arguments = ["fork", recorded, "--at", "3", "--recipe", "fp16_scaled", "--set", "steps=7"]
    code, out, _ = call(*arguments, "-o", tmp_path / "b", "--json")
    assert code == 0
    assert json.loads(out)["config"]["loss_scale"].startswith("dynamic")
    assert [r.step for r in ps.open(tmp_path / "b").records] == [3, 4, 5, 6]


@pytest.mark.parametrize("what", ["steps", "ops"])
def test_export(call, recorded, tmp_path, what):
    stored = ps.open(recorded)
    rows = len(stored.records) if what == "steps" else len(stored.ops())
    code, out, _ = call("export", recorded, "--what", what)
    table = list(csv.DictReader(io.StringIO(out)))
    assert (code, len(table)) == (0, rows)
    code, out, _ = call("export", recorded, "--what", what, "--to", "jsonl")
    lines = [json.loads(line) for line in out.splitlines()]
    assert (code, len(lines)) == (0, rows)
    assert list(lines[0]) == list(table[0])
    if what == "steps":
        assert [float(row["loss"]) for row in table] == stored.steps["loss"].tolist()
        assert table[0]["valid_loss"] == ""
    code, out, _ = call("export", recorded, "--what", what, "-o", tmp_path / "table.csv")
    assert (code, out) == (0, "")
    assert len((tmp_path / "table.csv").read_text().splitlines()) == rows + 1


def test_no_cell_is_a_formula():
    from precsim.cli_runs import _csv_line

    assert (
        _csv_line(["=1+1", "-x", "@a", "+b", "c,d", -1.5, None])
        == "'=1+1,'-x,'@a,'+b,\"c,d\",-1.5,"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resume", "nowhere"], "no directory 'nowhere'"),
        (["check", "nowhere"], "no directory 'nowhere'"),
        (["check", "."], "is no run: it has no manifest.json"),
        (["replay", "a", "--step", "9"], "has no step 9 to replay: it has steps 0 to 4"),
        (["replay", "a", "--step", "1", "--observe", "x"], "expected off, counts, hist, shadow"),
        (["fork", "a", "--at", "9", "-o", "b"], "nothing to run: the config has steps=5"),
        (["fork", "a", "--at", "1", "-o", "b", "--set", "polcy=fp16"], "did you mean policy?"),
        (["fork", "a", "--at", "1", "-o", "b", "--recipe", "fp61"], "unknown recipe 'fp61'"),
        (["fork", "a", "--at", "1", "-o", "a"], "holds a run already"),
        (["export", "a", "--to", "xls"], "expected --to csv or jsonl"),
        (
            ["export", "a", "-o", "nowhere/table.csv"],
            "cannot write nowhere/table.csv: No such file",
        ),
    ],
)
def test_bad_input_gets_one_sentence(call, recorded, monkeypatch, arguments, message):
    monkeypatch.chdir(recorded.parent)
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("precsim: ")
    assert err.count("\n") == 1


def test_a_full_disk_exits_with_3_and_the_command_that_goes_on(call, tmp_path, monkeypatch):
    write, calls = os.write, []

    def full(file, data):
        calls.append(file)
        if len(calls) > 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data)

    monkeypatch.setattr(files.os, "write", full)
    code, out, err = call("train", *settings(), "-o", tmp_path / "b")
    assert (code, out) == (3, "")
    assert "no room on the disk" in err
    assert f"make room, then `precsim resume {tmp_path / 'b'}`" in err
    assert err.count("precsim: ") == 1


def test_a_note_about_another_machine_is_one_line(call, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "63")
    ps.train(tiny(steps=1), out=tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    monkeypatch.setattr("warnings.filters", [])
    code, _, err = call("resume", tmp_path)
    assert code == 0
    assert "precsim: note: this is not the machine that the run began on (threads: " in err
