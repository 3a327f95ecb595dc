"""Recipes: named combinations of policy and loss scale, as data."""

from precsim.recipes.recipe import RECIPES, Recipe, recipe

__all__ = ["RECIPES", "Recipe", "recipe"]
