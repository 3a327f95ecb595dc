"""The loss scale over a run: where it stood, which steps it cost, and which op was behind each.

A skipped step has a first op whose results are not finite.  In the forward pass no loss scale can
help, since the loss is scaled after it; from the scaled loss on a smaller one can.  The skips with
which a scale comes down from where it was set to where the gradients fit are how it is meant to
work: they are marked as calibration.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import log2
from typing import Any

import numpy as np
import numpy.typing as npt

from precsim.formats.format import Format
from precsim.formats.registry import format
from precsim.runs.replay import recorded_ops
from precsim.runs.run import StoredRun
from precsim.runs.store import read_index

COLLAPSED = 1.0
"""A scale below this makes gradients smaller, which helps no underflow: something else is wrong."""


@dataclass(frozen=True)
class Skip:
    """A step that the scaler skipped.

    `path` is the first op with a result that is not finite, `count` of its `n` results; all empty
    where the step ran again without one.  `helps`: whether a smaller loss scale can.
    `parameters`: the modules whose weight gradients it reached.  `calibration`: no step before it
    was clean.
    """

    step: int
    scale: float
    path: str
    count: int
    n: int
    helps: bool
    parameters: tuple[str, ...]
    calibration: bool


@dataclass(frozen=True)
class Timeline:
    """The loss scale of each step, and what it had to do with.

    `flushed` is the share of the nonzero backward results that became zero, `headroom` the bits
    between the largest backward result and the largest value of its format, over the ops where that
    is least (shared scales have none of their own): both NaN where no op was recorded.  `alarm` is
    a sentence where the scale collapsed, else "".
    """

    steps: npt.NDArray[np.int64]
    scale: npt.NDArray[np.float64]
    skipped: npt.NDArray[np.bool_]
    flushed: npt.NDArray[np.float64]
    headroom: npt.NDArray[np.float64]
    skips: tuple[Skip, ...]
    alarm: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        arrays = ("steps", "scale", "skipped", "flushed", "headroom")
        plain = {name: getattr(self, name).tolist() for name in arrays}
        return {**plain, "skips": [asdict(skip) for skip in self.skips], "alarm": self.alarm}


def timeline(run: StoredRun) -> Timeline:
    """Return the timeline of a recorded run; skipped steps whose ops it lacks are run again.

    Raises `RunError` where the run is damaged.
    """
    records = run.records
    steps = np.array([r.step for r in records], np.int64)
    scale = np.array([r.scale for r in records], np.float64)
    skipped = np.array([r.skipped for r in records], bool)
    clean = np.flatnonzero(~skipped)
    settled = int(steps[clean[0]]) if len(clean) else None
    skips = tuple(
        _skip(run, r.step, r.scale, calibration=settled is None or r.step < settled)
        for r in records
        if r.skipped
    )
    headroom = _headroom(run)
    return Timeline(
        steps, scale, skipped, np.array([r.flushed for r in records], np.float64),
        np.array([headroom.get(r.step, float("nan")) for r in records], np.float64),
        skips, _alarm(steps, scale, skips),
    )  # fmt: skip


def _skip(run: StoredRun, step: int, scale: float, *, calibration: bool) -> Skip:
    table = recorded_ops(run.path, step)
    if not len(table):
        table = run.replay(step, observe="counts", verify=False).ops
    bad = [row for row in table.rows() if row["overflowed"] or row["nonfinite_in"]]
    if not bad:
        return Skip(step, scale, "", 0, 0, helps=True, parameters=(), calibration=calibration)
    first = bad[0]
    reached = dict.fromkeys(
        row["scope"] for row in bad if row["role"] == "weight_gradients" and row["scope"]
    )
    return Skip(
        step, scale, first["path"], int(first["overflowed"] or first["nonfinite_in"]),
        int(first["n"]), first["phase"] == "backward" or first["scope"] == "loss.scale",
        tuple(reached), calibration,
    )  # fmt: skip


def _headroom(run: StoredRun) -> dict[int, float]:
    """Return the least log2(max / amax) of each step's recorded backward ops."""
    found: dict[int, float] = {}
    for entry in read_index(run.path).of("ops"):
        table = run.ops(range(entry.first, entry.last + 1), phase="backward")
        columns = (table[name].tolist() for name in ("step", "format", "amax"))
        for step, name, amax in zip(*columns, strict=True):
            fmt = format(name)
            if isinstance(fmt, Format) and 0 < amax < float("inf"):
                room = log2(fmt.max) - log2(amax)
                found[step] = min(found.get(step, room), room)
    return found


def _alarm(
    steps: npt.NDArray[np.int64], scale: npt.NDArray[np.float64], skips: tuple[Skip, ...]
) -> str:
    low = np.flatnonzero(scale < COLLAPSED)
    if not len(low):
        return ""
    if not low[0]:
        return f"the loss scale is {scale[0]:g} from the start: below 1 it makes gradients smaller"
    forward = sum(not skip.helps for skip in skips)
    why = (
        f"{forward} of {len(skips)} skips began in the forward pass, which no loss scale reaches"
        if forward
        else "every skip began in the backward pass"
    )
    return f"the loss scale fell below 1 at step {steps[low[0]]}: {why}"
