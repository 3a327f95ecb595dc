"""The recorder: writes a run's directory while the run goes on, and keeps it small enough.

A line for each step at once; the ops' columns and a checkpoint every `checkpoint_every` steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain
from pathlib import Path

from precsim.observe.trace import Level, StepTrace
from precsim.runs.checkpoint import capture
from precsim.runs.columns import Chunk, select, tensors_to_arrays
from precsim.runs.files import DiskFullError, RunError, remove
from precsim.runs.interrupt import Interrupted, Interruption
from precsim.runs.lock import NAME as LOCK
from precsim.runs.results import Run, StepRecord
from precsim.runs.store import FOLDERS, INDEX, MANIFEST, STEPS, TRIALS, Entry, Store, read_arrays
from precsim.runs.trainer import Trainer

THINNING = (10, 100, 1000, 10_000, 100_000)
"""To stay under `max_trace`, the ops of every so many steps are kept, from the oldest steps on."""


def clear_folder(folder: Path, *, force: bool) -> None:
    """See to it that a locked directory is empty.

    Raises `RunError` if it is not, unless `force`: then an earlier run's files go, and no others.
    """
    found = [path.name for path in folder.iterdir() if path.name != LOCK]
    if found and not force:
        run = MANIFEST in found
        hint = f"continue it with `precsim resume {folder}`, " if run else ""
        what = "holds a run already" if run else f"is not empty (it has {min(found)})"
        msg = f"{folder} {what}: {hint}choose another directory, or say --force (force=True)"
        raise RunError(msg)
    for path in [folder / name for name in (MANIFEST, STEPS, INDEX, TRIALS)]:
        remove(path)
    for name in FOLDERS:
        for path in (folder / name).glob("*"):
            remove(path)


class Recorder:
    """Writes one run, step by step; a checkpoint where one is due, and where Ctrl-C asked for one.

    A step raises `DiskFullError` where there is no room (the run is whole up to its last
    checkpoint) and `Interrupted` when it has done what Ctrl-C asked for.
    """

    def __init__(
        self, store: Store, run: Run, trainer: Trainer, start: int, interruption: Interruption
    ) -> None:
        self._store = store
        self._run = run
        self._trainer = trainer
        self._interruption = interruption
        self._chunk = Chunk()
        self._first = self._next = start
        found = [entry for entry in store.index.of("ckpt") if entry.first == start]
        self._saved = _end_of(found[0]) if found else None
        if self._saved is None:
            self._commit(start)

    def step(self, record: StepRecord, trace: StepTrace) -> None:
        """Write one step's line and the tensors that were asked for; keep its ops until a commit."""
        step, run = record.step, self._run
        with self._resumable():
            self._store.append_step(record.to_dict())
            if trace.tensors:
                arrays = tensors_to_arrays(trace)
                self._store.add(f"tensors/{step:06d}.npz", arrays, step, step, compress=False)
        self._chunk.add(trace)
        self._next = step + 1
        stop = self._interruption.requested
        if stop or self._next % run.config.checkpoint_every == 0:
            self._commit(self._next)
        if stop and run.died_at is None and self._next < run.config.steps:
            raise Interrupted(self._store.folder, self._next)

    def finish(self) -> None:
        """See to it that there is a checkpoint of the run's end, which says how it ended."""
        if self._saved != (self._next, self._run.died_at):
            self._commit(self._next)

    def _commit(self, step: int) -> None:
        """Write the ops since the last time and a checkpoint of the state before `step`."""
        run = self._run
        with self._resumable():
            if self._first < step and Level.parse(run.config.observe).includes("counts"):
                name = f"ops/{self._first:06d}-{step - 1:06d}.npz"
                self._store.add(name, self._chunk.drain(), self._first, step - 1)
            drops = _make_room(self._store, run.config.max_trace)
            entry = self._store.add(
                f"ckpt/{step:06d}.npz",
                capture(self._trainer, step, run.counts),
                step,
                step - 1,
                drops=drops,
                trouble=asdict(run.trouble) if run.trouble else None,
                died_at=run.died_at,
            )
        self._first, self._saved = step, _end_of(entry)

    @contextmanager
    def _resumable(self) -> Iterator[None]:
        try:
            yield
        except DiskFullError as error:
            folder = self._store.folder
            kept = "nothing" if self._saved is None else f"all before step {self._saved[0]}"
            msg = f"{error}: {kept} is kept; make room, then `precsim resume {folder}`"
            raise DiskFullError(msg) from error


def _end_of(entry: Entry) -> tuple[int, int | None]:
    return entry.first, (entry.info or {}).get("died_at")


def _make_room(store: Store, limit: int) -> tuple[str, ...]:
    """Thin the ops until the trace fits; return the tensor files that must go for it.

    Tensors go first, they are the largest; then ops, the oldest first and never all of a chunk's
    file, so that what is missing is known to be thinned and not lost.
    """
    excess = sum(e.bytes for e in store.index.entries.values() if e.kind != "ckpt") - limit
    drops: list[str] = []
    if not limit:
        return ()
    for entry in store.index.of("tensors"):
        if excess > 0:
            drops.append(entry.file)
            excess -= entry.bytes
    for every, entry in chain.from_iterable(
        ((every, entry) for entry in store.index.of("ops")) for every in THINNING
    ):
        if excess > 0 and kept_every(entry) < every:
            excess -= entry.bytes - _thin(store, entry, every).bytes
    return tuple(drops)


def kept_every(entry: Entry) -> int:
    """Return which steps of a chunk are left: all (1), or those that this number divides."""
    return int(entry.file.removesuffix(".npz").partition(".every")[2] or 1)


def _thin(store: Store, entry: Entry, every: int) -> Entry:
    chunk = read_arrays(store.folder, entry)
    keep = chunk["step"] % every == 0
    thinned = select(chunk, keep) if keep.any() else Chunk().drain()
    name = f"ops/{entry.first:06d}-{entry.last:06d}.every{every}.npz"
    return store.add(name, thinned, entry.first, entry.last, drops=(entry.file,))
