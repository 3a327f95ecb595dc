"""Levels of observation: what each records, that none changes a bit, and how the trace stays small."""

import warnings
from math import nan

import numpy as np
import pytest
from tiny_runs import final, tiny

import precsim as ps
from precsim.engine.tape import OPS
from precsim.observe import shadow, trace
from precsim.observe.counters import COUNTS
from precsim.observe.trace import LEVELS, Level, Tracer, calling_line, digest, matches
from precsim.runs.check import check
from precsim.runs.files import RunError
from precsim.runs.store import read_arrays, read_index

MIXED = (
    "weights=bf16 activations=e4m3:stochastic gradients=e5m2 master_weights=fp32 arithmetic=fast"
)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("policy", ["bf16", MIXED])
def test_no_level_changes_a_bit(level, policy, tmp_path):
    config = tiny(policy=policy, steps=3, observe=level, dropout=0.1)
    watched = ps.train(config, out=tmp_path)
    alone = ps.train(config, observe=False)
    assert watched.steps["loss"].tobytes() == alone.steps["loss"].tobytes()
    assert watched.steps["grad_norm"].tobytes() == alone.steps["grad_norm"].tobytes()
    for name, weight in alone.model.parameters.items():
        assert weight.numpy().tobytes() == watched.model.parameters[name].numpy().tobytes()
    assert check(tmp_path).ok


def test_hashes_do_not_depend_on_the_level(tmp_path):
    columns = []
    for level in LEVELS[1:]:
        ps.train(tiny(policy=MIXED, steps=2, observe=level), out=tmp_path / level)
        columns.append(ps.open(tmp_path / level).ops()["hash"])
    assert all(np.array_equal(hashes, columns[0]) for hashes in columns)
    assert len(set(columns[0].tolist())) > len(columns[0]) / 2


def test_columns_are_the_counts(tmp_path):
    """What is read is what `Counters` counts, for every column that an `OpCounts` has."""
    rows = []
    config = tiny(observe="hist", policy="fp16")
    ps.train(config, out=tmp_path, on_step=lambda _, counts: rows.extend(counts))
    ops = ps.open(tmp_path).ops()
    assert len(ops) == len(rows) > 250
    shares = ("flushed_share", "subnormal_share", "inexact_share", "swamped_share")
    names = ("path", "step", "call", "op", "phase", "role", "scope", "format", "u", *COUNTS,
             "amax", "amin", "square", "error", "rms", "relative_error", *shares)  # fmt: skip
    for name in names:
        expected = np.array([getattr(row, name) for row in rows])
        assert np.array_equal(ops[name], expected), name
    none = np.zeros(ops["histogram"].shape[1], int)
    histograms = [none if row.histogram is None else row.histogram for row in rows]
    assert np.array_equal(ops["histogram"], histograms)
    assert (
        ops["histogram"].sum(1).tolist() == (ops["n"] - ops["zeros"] - ops["nonfinite_in"]).tolist()
    )


def test_a_level_records_what_it_says(tmp_path):
    run = {}
    for level in LEVELS:
        pattern = ":gradients/head/matmul" if level == "tensors" else ""
        config = tiny(policy=MIXED, steps=1, observe=level + pattern)
        run[level] = ps.train(config, out=tmp_path / level)
    with pytest.raises(RunError, match=r"observe=off; run\.replay\(0\)\.ops computes them"):
        run["off"].ops(0)
    assert len(run["off"].ops()) == 0
    assert np.isnan(run["off"].steps["flushed"]).all()
    assert run["counts"].ops(0)["histogram"].sum() == 0
    assert run["hist"].ops(0)["histogram"].sum() > 0
    assert np.isnan(run["hist"].ops(0)["err_u"]).all()
    assert np.isfinite(run["shadow"].ops(0)["err_u"]).all()
    with pytest.raises(RunError, match="has no tensors of step 0"):
        run["shadow"].tensors(0)
    ((place, array),) = run["tensors"].tensors(0).items()
    assert place == ("gradients/head/matmul", 0)
    recorded = run["tensors"].ops(0, op=place[0])
    assert digest(array, ps.format("e5m2")) == recorded["hash"][0]
    with pytest.raises(RunError, match="no tensors of step 0 and op 'softmax': try run"):
        run["tensors"].tensors(0, op="softmax")


