"""What the ops did, in columns: rows of traces to arrays on the way in, a table on the way out.

A chunk is some steps' rows as arrays of one length.  What repeats (paths, formats) is a number into
a small table of its own; exponent histograms, mostly zeros, keep only the stretch from the first
to the last exponent that occurs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from precsim.engine.rule import PHASES
from precsim.engine.tape import OPS
from precsim.observe.counters import COUNTS, HIGHEST, LOWEST
from precsim.observe.trace import StepTrace, matches
from precsim.runs.files import DamagedError, RunError
from precsim.runs.npz import Arrays

BINS = HIGHEST - LOWEST + 1

_INTEGERS = {"step": "i4", "call": "i4", **dict.fromkeys(COUNTS, "i8")}
_FLOATS = dict.fromkeys(("u", "amax", "amin", "square", "error"), "f8")
_FIELDS = _INTEGERS | _FLOATS
_NUMBERED = {"path": "paths", "format": "formats"}
ROWS = ("row", *_NUMBERED, *_FIELDS, "hash", "err_rel", "first_bin", "bins")
"""Columns with one value for each row."""


class Chunk:
    """Collects steps' rows until `drain` turns them into arrays."""

    def __init__(self) -> None:
        self._sources: dict[str, str] = {}  # of all steps: a trace tells a path's source once
        self._begin()

    def _begin(self) -> None:
        self._steps: list[Arrays] = []
        self._numbers: dict[str, dict[str, int]] = {name: {} for name in _NUMBERED}

    def add(self, trace: StepTrace) -> None:
        """Take one step's rows in."""
        rows = trace.rows
        if not rows:
            return
        columns: Arrays = {
            name: np.array([getattr(row, name) for row in rows], dtype)
            for name, dtype in _FIELDS.items()
        }
        for name, numbers in self._numbers.items():
            found = [numbers.setdefault(getattr(row, name), len(numbers)) for row in rows]
            columns[name] = np.array(found, "i4")
        self._sources = trace.sources | self._sources
        columns["row"] = np.arange(len(rows), dtype="i4")
        columns["hash"] = np.array(trace.hashes, "u8")
        columns["err_rel"] = np.array(trace.errors, "f8")
        self._steps.append(columns | _trimmed([row.histogram for row in rows]))

    def drain(self) -> Arrays:
        """Return the rows since the last time as arrays (no rows: arrays of length 0)."""
        steps, names = self._steps or [_nothing()], (*ROWS, "histogram")
        columns = {name: np.concatenate([step[name] for step in steps]) for name in names}
        for name, plural in _NUMBERED.items():
            columns[plural] = np.array(list(self._numbers[name]), np.str_)
        sources = [self._sources.get(path, "") for path in self._numbers["path"]]
        columns["sources"] = np.array(sources, np.str_)
        self._begin()
        return columns


def _nothing() -> Arrays:
    types = _FIELDS | {"hash": "u8", "err_rel": "f8", "first_bin": "i2", "bins": "i2"}
    return {n: np.zeros(0, types.get(n, "i4")) for n in ROWS} | {"histogram": np.zeros(0, "u4")}


def _trimmed(histograms: Sequence[npt.NDArray[np.int64] | None]) -> Arrays:
    """Return where each histogram begins, how many bins it has, and all their bins in one row."""
    stretches = [_stretch(histogram) for histogram in histograms]
    return {
        "first_bin": np.array([first for first, _ in stretches], "i2"),
        "bins": np.array([len(bins) for _, bins in stretches], "i2"),
        "histogram": np.concatenate([bins for _, bins in stretches]).astype("u4"),
    }


def _stretch(histogram: npt.NDArray[np.int64] | None) -> tuple[int, npt.NDArray[np.int64]]:
    nonzero = np.flatnonzero(histogram) if histogram is not None else np.zeros(0, np.int64)
    if histogram is None or not len(nonzero):
        return 0, np.zeros(0, np.int64)
    first = int(nonzero[0])
    return first, histogram[first : int(nonzero[-1]) + 1]


