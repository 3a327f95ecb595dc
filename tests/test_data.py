"""Corpora and batches; nothing here depends on the bytes of `pydoc_data.topics`."""

import math
import os
import subprocess
import sys
from collections import Counter
from hashlib import sha256

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from precsim.runs import data
from precsim.runs.data import BUILT_IN, IGNORED, Batches, DataError, load, text_corpus


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt"
    path.write_bytes(bytes(range(97, 117)) * 50)
    return path


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_corpus_is_dense_whole_and_read_only(name):
    corpus = load(name)
    ids = np.concatenate([corpus.train, corpus.valid])
    assert corpus.name == name
    assert ids.dtype == np.uint8
    assert set(np.unique(ids)) == set(range(corpus.vocabulary_size))
    assert sha256(bytes(corpus.alphabet[i] for i in ids)).hexdigest() == corpus.sha256
    assert len(corpus.valid) == pytest.approx(len(ids) / 10, abs=20)
    assert not corpus.train.flags.writeable
    assert not corpus.valid.flags.writeable


def test_the_default_is_half_a_megabyte_of_mostly_printable_english():
    corpus = data.default_corpus()
    text = corpus.decode(corpus.train)
    assert len(corpus.train) > 300_000
    assert corpus.vocabulary_size <= 128
    assert sum(c.isprintable() or c == "\n" for c in text) > 0.999 * len(text)
    assert " the " in text
    assert repr(corpus).startswith("pydoc (")


def test_zen_is_read_without_printing_it():
    code = "from precsim.runs.data import load; c = load('zen'); print(c.decode(c.train)[:17])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "The Zen of Python\n"
    assert sum(map(len, (load("zen").train, load("zen").valid))) == 856


def test_reverse_asks_only_for_the_mirrored_half():
    x, y = Batches(load("reverse"), batch_size=32, context=16).train(5)
    assert x.shape == y.shape == (32, 16)
    assert (y[:, :8] == IGNORED).all()
    np.testing.assert_array_equal(y[:, 8:], x[:, 7::-1])
    assert load("reverse").decode(x[:, 8]) == "|" * 32
    assert load("reverse").floor == 0


def test_markov2_has_the_entropy_that_it_claims():
    corpus = load("markov2")
    letters = corpus.train.tolist()
    entropies = [entropy_of_the_next_letter(letters, order) for order in (0, 1, 2)]
    assert corpus.floor == pytest.approx(0.8223, abs=1e-4)
    assert entropies[2] == pytest.approx(corpus.floor, abs=0.01)
    # One letter back is not enough: there is something to learn from the second.
    assert entropies[0] > entropies[1] > 1.5


def entropy_of_the_next_letter(letters, order):
    """In nats, given the `order` letters before it, estimated from counts."""
    runs = Counter(zip(*(letters[i:] for i in range(order + 1)), strict=False))
    before = Counter()
    for run, n in runs.items():
        before[run[:-1]] += n
    return -sum(n * math.log(n / before[run[:-1]]) for run, n in runs.items()) / runs.total()


@pytest.mark.parametrize(
    ("name", "digest"),
    [("reverse", "333828de1cc10b33"), ("markov2", "5ff87b316d4f33d9"), ("zen", "e250f274f33b9b62")],
)
def test_built_in_corpora_but_pydoc_never_change(name, digest):
    assert load(name).sha256.startswith(digest)


def test_targets_follow_inputs_and_decode_to_the_text(book):
    corpus = text_corpus(book)
    text = book.read_text()
    for x, y in [Batches(corpus, 4, 30).train(0), *Batches(corpus, 4, 30).valid()]:
        np.testing.assert_array_equal(x[:, 1:], y[:, :-1])
        for row in range(4):
            assert corpus.decode(x[row]) + corpus.decode(y[row, -1:]) in text
    assert (corpus.name, corpus.vocabulary_size) == ("book.txt", 20)
    assert corpus.sha256 == sha256(book.read_bytes()).hexdigest()


def test_batches_need_no_history_and_depend_on_seed_and_step(book):
    batches, again = (Batches(text_corpus(book), 8, 16, seed=3) for _ in range(2))
    first, seventh = batches.train(0), batches.train(7)
    np.testing.assert_array_equal(again.train(7), seventh)
    np.testing.assert_array_equal(again.train(0), first)
    assert not np.array_equal(first, seventh)
    another_seed = Batches(text_corpus(book), 8, 16, seed=4)
    assert not np.array_equal(first, another_seed.train(0))
    np.testing.assert_array_equal(another_seed.valid(), batches.valid())


