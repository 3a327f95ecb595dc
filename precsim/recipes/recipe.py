"""A recipe is how a run uses its formats: a policy, a loss scale, and what to know about them."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from precsim.engine.policy import Policy
from precsim.recipes.basic import BASIC


@dataclass(frozen=True)
class Recipe:
    """One way to train.  `format` is the one that it is about, which gives figures their colour."""

    name: str
    title: str
    format: str
    policy: Policy
    loss_scale: str
    about: str

    def settings(self) -> dict[str, Any]:
        """Return the entries that it sets in a `TrainConfig`."""
        return {"policy": str(self.policy), "loss_scale": self.loss_scale}


RECIPES: MappingProxyType[str, Recipe] = MappingProxyType(
    {
        name: Recipe(name, title, fmt, Policy.parse(policy), scale, about)
        for name, title, fmt, policy, scale, about in BASIC
    }
)
"""Every recipe by name, in the order in which tables print them."""


def recipe(name: str) -> Recipe:
    """Return the recipe called `name`; raise `ValueError` with the nearest names for another."""
    if name in RECIPES:
        return RECIPES[name]
    near = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"expected one of {', '.join(RECIPES)}"
    msg = f"unknown recipe {name!r}: {hint}"
    raise ValueError(msg)
