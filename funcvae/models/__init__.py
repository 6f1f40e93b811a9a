"""The named systems: each a function that makes its model, and a recipe that says how it is trained."""

from funcvae.models import burda, gaussian2d, mnist
from funcvae.models.burda import burda_vae
from funcvae.models.gaussian2d import gaussian2d_vae
from funcvae.models.mnist import mnist_vae
from funcvae.models.recipe import Recipe

RECIPES: dict[str, Recipe] = {recipe.name: recipe for family in (gaussian2d, mnist, burda) for recipe in family.RECIPES}
"""The recipes by name."""

__all__ = ["RECIPES", "Recipe", "burda_vae", "gaussian2d_vae", "mnist_vae"]
