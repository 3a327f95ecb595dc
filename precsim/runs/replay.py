"""Replay: run a recorded step again, to the bit, and look closer than the recording did."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from precsim.engine.context import Observer, using
from precsim.engine.dispatch import Event
from precsim.observe.guard import guarded
from precsim.observe.trace import Level, Tracer, matches, unmatched
from precsim.runs.columns import Chunk, OpTable
from precsim.runs.data import Corpus
from precsim.runs.files import RunError
from precsim.runs.loop import make_record, state_before, surroundings
from precsim.runs.manifest import read_manifest
from precsim.runs.recovery import guarantee, read_steps
from precsim.runs.results import StepRecord, step_number
from precsim.runs.store import read_arrays, read_index

OF_THE_OBSERVER = ("flushed", "lost_updates")
"""Entries of a record that depend on how closely the run was watched."""


@dataclass(frozen=True)
class Replay:
    """A step that was run again.

    `ops` is a row for each op that rounded; `events` are the ops that were asked for, with their
    inputs, their exact and their rounded results.  `compared` counts the ops whose hashes were
    found in the trace (0: its record alone was compared, the trace does not have the step).
    """

    step: int
    record: StepRecord
    ops: OpTable
    events: tuple[Event, ...]
    compared: int = 0
    difference: str = ""

    def __repr__(self) -> str:
        outcome = self.difference or f"{self.compared} ops have the hashes that were recorded"
        return f"Replay(step {self.step}, {self.ops!r}, {len(self.events)} events: {outcome})"


class ReplayError(RunError):
    """A step did not come out as it was recorded; `replay` is how it came out."""

    def __init__(self, message: str, replay: Replay) -> None:
        super().__init__(message)
        self.replay = replay


def replay(
    folder: Path,
    step: int,
    op: str | None = None,
    *,
    observe: str = "shadow",
    observers: tuple[Observer, ...] = (),
    verify: bool = True,
    corpus: Corpus | None = None,
) -> Replay:
    """Run a recorded step again, from the nearest checkpoint, watched at another level.

    `op` is a glob (see `precsim.observe.trace.matches`) for the ops to keep as events, arrays and
    all.  `verify` compares the step's record and each op's hash with what was recorded.

    Raises `RunError` for a step that was not recorded or an `op` that names none, `ReplayError`
    where something differs.
    """
    step = step_number(step)
    manifest = read_manifest(folder)
    records = {record.step: record for record in read_steps(folder, manifest.start).records}
    if step not in records:
        last = manifest.start + len(records) - 1
        span = f"it has steps {manifest.start} to {last}" if records else "it has no step yet"
        msg = f"{folder} has no step {step} to replay: {span}"
        raise RunError(msg)
    trainer = state_before(folder, step, corpus)
    tracer, kept = Tracer(Level.parse(observe)), _Keeper(op)
    with surroundings(manifest.config, (tracer, kept, *guarded(observers))):
        with using(step=step):
            result = trainer.step(step)
        trace = tracer.drain()
        record = make_record(step, result, trace)
    chunk = Chunk()
    chunk.add(trace)
    ops = OpTable([chunk.drain()])
    if op is not None and not kept.events:
        msg = f"no op of step {step} matches {op!r}: {unmatched(op, kept.paths)}"
        raise RunError(msg)
    replayed = Replay(step, record, ops, tuple(kept.events))
    return _verified(replayed, folder, records[step]) if verify else replayed


class _Keeper:
    """An observer that keeps the events whose op a glob names."""

    def __init__(self, op: str | None) -> None:
        self._op = op
        self.events: list[Event] = []
        self.paths: dict[str, None] = {}

    def __call__(self, event: Event) -> None:
        self.paths[event.path] = None
        if self._op is not None and matches(event.path, self._op):
            self.events.append(event)


def _verified(replayed: Replay, folder: Path, recorded: StepRecord) -> Replay:
    step = replayed.step
    trace = recorded_ops(folder, step)
    difference = _first_difference(replayed.ops, trace) if len(trace) else ""
    difference = difference or _differing_entry(replayed.record, recorded)
    checked = Replay(step, replayed.record, replayed.ops, replayed.events, len(trace), difference)
    if difference:
        says = guarantee(read_manifest(folder).config)
        msg = f"step {step} of {folder} did not come out as recorded: {difference} ({says})"
        raise ReplayError(msg, checked)
    return checked


def recorded_ops(folder: Path, step: int) -> OpTable:
    """Return the rows of a step in a run's trace, none if it does not have them."""
    entries = [e for e in read_index(folder).of("ops") if e.first <= step <= e.last]
    table = OpTable([read_arrays(folder, entry) for entry in entries])
    return table.where(steps=range(step, step + 1))


def _first_difference(now: OpTable, then: OpTable) -> str:
    paths, calls = now["path"].tolist(), now["call"].tolist()
    if paths != then["path"].tolist() or calls != then["call"].tolist():
        return f"{len(now)} ops ran, {len(then)} were recorded, or in another order"
    differs = np.flatnonzero(now["hash"] != then["hash"])
    if not len(differs):
        return ""
    first = int(differs[0])
    return (
        f"{len(differs)} of {len(now)} ops differ, the first is {paths[first]} call {calls[first]}"
    )


def _differing_entry(now: StepRecord, then: StepRecord) -> str:
    for name in (f.name for f in fields(StepRecord) if f.name not in OF_THE_OBSERVER):
        new, old = getattr(now, name), getattr(then, name)
        if repr(new) != repr(old):  # to the bit, and NaN is NaN
            return f"{name} is {new!r}, and was {old!r}"
    return ""
