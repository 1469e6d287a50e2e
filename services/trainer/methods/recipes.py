"""Named recipes: the field's published settings for a method and model family, each with its source. Needs no torch.

What a recipe does not say is the service's own value.
"""

from __future__ import annotations

from collections.abc import Mapping

from atelier.errors import InvalidArgumentError
from atelier.nearest import did_you_mean
from services.trainer.methods.published import WEIGHT_RECIPES, Recipe
from services.trainer.methods.published_embeddings import EMBEDDING_RECIPES
from services.trainer.training.base_facts import Family

RECIPES: Mapping[str, Recipe] = {recipe.name: recipe for recipe in (*WEIGHT_RECIPES, *EMBEDDING_RECIPES)}


def find_recipe(name: str, method: str, family: Family) -> Recipe:
    """The recipe of this name.

    Raises:
        InvalidArgumentError: there is none, or it is for another method or family; names those that fit.
    """
    fitting = [each.name for each in RECIPES.values() if each.method == method and family in each.families]
    if name in fitting:
        return RECIPES[name]
    recipe = RECIPES.get(name)
    wrong = f"is for {recipe.method} of {' and '.join(recipe.families)}" if recipe else "is no recipe"
    known = ", ".join(fitting) or "none"
    raise InvalidArgumentError(
        "recipe",
        f"{name[:64]!r} {wrong}; {did_you_mean(name, fitting)}for {method} of {family} there are: {known}",
        reason="RECIPE_UNKNOWN",
    )
