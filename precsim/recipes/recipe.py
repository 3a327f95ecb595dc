"""A recipe is how a run uses its formats: a policy, a loss scale, and what to know about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from precsim.engine.policy import Policy


@dataclass(frozen=True)
class Recipe:
    """One way to train.  `format` is the one that it is about, which gives figures their colour.

    `loss_scale` is as in `precsim.nn.scaling.parse`; `optimizer` are entries of a `TrainConfig` that
    belong to the recipe (Adam's epsilon, say).  `about` says what it does, `source` whose rule it is
    and in which version, `oracle` what it has been compared with, and what it has not.
    """

    name: str
    title: str
    format: str
    policy: Policy
    loss_scale: str
    about: str
    source: str = ""
    oracle: str = ""
    optimizer: tuple[tuple[str, Any], ...] = ()

    def settings(self) -> dict[str, Any]:
        """Return the entries that it sets in a `TrainConfig`."""
        entries = {"policy": str(self.policy), "loss_scale": self.loss_scale}
        return entries | dict(self.optimizer)
