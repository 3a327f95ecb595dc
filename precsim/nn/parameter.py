"""A parameter: how values become one that the optimizer updates, and how the forward pass reads it."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from precsim.engine import ops
from precsim.engine.context import current, using
from precsim.engine.rule import Origin
from precsim.engine.tensor import Tensor


def stored(values: npt.ArrayLike, name: str) -> Tensor:
    """Return values as the parameter `name`, in the policy's master format (`weights` without one).

    They pass through the policy's `initial_weights` first, if it has one.
    """
    policy = current().policy
    with using(role="weights", scope=name, taping=False):
        start: Any = values
        if policy.initial_weights is not None:
            start = ops.cast(values, to=policy.initial_weights)
        role = "master_weights" if policy.has_master else "weights"
        rounded = ops.cast(start, to=policy.stored(role, name))
    return Tensor(rounded.data, rounded.format, requires_grad=True, origin=Origin.WEIGHT, name=name)


def read(parameter: Tensor) -> Tensor:
    """Return a parameter in the format that the forward pass reads it in: an op, `cast`, if any."""
    return ops.cast(parameter, to=current().policy.stored("weights", parameter.name))
