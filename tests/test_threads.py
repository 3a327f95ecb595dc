"""Threads over the pieces of an array: each element once, errors heard, and the bits of one thread."""

import multiprocessing
import sys
import threading

import numpy as np
import pytest
from typer.testing import CliRunner

import precsim as ps
from precsim.backend import BackendError, compiled, threads, tier
from precsim.cli import app


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    for name in threads.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    threads.count.cache_clear()
    threads._pool.cache_clear()
    yield
    monkeypatch.undo()
    threads.count.cache_clear()
    threads._pool.cache_clear()


def test_how_many_threads(monkeypatch):
    assert threads.count() == threads.cores() >= 1
    for name, text, want in (
        ("OMP_NUM_THREADS", "3", 3), ("OMP_NUM_THREADS", "4,2", 4), ("PRECSIM_THREADS", " 2 ", 2),
        ("PRECSIM_THREADS", "", 4),
    ):  # fmt: skip
        monkeypatch.setenv(name, text)
        threads.count.cache_clear()
        assert threads.count() == want


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5"])
def test_a_wrong_number_is_told_what_is_right(monkeypatch, text):
    monkeypatch.setenv("PRECSIM_THREADS", text)
    with pytest.raises(BackendError, match=f"PRECSIM_THREADS={text}: expected a whole number"):
        threads.count()


def test_the_command_line_says_so_in_a_sentence(monkeypatch):
    monkeypatch.setattr(compiled, "_loaded", object)  # as if Numba were installed
    monkeypatch.setattr(compiled, "version", lambda name: "1.0")
    monkeypatch.setenv("PRECSIM_THREADS", "two")
    told = CliRunner().invoke(app, ["info"])
    assert told.exit_code == 2
    assert "precsim: PRECSIM_THREADS=two: expected a whole number of threads" in told.output
    monkeypatch.setenv("PRECSIM_THREADS", "2")
    threads.count.cache_clear()
    assert "2 threads from 2,097,152 elements on" in " ".join(
        CliRunner().invoke(app, ["info"], env={"COLUMNS": "200"}).output.split()
    )


@pytest.mark.parametrize("many", [1, 2, 3, 7])
@pytest.mark.parametrize("pieces", [0, 1, 2, 5, 9])
@pytest.mark.parametrize("more", [0, 1, 63, 65])
def test_every_element_is_in_one_piece(monkeypatch, many, pieces, more):
    monkeypatch.setattr(threads, "PIECE", 128)
    monkeypatch.setenv("PRECSIM_THREADS", str(many))
    seen = np.zeros(128 * pieces + more, int)
    workers = set()

    def run(start, stop):
        seen[start:stop] += 1
        workers.add((threading.get_ident(), start))

    threads.in_pieces(run, seen.size)
    np.testing.assert_array_equal(seen, 1)
    assert len(workers) <= max(1, min(many, pieces))
    assert len(workers) > 1 or min(many, pieces) < 2


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_an_error_is_raised_when_all_have_ended(monkeypatch, bad):
    monkeypatch.setattr(threads, "PIECE", 64)
    monkeypatch.setenv("PRECSIM_THREADS", "3")
    ended = []

    def run(start, stop):
        if start == 64 * bad:
            raise MemoryError(start)
        ended.append(start)

    with pytest.raises(MemoryError):
        threads.in_pieces(run, 192)
    assert sorted(ended) == [start for start in (0, 64, 128) if start != 64 * bad]


@pytest.mark.parametrize("mode", ["nearest", "stochastic"])
@pytest.mark.parametrize("in_place", [False, True])
def test_threads_change_no_bit(monkeypatch, mode, in_place):
    pytest.importorskip("numba")
    monkeypatch.setenv("PRECSIM_THREADS", "3")
    size = 3 * threads.PIECE + 7
    rng = np.random.default_rng(0)
    x = rng.standard_normal(size).astype(np.float32)
    words = None if mode == "nearest" else rng.integers(0, 1 << 32, size, np.uint32)
    with tier("numpy"):
        want = ps.quantize(x, "e4m3", mode, random=words)
    with tier("numba"):
        got = ps.quantize(x, "e4m3", mode, random=words, out=x if in_place else None)
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))


def sum_of_pieces(result):
    parts = []
    threads.in_pieces(lambda start, stop: parts.append(stop - start), 2 * threads.PIECE)
    result.put(sum(parts))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_makes_threads_of_its_own(monkeypatch):
    monkeypatch.setenv("PRECSIM_THREADS", "2")
    threads.in_pieces(lambda start, stop: None, 2 * threads.PIECE)
    fork = multiprocessing.get_context("fork")
    result = fork.Queue()
    child = fork.Process(target=sum_of_pieces, args=(result,))
    child.start()
    assert result.get(timeout=30) == 2 * threads.PIECE
    child.join(30)
    assert child.exitcode == 0
