"""Recipes: named combinations of policy and loss scale, as data."""

from precsim.recipes.recipe import Recipe
from precsim.recipes.registry import RECIPES, recipe

__all__ = ["RECIPES", "Recipe", "recipe"]