def tensors_to_arrays(trace: StepTrace) -> Arrays:
    """Return the whole results that a trace has, by number, with their paths and calls."""
    rows = [trace.rows[number] for number in trace.tensors]
    return {
        "paths": np.array([row.path for row in rows], np.str_),
        "calls": np.array([row.call for row in rows], "i4"),
        **{f"{number:05d}": array for number, array in enumerate(trace.tensors.values())},
    }


def arrays_to_tensors(arrays: Arrays, op: str = "*") -> dict[tuple[str, int], npt.NDArray[Any]]:
    """Return results by path and call, of the ops that a glob names."""
    places = zip(arrays["paths"].tolist(), arrays["calls"].tolist(), strict=True)
    return {
        place: arrays[f"{number:05d}"]
        for number, place in enumerate(places)
        if matches(place[0], op)
    }


def check_chunk(chunk: Arrays, first: int, last: int) -> None:
    """Raise `DamagedError` if arrays are not a chunk of rows of the steps `first` to `last`."""
    wanted = {*ROWS, "histogram", *_NUMBERED.values(), "sources"}
    if chunk.keys() != wanted or any(a.ndim != 1 for a in chunk.values()):
        msg = f"not a chunk of ops: its arrays are {sorted(chunk)!r:.80}"
        raise DamagedError(msg)
    fits = (
        len({len(chunk[name]) for name in ROWS}) == 1
        and len(chunk["histogram"]) == chunk["bins"].sum()
        and len(chunk["sources"]) == len(chunk["paths"])
        and all(_inside(chunk[n], 0, len(chunk[many]) - 1) for n, many in _NUMBERED.items())
        and _inside(chunk["step"], first, last)
        and _inside(chunk["first_bin"], 0, BINS)
        and _inside(chunk["bins"], 0, BINS)
        and _inside(chunk["first_bin"] + chunk["bins"], 0, BINS)
    )
    if not fits:
        msg = "the columns of a chunk of ops do not fit together"
        raise DamagedError(msg)


def _inside(values: npt.NDArray[Any], low: int, high: int) -> bool:
    return values.size == 0 or bool(low <= values.min() <= values.max() <= high)


def select(chunk: Arrays, keep: npt.NDArray[np.bool_]) -> Arrays:
    """Return the rows of a chunk where `keep` is true; its tables stay whole."""
    owner = np.repeat(keep, chunk["bins"])
    rows = {name: chunk[name][keep] for name in ROWS}
    return chunk | rows | {"histogram": chunk["histogram"][owner]}


class OpTable:
    """Rows of ops, as columns: ``table["flushed"]`` is an array with a value for each row.

    Columns are all counts of `OpCounts` and its shares, and path, role, scope, op, kind, phase,
    source (file:line of the code that called the op), format, u, step, row (within the step), call,
    hash, amax, amin (inf where all is zero), rms, err_rel (local error, NaN where it was not
    measured), err_u (the same in units of u), and histogram, (rows, exponents from `LOWEST` up).
    """

    def __init__(self, chunks: Sequence[Arrays]) -> None:
        self._chunks = [chunk for chunk in chunks if len(chunk["step"])]

    def __len__(self) -> int:
        return sum(len(chunk["step"]) for chunk in self._chunks)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns; "histogram", which has two axes, is not among them."""
        return (*_NUMBERED, *_OF_PATH, "source", "row", *_FIELDS, "hash", "err_rel", *_DERIVED)

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        self._check(name)
        parts = [_column(chunk, name) for chunk in self._chunks]
        return np.concatenate(parts or [_column(Chunk().drain(), name)])

    def where(self, *, steps: range | None = None, op: str | None = None, **wanted: Any) -> OpTable:
        """Return the rows of some steps, of ops that a glob names, and with columns as `wanted`.

        ``op`` is matched as in `precsim.observe.trace.matches`; ``phase="backward"`` and the like
        compare whole words.  Raises `KeyError` for a column that there is not.
        """
        for name in wanted:
            self._check(name)
        found = []
        for chunk in self._chunks:
            keep = np.ones(len(chunk["step"]), bool)
            if steps is not None:
                keep &= np.isin(chunk["step"], np.array(steps))
            if op is not None:
                hits = np.array([matches(path, op) for path in chunk["paths"].tolist()], bool)
                keep &= hits[chunk["path"]]
            for name, value in wanted.items():
                keep &= _column(chunk, name) == value
            found.append(select(chunk, keep))
        return OpTable(found)

    def paths(self) -> list[str]:
        """Return the path of every op, once."""
        return list(dict.fromkeys(self["path"].tolist()))

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield each row as plain values by column, without the histogram."""
        columns = {name: self[name].tolist() for name in self.columns}
        for values in zip(*columns.values(), strict=True):
            yield dict(zip(columns, values, strict=True))

    def to_pandas(self) -> Any:
        """Return a pandas DataFrame; raise `RunError` where pandas is not installed."""
        try:
            import pandas as pd  # type: ignore[import-not-found,import-untyped,unused-ignore]
        except ImportError:
            msg = "to_pandas needs pandas: try `pip install pandas`, or the columns as they are"
            raise RunError(msg) from None
        return pd.DataFrame({name: self[name] for name in self.columns})

    def _check(self, name: str) -> None:
        if name not in (*self.columns, "histogram"):
            msg = f"no column {name!r}: expected one of {', '.join(self.columns)} or histogram"
            raise KeyError(msg)

    def __repr__(self) -> str:
        steps, paths = np.unique(self["step"]), np.unique(self["path"])
        return f"OpTable({len(self)} rows, {len(steps)} steps, {len(paths)} paths)"


