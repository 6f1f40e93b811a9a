"""Imports the packages of trackers, which are optional."""

from importlib import import_module
from typing import Any

from funcvae.errors import Missing

__all__ = ["import_package"]

_INSTALL = {
    "tensorboard": 'pip install "funcvae[tensorboard]"',
    # visdom 0.2.4 is built from source, by a setuptools that includes pkg_resources and builds wheels alone
    "visdom": 'pip install "setuptools>=70.1,<81" && pip install --no-build-isolation visdom "tornado<6.6"',
    "wandb": 'pip install "funcvae[wandb]"',
}


def import_package(name: str, *, extra: str) -> Any:
    """Imports an optional package, or raises Missing with the command that installs it."""
    try:
        return import_module(name)
    except ImportError as error:
        raise Missing(f"{extra} cannot be imported ({error}): install it with {_INSTALL[extra]}") from None
