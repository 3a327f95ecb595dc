"""Local drift along a run: at its checkpoints, the emulated gradient beside float64's.

Only checkpoints are looked at, because there nothing has to be trained again; each costs a step
and its float64 twin.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import degrees

from precsim.analyse.drift import Drift, compare
from precsim.analyse.moment import unit
from precsim.analyse.recorded import moment_at
from precsim.report.player import choose
from precsim.runs.run import StoredRun


@dataclass(frozen=True)
class Point:
    """Drift of the gradient before a step, over all parameters together, and of the worst of them."""

    step: int
    drift: Drift
    worst: str
    worst_rho: float

    @property
    def angle(self) -> float:
        """Angle between the two gradients in degrees."""
        return degrees(self.drift.angle)


def drifts(run: StoredRun, most: int) -> list[Point]:
    """Return the drift at up to `most` checkpoints, evenly spread, the first and the last included.

    Raises `DataError` where the run's text is gone.
    """
    end = min(run.manifest.start + len(run.records), run.config.steps - 1)
    steps = [step for step in dict.fromkeys(run.checkpoints) if step <= end]
    return [_point(run, step) for step in choose(steps, most)] if most else []


def _point(run: StoredRun, step: int) -> Point:
    moment = moment_at(run, step)
    measured, truth, u = moment.gradients(), moment.reference(), unit(moment.policy)
    parts = {n: compare({n: measured[n]}, {n: truth[n]}, u).rho for n in truth if n in measured}
    worst = max(parts, key=lambda name: (parts[name] != parts[name], parts[name]), default="")
    return Point(step, compare(measured, truth, u), worst, parts.get(worst, 0.0))
