"""A run ends at any moment, in any way, and goes on with the bits that it would have had."""

import os
import shutil
import signal

import numpy as np
import pytest
from tiny_runs import MIXED, Stop, final, hashes, tiny

import precsim as ps
from precsim.backend import compiled
from precsim.runs import checkpoint
from precsim.runs.check import check
from precsim.runs.files import DamagedError, RunError
from precsim.runs.interrupt import Interrupted


def until(step):
    """Return a listener that ends the process after a step."""

    def listen(record, rows):
        if record.step == step:
            raise Stop

    return listen


def stop_and_resume(config, folder, step, **options):
    with pytest.raises(Stop):
        ps.train(config, out=folder, on_step=until(step), **options)
    return ps.resume(folder, **options)


EVERY_STATE = {
    "sgd": {"optimizer": "sgd", "momentum": 0.0},
    "momentum": {"optimizer": "sgd", "policy": "fp16"},
    "adamw": {"weight_decay": 0.1, "clip": 0.5},
    "fp32 master": {"policy": MIXED},
    "float64": {"policy": "fp64"},
    "float32 carrier": {"policy": "weights=bf16 activations=bf16 arithmetic=fast"},
    "stochastic": {"policy": "activations=e4m3:stochastic weights=bf16:stochastic"},
    "shared scales": {"policy": "weights=int8:row:stochastic activations=int8:row"},
    "dropout": {"dropout": 0.2},
    "micro-batches": {"accumulation": 3},
    "pretended micro-batches": {"micro_batches": 64, "policy": MIXED},
    "growing scale": {"loss_scale": "dynamic:1024:2", "policy": MIXED},
    "falling scale": {"loss_scale": "dynamic:1e30:3", "policy": MIXED},
    "primitive": {"policy": "weights=bf16 activations=bf16 granularity=primitive"},
    "tied": {"tied": True},
    "delayed scaling": {
        "policy": "rule=op=matmul,inputs=e4m3:delayed,gradient_inputs=e5m2:delayed delayed=max@3-1",
        "accumulation": 2,
    },
    "recipe": ps.recipe("fp8").settings(),
}


@pytest.mark.parametrize("changes", EVERY_STATE.values(), ids=EVERY_STATE)
def test_every_kind_of_state_is_in_a_checkpoint(changes, tmp_path):
    config = tiny(**changes)
    whole = ps.train(config, out=tmp_path / "whole")
    resumed = stop_and_resume(config, tmp_path / "resumed", 3)
    assert final(tmp_path / "resumed") == final(tmp_path / "whole")
    assert np.array_equal(hashes(tmp_path / "resumed"), hashes(tmp_path / "whole"))
    assert str(resumed.records) == str(whole.records)
    assert resumed.trouble == whole.trouble


def test_a_run_from_before_delayed_scaling_goes_on(tmp_path, monkeypatch):
    """Its checkpoints have no factors and no histories: there were none."""
    ps.train(tiny(), out=tmp_path / "whole")
    older = tmp_path / "older"
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_delays_to_arrays", lambda delays: {})
        with pytest.raises(Stop):
            ps.train(tiny(), out=older, on_step=until(3))
    with np.load(next((older / "ckpt").iterdir())) as stored:
        assert not [name for name in stored if name.startswith("delays")]
    assert check(older).ok
    ps.resume(older)
    assert final(older) == final(tmp_path / "whole")


def test_a_part_of_delayed_scaling_alone_is_damage(monkeypatch, tmp_path):
    some = {"delays/places": np.array([], str)}
    monkeypatch.setattr(checkpoint, "_delays_to_arrays", lambda delays: some)
    with pytest.raises(Stop):
        ps.train(tiny(), out=tmp_path, on_step=until(3))
    with pytest.raises(DamagedError, match="does not fit the config: 'delays/lengths'"):
        ps.open(tmp_path).replay(2)


@pytest.mark.parametrize("name", ps.scaling.PRESETS)
def test_every_loss_scaler_is_in_a_checkpoint(name, tmp_path):
    config = tiny(policy=MIXED, loss_scale=f"{name}:8192:2", observe="off", optimizer="sgd")
    ps.train(config, out=tmp_path / "whole")
    stop_and_resume(config, tmp_path / "resumed", 3)
    assert final(tmp_path / "resumed") == final(tmp_path / "whole")


