"""Drift along a run, as the report shows it.

Without a twin, at checkpoints: there nothing has to be trained again, and each costs a step and its
float64 counterpart.  A short run has too few of them, and is trained again on the way.  With one, as `precsim.analyse.twins` measures it, which takes about three times
as long as the run did.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import degrees, isfinite, isnan

from precsim.analyse import twins
from precsim.analyse.drift import Drift, compare
from precsim.analyse.moment import Moment, unit
from precsim.analyse.recorded import moments_at
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

    @property
    def defined(self) -> bool:
        """Whether both gradients are finite, and float64's is not zero."""
        return isfinite(self.drift.rho)


SHORT = 100
"""Steps of a run that may be trained again for drift between its checkpoints."""


def drifts(run: StoredRun, most: int) -> list[Point]:
    """Return the drift at up to `most` checkpoints, evenly spread, the first and the last included.

    A run of up to `SHORT` steps that has fewer checkpoints gives as many of its steps.
    Raises `DataError` where the run's text is gone, `RunError` where a checkpoint cannot be used.
    """
    end = min(run.manifest.start + len(run.records), run.config.steps - 1)
    steps = [step for step in dict.fromkeys(run.checkpoints) if step <= end]
    if len(steps) < most and len(run.records) <= SHORT:
        steps = list(range(run.manifest.start, end + 1))
    chosen = choose(steps, most) if most else []
    return list(map(_point, moments_at(run, chosen)))


def beside_twin(found: twins.Drifts) -> list[Point]:
    """Return the drift of the gradient at the steps that were measured beside a twin."""
    return [
        Point(p.step, p.gradient, *_worst({n: d.rho for n, d in p.gradients.items()}))
        for p in found.points
    ]


def _point(moment: Moment) -> Point:
    measured, truth, u = moment.gradients(), moment.reference(), unit(moment.policy)
    parts = {n: compare({n: measured[n]}, {n: truth[n]}, u).rho for n in truth if n in measured}
    return Point(moment.step, compare(measured, truth, u), *_worst(parts))


def _worst(parts: Mapping[str, float]) -> tuple[str, float]:
    """Return the parameter with the largest error, and it; NaN is larger than any number."""
    worst = max(parts, key=lambda name: (isnan(parts[name]), parts[name]), default="")
    return worst, parts.get(worst, 0.0)