def test_every_place_of_the_text_is_drawn():
    corpus = data._corpus("b", bytes(range(110)))
    x, _ = Batches(corpus, 10_000, context=10).train(0)
    # 99 bytes to train on have 89 places for a window of 11; 112 draws of each are expected.
    counts = np.bincount(x[:, 0], minlength=89)
    assert len(counts) == 89
    assert counts.min() > 60


@given(
    size=st.integers(20, 400),
    context=st.integers(1, 45),
    batch_size=st.integers(1, 40),
    valid_batches=st.integers(1, 6),
)
@example(size=20, context=1, batch_size=1, valid_batches=1)
def test_valid_rows_are_different_and_in_equal_batches(size, context, batch_size, valid_batches):
    corpus = data._corpus("counting", bytes(i % 256 for i in range(size)))
    if size < 10 * (context + 1):
        with pytest.raises(DataError, match=f"{10 * (context + 1)} bytes are needed and {size}"):
            Batches(corpus, batch_size, context)
        return
    batches = Batches(corpus, batch_size, context, valid_batches=valid_batches).valid()
    places = len(corpus.valid) - context
    assert 1 <= len(batches) <= valid_batches
    assert {x.shape for x, _ in batches} == {(min(batch_size, places), context)}
    rows = [tuple(row) for x, _ in batches for row in x.tolist()]
    assert len(set(rows)) == len(rows)


def test_bytes_of_any_kind_are_a_text(tmp_path):
    path = tmp_path / "every.bin"
    path.write_bytes(bytes(range(256)) * 4)
    corpus = text_corpus(path)
    assert corpus.vocabulary_size == 256
    assert corpus.alphabet == bytes(range(256))
    assert corpus.decode([[72, 105], [255, 33]]) == "Hi\ufffd!"
    assert corpus.decode([]) == ""


def test_a_file_named_like_a_built_in_needs_a_slash(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zen").write_text("mine, all mine, and long enough")
    assert load("zen").vocabulary_size == 45
    assert load("./zen").decode(load("./zen").train).startswith("mine")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("revrse", "no file 'revrse': did you mean 'reverse'? Texts built in: pydoc, zen"),
        ("no/such/file.txt", "no file 'no/such/file.txt': expected a path to a text file. Texts"),
        (".", "cannot read '.': it is a directory; expected one text file"),
        ("", "cannot read '': it is a directory"),
        ("a\0b", "cannot read 'a\\x00b'"),
        ("~nobody-has-this-name/x", "~nobody-has-this-name/x"),
        (os.devnull, f"cannot read {os.devnull!r}: it is not a regular file"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_sentence(name, said):
    with pytest.raises(DataError) as caught:
        load(name)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_permission_and_emptiness(tmp_path, monkeypatch):
    path = tmp_path / "x.txt"
    path.touch()
    with pytest.raises(DataError, match=r"'x\.txt' is empty"):
        load(path)

    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)  # chmod does not stop root
    with pytest.raises(DataError, match=r"x\.txt': Permission denied; expected a readable"):
        load(path)


def test_a_python_without_its_documentation_names_the_alternatives(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(DataError, match="try --text FILE, or the corpus reverse"):
        data.default_corpus()


def test_too_short_says_what_would_do(tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("x" * 300)
    with pytest.raises(DataError, match=r"650 bytes are needed and 300 came; try a context of at"):
        Batches(text_corpus(path), 4, context=64)
    Batches(text_corpus(path), 4, context=29)
    path.write_text("x" * 19)
    with pytest.raises(DataError, match=r"20 bytes are needed and 19 came; try more text"):
        Batches(text_corpus(path), 4, context=1)


def test_sizes_and_ids_that_cannot_be_are_refused(book):
    corpus = text_corpus(book)
    for sizes in ({"batch_size": 0, "context": 4}, {"batch_size": 4, "context": -1}):
        with pytest.raises(ValueError, match="to be 1 or more"):
            Batches(corpus, **sizes)
    with pytest.raises(DataError, match="so the context must be 16, got 64"):
        Batches(load("reverse"), 4, 64)
    with pytest.raises(ValueError, match="step of 0 or more, got -1"):
        Batches(corpus, 4, 4).train(-1)
    with pytest.raises(DataError, match=r"ids from 0 to 19, the vocabulary of 'book\.txt'"):
        corpus.decode([3, IGNORED])
