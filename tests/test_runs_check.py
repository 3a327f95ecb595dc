"""Every changed byte and every missing end of every file is found, and nothing of it is used."""

import errno
import os
import re
import shutil
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from threading import Thread

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_runs import final, tiny

import precsim as ps
from precsim.runs.check import check
from precsim.runs.files import DamagedError, RunError
from precsim.runs.lines import encode_line
from precsim.runs.manifest import read_manifest
from precsim.runs.store import read_index


@cache
def whole():
    """Return the directory of a finished run, of which every test takes a copy."""
    folder = Path(mkdtemp(prefix="precsim-test-")) / "run"
    ps.train(tiny(observe="tensors:gradients/head/*", steps=4), out=folder)
    return folder


@pytest.fixture(autouse=True, scope="module")
def _clean_up():
    yield
    shutil.rmtree(whole().parent)


@pytest.fixture
def run(tmp_path):
    return shutil.copytree(whole(), tmp_path / "run")


def names():
    return sorted(p.relative_to(whole()).as_posix() for p in whole().rglob("*") if p.is_file())


def everything(folder):
    """Return all that can be read of a run, as one value to compare."""
    stored = ps.open(folder)
    ops = stored.ops()
    columns = {name: ops[name].tobytes() for name in (*ops.columns, "histogram")}
    tensors = {at: array.tobytes() for at, array in stored.tensors(1).items()}
    weights = {n: w.numpy().tobytes() for n, w in stored.model.parameters.items()}
    return str((stored.config, stored.records, columns, tensors, weights, stored.counts))


@cache
def everything_of_whole():
    return everything(whole())


def test_a_run_that_nobody_touched_is_fine(run):
    report = check(run)
    assert report.ok
    assert (report.problems, report.notes) == ([], [])
    assert (report.steps, report.resumes_at, report.finished) == (4, 4, True)
    assert report.files == len(names())
    assert report.to_dict()["ok"] is True


def damaged_is_reported_and_not_used(folder, file, data):
    """Give a file another content, see that it is found, and put the old one back."""
    path = folder / file
    before = path.read_bytes()
    path.write_bytes(data)
    try:
        try:
            report = check(folder)
        except RunError:
            pass  # it is no run of this version any more
        else:
            assert not report.ok, f"{file} is not what was written, and check did not see it"
            assert all("\n" not in problem for problem in report.problems)
        with suppress(RunError):
            same = everything(folder) == everything_of_whole()
            assert same, f"{file} is not what was written, and was used"
    finally:
        path.write_bytes(before)


@settings(max_examples=60)
@given(st.data())
def test_a_changed_byte_of_any_file_is_found_and_not_used(data):
    folder, file = whole(), data.draw(st.sampled_from(names()))
    content = bytearray((folder / file).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] = data.draw(st.integers(0, 255).filter(lambda byte: byte != content[place]))
    damaged_is_reported_and_not_used(folder, file, bytes(content))


@settings(max_examples=40)
@given(st.data())
def test_a_missing_end_of_any_file_is_found_and_not_used(data):
    folder, file = whole(), data.draw(st.sampled_from(names()))
    content = (folder / file).read_bytes()
    ends = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")] or [0]
    length = data.draw(st.integers(0, len(content) - 1) | st.sampled_from([0, *ends[:-1]]))
    damaged_is_reported_and_not_used(folder, file, content[:length])


@pytest.mark.slow
@pytest.mark.parametrize("file", ["manifest.json", "steps.jsonl", "index.jsonl"])
def test_every_third_byte_and_length_of_the_text_files(run, file):
    content = (run / file).read_bytes()
    for place in range(0, len(content), 3):
        damaged_is_reported_and_not_used(run, file, content[:place])
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        damaged_is_reported_and_not_used(run, file, bytes(changed))


def test_a_file_that_is_gone_is_missed(run):
    for name in names():
        before = (run / name).read_bytes()
        (run / name).unlink()
        with suppress(RunError):
            assert not check(run).ok, name
            assert name != "manifest.json"
        (run / name).write_bytes(before)
    assert check(run).ok


