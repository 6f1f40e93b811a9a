"""The named systems: a function that makes each model, and a recipe for its training; and `System`, for your own."""

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
from funcvae.models.system import System

SYSTEMS: dict[str, System] = {
    system.name: system for family in (gaussian2d, mnist, cifar, burda, sbn) for system in family.SYSTEMS
}
"""The named systems by name, such as "mnist_vae"."""


def _by_name(name: str) -> System:
    return SYSTEMS[name]


def _reduced(system: System) -> Any:
    """Pickles a system of `SYSTEMS` by its name, because its recipe has lambdas."""
    return (_by_name, (system.name,)) if SYSTEMS.get(system.name) is system else system.__reduce_ex__(4)


copyreg.pickle(System, _reduced)

__all__ = [
    "SYSTEMS", "Recipe", "System", "burda2_vae", "burda_vae", "cifar_resnet_vae", "gaussian2d_vae", "linear_vae",
    "mnist_ae", "mnist_bn_vae", "mnist_sigma_vae", "mnist_vae", "sbn_vae",
]  # fmt: skip
