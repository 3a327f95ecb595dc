"""Check: read every file of a run as if nothing could be trusted, and say what is wrong with it."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from precsim.observe.trace import Level
from precsim.runs import lock
from precsim.runs.checkpoint import restore, totals
from precsim.runs.columns import arrays_to_tensors, check_chunk
from precsim.runs.data import Corpus, DataError
from precsim.runs.files import DamagedError, RunError, UnreadableError
from precsim.runs.loop import surroundings
from precsim.runs.manifest import Manifest, read_manifest
from precsim.runs.recovery import (
    check_formats,
    find_corpus,
    progress,
    read_steps,
    warn_of_other_machine,
)
from precsim.runs.store import (
    INDEX,
    STEPS,
    Entry,
    Index,
    read_arrays,
    read_index,
    require_run,
    unlisted,
)
from precsim.runs.trainer import Trainer, make_trainer

BROKEN = DamagedError, UnreadableError
"""What is wrong with a file."""


@dataclass
class Report:
    """What `check` found.

    `problems`: a sentence for each file that is not what was written.  `notes`: what a crash or a
    running writer leaves, and what can make a resumed run differ.  `steps`: how many are recorded.
    `resumes_at`: the step from which `resume` goes on (None: it cannot).  `finished`: there is
    nothing left to do, because the weights were destroyed at step `died_at` or all steps are done.
    `unreadable`: a problem is only that something must not be read here.
    """

    path: str
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    files: int = 0
    steps: int = 0
    resumes_at: int | None = None
    finished: bool = False
    died_at: int | None = None
    unreadable: bool = False

    def add(self, error: RunError) -> None:
        """Take in what is wrong with a file."""
        self.problems.append(str(error))
        self.unreadable |= isinstance(error, UnreadableError)

    @property
    def ok(self) -> bool:
        """Whether every file is what was written."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self) | {"ok": self.ok}


def check(folder: Path) -> Report:
    """Verify every file of a run, its hashes, and the point from which it can be resumed.

    Raises `RunError` where there is no run, or one of another version of the layout.
    """
    require_run(folder)
    report = Report(str(folder), files=1)
    interrupted = _check_lock(folder, report)
    index = _check_index(folder, report, interrupted=interrupted)
    try:
        manifest = read_manifest(folder)
    except BROKEN as error:
        report.add(error)
        return report
    _check_steps(folder, manifest, index, report, interrupted=interrupted)
    corpus = _check_surroundings(manifest, report)
    if corpus is not None:
        with surroundings(manifest.config):
            trainer = make_trainer(manifest.config, corpus, init=False)
        for entry in index.of("ckpt"):
            _check_restores(folder, trainer, entry, report)
        _find_resume_point(folder, manifest, report)
    return report


def _check_lock(folder: Path, report: Report) -> bool:
    """Note who writes the run, or did; return whether its writer has not closed it."""
    signed = lock.owner(folder / lock.NAME)
    if signed is None:
        return False
    report.files += 1
    if signed:
        state = "is writing it" if lock.is_held(folder) else "ended without closing it"
        report.notes.append(f"process {signed['pid']} on {signed['host']} {state}")
    else:
        report.problems.append(f"{lock.NAME} cannot be read")
    return True


def _check_index(folder: Path, report: Report, *, interrupted: bool) -> Index:
    try:
        index = read_index(folder)
    except BROKEN as error:
        report.add(error)
        return Index({})
    report.problems += index.damage
    report.files += 1
    open_ended = report.notes if interrupted else report.problems
    if index.torn:
        open_ended.append(f"{INDEX} ends in the middle of a line")
    for entry in index.entries.values():
        report.files += 1
        try:
            _check_file(folder, entry)
        except BROKEN as error:
            report.add(error)
    try:
        for file in unlisted(folder, set(index.entries)):
            open_ended.append(f"{file} is not in {INDEX}")
    except UnreadableError as error:
        report.add(error)
    return index


def _check_file(folder: Path, entry: Entry) -> None:
    arrays = read_arrays(folder, entry)
    try:
        if entry.kind == "ops":
            check_chunk(arrays, entry.first, entry.last)
        elif entry.kind == "tensors":
            arrays_to_tensors(arrays)
        elif int(arrays["step"]) != entry.first or entry.last != entry.first - 1:
            msg = f"it is of step {int(arrays['step'])}"
            raise ValueError(msg)
        else:
            totals(arrays)
    except (KeyError, ValueError, TypeError) as error:
        msg = f"{entry.file}: {error}"
        raise DamagedError(msg) from None


def _check_steps(
    folder: Path, manifest: Manifest, index: Index, report: Report, *, interrupted: bool
) -> None:
    """Check the lines, that no checkpoint lies beyond them, and that the ops cover them."""
    report.files += 1
    try:
        steps = read_steps(folder, manifest.start)
    except BROKEN as error:
        report.add(error)
        return
    report.steps = len(steps.records)
    if steps.damage:
        report.problems.append(steps.damage)
    if steps.torn:
        open_ended = report.notes if interrupted else report.problems
        open_ended.append(f"{STEPS} ends in the middle of a line")
    reached = manifest.start + report.steps
    saved = max((entry.first for entry in index.of("ckpt")), default=manifest.start)
    if reached < saved and not steps.damage:
        report.problems.append(f"{STEPS} ends before step {saved}, where a checkpoint is")
    if reached > saved and not interrupted:
        report.problems.append(f"no checkpoint after step {saved}, but {STEPS} goes on")
    if not index.of("ckpt"):
        (report.notes if interrupted else report.problems).append("there is no checkpoint")
    if Level.parse(manifest.config.observe).includes("counts"):
        _check_coverage(index, manifest.start, saved, report)


def _check_coverage(index: Index, start: int, saved: int, report: Report) -> None:
    """Check that the chunks of ops follow one another up to the last checkpoint."""
    for entry in index.of("ops"):
        if entry.first != start:
            report.problems.append(f"the ops of steps {start} to {entry.first - 1} are missing")
        start = entry.last + 1
    if start < saved:
        report.problems.append(f"the ops of steps {start} to {saved - 1} are missing")


def _check_surroundings(manifest: Manifest, report: Report) -> Corpus | None:
    """Check what the run needs besides its directory; return its text if a run can go on here."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_other_machine(manifest)
    report.notes += [str(warning.message) for warning in caught]
    try:
        check_formats(manifest)
        return find_corpus(manifest)
    except (RunError, DataError) as error:
        report.notes.append(f"it cannot be resumed here: {error}")
        return None


def _check_restores(folder: Path, trainer: Trainer, entry: Entry, report: Report) -> None:
    try:
        restore(trainer, read_arrays(folder, entry))
    except BROKEN as error:
        if not any(entry.file in problem for problem in report.problems):
            report.problems.append(f"{entry.file}: {error}")


def _find_resume_point(folder: Path, manifest: Manifest, report: Report) -> None:
    try:
        before = progress(folder, manifest)
    except RunError as error:
        report.notes.append(f"it cannot be resumed: {error}")
        return
    report.resumes_at = before.start
    report.died_at = before.died_at
    report.finished = before.died_at is not None or before.start == manifest.config.steps
