"""A run's directory: which files it has, and how they come and go.

    manifest.json   what is run: config, formats, ops, text, machine (see `manifest`)
    steps.jsonl     one line for each step
    index.jsonl     one line for each file below, with its sha256: no file counts before its line
    ckpt/           000050.npz: everything that step 50 starts from
    ops/            000000-000049.npz: what each op of these steps did, in columns
    tensors/        000007.npz: whole results of the ops of step 7 that were asked for
    search.jsonl    what `precsim search` has tried; nothing depends on it
    LOCK            who is writing now

A checkpoint's line commits all that came before it.  A crash leaves at worst a file without a
line, and lines of steps.jsonl after the last checkpoint; `rewind` drops both, and the run goes on
from there with the same bits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

from precsim.runs import npz
from precsim.runs.files import (
    TEMPORARY,
    Appender,
    DamagedError,
    RunError,
    make_folder,
    read_file,
    readable,
    remove,
    write_file,
)
from precsim.runs.lines import decode_lines, encode_line
from precsim.runs.npz import Arrays

MANIFEST, STEPS, INDEX = "manifest.json", "steps.jsonl", "index.jsonl"
TRIALS = "search.jsonl"
SWEEP = "sweep.json"
"""In the directory of a sweep, whose runs are in directories of their own."""

FOLDERS = ("ckpt", "ops", "tensors")
LONGEST_FILE = 1 << 34

_PLACE = re.compile(r"(ckpt|ops|tensors)/[0-9]{1,12}(-[0-9]{1,12}(\.every[0-9]{1,6})?)?\.npz")
_FIELDS = {"file": str, "bytes": int, "sha256": str, "first": int, "last": int, "drops": list}


@dataclass(frozen=True)
class Entry:
    """A line of the index: a file, its sha256, and the steps that it is about.

    A checkpoint's `first` is the step that starts from it and `last` the one before.
    """

    file: str
    bytes: int
    sha256: str
    first: int
    last: int
    drops: tuple[str, ...] = ()
    info: Mapping[str, Any] | None = None

    @property
    def kind(self) -> str:
        """Folder of the file: ckpt, ops or tensors."""
        return self.file.partition("/")[0]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        fields = {name: getattr(self, name) for name in _FIELDS}
        return fields | {"info": dict(self.info or {})}


@dataclass(frozen=True)
class Index:
    """What the index says: entries by file, in the order in which they were written.

    `damage` has a sentence for each line that cannot be trusted; `torn` says whether the last one
    was cut off, as a crash does.
    """

    entries: Mapping[str, Entry]
    damage: tuple[str, ...] = ()
    torn: bool = False

    def of(self, kind: str) -> list[Entry]:
        """Return the entries of one folder, by step."""
        found = [entry for entry in self.entries.values() if entry.kind == kind]
        return sorted(found, key=lambda entry: (entry.first, entry.last))


def read_index(folder: Path) -> Index:
    """Return a directory's index; without a file it is empty."""
    path = folder / INDEX
    if not path.exists():
        return Index({})
    lines, torn = decode_lines(read_file(path, LONGEST_FILE))
    entries: dict[str, Entry] = {}
    damage = []
    for number, line in enumerate(lines, 1):
        try:
            if isinstance(line, DamagedError):
                raise line
            entry = _entry(line)
        except DamagedError as error:
            damage.append(f"{INDEX} line {number}: {error}")
            continue
        for dropped in entry.drops:
            entries.pop(dropped, None)
        entries[entry.file] = entry
    return Index(entries, tuple(damage), torn)


def read_bytes(folder: Path, entry: Entry) -> bytes:
    """Return the content of a file of the index; raise `DamagedError` if it is not that."""
    data = read_file(folder / entry.file, LONGEST_FILE)
    if len(data) != entry.bytes or sha256(data).hexdigest() != entry.sha256:
        msg = f"{entry.file} is not what was written: {len(data)} bytes, and its sha256 differs"
        raise DamagedError(msg)
    return data


def is_intact(folder: Path, entry: Entry) -> bool:
    """Return whether a file of the index is what was written."""
    try:
        read_bytes(folder, entry)
    except DamagedError:
        return False
    return True


def read_arrays(folder: Path, entry: Entry) -> Arrays:
    """Return the arrays in a file of the index; raise `DamagedError` if they are not those."""
    try:
        return npz.unpack(read_bytes(folder, entry))
    except DamagedError as error:
        msg = str(error) if entry.file in str(error) else f"{entry.file}: {error}"
        raise DamagedError(msg) from None