def test_recording_changes_nothing(tmp_path):
    config = tiny()
    alone, recorded = ps.train(config), ps.train(config, out=tmp_path)
    assert recorded.records == alone.records
    assert recorded.counts.keys() == alone.counts.keys()
    for name, weight in alone.model.parameters.items():
        assert weight.numpy().tobytes() == recorded.model.parameters[name].numpy().tobytes()


def test_where_a_run_is_called_from_changes_nothing(tmp_path):
    config = tiny(policy="activations=bf16:stochastic")
    ps.train(config, out=tmp_path / "a")
    with ps.using("fp16", seed=7, step=9), ps.scope("elsewhere"):
        ps.train(config, out=tmp_path / "b")
    assert final(tmp_path / "a") == final(tmp_path / "b")


@pytest.mark.parametrize("observe", ["hist", "shadow"])
def test_what_a_process_rounded_before_changes_no_digit_of_a_run(observe, tmp_path, monkeypatch):
    """Sums of squares have the order of what adds them up, which is not changed on the way."""
    config = tiny(observe=observe, policy="activations=e4m3 arithmetic=fast")
    for name, rounded in (("first", 0), ("late", compiled.ENOUGH)):
        monkeypatch.setattr(compiled, "_rounded", rounded)
        ps.train(config, out=tmp_path / name)
    assert final(tmp_path / "first") == final(tmp_path / "late")
    first, late = (ps.open(tmp_path / name).ops() for name in ("first", "late"))
    for column in ("square", "error", "err_rel", "hash", "histogram"):
        np.testing.assert_array_equal(first[column], late[column])


def test_a_finished_run_is_resumed_as_it_is(tmp_path):
    ps.train(tiny(), out=tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    run = ps.resume(tmp_path)
    assert len(run.records) == 5
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("scale", ["none", "fairseq:65536:minimum=40000"])
def test_a_run_that_died_stays_dead(scale, tmp_path):
    config = tiny(policy="fp16", loss_scale=scale, lr=1e30, width=8, data="reverse", context=16)
    run = ps.train(config, out=tmp_path)
    assert run.died_at is not None
    assert ps.open(tmp_path).died_at == ps.resume(tmp_path).died_at == run.died_at
    assert ps.open(tmp_path).trouble == run.trouble
    assert check(tmp_path).ok
    assert check(tmp_path).finished


def test_ctrl_c_finishes_the_step_and_saves(tmp_path):
    config = tiny(steps=6, checkpoint_every=100)
    ps.train(config, out=tmp_path / "whole")

    def press(record, rows):
        if record.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match=r"stopped before step 3; continue with `precsim resume"):
        ps.train(config, out=tmp_path / "run", on_step=press)
    assert ps.open(tmp_path / "run").checkpoints == [0, 3]
    report = check(tmp_path / "run")
    assert (report.ok, report.notes, report.resumes_at, report.finished) == (True, [], 3, False)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ps.resume(tmp_path / "run")
    assert final(tmp_path / "run") == final(tmp_path / "whole")


def test_the_second_ctrl_c_stops_at_once(tmp_path):
    def press_twice(record, rows):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        ps.train(tiny(), out=tmp_path / "run", on_step=press_twice)
    assert not isinstance(caught.value, Interrupted)
    assert check(tmp_path / "run").ok
    ps.resume(tmp_path / "run")
    ps.train(tiny(), out=tmp_path / "whole")
    assert final(tmp_path / "run") == final(tmp_path / "whole")


def test_ctrl_c_in_the_last_step_is_too_late(tmp_path):
    def press(record, rows):
        if record.step == 4:
            os.kill(os.getpid(), signal.SIGINT)

    assert len(ps.train(tiny(), out=tmp_path, on_step=press).records) == 5


def test_ctrl_c_is_nobodys_business_but_a_recorded_runs():
    def look(record, rows):
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    ps.train(tiny(steps=1), on_step=look)


