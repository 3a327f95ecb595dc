"""Rounding by chance beside rounding to nearest: what is left of the error in the mean of many."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from precsim.analyse.moment import Moment
from precsim.analyse.scan import is_low
from precsim.engine.policy import Policy
from precsim.engine.precision import Precision
from precsim.engine.rule import PHASES
from precsim.formats.modes import Rounding


@dataclass(frozen=True)
class Averaged:
    """Errors of gradients of one moment, relative to float64's, by how many were averaged.

    `mean[k]`: of the mean of the first k + 1 gradients.  `single`: root mean square of the errors
    of single ones.  Infinite where a gradient is not finite.
    """

    mean: tuple[float, ...]
    single: float


def averaged(moment: Moment, draws: int = 16) -> dict[str, Averaged]:
    """Return the errors under the moment's policy rounded by chance, and to nearest.

    Each of the `draws` gradients has random numbers of its own; to nearest all are the same.  Where
    all errors are chance, the mean's falls like 1 / sqrt(k); what it falls to is bias.
    Raises `ValueError` for fewer than one draw.
    """
    if draws < 1:
        msg = f"an average needs at least 1 draw; got {draws}"
        raise ValueError(msg)
    truth = moment.reference()
    names = sorted(truth)
    flat = np.concatenate([truth[n].ravel() for n in names])
    size = float(np.linalg.norm(flat)) or 1.0

    def errors(policy: Policy, count: int) -> Iterator[np.ndarray]:
        for k in range(count):
            measured = moment.at(seed=moment.seed + 1 + k, policy=policy).gradients()
            yield np.concatenate([measured[n].ravel() for n in names]) - flat

    chance = _averaged(errors(rounded_by(moment.policy, Rounding.STOCHASTIC), draws), size)
    nearest = _averaged(errors(rounded_by(moment.policy, Rounding.NEAREST), 1), size)
    repeated = Averaged(nearest.mean * draws, nearest.single)
    return {"stochastic": chance, "nearest": repeated}


def _averaged(errors: Iterator[np.ndarray], size: float) -> Averaged:
    total: np.ndarray | float = 0.0
    means, squares = [], []
    with np.errstate(invalid="ignore"):
        for count, error in enumerate(errors, 1):
            total = total + error
            means.append(_finite(float(np.linalg.norm(total)) / count / size))
            squares.append(_finite(float(np.linalg.norm(error)) / size) ** 2)
    return Averaged(tuple(means), float(np.sqrt(np.mean(squares))))


def _finite(value: float) -> float:
    return value if np.isfinite(value) else float("inf")


def rounded_by(policy: Policy, rounding: Rounding) -> Policy:
    """Return a policy with one rounding mode wherever its format is coarser than fp32."""

    def changed(precision: Precision) -> Precision:
        return replace(precision, rounding=rounding) if is_low(precision) else precision

    roles: dict[str, Any] = {role: changed(getattr(policy, role)) for role in PHASES}
    rules = tuple(rule.with_precisions(changed) for rule in policy.rules)
    return replace(policy, rules=rules, **roles)