def _column(chunk: Arrays, name: str) -> npt.NDArray[Any]:
    if name in _NUMBERED:
        return chunk[_NUMBERED[name]][chunk[name]]
    if name in _OF_PATH:
        of_path = [_OF_PATH[name](path) for path in chunk["paths"].tolist()]
        return np.array(of_path, np.str_)[chunk["path"]]
    if name == "source":
        return chunk["sources"][chunk["path"]]
    if name == "histogram":
        return _dense(chunk)
    return _DERIVED[name](chunk) if name in _DERIVED else chunk[name]


def _dense(chunk: Arrays) -> npt.NDArray[np.int64]:
    dense = np.zeros((len(chunk["step"]), BINS), np.int64)
    lengths = chunk["bins"].astype(np.int64)
    row = np.repeat(np.arange(len(dense)), lengths)
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    dense[row, np.repeat(chunk["first_bin"].astype(np.int64), lengths) + within] = chunk[
        "histogram"
    ]
    return dense


def _role(path: str) -> str:
    return path.partition("/")[0]


def _op(path: str) -> str:
    return path.rpartition("/")[2]


_OF_PATH: dict[str, Callable[[str], str]] = {
    "role": _role,
    "scope": lambda path: path.partition("/")[2].rpartition("/")[0],
    "op": _op,
    "phase": lambda path: PHASES.get(_role(path), ""),
    "kind": lambda path: OPS[_op(path)].kind if _op(path) in OPS else "",
}


def _share(chunk: Arrays, part: str, whole: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    shares = np.zeros(len(whole))
    np.divide(chunk[part], whole, out=shares, where=whole != 0)
    return shares


def _of_nonzero(part: str) -> Callable[[Arrays], npt.NDArray[np.float64]]:
    return lambda chunk: _share(chunk, part, chunk["n"] - chunk["zeros"])


def _finite(chunk: Arrays) -> npt.NDArray[np.int64]:
    finite: npt.NDArray[np.int64] = chunk["n"] - chunk["nonfinite_in"] - chunk["overflowed"]
    return finite


_DERIVED: dict[str, Callable[[Arrays], npt.NDArray[Any]]] = {
    "flushed_share": _of_nonzero("flushed"),
    "subnormal_share": _of_nonzero("subnormal"),
    "inexact_share": _of_nonzero("inexact"),
    "swamped_share": lambda chunk: _share(chunk, "swamped", chunk["updates"]),
    "rms": lambda chunk: np.sqrt(_share(chunk, "square", _finite(chunk))),
    "relative_error": lambda chunk: np.sqrt(_share(chunk, "error", chunk["square"])),
    "err_u": lambda chunk: _share(chunk, "err_rel", chunk["u"]),
}
