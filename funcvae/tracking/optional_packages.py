"""Shared by the trackers of optional packages: their import, the pictures in a row, and the end after an error."""

import sys
from importlib import import_module
from typing import Any

import numpy as np
from tqdm import tqdm

from funcvae.errors import Missing
from funcvae.tracking.metrics_file import Tracker
from funcvae.train.settings import Row

__all__ = ["import_package", "row_pictures", "until_it_fails"]

_INSTALL = {
    "tensorboard": 'pip install "funcvae[tensorboard]"',
    # visdom 0.2.4 is built from source, by a setuptools that still has pkg_resources
    "visdom": 'pip install "setuptools<81" && pip install --no-build-isolation visdom "tornado<6.6"',
}


def row_pictures(row: Row) -> dict[str, np.ndarray]:
    """The pictures in a row."""
    arrays = {name: np.nan_to_num(np.asarray(row[name])) for name in ("x", "x_hat") if name in row}
    return {name: np.clip(array, 0, 1) for name, array in arrays.items()}


def import_package(name: str, *, extra: str) -> Any:
    """An optional package's module, or an error with the line that installs it."""
    try:
        return import_module(name)
    except ImportError as error:
        raise Missing(f"{extra} cannot be imported ({error}): {_INSTALL[extra]}") from None


def until_it_fails(track: Tracker, name: str) -> Tracker:
    """The tracker up to its first OSError, which becomes a line on stderr; rows after that go nowhere."""
    works = True

    def tracker(row: Row) -> None:
        nonlocal works
        if works:
            try:
                track(row)
            except OSError as error:
                works = False
                tqdm.write(f"funcvae: {name} stopped, the run goes on without it: {error}", file=sys.stderr)

    return tracker
