"""A recorded run can be read, stepped through, run again to the bit, and continued otherwise."""

import warnings
from itertools import pairwise

import numpy as np
import pytest
from tiny_runs import bend_gelu, final, hashes, tiny

import precsim as ps
from precsim.engine.dispatch import Event
from precsim.observe.counters import OpCounts
from precsim.runs.check import check
from precsim.runs.config import ConfigError
from precsim.runs.files import DamagedError, RunError
from precsim.runs.lines import decode_line
from precsim.runs.loop import states_before
from precsim.runs.manifest import read_manifest
from precsim.runs.replay import ReplayError
from precsim.runs.run import StoredRun
from precsim.runs.store import rewind

STOCHASTIC = tiny(
    policy="activations=e4m3:stochastic weights=bf16:stochastic", dropout=0.1, steps=7
)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A run that all tests here read and none changes."""
    folder = tmp_path_factory.mktemp("run") / "a"
    ps.train(STOCHASTIC, out=folder)
    return ps.open(folder)


def test_what_train_returns_is_what_open_reads(tmp_path):
    made = ps.train(tiny(loss_scale="dynamic:1e20:2", policy="fp16"), out=tmp_path)
    read = ps.open(str(tmp_path))
    assert isinstance(made, StoredRun)
    assert str(read.records) == str(made.records)
    for name in ("config", "trouble", "died_at"):
        assert getattr(read, name) == getattr(made, name), name
    assert read.counts.keys() == made.counts.keys()
    for role, counts in made.counts.items():
        assert str(read.counts[role]) == str(counts)
    for name, weight in made.model.parameters.items():
        assert read.model.parameters[name].numpy().tobytes() == weight.numpy().tobytes()
        assert read.model.parameters[name].format == weight.format
    assert read.sample(10) == made.sample(10)
    assert str(read.final_loss()) == str(made.final_loss())
    assert str(read) == f"StoredRun({str(tmp_path)!r}, steps 0 to {len(made.records) - 1})"
    with pytest.raises(AttributeError, match="no attribute 'weights'"):
        read.weights  # noqa: B018


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("matmull", "did you mean matmul"),
        ("blocks.0.attm", r"did you mean blocks\.0\.attn"),
        ("gradients", r"a name has to match as a whole: did you mean '\*gradients\*'\?"),
        ("zzz", "there are accumulate, add, .*softmax"),
    ],
)
def test_a_name_that_no_op_has_is_an_error_that_helps(stored, pattern, hint):
    for ask in (stored.ops, lambda op: stored.ops(3, op=op), lambda op: stored.replay(3, op)):
        with pytest.raises(RunError, match=f"no .*op.* matches '{pattern}': {hint}"):
            ask(op=pattern)
    with pytest.raises(ValueError, match="unknown phase 'backwards': expected one of forward, "):
        stored.ops(3, phase="backwards")


def test_columns_of_some_ops_of_some_steps(stored):
    everything = stored.ops()
    assert np.unique(everything["step"]).tolist() == list(range(7))
    one = stored.ops(step=3)
    assert set(one["step"]) == {3}
    assert one["row"].tolist() == list(range(len(one)))
    assert len(stored.ops(slice(2, 5))) == len(stored.ops(range(2, 5))) == 3 * len(one)
    assert len(stored.ops(slice(None))) == len(everything)
    assert len(stored.ops(slice(-1, None))) == len(one)
    backward = stored.ops(3, phase="backward")
    assert set(backward["phase"]) == {"backward"}
    assert len(backward.where(op="matmul")) == sum(backward["op"] == "matmul")
    nothing = one.where(op="no such")
    assert len(nothing) == len(stored.ops(range(0))) == len(stored.ops(3, format="fp16")) == 0
    assert nothing["flushed_share"].shape == (0,)
    assert nothing["histogram"].shape[0] == 0
    for unknown in ("fase", "Phase"):
        with pytest.raises(KeyError, match=f"no column '{unknown}': expected one of path"):
            stored.ops(3, **{unknown: "backward"})
    with pytest.raises(KeyError, match="no column 'loss': expected one of path"):
        one["loss"]
    row = next(iter(one.rows()))
    assert row["path"] == one["path"][0]
    assert type(row["n"]) is int
    assert repr(one).startswith(f"OpTable({len(one)} rows, 1 steps")
    for step in (-1, 7):
        with pytest.raises(RunError, match=f"has no step {step}: it has 0 to 6"):
            stored.ops(step)


def test_pandas_where_it_is(stored, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(RunError, match="needs pandas"):
        stored.ops(0).to_pandas()


@pytest.mark.parametrize("step", range(7))
def test_every_step_is_replayed_to_the_bit(stored, step):
    again = stored.replay(step, op="head", observe="counts")
    assert again.compared == len(stored.ops(step)) == len(again.ops)
    assert np.array_equal(again.ops["hash"], stored.ops(step)["hash"])
    assert again.record == stored.records[step]
    assert {event.scope for event in again.events} == {"head"}
    event = again.events[0]
    assert isinstance(event, Event)
    assert np.array_equal(ps.quantize(event.exact, event.format, random=None)
                          if event.precision.rounding == "nearest" else event.rounded,
                          event.rounded)  # fmt: skip


def test_a_replay_looks_deeper_than_the_recording(stored):
    seen = []
    again = stored.replay(4, observers=(seen.append,))
    assert np.isfinite(again.ops["err_u"]).all()
    assert again.ops["histogram"].sum() > stored.ops(4)["histogram"].sum() == 0
    assert len(seen) == len(again.ops)
    assert again.events == ()


def test_a_replay_that_differs_says_where_first(tmp_path, monkeypatch):
    ps.train(tiny(), out=tmp_path)
    bend_gelu(monkeypatch)
    with pytest.raises(ReplayError, match=r"first is activations/blocks\.0\.gelu/gelu call 0") as e:
        ps.open(tmp_path).replay(2)
    assert "odds of 1e-12" in str(e.value)
    assert e.value.replay.difference
    assert not ps.open(tmp_path).replay(2, verify=False).difference


def test_a_replay_of_a_run_that_was_not_watched_compares_its_record(tmp_path, monkeypatch):
    run = ps.train(tiny(observe="off"), out=tmp_path)
    assert run.replay(3).compared == 0
    monkeypatch.setattr(ps.runs.data.Batches, "_rows", lambda self, ids, places: (
        np.zeros((1, 8), int), np.zeros((1, 8), int)))  # fmt: skip
    with pytest.raises(ReplayError, match=r"loss is .*, and was "):
        run.replay(0)


def test_what_was_not_run_cannot_be_replayed(stored, tmp_path):
    with pytest.raises(RunError, match="has no step 7 to replay: it has steps 0 to 6"):
        stored.replay(7)
    with pytest.raises(ValueError, match="expected off, counts"):
        stored.replay(1, observe="everything")


def test_the_state_before_any_step(stored):
    states = [stored.at(step) for step in range(8)]
    weights = [state.model.parameters["head.weight"].numpy() for state in states]
    assert [state.optimizer.steps for state in states] == list(range(8))
    assert all(not np.array_equal(a, b) for a, b in pairwise(weights))
    assert np.array_equal(weights[7], stored.model.parameters["head.weight"].numpy())
    with pytest.raises(RunError, match="has no state before step 8: it has 0 to 7"):
        stored.at(8)


def test_states_on_the_way_are_those_computed_one_by_one(stored):
    """Some lie behind another checkpoint, and some between the same two."""
    steps = [0, 1, 4, 5, 7]
    for step, state in zip(steps, states_before(stored.path, steps), strict=True):
        alone = stored.at(step)
        assert (state.optimizer.steps, state.scaler) == (step, alone.scaler)
        for name, parameter in state.model.parameters.items():
            assert parameter.numpy().tobytes() == alone.model.parameters[name].numpy().tobytes()
    with pytest.raises(RunError, match="has no state before step 9"):
        list(states_before(stored.path, [1, 9]))


@pytest.mark.parametrize("at", [0, 3, 4, 6])
def test_a_fork_without_changes_is_the_same_run(stored, at, tmp_path):
    fork = stored.fork(at=at, out=tmp_path / "b")
    assert fork.records == stored.records[at:]
    for name, weight in stored.model.parameters.items():
        assert weight.numpy().tobytes() == fork.model.parameters[name].numpy().tobytes()
    assert np.array_equal(
        hashes(tmp_path / "b"), hashes(stored.path)[:, hashes(stored.path)[0] >= at]
    )
    assert check(tmp_path / "b").ok
    parent = read_manifest(tmp_path / "b").parent
    assert parent["at"] == at
    assert parent["path"] == str(stored.path)
    assert (fork.manifest.start, fork.checkpoints[0]) == (at, at)


def test_a_fork_under_another_policy(stored, tmp_path):
    policy = "weights=bf16 activations=fp16 gradients=fp16 master_weights=fp32 arithmetic=fast"
    fork = stored.fork(3, tmp_path / "b", policy=policy, loss_scale="dynamic:1024:2", steps=9)
    assert [r.step for r in fork.records] == [3, 4, 5, 6, 7, 8]
    assert fork.records[0].loss != stored.records[3].loss
    assert fork.records[0].scale == 1024
    assert fork.model.parameters["head.weight"].format.name == "fp32"
    start = fork.at(3)
    assert start.optimizer.steps == 3
    assert np.array_equal(
        start.model.parameters["head.weight"].numpy(),
        stored.at(3).model.parameters["head.weight"].numpy(),
    ), "what lies on a wider format's grid stays where it is"
    assert fork.manifest.parent["changes"]["steps"] == 9
    again = fork.fork(5, tmp_path / "c", optimizer="sgd")
    assert again.at(5).optimizer.steps == 0
    assert again.manifest.parent["path"] == str(tmp_path / "b")
    assert fork.replay(4).compared > 0


def test_a_fork_goes_on_after_a_kill(stored, tmp_path):
    class Stop(BaseException):
        pass

    def stop(record, rows):
        if record.step == 5:
            raise Stop

    with pytest.raises(Stop):
        stored.fork(2, tmp_path / "b", on_step=stop, policy="bf16")
    stored.fork(2, tmp_path / "whole", policy="bf16")
    ps.resume(tmp_path / "b")
    assert final(tmp_path / "b") == final(tmp_path / "whole")


def test_a_fork_without_any_checkpoint_says_so(stored, tmp_path):
    stored.fork(5, tmp_path / "b")
    rewind(tmp_path / "b", 5, 0)
    (tmp_path / "b" / "ckpt" / "000005.npz").unlink()
    with pytest.raises(DamagedError, match="did not start from its seed: begin it again"):
        ps.resume(tmp_path / "b")


@pytest.mark.parametrize(
    ("at", "changes", "message"),
    [
        (3, {"width": 8}, "a fork keeps the model, and the changes ask for width=8 "),
        (3, {"heads": 2}, "a fork keeps the model"),
        (3, {"data": "reverse", "context": 16}, "a fork keeps the model, and its letters"),
        (3, {"polcy": "fp16"}, "did you mean policy"),
        (7, {}, "nothing to run: the config has steps=7"),
        (3, {"steps": 3}, "nothing to run: the config has steps=3"),
        (8, {"steps": 20}, "has no state before step 8"),
        (-1, {}, "has no state before step -1"),
    ],
)
def test_what_cannot_be_forked(stored, at, changes, message, tmp_path):
    with pytest.raises((ConfigError, RunError), match=message):
        stored.fork(at, tmp_path / "b", **changes)
    assert not (tmp_path / "b" / "manifest.json").exists()


def test_a_fork_does_not_write_over_anything(stored, tmp_path):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(RunError, match="is not empty"):
        stored.fork(3, tmp_path)
    with pytest.raises(RunError, match="holds a run already"):
        stored.fork(3, stored.path)
    assert check(stored.path).ok


def test_the_manifest_says_what_is_needed_to_read_a_run(stored):
    manifest = stored.manifest
    assert manifest.config == STOCHASTIC
    assert manifest.formats["e4m3"]["max"] == 448
    assert manifest.formats["bf16"]["man_bits"] == 7
    assert manifest.corpus["sha256"] == stored.corpus.sha256
    assert manifest.ops["softmax"]["kind"] == "kernel"
    assert set(stored.ops()["op"]) <= manifest.ops.keys()
    file, _, line = manifest.ops["matmul"]["source"].partition(":")
    with open(file.replace("precsim/", ps.__file__.removesuffix("__init__.py"), 1)) as code:
        assert "def matmul" in "".join(code.readlines()[int(line) - 1 : int(line) + 5])
    assert manifest.fingerprint["numpy"] == np.__version__
    assert manifest.fingerprint["backend"] == "numpy"


def test_numbers_that_json_has_not_are_spelled(tmp_path):
    run = ps.train(tiny(policy="fp16", lr=1e30, observe="off"), out=tmp_path)
    assert run.died_at is not None
    line = decode_line((tmp_path / "steps.jsonl").read_bytes().split(b"\n")[0])
    assert line["flushed"] == "nan"
    assert np.isnan(ps.open(tmp_path).records[0].flushed)


def test_counts_of_a_run_add_up(stored):
    ops = stored.ops()
    for role, counts in stored.counts.items():
        rows = ops.where(role=role)
        assert isinstance(counts, OpCounts)
        assert counts.n == rows["n"].sum()
        assert counts.flushed == rows["flushed"].sum()


def test_a_run_in_memory_says_what_it_has_not():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = ps.train(tiny(steps=1))
    assert not hasattr(run, "ops")
