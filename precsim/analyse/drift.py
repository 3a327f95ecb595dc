"""Gradient drift, told apart: rounding now, weights already moved, and plain chaos.

With theta the run's weights, theta* those of a float64 twin on the same batches, and all gradients
unscaled and in float64:

    g~ - g*  =  (g~ - g)  +  (g - g*)
    drift       rounding     weights
                now          already moved

g~ is the emulated gradient at theta, g the float64 gradient at theta, g* the float64 gradient at
theta*.  A control twin, started one unit in the last place away, shows how much of the distance
between weights any perturbation would have made: that part is chaos, not rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import asin, sqrt

import numpy as np

from precsim.analyse.moment import Moment, Values, unit


@dataclass(frozen=True)
class Drift:
    """The error e = measured - truth of one gradient (or update), relative to the truth.

    `rho`: ||e|| / ||truth||; `rho_u`: the same in unit roundoffs; `angle`: between the two, in
    radians, by the chord (arccos of a cosine is 0 below 1e-8); `ratio`: of the norms; `bias`: the
    part of e along the truth (< 0: shrunk); `spread`: the part across it.
    `nonfinite` counts NaN and infinities, of the measured one or else of the truth; where there are
    any, the rest is NaN: drift is undefined.
    """

    rho: float
    rho_u: float
    angle: float
    ratio: float
    bias: float
    spread: float
    nonfinite: int = 0


def compare(measured: Values, truth: Values, u: float) -> Drift:
    """Return the drift between two sets of tensors, taken as one long vector.

    An all-zero truth gives infinite drift, unless the measured one is all zero too (none).
    """
    names = sorted(n for n in truth if n in measured)
    a = np.concatenate([measured[n].ravel() for n in names]) if names else np.zeros(0)
    b = np.concatenate([truth[n].ravel() for n in names]) if names else np.zeros(0)
    bad = a.size - int(np.count_nonzero(np.isfinite(a)))
    if bad := bad or b.size - int(np.count_nonzero(np.isfinite(b))):
        nan = float("nan")
        return Drift(nan, nan, nan, nan, nan, nan, bad)
    size_a, size_b = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    if size_b == 0:
        far = 0.0 if size_a == 0 else float("inf")
        return Drift(far, far, 0.0, 1.0 if size_a == 0 else float("inf"), 0.0, far)
    e = a - b
    rho = float(np.linalg.norm(e)) / size_b
    bias = float(e @ b) / size_b**2
    chord = float(np.linalg.norm(a / size_a - b / size_b)) if size_a else sqrt(2)
    return Drift(
        rho=rho,
        rho_u=rho / u,
        angle=2 * asin(min(1.0, chord / 2)),
        ratio=size_a / size_b,
        bias=bias,
        spread=sqrt(max(0.0, rho**2 - bias**2)),
    )


def local(moment: Moment) -> Drift:
    """Return the drift of a moment's gradient from the float64 gradient at the same weights."""
    return compare(moment.gradients(), moment.reference(), unit(moment.policy))


@dataclass(frozen=True)
class Split:
    """Total drift of a gradient and its two parts, as norms relative to the twin's gradient."""

    total: float
    rounding_now: float
    weights_moved: float


def split(moment: Moment, twin: Values) -> Split:
    """Return the split of the drift between a moment and a float64 twin with weights `twin`."""
    there = moment.at(parameters=twin).reference()
    return split_of(moment.gradients(), moment.reference(), there)


def split_of(measured: Values, here: Values, there: Values) -> Split:
    """Return the split of a measured gradient; `here` and `there` are float64's, at the run's
    weights and at the twin's.  NaN where a value is not finite."""
    size = norm(there)

    def relative(a: Values, b: Values) -> float:
        return norm({n: a[n] - b[n] for n in b}) / size if size else 0.0

    with np.errstate(invalid="ignore"):
        parts = relative(measured, there), relative(measured, here), relative(here, there)
    return Split(*(part if np.isfinite(part) else float("nan") for part in parts))


def distance(weights: Values, twin: Values, start: Values) -> float:
    """Return how far a run is from its twin, relative to the way that the twin has come."""
    way = norm({n: twin[n] - start[n] for n in twin})
    apart = norm({n: weights[n] - twin[n] for n in twin})
    return apart / way if way else 0.0


def perturbed(weights: Values, seed: int = 0) -> Values:
    """Return weights each moved by one unit in the last place of float64, up or down at random."""
    generator = np.random.default_rng(seed)
    moved = {}
    for name, w in weights.items():
        toward = np.where(generator.integers(0, 2, w.shape) == 1, np.inf, -np.inf)
        moved[name] = np.nextafter(w, toward)
    return moved


def stochastic(moment: Moment, draws: int = 8) -> tuple[float, float]:
    """Return bias and spread of a stochastically rounded gradient, from re-keyed repetitions.

    Bias is ||mean error|| / ||g|| (uncertain by spread / sqrt(draws)), spread the root mean square
    distance from the mean, over ||g||.
    """
    truth = moment.reference()
    names = sorted(truth)
    flat = np.concatenate([truth[n].ravel() for n in names])
    runs = []
    for k in range(draws):
        measured = moment.at(seed=moment.seed + 1 + k).gradients()
        runs.append(np.concatenate([measured[n].ravel() for n in names]) - flat)
    errors = np.stack(runs)
    mean = errors.mean(axis=0)
    size = float(np.linalg.norm(flat))
    spread = float(np.sqrt(np.square(errors - mean).sum(axis=1).mean()))
    return float(np.linalg.norm(mean)) / size, spread / size


def norm(values: Values) -> float:
    """Return the 2-norm of tensors, taken as one long vector."""
    return float(np.sqrt(sum(float(np.square(v).sum()) for v in values.values())))
