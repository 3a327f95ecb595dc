"""Results that are gathered on a device: each is what was written, and few copies bring them all."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import precsim as ps
from precsim.backend import ledger
from precsim.backend.ledger import Ledger


@pytest.fixture
def fetched(cupy, monkeypatch, request):
    """Return a list to which every copy of a page adds its length."""
    if request.config.getoption("--backend") == "cupy":
        pytest.skip("CuPy's own arrays take no other `get`")
    copies, plain = [], type(cupy.zeros(1)).__getattr__

    def watched(self, name):
        if name == "get":
            copies.append(self.size)
        return plain(self, name)

    monkeypatch.setattr(cupy.ndarray, "__getattr__", watched)
    return copies


def write(cupy, place, number):
    place.there[...] = cupy.full(place.last - place.first, number, np.uint64)


def test_the_first_that_is_read_brings_all_before(cupy, fetched):
    book = Ledger()
    places = [book.place(cupy, 5 + k) for k in range(4)]
    for k, place in enumerate(places):
        assert not place.there.any()
        write(cupy, place, k + 1)
    for k, place in reversed(list(enumerate(places))):
        assert place.read().tolist() == [k + 1] * (5 + k)
    assert fetched == [5 + 6 + 7 + 8]


def test_what_is_written_later_is_fetched_later(cupy, fetched):
    book = Ledger()
    one = book.place(cupy, 3)
    write(cupy, one, 1)
    assert one.read().tolist() == [1] * 3
    other = book.place(cupy, 2)
    write(cupy, other, 2)
    assert other.read().tolist() == [2] * 2
    assert one.read().tolist() == [1] * 3
    assert fetched == [3, 2]


def test_a_full_page_is_followed_by_another_and_a_large_result_has_its_own(cupy, monkeypatch):
    monkeypatch.setattr(ledger, "WORDS", 8)
    book = Ledger()
    places = [book.place(cupy, size) for size in (3, 5, 1, 20, 8)]
    for k, place in enumerate(places):
        write(cupy, place, k)
    assert [place.read().tolist() for place in places] == [
        [k] * n for k, n in enumerate((3, 5, 1, 20, 8))
    ]
    assert len({id(place.page) for place in places}) == 4


def test_threads_have_pages_of_their_own(cupy):
    book = Ledger()
    here = book.place(cupy, 2)
    with ThreadPoolExecutor(1) as pool:
        there = pool.submit(book.place, cupy, 2).result()
    assert here.page is not there.page


def test_the_counts_of_a_step_come_in_one_copy(cupy, fetched):
    counters = ps.Counters()
    with ps.using("fp16", backend="cupy", observers=[counters]):
        x = ps.tensor(np.linspace(0, 1, 50), requires_grad=True)
        ((x * 3.0) * x).sum().backward()
        assert fetched == []
    rows = counters.rows
    assert len(rows) > 5
    assert [row.n for row in rows if row.op == "mul"][:2] == [50, 50]
    assert len(fetched) == 1