def test_tensors_are_not_written_over_later(tmp_path):
    """A kept result is that of its moment, though it is read at the step's end."""
    run = ps.train(tiny(steps=2, observe="tensors"), out=tmp_path)
    ops, tensors = run.ops(1), run.tensors(1)
    assert len(tensors) == len(ops)
    for path, call, fmt, expected in zip(
        ops["path"], ops["call"], ops["format"], ops["hash"], strict=True
    ):
        assert digest(tensors[path, call], ps.format(str(fmt))) == expected


def watched(policy, observer, level="shadow"):
    tracer = Tracer(Level.parse(level))
    with ps.using(policy, observers=[tracer]):
        observer()
    return tracer.drain()


def test_the_shadow_sees_the_carrier_and_the_accumulator():
    x = np.random.default_rng(0).standard_normal((8, 256))

    def product():
        ps.ops.matmul(ps.tensor(x), ps.tensor(x.T))

    def error(policy):
        return watched(policy, product).errors[-1]

    exact, fast = error("fp32"), error("activations=fp32 arithmetic=fast")
    narrow = error("activations=fp32 accumulator=fp16")
    assert 0 < exact < fast < narrow
    assert exact < ps.format("fp32").u < narrow
    assert watched("fp32", product).errors[-1] == watched("fp32", product, "counts").errors[-1]
    assert np.isnan(watched("activations=fp32 arithmetic=fast", product, "hist").errors[-1])


@pytest.mark.parametrize(
    "policy", ["e4m3 ", MIXED, "weights=fp16 activations=fp16 accumulator=bf16"]
)
def test_every_op_of_a_run_has_a_shadow(policy):
    tracer = Tracer(Level("shadow"))
    ps.train(tiny(policy=policy.strip(), steps=2, clip=0.1), observe=False, observers=(tracer,))
    traced = tracer.drain()
    errors, rows = np.array(traced.errors), traced.rows
    assert not np.isnan(errors).any()
    healthy = [e for e, row in zip(errors, rows, strict=True) if not row.flushed + row.overflowed]
    assert max(healthy) < 0.5
    assert {row.op for row in rows} <= OPS.keys()


def test_errors_of_what_is_not_finite_or_zero():
    def ops():
        ps.tensor([1.0, np.inf, np.nan])
        ps.tensor([0.0])
        ps.tensor([1e-30])
        ps.tensor(np.zeros(0))
        ps.tensor([70000.0])

    assert watched("fp16", ops).errors == [0.0, 0.0, 1.0, 0.0, 0.0]
    assert shadow._ratio(1.0, 0.0) == float("inf")


def test_a_shadow_that_fails_is_left_out_and_the_run_goes_on(monkeypatch):
    def fails(event):
        raise MemoryError

    monkeypatch.setattr(trace, "local_error", fails)
    with pytest.warns(RuntimeWarning, match="no shadow from .* at step 0 on: MemoryError"):
        run = ps.train(tiny(policy=MIXED, steps=2, observe="shadow"))
    assert len(run.records) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ps.train(tiny(steps=1, observe="shadow"))  # float64 needs no shadow


def test_equal_values_have_equal_hashes_in_both_arithmetics():
    x = np.random.default_rng(1).standard_normal(100).astype(np.float32)
    for name in ("fp32", "bf16", "e4m3", "e5m2", "tf32"):
        fmt = ps.format(name)
        values = ps.quantize(x, name)
        assert digest(values, fmt) == digest(values.astype(np.float64), fmt)
        assert digest(values, fmt) == digest(values.reshape(10, 10), fmt)
        assert digest(values, fmt) != digest(-values, fmt)
    third = np.array([1 / 3])
    assert digest(third, ps.format("fp64")) != digest(third.astype(np.float32), ps.format("fp64"))
    assert digest(np.array(0.0), ps.format("fp32")) != digest(np.array(-0.0), ps.format("fp32"))
    assert digest(np.array(nan), ps.format("fp32")) == digest(np.array([nan]), ps.format("fp32"))


