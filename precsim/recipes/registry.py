"""All recipes by name.  A new one goes into one of the files below, a new file into `RECIPES`."""

from __future__ import annotations

import difflib
from types import MappingProxyType

from precsim.recipes import (
    apex,
    basic,
    deepseek,
    keras,
    msamp,
    seed,
    switchback,
    torch,
    torchao,
    transformer_engine,
    weights,
)
from precsim.recipes.recipe import Recipe

RECIPES: MappingProxyType[str, Recipe] = MappingProxyType(
    {
        recipe.name: recipe
        for part in (
            basic, torch, apex, keras, weights,
            torchao, transformer_engine, deepseek, msamp, switchback, seed,
        )
        for recipe in part.RECIPES
    }
)  # fmt: skip
"""Every recipe by name, in the order in which tables print them."""


def recipe(name: str) -> Recipe:
    """Return the recipe called `name`; raise `ValueError` with the nearest names for another."""
    if name in RECIPES:
        return RECIPES[name]
    near = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"expected one of {', '.join(RECIPES)}"
    msg = f"unknown recipe {name!r}: {hint}"
    raise ValueError(msg)
