"""The named systems: a function that makes each model, and a recipe for its training."""

import copyreg
from typing import Any

from funcvae.models import burda, cifar, gaussian2d, mnist, sbn
from funcvae.models.burda import burda2_vae, burda_vae
from funcvae.models.cifar import cifar_resnet_vae
from funcvae.models.gaussian2d import gaussian2d_vae
from funcvae.models.linear import linear_vae
from funcvae.models.mnist import mnist_ae, mnist_bn_vae, mnist_sigma_vae, mnist_vae
from funcvae.models.recipe import Recipe
from funcvae.models.sbn import sbn_vae

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe for family in (gaussian2d, mnist, cifar, burda, sbn) for recipe in family.RECIPES
}
"""The recipes by name."""


def _by_name(name: str) -> Recipe:
    return RECIPES[name]


def _reduced(recipe: Recipe) -> Any:
    """Pickles a recipe of `RECIPES` by its name, because its functions are lambdas."""
    return (_by_name, (recipe.name,)) if RECIPES.get(recipe.name) is recipe else recipe.__reduce_ex__(4)


copyreg.pickle(Recipe, _reduced)

__all__ = [
    "RECIPES", "Recipe", "burda2_vae", "burda_vae", "cifar_resnet_vae", "gaussian2d_vae", "linear_vae", "mnist_ae",
    "mnist_bn_vae", "mnist_sigma_vae", "mnist_vae", "sbn_vae",
]  # fmt: skip