def test_a_directory_that_is_not_empty_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"is not empty \(it has notes.txt\).*force"):
        ps.train(tiny(), out=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    ps.train(tiny(), out=tmp_path, force=True)
    with pytest.raises(RunError, match=r"holds a run already: continue it with `precsim resume"):
        ps.train(tiny(), out=tmp_path)
    ps.train(tiny(steps=2), out=tmp_path, force=True)
    assert len(ps.open(tmp_path).records) == 2
    assert check(tmp_path).ok
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_two_runs_do_not_share_a_directory(tmp_path):
    def another(record, rows):
        with pytest.raises(RunError, match=f"is being written by process {os.getpid()}"):
            ps.train(tiny(), out=tmp_path, force=True)
        with pytest.raises(RunError, match="is being written by"):
            ps.resume(tmp_path)

    ps.train(tiny(steps=1), out=tmp_path, on_step=another)
    assert check(tmp_path).ok


def test_where_nothing_can_be_written_nothing_is_computed(tmp_path):
    (tmp_path / "file").write_text("")
    seen = []
    with pytest.raises(RunError, match="cannot write"):
        ps.train(tiny(), out=tmp_path / "file" / "run", on_step=lambda *_: seen.append(1))
    assert not seen


def test_a_text_that_is_gone_or_another_one_is_not_trained_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question\n" * 20)
    config = tiny(data="text.txt")
    with pytest.raises(Stop):
        ps.train(config, out=tmp_path / "run", on_step=until(3))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    text.write_text("to be or not to be, that was the question\n" * 20)
    with pytest.raises(ps.runs.data.DataError, match="bring back the text that it began with"):
        ps.resume(tmp_path / "run")
    corpus = ps.runs.data.text_corpus(text)
    with pytest.raises(ps.runs.data.DataError, match="bring back the text"):
        ps.resume(tmp_path / "run", corpus=corpus)
    text.write_text("to be or not to be, that is the question\n" * 20)
    assert len(ps.resume(tmp_path / "run").records) == 5, "found where it was"
    text.unlink()
    with pytest.raises(ps.runs.data.DataError, match="no file"):
        ps.resume(tmp_path / "run")


def test_another_machine_is_pointed_out(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "63")
    with pytest.raises(Stop):
        ps.train(tiny(), out=tmp_path, on_step=until(3))
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    with pytest.warns(RuntimeWarning, match=r"OMP_NUM_THREADS=63.*odds of 1e-12"):
        ps.resume(tmp_path)


def test_where_there_is_no_run_there_is_nothing_to_resume(tmp_path):
    with pytest.raises(RunError, match="no directory"):
        ps.resume(tmp_path / "none")
    with pytest.raises(RunError, match=r"is no run: it has no manifest\.json"):
        ps.resume(tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(RunError, match="no directory"):
        ps.open(tmp_path / "none")


def test_a_format_that_has_become_another_is_refused(tmp_path, monkeypatch):
    ps.train(tiny(steps=1), out=tmp_path)
    known = ps.runs.manifest.describe_formats
    changed = lambda policy: dict.fromkeys(known(policy), "another")
    monkeypatch.setattr(ps.runs.recovery, "describe_formats", changed)
    with pytest.raises(RunError, match="format bf16 is another here"):
        ps.resume(tmp_path)


def test_damage_is_computed_away(tmp_path):
    """What is damaged before the last checkpoint is not used: an earlier one is."""
    ps.train(tiny(), out=tmp_path / "whole")
    for damaged in ("ckpt/000005.npz", "ops/000002-000003.npz", "steps.jsonl", "ckpt/000000.npz"):
        run = tmp_path / damaged.replace("/", "-")
        ps.train(tiny(), out=run)
        data = bytearray((run / damaged).read_bytes())
        data[len(data) // 2] ^= 1
        (run / damaged).write_bytes(data)
        assert not check(run).ok
        ps.resume(run)
        assert final(run) == final(tmp_path / "whole"), damaged
        assert check(run).ok, damaged


def test_a_manifest_that_is_not_what_was_written_is_not_used(tmp_path):
    ps.train(tiny(), out=tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    for act in (ps.open, ps.resume):
        with pytest.raises(DamagedError, match=r"manifest\.json is not what was written"):
            act(tmp_path)


def test_a_run_from_other_weights_goes_on_from_its_checkpoints_alone(tmp_path):
    ps.train(tiny(), out=tmp_path / "a")
    config = tiny(init=str(tmp_path / "a"), lr=1e-3)
    ps.train(config, out=tmp_path / "whole")
    stop_and_resume(config, tmp_path / "b", 3)
    assert final(tmp_path / "b") == final(tmp_path / "whole")
    with pytest.raises(Stop):
        ps.train(config, out=tmp_path / "c", on_step=until(3))
    shutil.rmtree(tmp_path / "a")
    assert len(ps.resume(tmp_path / "c").records) == 5
    assert final(tmp_path / "c") == final(tmp_path / "whole")
    assert check(tmp_path / "c").ok
    shutil.rmtree(tmp_path / "c" / "ckpt")
    with pytest.raises(DamagedError, match="did not start from its seed: begin it again"):
        ps.resume(tmp_path / "c")