def test_every_row_knows_the_line_that_called_it(tmp_path):
    run = ps.train(tiny(steps=1), out=tmp_path)
    ops = run.ops(0)
    by_path = dict(zip(ops["path"].tolist(), ops["source"].tolist(), strict=True))
    assert all(":" in source and source.startswith("precsim/") for source in by_path.values())
    file, _, line = by_path["activations/head/matmul"].partition(":")
    with open(file.replace("precsim/", ps.__file__.removesuffix("__init__.py"), 1)) as code:
        assert "matmul" in code.readlines()[int(line) - 1]
    assert by_path["gradients/head/matmul"].startswith("precsim/engine/ops.py:")
    assert calling_line(None) == ""


@pytest.mark.parametrize(
    ("path", "pattern", "hit"),
    [
        ("gradients/blocks.0.attn/matmul", "gradients/*", True),
        ("gradients/blocks.0.attn/matmul", "blocks.0.*", True),
        ("gradients/blocks.0.attn/matmul", "matmul", True),
        ("gradients/blocks.0.attn/matmul", "*.attn/*", True),
        ("gradients/blocks.0.attn/matmul", "blocks.1.*", False),
        ("gradients/blocks.0.attn/matmul", "mat", False),
        ("gradients//sum", "", True),
    ],
)
def test_globs_name_a_path_a_scope_or_an_op(path, pattern, hit):
    assert matches(path, pattern) is hit


def test_levels_are_read_as_they_are_written():
    for text in (*LEVELS, "tensors:gradients/*"):
        assert str(Level.parse(text)) == text
        assert Level.parse(Level.parse(text)) == Level.parse(text)
    assert tiny(observe="tensors:*").observe == "tensors"
    for text in ("", "all", "hist:x", "tensor"):
        with pytest.raises(ps.runs.config.ConfigError, match="expected off, counts, hist, shadow"):
            tiny(observe=text)
    for wrong in ({"checkpoint_every": 0}, {"max_trace": -1}, {"max_trace": 1.5}):
        with pytest.raises(ps.runs.config.ConfigError):
            tiny(**wrong)


def trace_size(folder):
    return sum(e.bytes for e in read_index(folder).entries.values() if e.kind != "ckpt")


def test_the_trace_stays_under_its_limit(tmp_path):
    config = tiny(steps=40, checkpoint_every=5, observe="tensors:gradients/head/*", optimizer="sgd")
    ps.train(config, out=tmp_path / "whole")
    limit = trace_size(tmp_path / "whole") // 3
    run = ps.train(config.change(max_trace=limit), out=tmp_path / "thin")
    assert trace_size(tmp_path / "thin") <= limit
    assert check(tmp_path / "thin").problems == []
    assert final(tmp_path / "thin") == final(tmp_path / "whole")
    steps = np.unique(run.ops()["step"]).tolist()
    assert set(steps) >= {0, 10, 20, 30, 39}
    assert len(steps) < 40
    gone = min(set(range(40)) - set(steps))
    with pytest.raises(RunError, match=rf"every 10th step only; run\.replay\({gone}\)\.ops"):
        run.ops(gone)
    assert run.replay(gone).compared == 0
    left = run.ops(30)
    assert left["hash"].tolist() == ps.open(tmp_path / "whole").ops(30)["hash"].tolist()
    assert len(read_index(tmp_path / "thin").of("tensors")) < 40


def test_a_limit_that_nothing_fits_leaves_a_run_that_works(tmp_path):
    config = tiny(steps=6, max_trace=1)
    run = ps.train(config, out=tmp_path)
    assert np.unique(run.ops()["step"]).tolist() in ([], [0])
    assert check(tmp_path).ok
    assert len(ps.resume(tmp_path).records) == 6


def test_chunks_hold_only_what_their_steps_need(tmp_path):
    ps.train(tiny(), out=tmp_path)
    for entry in read_index(tmp_path).of("ops"):
        chunk = read_arrays(tmp_path, entry)
        assert np.unique(chunk["path"]).tolist() == list(range(len(chunk["paths"])))
        assert np.unique(chunk["step"]).tolist() == list(range(entry.first, entry.last + 1))
