"""Following a run while another process writes it: what is new since the last look; only reads.

Whatever can happen to the directory meanwhile is no error here: a line that is half written is
waited for, a run that is resumed gets its steps.jsonl cut and written anew, one that is begun again
gets another manifest.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from time import sleep

from precsim.engine.policy import Policy
from precsim.observe.counters import OpCounts
from precsim.observe.trace import Level
from precsim.runs.columns import OpTable
from precsim.runs.config import TrainConfig
from precsim.runs.files import DamagedError, RunError, readable
from precsim.runs.lines import decode_line
from precsim.runs.lock import NAME as LOCK
from precsim.runs.lock import is_held
from precsim.runs.manifest import Manifest, read_manifest
from precsim.runs.results import StepRecord, Trouble
from precsim.runs.run import StoredRun
from precsim.runs.store import MANIFEST, STEPS, read_index

PATIENCE = 3
"""Looks for which a file may be unreadable (it is being replaced) before that is an error."""


class State(StrEnum):
    """How a run is: written now; done with all of its steps; ended by its own numbers; stopped by
    Ctrl-C, with a checkpoint; or its process is gone without a word."""

    RUNNING = "running"
    FINISHED = "finished"
    DIVERGED = "diverged"
    INTERRUPTED = "interrupted"
    KILLED = "killed"


class Follower:
    """Looks at a run's directory again and again; `poll` takes in what is new.

    `records` are the steps so far, `state` how the run was when it was looked at last, `restarts`
    how often its steps were rewound.  Raises `RunError` where there is no run, `DamagedError` where
    a whole line is not what was written and stays so.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = State.RUNNING
        self.restarts = 0
        self._failures = 0
        self._begin(read_manifest(folder))

    def _begin(self, manifest: Manifest) -> None:
        self.config: TrainConfig = manifest.config
        self.vocabulary = int(manifest.corpus["vocabulary"])
        self.start = manifest.start
        self.records: list[StepRecord] = []
        self.ops: tuple[int, OpTable] | None = None
        self.trouble = ""
        self._died = False
        self._identity = _identity(self.folder / MANIFEST)
        self._steps_file: int | None = None
        self._offset = 0

    @property
    def reached(self) -> int:
        """The first step that is not recorded yet."""
        return self.start + len(self.records)

    def poll(self) -> list[StepRecord]:
        """Return the steps that were recorded since the last time; after a rewind, all of them.

        The state is looked at before the steps, so that a run that is over has no more of them.
        """
        held = (self.folder / LOCK).exists()
        alive = is_held(self.folder)
        try:
            if _identity(self.folder / MANIFEST) != self._identity:
                self._begin(read_manifest(self.folder))
                self.restarts += 1
            new = self._read_steps()
            self._read_rest()
            self._failures = 0
        except (RunError, OSError):
            self._failures += 1
            if self._failures > PATIENCE or not alive:
                raise
            return []
        self.state = self._judge(held=held, alive=alive)
        return new

    def until_end(self, every: float) -> Iterator[list[StepRecord]]:
        """Yield what is new, every so many seconds, until two looks in a row find nobody writing."""
        ended = False
        while True:
            yield self.poll()
            if ended and self.state is not State.RUNNING:
                return
            ended = self.state is not State.RUNNING
            sleep(min(every, 0.2) if ended else every)

    def _read_steps(self) -> list[StepRecord]:
        """Read whole lines from where the last ones ended, or from the top of another file."""
        path = self.folder / STEPS
        found = _identity(path)
        if found is None:
            return []
        if self._steps_file is not None and (
            found[0] != self._steps_file or path.stat().st_size < self._offset
        ):
            self.restarts += 1
            self.records, self._offset = [], 0
        self._steps_file = found[0]
        with readable(path), path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        new: list[StepRecord] = []
        for line in whole.splitlines():
            record = StepRecord.from_dict(decode_line(line))
            if record.step != self.reached + len(new):
                msg = f"{self.folder}: {STEPS} has step {record.step} after {self.reached - 1}"
                self._offset, self.records = 0, []
                raise DamagedError(msg)
            new.append(record)
        self.records += new
        self._offset += len(whole)
        return new

    def _read_rest(self) -> None:
        """Read the ops of the newest step in the trace, and the trouble that a checkpoint tells."""
        index = read_index(self.folder)
        checkpoints, chunks = index.of("ckpt"), index.of("ops")
        trouble = (checkpoints[-1].info or {}).get("trouble") if checkpoints else None
        self.trouble = str(Trouble(**trouble)) if trouble else ""
        self._died = bool(checkpoints) and (checkpoints[-1].info or {}).get("died_at") is not None
        wanted = Level.parse(self.config.observe).includes("counts") and chunks
        if wanted and (self.ops is None or self.ops[0] != chunks[-1].last):
            last = chunks[-1].last
            self.ops = last, StoredRun(self.folder).ops(range(last, last + 1))

    def _judge(self, *, held: bool, alive: bool) -> State:
        if alive:
            return State.RUNNING
        if self._died and not held:
            return State.DIVERGED
        if not held and self.reached >= self.config.steps:
            return State.FINISHED
        return State.KILLED if held else State.INTERRUPTED

    def worst(self, k: int) -> list[OpCounts]:
        """Return the k ops of the newest recorded step that lose most.

        Overflow goes first, then what is flushed, or of the updates lost.
        """
        if self.ops is None:
            return []
        rows = [
            OpCounts(
                **{n: row[n] for n in ("path", "op", "role", "scope", "step", "call", "format", "u", "n", "zeros",
                                       "flushed", "subnormal", "overflowed", "saturated",
                                       "nonfinite_in", "updates", "swamped", "square", "error")}
            )
            for row in self.ops[1].rows()
        ]  # fmt: skip
        return sorted((r for r in rows if any(_losses(r))), key=_losses, reverse=True)[:k]

    @property
    def policy(self) -> Policy:
        """The policy in force after the last step."""
        changes = [record.change for record in self.records if record.change]
        return Policy.parse(changes[-1] if changes else self.config.policy)


def _losses(row: OpCounts) -> tuple[float, float]:
    return row.overflowed + row.nonfinite_in, max(row.flushed_share, row.swamped_share)


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what a file has of its own: another one in its place has another; None for no file."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_ctime_ns if path.name == MANIFEST else 0