def test_what_is_damaged_is_computed_again_or_refused(run):
    expected = final(whole())
    for name in names():
        broken = shutil.copytree(whole(), run.parent / name.replace("/", "-"))
        content = bytearray((broken / name).read_bytes())
        content[len(content) // 3] ^= 4
        (broken / name).write_bytes(content)
        try:
            ps.resume(broken)
        except DamagedError:
            assert name == "manifest.json"
            continue
        assert final(broken) == expected, name
        assert check(broken).ok, name


def test_a_file_that_nobody_knows_is_found(run):
    (run / "ckpt" / "000099.npz").write_bytes(b"")
    assert check(run).problems == ["ckpt/000099.npz is not in index.jsonl"]
    (run / "LOCK").write_bytes(encode_line({"pid": 2**22 + 1, "host": "elsewhere.invalid"}))
    report = check(run)
    assert report.ok, "the writer may be about to add its line"
    assert report.notes[1:] == ["ckpt/000099.npz is not in index.jsonl"]


def test_a_lock_that_cannot_be_read_is_found(run):
    (run / "LOCK").write_bytes(b"me")
    assert check(run).problems == ["LOCK cannot be read"]


def test_another_version_is_named(run):
    path = run / "manifest.json"
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
    for act in (check, ps.open, ps.resume):
        with pytest.raises(RunError, match=r"layout version 2; precsim .* reads version 1"):
            act(run)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": "precsim-run"}', '{"format":"a","format":"b"}', "[" * 10**5],
)
def test_a_manifest_that_is_none_is_refused(text, run):
    (run / "manifest.json").write_text(text)
    with pytest.raises(RunError, match=r"manifest\.json|layout version"):
        read_manifest(run)


def forge(run, **changes):
    """Change a line of the index and give it the checksum that it should have."""
    first, *rest = (run / "index.jsonl").read_bytes().splitlines(keepends=True)
    entry = read_index(run).of("ckpt")[0].to_dict() | changes
    (run / "index.jsonl").write_bytes(encode_line(entry) + b"".join(rest))
    return first


@pytest.mark.parametrize(
    "changes",
    [
        {"file": "../../etc/passwd"}, {"file": "/etc/passwd"}, {"file": "ckpt/../manifest.json"},
        {"drops": ["../x"]}, {"drops": [3]}, {"bytes": "many"}, {"first": 1.5}, {"more": 1},
    ],
    ids=str,
)  # fmt: skip
def test_an_index_cannot_lead_outside_or_astray(changes, run):
    forge(run, **changes)
    (problem,) = [p for p in check(run).problems if "line 1" in p]
    assert "not a" in problem


def test_a_checkpoint_of_another_step_is_found(run):
    entry = read_index(run).of("ckpt")[1]
    lines = (run / "index.jsonl").read_bytes().splitlines(keepends=True)
    place = next(i for i, line in enumerate(lines) if entry.file.encode() in line)
    lines[place] = encode_line(entry.to_dict() | {"first": 3, "last": 2})
    (run / "index.jsonl").write_bytes(b"".join(lines))
    assert any("it is of step 2" in problem for problem in check(run).problems)


def test_a_symbolic_link_to_nowhere_is_no_file(run):
    (run / "steps.jsonl").unlink()
    (run / "steps.jsonl").symlink_to(run / "nowhere")
    assert not check(run).ok


def test_reading_a_run_that_is_being_written(tmp_path):
    """A reader sees whole steps and whole chunks, at any moment, and never disturbs the writer."""
    seen = []

    def look(record, rows):
        run = ps.open(tmp_path)
        assert len(run.records) == record.step  # the listener is told before the line is written
        assert np.isfinite(run.steps["loss"]).all()
        seen.append((len(run.ops()), run.checkpoints[-1]))

    ps.train(tiny(), out=tmp_path, on_step=look)
    assert [last for _, last in seen] == [0, 0, 2, 2, 4]
    assert seen[1][0] == 0 < seen[2][0] == seen[3][0] < seen[4][0]


def test_readers_beside_a_writer_that_thins(tmp_path):
    """Whatever the moment: what is read is whole, and grows."""
    config = tiny(steps=40, max_trace=20_000, optimizer="sgd", eval_every=100)
    writer = Thread(target=ps.train, args=(config,), kwargs={"out": tmp_path})
    writer.start()
    lengths, looks = [0], 0
    while writer.is_alive():
        if (tmp_path / "manifest.json").exists():
            run = ps.open(tmp_path)
            traced, saved = set(run.ops()["step"].tolist()), run.checkpoints
            lengths.append(len(run.records))
            assert traced <= set(range(lengths[-1]))
            assert max(saved, default=0) <= lengths[-1]
            looks += 1
    writer.join()
    assert looks > 3
    assert lengths == sorted(lengths)
    assert len(ps.open(tmp_path).records) == 40
    assert check(tmp_path).ok


def refusing(method, place):
    def refuse(self, *args, **options):
        if self == place:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return method(self, *args, **options)

    return refuse


def forbid(patch, place):
    """Let nobody read a file, or list a folder, as its permissions would do for all but root."""
    for name in ("read_bytes", "iterdir", "open"):
        patch.setattr(Path, name, refusing(getattr(Path, name), place))


@pytest.mark.parametrize(
    "place",
    ["steps.jsonl", "index.jsonl", "ops", "ckpt", "tensors", "ops/*", "ckpt/*", "tensors/*"],
)
def test_what_cannot_be_read_is_told_and_nothing_is_thrown_away(place, run, monkeypatch):
    place = next(run.glob(place))

    def content():
        return {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != "LOCK"}

    before = content()
    with monkeypatch.context() as patch:
        forbid(patch, place)
        told = f"{place.parent.name}/{place.name} cannot be read: Permission denied"
        assert told in check(run).problems
        assert check(run).unreadable
        with pytest.raises(RunError, match=re.escape(told)):
            ps.resume(run)
    assert content() == before
    assert not check(run).unreadable
    ps.resume(run)
    assert everything(run) == everything_of_whole()
