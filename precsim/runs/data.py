"""Real input: text as bytes, three small tasks with known answers, and batches without history.

Everything is a `Corpus`: one row of small integers, its last tenth held out.  A byte-level
vocabulary needs no tokenizer, no download and no choice: the ids are the bytes that occur, in
ascending order.  Four corpora are always there:

- "pydoc": the language reference that CPython carries for its `help()`, half a megabyte of
  English.  It differs between Python versions, so a run records its sha256;
- "zen": the 856 characters of `import this`, learnt by heart in seconds;
- "reverse": eight digits and their mirror image.  The loss goes to zero, and with it the
  gradients: the task on which underflow shows;
- "markov2": letters drawn from an order-2 table, whose entropy is the floor of the loss.

Batch k is drawn with the key (seed, k): it needs no batch before it, so a resumed, replayed or
forked run sees the same data, and two recipes are compared on the same data.
"""

from __future__ import annotations

import ast
import difflib
import math
import operator
import os
from codecs import decode as decode_with
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from importlib.abc import InspectLoader
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from precsim.backend import key, uniform, words

IGNORED = -1
"""A target with this id carries no loss."""

Batch = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
"""Inputs and targets, both (rows, context): the target of a position is the id after it."""


class DataError(ValueError):
    """A text cannot be read, or cannot fill a batch."""


@dataclass(frozen=True, eq=False)
class Corpus:
    """A text as ids 0 .. vocabulary_size-1, read-only, split 9 to 1 into `train` and `valid`.

    `alphabet` holds the byte of each id and `sha256` is that of the whole text, so it equals what
    ``sha256sum`` says of a file.  `record` is the length of one example if the text is a row of
    independent examples, and the first `ignored` targets of each carry no loss.  `floor` is the
    lowest loss that any model can reach, in nats per target, where it is known.
    """

    name: str
    train: npt.NDArray[np.uint8]
    valid: npt.NDArray[np.uint8]
    alphabet: bytes
    sha256: str
    record: int | None = None
    ignored: int = 0
    floor: float | None = None

    @property
    def vocabulary_size(self) -> int:
        """Number of different bytes, 1 to 256."""
        return len(self.alphabet)

    def decode(self, ids: npt.ArrayLike) -> str:
        """Return ids, of any shape, as text; what is not UTF-8 (half a letter) becomes U+FFFD.

        Raises `DataError` for an id outside the vocabulary, `IGNORED` included.
        """
        values = np.asarray(ids, np.int64).ravel()
        if values.size and not 0 <= values.min() <= values.max() < self.vocabulary_size:
            msg = (
                f"expected ids from 0 to {self.vocabulary_size - 1}, the vocabulary of "
                f"{self.name!r}, got {values.min()} to {values.max()}"
            )
            raise DataError(msg)
        return bytes(self.alphabet[i] for i in values).decode(errors="replace")

    def __repr__(self) -> str:
        size = len(self.train) + len(self.valid)
        return f"{self.name} ({size:,} bytes, {self.vocabulary_size} of them different)"