class Store:
    """Writes a run's directory; whoever has one holds the directory's `Lock`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index = read_index(folder)
        self._steps = Appender(folder / STEPS)
        self._lines = Appender(folder / INDEX)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._steps.close()
        self._lines.close()

    def append_step(self, record: Mapping[str, Any]) -> None:
        """Add a line to steps.jsonl."""
        self._steps.append(encode_line(record))

    def add(
        self,
        file: str,
        arrays: Arrays,
        first: int,
        last: int,
        *,
        drops: tuple[str, ...] = (),
        compress: bool = True,
        **info: Any,
    ) -> Entry:
        """Write a file and its line, in this order, and only then remove the files that it drops."""
        data = npz.pack(arrays, compress=compress)
        digest = sha256(data).hexdigest()
        entry = Entry(file, len(data), digest, first, last, drops, info)
        make_folder((self.folder / file).parent)
        write_file(self.folder / file, data)
        self._steps.sync()  # no checkpoint is committed before the steps that led to it
        self._lines.append(encode_line(entry.to_dict()), sync=True)
        kept = {name: e for name, e in self.index.entries.items() if name not in drops}
        self.index = Index(kept | {file: entry})
        for name in drops:
            remove(self.folder / name)
        return entry


def rewind(folder: Path, step: int, lines: int) -> None:
    """Make a directory what it was when the checkpoint of `step` had been written.

    `lines` of steps.jsonl stay.  Entries about later steps go, and with them the files, as do files
    that are damaged or that no line speaks of.  Raises `UnreadableError`, and leaves all as it is,
    where something cannot be read: it may be whole.
    """
    index = read_index(folder)
    kept = [e for e in index.entries.values() if e.last < step and is_intact(folder, e)]
    leftover = unlisted(folder, {entry.file for entry in kept})
    steps = read_file(folder / STEPS, LONGEST_FILE) if (folder / STEPS).exists() else b""
    kept_lines = b"".join(line + b"\n" for line in steps.split(b"\n")[:lines])
    if kept_lines != steps:
        write_file(folder / STEPS, kept_lines)
    data = b"".join(encode_line(e.to_dict()) for e in kept)
    if data != (read_file(folder / INDEX, LONGEST_FILE) if (folder / INDEX).exists() else b""):
        write_file(folder / INDEX, data)
    for file in leftover:
        remove(folder / file)


def unlisted(folder: Path, listed: set[str]) -> list[str]:
    """Return the files that no line of the index speaks of, half-written ones included.

    Raises `UnreadableError` for a folder that cannot be listed.
    """
    found: list[Path] = []
    for name in FOLDERS:
        if (folder / name).is_dir():
            with readable(folder / name):
                found += (folder / name).iterdir()
    found += [path for path in folder.iterdir() if path.name.endswith(TEMPORARY)]
    names = [path.relative_to(folder).as_posix() for path in found]
    return sorted(name for name in names if name not in listed)


def _entry(line: dict[str, Any]) -> Entry:
    info = line.pop("info", None)
    right = line.keys() == _FIELDS.keys() and isinstance(info, dict)
    if not right or not all(type(line[name]) is kind for name, kind in _FIELDS.items()):
        msg = f"not a line about a file: {line!r:.60}"
        raise DamagedError(msg)
    files = [line["file"], *line["drops"]]
    if not all(isinstance(file, str) and _PLACE.fullmatch(file) for file in files):
        msg = f"not a run's file: {files!r:.60}"
        raise DamagedError(msg)
    return Entry(**line | {"drops": tuple(line["drops"])}, info=info)


def require_run(folder: Path) -> None:
    """Raise `RunError` where there is no run directory."""
    if not folder.is_dir():
        msg = f"no directory {str(folder)!r}: expected one that `precsim train -o DIR` wrote"
        raise RunError(msg)
    with readable(folder):
        if (folder / MANIFEST).exists():
            return
    msg = f"{str(folder)!r} is no run: it has no {MANIFEST}; `precsim train -o DIR` writes one"
    if (folder / SWEEP).exists():
        first = min((path.parent.name for path in folder.glob(f"*/{MANIFEST}")), default="")
        such = f", such as {folder / first}" if first else ""
        msg = f"{str(folder)!r} is no run but a sweep: its runs are in it{such}"
    raise RunError(msg)
