"""Where a run can go on: the newest checkpoint before which everything recorded is intact.

What comes after it can be lost or damaged without harm: it is computed again, with the same bits.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from precsim.engine.policy import Policy
from precsim.observe.counters import OpCounts
from precsim.observe.trace import Level
from precsim.runs.checkpoint import totals
from precsim.runs.columns import check_chunk
from precsim.runs.config import TrainConfig
from precsim.runs.data import BUILT_IN, Corpus, DataError, load
from precsim.runs.files import DamagedError, RunError, read_file
from precsim.runs.lines import decode_lines
from precsim.runs.manifest import Manifest, describe_formats, fingerprint
from precsim.runs.npz import Arrays
from precsim.runs.results import StepRecord, Trouble
from precsim.runs.store import (
    LONGEST_FILE,
    STEPS,
    Entry,
    read_arrays,
    read_index,
)

MATTERS = ("precsim", "numpy", "blas", "threads", "machine", "cpu", "backend")
"""Entries of the fingerprint that can change a bit."""


@dataclass
class Progress:
    """How far a run has come: the state before step `start`, and what happened until then."""

    start: int = 0
    checkpoint: Arrays | None = None
    records: list[StepRecord] = field(default_factory=list)
    counts: dict[str, OpCounts] = field(default_factory=dict)
    trouble: Trouble | None = None
    died_at: int | None = None


@dataclass(frozen=True)
class Steps:
    """steps.jsonl: the records of the leading lines that are intact, and what ends them.

    `damage` says which line is not what was written ("" if all are); `torn` whether the last one
    was cut off, as a crash does.
    """

    records: list[StepRecord]
    damage: str = ""
    torn: bool = False


def read_steps(folder: Path, start: int) -> Steps:
    """Return the records in a run's directory, the first of which is of step `start`."""
    if not (folder / STEPS).exists():
        return Steps([])
    lines, torn = decode_lines(read_file(folder / STEPS, LONGEST_FILE))
    records: list[StepRecord] = []
    for number, line in enumerate(lines, 1):
        try:
            if isinstance(line, DamagedError):
                raise line
            record = StepRecord.from_dict(line)
            expected = start + number - 1
            if record.step != expected:
                msg = f"expected step {expected}, got {record.step!r:.20}"
                raise ValueError(msg)
        except (ValueError, TypeError) as error:
            return Steps(records, f"{STEPS} line {number}: {error}", torn)
        records.append(record)
    return Steps(records, "", torn)


def progress(folder: Path, manifest: Manifest) -> Progress:
    """Return the newest state that a run can go on from, with all that was recorded until then.

    The checkpoint's own file must be intact, the steps before it and, where ops are recorded,
    theirs.
    """
    whole = manifest.start + len(read_steps(folder, manifest.start).records)
    if Level.parse(manifest.config.observe).includes("counts"):
        whole = min(whole, traced_until(folder, manifest.start))
    return nearest(folder, manifest, whole)


def nearest(folder: Path, manifest: Manifest, step: int) -> Progress:
    """Return the state at the newest intact checkpoint that does not lie beyond `step`.

    Without any it is that of the seed; a fork, or a run that began with other weights, raises
    `DamagedError`.
    """
    records = read_steps(folder, manifest.start).records
    for entry in reversed(read_index(folder).of("ckpt")):
        if entry.first <= step:
            try:
                return _progress_at(entry, read_arrays(folder, entry), records, manifest.start)
            except DamagedError:
                continue
    if manifest.parent is not None or (manifest.config.init and records):
        msg = f"{folder} has no intact checkpoint, and did not start from its seed: begin it again"
        raise DamagedError(msg)
    return Progress()


def _progress_at(entry: Entry, arrays: Arrays, records: list[StepRecord], start: int) -> Progress:
    info = entry.info or {}
    trouble = info.get("trouble")
    return Progress(
        entry.first,
        arrays,
        records[: entry.first - start],
        totals(arrays),
        Trouble(**trouble) if trouble else None,
        info.get("died_at"),
    )


def traced_until(folder: Path, start: int) -> int:
    """Return the first step whose ops are missing or damaged."""
    for entry in read_index(folder).of("ops"):
        if entry.first > start:
            break
        try:
            check_chunk(read_arrays(folder, entry), entry.first, entry.last)
        except DamagedError:
            break
        start = max(start, entry.last + 1)
    return start


def find_corpus(manifest: Manifest, corpus: Corpus | None = None) -> Corpus:
    """Return a run's text, or `corpus` if it is that text.

    A file that is not where the config says, from here, is looked for where it was.
    Raises `DataError` if it cannot be found, or is another text now.
    """
    known, data = manifest.corpus, manifest.config.data
    if corpus is None:
        try:
            corpus = load(data)
        except DataError:
            if data in BUILT_IN or not known["path"]:
                raise
            corpus = load(known["path"])
    if corpus.sha256 != known["sha256"]:
        version = ", which differs between Python versions" if corpus.name == "pydoc" else ""
        msg = (
            f"the run's text {known['name']!r}{version} has sha256 {known['sha256'][:12]}...; "
            f"{data!r} has {corpus.sha256[:12]}... now: bring back the text that it began with"
        )
        raise DataError(msg)
    return corpus


def check_formats(manifest: Manifest) -> None:
    """Raise `RunError` if a format that a run uses is another one in this version of precsim."""
    now: Mapping[str, Any] = describe_formats(Policy.parse(manifest.config.policy))
    for name, specification in manifest.formats.items():
        if now.get(name) != specification:
            msg = f"format {name} is {now.get(name)} here, and was {specification} in the run"
            raise RunError(msg)


def warn_of_other_machine(manifest: Manifest) -> None:
    """Warn where the bits may depend on what is not as it was when the run began."""
    now = fingerprint()
    changed = [
        f"{name}: {manifest.fingerprint.get(name)} -> {now[name]}"
        for name in MATTERS
        if manifest.fingerprint.get(name) != now[name]
    ]
    if changed:
        msg = (
            f"this is not the machine that the run began on ({'; '.join(changed)}): "
            f"{guarantee(manifest.config)}"
        )
        warnings.warn(msg, RuntimeWarning, stacklevel=3)


def guarantee(config: TrainConfig) -> str:
    """Say what agrees between two machines."""
    if Policy.parse(config.policy).arithmetic == "exact":
        return "arithmetic=exact gives the same bits but for odds of 1e-12 an element"
    return "arithmetic=fast sums in float32, in an order that differs between machines"
