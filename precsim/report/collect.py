"""A recorded run as plain data: what the report's templates and its script read."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from precsim.analyse import twins
from precsim.analyse.timeline import Skip, timeline
from precsim.report import player
from precsim.report.drifts import Point, beside_twin, drifts
from precsim.runs.config import TrainConfig
from precsim.runs.data import DataError
from precsim.runs.files import DamagedError, RunError
from precsim.runs.lines import dump
from precsim.runs.results import StepRecord
from precsim.runs.run import StoredRun
from precsim.runs.summary import Summary, summarize
from precsim.show.style import look
from precsim.show.terminal import format_of

POINTS = 1500
"""Points of a curve: of a longer run every so many steps are drawn."""

TASKS = ("reverse", "markov2")
"""Built-in data that is no text."""

LONGEST_TIMELINE = 3000
"""Steps of a run up to which the op behind each skip is looked up."""


@dataclass
class Collected:
    """A run, ready to be drawn.  `curves` are columns by name, thinned to `POINTS`; None is NaN."""

    name: str
    path: str
    format: str
    config: TrainConfig
    summary: Summary
    records: Sequence[StepRecord]
    curves: dict[str, list[Any]]
    skips: tuple[Skip, ...]
    alarm: str
    drift: list[Point]
    twin: twins.Drifts | None
    player: dict[str, Any]
    changes: list[str]
    changed_at: list[int]
    command: str
    formats: dict[str, Any]
    fingerprint: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    @property
    def scaled(self) -> bool:
        """Whether the run has a loss scale to speak of."""
        return any(r.scale != 1 or r.skipped for r in self.records)

    @property
    def unit(self) -> str:
        """What one token of the data is called: text is bytes."""
        return "token" if self.config.data in TASKS else "byte"


def collect(
    run: StoredRun,
    name: str,
    *,
    rows: int,
    points: int,
    twin: bool = False,
    on_step: Callable[[int, float], None] | None = None,
    places: Mapping[Path, str] | None = None,
) -> Collected:
    """Read a run; at most `rows` ops of its steps, and the drift at `points` checkpoints.

    With `twin` it is trained again beside a float64 twin (`precsim.analyse.twins`); `on_step` hears
    (steps done, the run's loss).  `places` names the runs of the page, by their directory.
    What cannot be computed, because the text is gone or a checkpoint damaged, is left out with a note.
    Raises `RunError` where the recording itself is damaged, or has no step yet.
    """
    records = run.records
    if not records:
        msg = f"{run.path} has no step yet: there is nothing to report"
        raise DamagedError(msg)
    summary = summarize(run)
    notes: list[str] = []
    skips, alarm, headroom = _skips(run, notes)
    must = [summary.trouble.step] if summary.trouble else []
    shown = player.collect(run, [*must, *(skip.step for skip in skips[:6])], rows)
    drift: list[Point] = []
    beside = None
    try:
        if twin:
            beside = twins.drifts(run, on_step=on_step)
            drift = beside_twin(beside)
        else:
            drift = drifts(run, points)
    except (DataError, RunError) as error:
        notes.append(f"drift was not computed: {error}")
    return Collected(
        name, str(run.path), format_of(run.config), run.config, summary, records,
        _curves(records, headroom), skips, alarm, drift, beside, shown, list(map(str, run.changes)),
        [change.step for change in run.changes],
        command(run, name, places or {}), dict(run.manifest.formats), dict(run.manifest.fingerprint), notes,
    )  # fmt: skip


def _skips(run: StoredRun, notes: list[str]) -> tuple[tuple[Skip, ...], str, list[float]]:
    """Return the skips, the alarm and the headroom, or say why there are none."""
    if len(run.records) > LONGEST_TIMELINE:
        notes.append(
            f"the ops behind its skips are not shown, the run has more than {LONGEST_TIMELINE} "
            f"steps: precsim scale {run.path}"
        )
        return (), "", []
    try:
        found = timeline(run)
    except (DataError, RunError) as error:
        notes.append(f"the ops behind its skips are not shown: {error}")
        return (), "", []
    return found.skips, found.alarm, found.headroom.tolist()


def _curves(records: Sequence[StepRecord], headroom: list[float]) -> dict[str, list[Any]]:
    every = max(1, -(-len(records) // POINTS))
    kept = [r for n, r in enumerate(records) if n % every == 0 or r.valid_loss is not None]
    names = ("step", "loss", "valid_loss", "lr", "scale", "grad_norm", "flushed", "lost_updates")
    curves = {name: [_number(getattr(r, name)) for r in kept] for name in names}
    curves["skipped"] = [r.skipped for r in kept]
    rooms = dict(zip((r.step for r in records), headroom, strict=False))
    curves["headroom"] = [_number(rooms.get(r.step)) for r in kept]
    return curves


def _number(value: float | None) -> float | int | None:
    """Return six digits of a number; None for what is none."""
    if value is None or isinstance(value, int):
        return value
    return float(f"{value:.6g}") if np.isfinite(value) else None


def command(run: StoredRun, name: str, places: Mapping[Path, str]) -> str:
    """Return the command line that makes the run again, from the same text and precsim's version.

    It makes a directory of the run's name; a fork's parent is that of `places`, if it is among them.
    """
    config, parent = run.config, run.manifest.parent
    if parent is not None:
        changes = {**parent["changes"]}
        path = str(parent["path"])
        path = places.get(Path(path).resolve(), path)
        words = ["precsim", "fork", path, "--at", str(parent["at"])]
    else:
        plain = TrainConfig().to_dict()
        changes = {k: v for k, v in config.to_dict().items() if v != plain[k]}
        words = ["precsim", "train"]
    for key, value in changes.items():
        words += ["--set", f"{key}={value if isinstance(value, str) else dump(value)}"]
    return shlex.join([*words, "-o", name])


def hue(fmt: str) -> str:
    """Return the colour of a format as "#rrggbb"."""
    return look(fmt).hue
