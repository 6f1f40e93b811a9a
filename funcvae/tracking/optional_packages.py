"""Helpers of the trackers with optional packages. They import a package, read images, and stop after an error."""

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
    # visdom 0.2.4 is built from source and requires a setuptools that includes pkg_resources
    "visdom": 'pip install "setuptools<81" && pip install --no-build-isolation visdom "tornado<6.6"',
}


def row_pictures(row: Row) -> dict[str, np.ndarray]:
    """The images in a row, clipped to [0, 1]; NaN becomes 0."""
    arrays = {name: np.nan_to_num(np.asarray(row[name])) for name in ("x", "x_hat") if name in row}
    return {name: np.clip(array, 0, 1) for name, array in arrays.items()}


def import_package(name: str, *, extra: str) -> Any:
    """Imports an optional package, or raises Missing with the command that installs it."""
    try:
        return import_module(name)
    except ImportError as error:
        raise Missing(f"{extra} cannot be imported ({error}): install it with {_INSTALL[extra]}") from None


def until_it_fails(track: Tracker, name: str) -> Tracker:
    """Wraps a tracker: its first OSError is reported on stderr, and later rows are ignored."""
    working = True

    def tracker(row: Row) -> None:
        nonlocal working
        if working:
            try:
                track(row)
            except OSError as error:
                working = False
                tqdm.write(f"funcvae: {name} stopped; the run continues without it: {error}", file=sys.stderr)

    return tracker
