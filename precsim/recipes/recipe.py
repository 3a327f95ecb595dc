"""A recipe is how a run uses its formats: a policy, a loss scale, and what to know about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from precsim.engine.policy import Policy


@dataclass(frozen=True)
class Recipe:
    """One way to train.  `format` is the one that it is about, which gives figures their colour.

    `loss_scale` is as in `precsim.nn.scaling.parse`.  `entries` are those of a `TrainConfig` that it
    sets besides (an optimizer, Adam's epsilon, a precision schedule).  `differs`: where it departs
    from standard practice, a sentence each, for a banner.  `about` says what it does, `source` whose
    rule it is and in which version, `oracle` what it was compared with, and what it was not.
    """

    name: str
    title: str
    format: str
    policy: Policy
    loss_scale: str
    about: str
    entries: Mapping[str, Any] = field(default_factory=dict)
    differs: tuple[str, ...] = ()
    source: str = ""
    oracle: str = ""

    def settings(self) -> dict[str, Any]:
        """Return the entries that it sets in a `TrainConfig`."""
        return {"policy": str(self.policy), "loss_scale": self.loss_scale, **self.entries}

    def banner(self) -> list[str]:
        """Return lines that say where it departs from standard practice; none where it does not."""
        if not self.differs:
            return []
        head = f"{self.name} departs from standard practice in {len(self.differs)} ways:"
        return [head, *(f"  {number}. {what}" for number, what in enumerate(self.differs, 1))]
