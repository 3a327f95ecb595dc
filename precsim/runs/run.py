"""A recorded run, read from its directory: lazily, checked, and safely while it is being written."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any, cast

import numpy.typing as npt

from precsim.engine.context import Observer
from precsim.nn.gpt import GPT
from precsim.observe.counters import OpCounts
from precsim.observe.trace import Level, check_words, unmatched
from precsim.runs.checkpoint import totals
from precsim.runs.columns import OpTable, arrays_to_tensors, check_chunk
from precsim.runs.data import Corpus
from precsim.runs.files import DamagedError, RunError
from precsim.runs.fork import fork
from precsim.runs.lock import NAME as LOCK
from precsim.runs.loop import Listener, state_before
from precsim.runs.manifest import Manifest, read_manifest
from precsim.runs.npz import Arrays
from precsim.runs.recorder import kept_every
from precsim.runs.recovery import find_corpus, read_steps
from precsim.runs.replay import Replay, replay
from precsim.runs.results import Run, StepRecord, Trouble, step_number
from precsim.runs.store import INDEX, STEPS, Entry, Index, read_arrays, read_index
from precsim.runs.trainer import Trainer


def open_run(path: str | os.PathLike[str]) -> StoredRun:
    """Return the run in a directory; nothing but its manifest is read before it is asked for.

    Raises `RunError` where there is none, or one of another version; `DamagedError`, here or
    later, for a file that is not what was written.
    """
    return StoredRun(Path(path))


class StoredRun(Run):
    """A run and its directory, `path`.  What was read stays; open it again to see what is new.

    Everything that `Run` has, and the ops (`ops`), whole results (`tensors`), the state before any
    step (`at`), replays and forks.  `counts`, `trouble`, `died_at` and `model` are those of the last
    checkpoint.  Reading raises `DamagedError` for a file that is not what was written.
    """

    def __init__(self, path: Path, known: Run | None = None) -> None:
        """Open `path`; what a run in memory knows already need not be read."""
        self.path = path
        self.manifest: Manifest = read_manifest(path)
        self.config = self.manifest.config
        info = (self._saved.info if self._saved else None) or {}
        self.trouble = Trouble(**info["trouble"]) if info.get("trouble") else None
        self.died_at = info.get("died_at")
        for name in _READERS if known else ():
            setattr(self, name, getattr(known, name))

    def __getattr__(self, name: str) -> Any:
        """Read what has not been asked for before: the text, the records, the counts, the model."""
        if name not in _READERS:
            msg = f"{type(self).__name__!r} object has no attribute {name!r}"
            raise AttributeError(msg)
        value = _READERS[name](self)
        setattr(self, name, value)
        return value

    def __repr__(self) -> str:
        reached = self.manifest.start + len(self.records)
        return f"StoredRun({str(self.path)!r}, steps {self.manifest.start} to {reached - 1})"

    @property
    def vocabulary(self) -> int:
        """Number of letters of the text, which need not be there for it."""
        return int(self.manifest.corpus["vocabulary"])

    @property
    def checkpoints(self) -> list[int]:
        """The steps that a checkpoint stands before."""
        return [entry.first for entry in self._index.of("ckpt")]

    def ops(
        self, step: int | slice | range | None = None, op: str | None = None, **wanted: Any
    ) -> OpTable:
        """Return what the ops of a step, some steps or all of them did, as columns.

        `op` is a glob for path, scope or op ("gradients/*", "blocks.0.*", "matmul"); ``phase=``,
        ``role=``, ``format=`` and the like compare whole words.
        Raises `RunError` for one step whose ops are not in the trace: not run, not watched, not
        written yet, or thinned out; and where there are ops, and `op` names none of them.
        `KeyError` for a column that there is not, `ValueError` for such a phase or role.
        """
        check_words(wanted.get("phase"), wanted.get("role"))
        steps = self._range(step)
        table = OpTable(self._chunks(steps)).where(steps=steps)
        if isinstance(step, Integral) and not len(table):
            raise RunError(self._why_no_ops(int(step)))
        found = table.where(op=op)
        if op is not None and len(table) and not len(found):
            msg = f"no recorded op matches {op!r}: {unmatched(op, table.paths())}"
            raise RunError(msg)
        return found.where(**wanted)

    def tensors(self, step: int, op: str = "*") -> dict[tuple[str, int], npt.NDArray[Any]]:
        """Return whole results by (path, call), of a run recorded with observe=tensors:PATTERN.

        Raises `RunError` where none of that step, or by that name, were recorded; `replay` has them.
        """
        for entry in self._index.of("tensors"):
            if entry.first == step:
                found = arrays_to_tensors(read_arrays(self.path, entry), op)
                if found:
                    return found
        which = f"step {step}" if op == "*" else f"step {step} and op {op!r}"
        msg = f"{self.path} has no tensors of {which}: try run.replay({step}, op={op!r}).events"
        raise RunError(msg)

    def at(self, step: int) -> Trainer:
        """Return a trainer with model, optimizer and loss scale as they were before a step.

        Raises `RunError` for a step that the run has not reached.
        """
        return state_before(self.path, step, self.corpus)

    def replay(
        self,
        step: int,
        op: str | None = None,
        *,
        observe: str = "shadow",
        observers: tuple[Observer, ...] = (),
        verify: bool = True,
    ) -> Replay:
        """Run a step again, to the bit; see `precsim.runs.replay.replay`."""
        return replay(
            self.path, step, op,
            observe=observe, observers=observers, verify=verify, corpus=self.corpus,
        )  # fmt: skip

    def fork(
        self,
        at: int,
        out: str | os.PathLike[str],
        *,
        force: bool = False,
        corpus: Corpus | None = None,
        on_step: Listener | None = None,
        observers: tuple[Observer, ...] = (),
        **changes: Any,
    ) -> StoredRun:
        """Go on from before step `at` under another config; see `precsim.runs.fork.fork`."""
        run = fork(
            self.path, at, Path(out), changes,
            force=force, corpus=corpus, on_step=on_step, observers=observers,
        )  # fmt: skip
        return StoredRun(Path(out), run)

    def _chunks(self, steps: range | None) -> list[Arrays]:
        """Read the chunks that have some of the steps; while one is thinned, look again."""
        index = self._index
        entries = [e for e in index.of("ops") if steps is None or _meet(e, steps)]
        try:
            chunks = [read_arrays(self.path, entry) for entry in entries]
        except DamagedError:
            if self._index.entries == index.entries:
                raise
            return self._chunks(steps)
        for chunk, entry in zip(chunks, entries, strict=True):
            check_chunk(chunk, entry.first, entry.last)
        return chunks

    def _read_corpus(self) -> Corpus:
        return find_corpus(self.manifest)

    def _read_records(self) -> list[StepRecord]:
        """Read steps.jsonl; a line that a crash cut off is left out.

        A run that was closed has no LOCK, and a checkpoint of its end.
        """
        closed = not (self.path / LOCK).exists()
        saved = max((e.first for e in self._index.of("ckpt")), default=self.manifest.start)
        steps = read_steps(self.path, self.manifest.start)
        reached = self.manifest.start + len(steps.records)
        damage = steps.damage
        if not damage and (reached < saved or (closed and reached > saved)):
            damage = f"{STEPS} goes to step {reached}, the last checkpoint is of step {saved}"
        if damage:
            msg = f"{self.path}: {damage}; `precsim resume` computes it again"
            raise DamagedError(msg)
        return steps.records

    def _read_counts(self) -> dict[str, OpCounts]:
        return totals(read_arrays(self.path, self._saved)) if self._saved else {}

    def _read_model(self) -> GPT:
        return self.at(self._saved.first if self._saved else self.manifest.start).model

    @property
    def _index(self) -> Index:
        """The index as it is now: a running run adds to it, and thins.

        A run that was closed has no LOCK, and its index must end as it should.
        """
        closed = not (self.path / LOCK).exists()
        index = read_index(self.path)
        damage = [*index.damage, *([f"{INDEX} was cut off"] if closed and index.torn else [])]
        if damage:
            msg = f"{self.path}: {damage[0]}; `precsim check` says more"
            raise DamagedError(msg)
        return index

    @cached_property
    def _saved(self) -> Entry | None:
        entries = self._index.of("ckpt")
        return entries[-1] if entries else None

    def _range(self, step: int | slice | range | None) -> range | None:
        if isinstance(step, slice):
            return range(*step.indices(self.config.steps))
        if step is None or isinstance(step, range):
            return step
        one = step_number(step)
        return range(one, one + 1)

    def _why_no_ops(self, step: int) -> str:
        reached = self.manifest.start + len(self.records)
        if not self.manifest.start <= step < reached:
            return f"{self.path} has no step {step}: it has {self.manifest.start} to {reached - 1}"
        if not Level.parse(self.config.observe).includes("counts"):
            why = "the run was recorded with observe=off"
        else:
            thinned = [kept_every(e) for e in self._index.of("ops") if e.first <= step <= e.last]
            why = "its ops are written with the next checkpoint"
            if thinned:
                why = f"max_trace left the ops of every {thinned[0]}th step only"
        return f"no ops of step {step} in {self.path}: {why}; run.replay({step}).ops computes them"


Source = Run | str | os.PathLike[str]
"""A run that was recorded, or its directory."""


def stored(run: Source) -> StoredRun:
    """Return the recorded run that is meant: itself, or the one in a directory.

    Raises `TypeError` for what is neither, `RunError` and `DamagedError` as `open_run` does.
    """
    if isinstance(run, Run):  # one that was not recorded says so, when it is asked for more
        return cast(StoredRun, run)
    if isinstance(run, str | os.PathLike):
        return open_run(run)
    msg = f"expected a recorded run or its directory; got {run!r}"
    raise TypeError(msg)


def _meet(entry: Entry, steps: range) -> bool:
    return any(step in steps for step in range(entry.first, entry.last + 1))


_READERS: dict[str, Callable[[StoredRun], Any]] = {
    "corpus": StoredRun._read_corpus,
    "records": StoredRun._read_records,
    "counts": StoredRun._read_counts,
    "model": StoredRun._read_model,
}
