"""Recipes: what to build, how to quantize it, and which gates it must pass."""

from engines.recipes.recipe import Recipe, load_recipe, recipe_names

__all__ = ["Recipe", "load_recipe", "recipe_names"]
