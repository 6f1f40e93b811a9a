"""Small grids and sweeps, for several test files."""

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

import funcvae as fv
from funcvae import figures, runs


def write_points() -> None:
    """Writes twelve training and five test points to the current folder."""
    x = fv.random.uniform(fv.random.key(0), (17, 2)).numpy()
    np.savez("points.npz", train=x[:12], test=x[12:])


def content(seeds=(0,), estimators=("elbo",), samples=(2,), replicates=None, **settings) -> dict:
    """The content of a grid file whose cells have six steps each."""
    settings = {"data": "points.npz", "epochs": 2, "batch": 5} | settings
    axes = {"systems": ["gaussian2d_vae"], "estimators": estimators, "samples": samples, "seeds": seeds}
    made = {**{name: list(axis) for name, axis in axes.items()}, "settings": settings}
    return made if replicates is None else {**made, "replicates": replicates}


def grid_of(**given) -> runs.Grid:
    return runs.parse_grid(content(**given))


def written(name: str = "grid.json", **given) -> str:
    Path(name).write_text(json.dumps(content(**given)))
    return name


def swept(grid: runs.Grid, folder: str = "sweep", **options) -> dict:
    """Sweeps with empty files as the figures of the cells: to draw them takes longer than the training."""

    def save(figure: Figure, path: Path) -> Path:
        path.parent.mkdir(exist_ok=True)
        path.touch()
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "save", save)
        return runs.train_grid(grid, folder, measure=runs.variance_report, **options)


def all_files(folder: str) -> dict[str, tuple[int, bytes]]:
    paths = [path for path in sorted(Path(folder).rglob("*")) if path.is_file() and path.name != ".lock"]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def after(steps: int):
    """A stop context that stops a sweep after the given number of checks."""
    looks = iter(range(10**6))
    return lambda: nullcontext(lambda: next(looks) >= steps)


def params(folder: str, name: str) -> bytes:
    return Path(folder, "cells", name, "params.safetensors").read_bytes()