@dataclass(frozen=True, eq=False)
class Batches:
    """Batches of a corpus: `train(step)` drawn anew for each step, `valid()` always the same.

    `valid` does not depend on `seed`, so that runs with different seeds are measured alike.
    Raises `DataError` if the corpus is too short for one window of ``context + 1`` bytes in
    either part, or has examples of another length; `ValueError` for sizes below 1.
    """

    corpus: Corpus
    batch_size: int
    context: int
    seed: int = 0
    valid_batches: int = 4

    def __post_init__(self) -> None:
        for name in ("batch_size", "context", "valid_batches"):
            if (value := operator.index(getattr(self, name))) < 1:
                msg = f"expected {name} to be 1 or more, got {value}"
                raise ValueError(msg)
        _check_length(self.corpus, self.context)

    def train(self, step: int) -> Batch:
        """Return batch number `step`: inputs and targets, int64 of (batch_size, context).

        Rows are drawn with replacement, each place of the text as likely as another.
        Raises `ValueError` for a negative step.
        """
        if (step := operator.index(step)) < 0:
            msg = f"expected a step of 0 or more, got {step}"
            raise ValueError(msg)
        draws = uniform(key(self.seed, "data.train", step, 0), self.batch_size)
        return self._rows(self.corpus.train, draws * self._places(self.corpus.train))

    def valid(self) -> tuple[Batch, ...]:
        """Return `valid_batches` batches from places spread evenly over the held-out part.

        Fewer, of fewer different rows, where it has no more: all batches have the same shape, and
        no row comes twice.
        """
        places = self._places(self.corpus.valid)
        size = min(self.batch_size, places)
        count = min(self.valid_batches, places // size)
        spread = np.linspace(0, places - 1, size * count)
        return tuple(self._rows(self.corpus.valid, part) for part in np.split(spread, count))

    def _places(self, ids: npt.NDArray[np.uint8]) -> int:
        """Count the windows of context + 1 ids."""
        return (len(ids) - self.context - 1) // (self.corpus.record or 1) + 1

    def _rows(self, ids: npt.NDArray[np.uint8], places: npt.NDArray[np.float64]) -> Batch:
        starts = places.astype(np.int64) * (self.corpus.record or 1)
        index = starts[:, None] + np.arange(self.context)
        x, y = ids[index].astype(np.int64), ids[index + 1].astype(np.int64)
        y[:, : self.corpus.ignored] = IGNORED
        return x, y


def load(name_or_path: str | os.PathLike[str]) -> Corpus:
    """Return a built-in corpus (a name in `BUILT_IN`) or that of a file; names win.

    A file called "zen" is reached as "./zen".  Raises `DataError` as `text_corpus` does.
    """
    maker = BUILT_IN.get(os.fspath(name_or_path))
    return maker() if maker else text_corpus(name_or_path)


def text_corpus(path: str | os.PathLike[str]) -> Corpus:
    """Return a file's bytes as a corpus, whatever they mean; it is read whole into memory.

    Raises `DataError` if it is missing, unreadable, not a regular file, or empty.
    """
    try:
        where = Path(path).expanduser()
        strange = where.exists() and not where.is_file()
        text = b"" if strange else where.read_bytes()
    except FileNotFoundError as error:
        near = difflib.get_close_matches(os.fspath(path), BUILT_IN, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "expected a path to a text file."
        msg = f"no file {os.fspath(path)!r}: {hint} Texts built in: {', '.join(BUILT_IN)}"
        raise DataError(msg) from error
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        msg = f"cannot read {os.fspath(path)!r}: {reason}; expected a readable text file"
        raise DataError(msg) from error
    if strange:
        kind = "a directory" if where.is_dir() else "not a regular file"
        msg = f"cannot read {os.fspath(path)!r}: it is {kind}; expected one text file"
        raise DataError(msg)
    return _corpus(where.name, text)


def default_corpus() -> Corpus:
    """Return "pydoc": the texts of `pydoc_data.topics`, sorted by name, as UTF-8.

    Some 460 to 510 kB and 108 different bytes, printable ASCII but for the newline and the bytes
    of curly quotes and dashes.  Both differ between Python versions; compare `sha256`.
    Raises `DataError` where a Python was installed without them.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        msg = (
            "this Python was installed without its language reference (pydoc_data.topics): "
            "try --text FILE, or the corpus reverse, zen or markov2"
        )
        raise DataError(msg) from error
    return _corpus("pydoc", "\n".join(topics[name] for name in sorted(topics)).encode())


def _zen() -> Corpus:
    # Importing `this` prints it; its source is read instead.
    spec = find_spec("this")
    loader = spec.loader if spec else None
    source = loader.get_source("this") if isinstance(loader, InspectLoader) else None
    if source is None:
        msg = "this Python was installed without the source of `import this`: try reverse"
        raise DataError(msg)
    constants = (n.value for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Constant))
    poem = max((c for c in constants if isinstance(c, str)), key=len)
    return _corpus("zen", decode_with(poem, "rot13").encode())


def _reverse() -> Corpus:
    """65,536 times eight random digits, a bar, and the digits reversed; loss on the latter."""
    digits = words(key(0, "data.reverse", 0, 0), (65_536, 8)) % 10 + ord("0")
    bar = np.full((len(digits), 1), ord("|"))
    rows = np.concatenate([digits, bar, digits[:, ::-1]], axis=1)
    text = rows.astype(np.uint8).tobytes()
    return _corpus("reverse", text, record=17, ignored=8, floor=0.0)


def _markov2() -> Corpus:
    """262,144 letters a to h; after each pair, four letters follow with odds 12 : 2 : 1 : 1.

    The odds are the same for every pair, so the entropy of the next letter, given the two before
    it, is that of the odds, exactly: 0.822 nats.
    """
    odds = (12, 2, 1, 1)
    followers = np.argsort(words(key(0, "data.markov2.table", 0, 0), (64, 8)), kind="stable")
    table = np.repeat(followers[:, : len(odds)], odds, axis=1).tolist()
    letters, pair = bytearray(), 0
    for draw in words(key(0, "data.markov2.text", 0, 0), 2**18) % 16:
        letter = table[pair][draw]
        letters.append(ord("a") + letter)
        pair = pair % 8 * 8 + letter
    floor = -sum(n / 16 * math.log(n / 16) for n in odds)
    return _corpus("markov2", bytes(letters), floor=floor)


BUILT_IN: MappingProxyType[str, Callable[[], Corpus]] = MappingProxyType(
    {"pydoc": default_corpus, "zen": _zen, "reverse": _reverse, "markov2": _markov2}
)
"""Name -> function that makes the corpus."""


def _corpus(
    name: str,
    text: bytes,
    record: int | None = None,
    ignored: int = 0,
    floor: float | None = None,
) -> Corpus:
    if not text:
        msg = f"{name!r} is empty: expected a text of at least 20 bytes"
        raise DataError(msg)
    data = np.frombuffer(text, np.uint8)
    occurs = np.bincount(data, minlength=256) > 0
    ids = (np.cumsum(occurs) - 1).astype(np.uint8)[data]
    ids.setflags(write=False)
    unit = record or 1
    cut = len(ids) - len(ids) // (10 * unit) * unit
    alphabet = bytes(np.flatnonzero(occurs).tolist())
    digest = sha256(text).hexdigest()
    return Corpus(name, ids[:cut], ids[cut:], alphabet, digest, record, ignored, floor)


def _check_length(corpus: Corpus, context: int) -> None:
    if corpus.record is not None and context != corpus.record - 1:
        msg = (
            f"the examples of {corpus.name!r} have {corpus.record} ids, so the context must be "
            f"{corpus.record - 1}, got {context}"
        )
        raise DataError(msg)
    size, needed = len(corpus.train) + len(corpus.valid), 10 * (context + 1)
    if size < needed:
        longest = size // 10 - 1
        hint = f"a context of at most {longest}, or a longer text" if longest > 0 else "more text"
        msg = (
            f"{corpus.name!r} is too short for a context of {context}: its last tenth, held out, "
            f"must fill one window, so {needed} bytes are needed and {size} came; try {hint}"
        )
        raise DataError(msg)
