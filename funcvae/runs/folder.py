"""Loads run folders."""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from funcvae import data, random, train, tree
from funcvae._support import checks, files
from funcvae.errors import BadData, BadType, BadValue, Missing
from funcvae.model import VAE, Trained
from funcvae.models.recipe import Recipe
from funcvae.modules import Params, State
from funcvae.runs import environment
from funcvae.runs.config import Config, config_sha256, configure, parse_config
from funcvae.runs.config import recipe as recipe_of
from funcvae.runs.environment import Manifest
from funcvae.train import checkpoint

__all__ = ["Run", "has_run", "initial_run", "load", "load_data"]

CHECKPOINTS = "checkpoints"
CONFIG = "config.json"
FIGURES = "figures"
MANIFEST = "manifest.json"
METRICS = "metrics.jsonl"
PARAMS = "params.safetensors"
SAMPLES = "samples.npy"


class Run(NamedTuple):
    """A finished run."""

    path: Path
    config: Config
    recipe: Recipe
    model: VAE
    params: Params
    state: State
    device: str
    data_sha256: str

    def dataset(self) -> data.Dataset:
        """The data the run was trained on.

        Raises:
            Missing: the data are not found.
            BadData: the data have changed.
        """
        dataset = fitted(self.recipe, load_data(self.config))
        check_same_data(dataset, self.data_sha256, self.path)
        return dataset

    def shared_facts(self) -> dict[str, Any]:
        """The values that must be equal in all processes that measure the run together."""
        here = replace(self.config, device=self.device)
        params = tree.sha256({"params": self.params, "state": self.state})
        facts = {name: getattr(here, name) for name in ("system", "precision", "device")}
        facts |= {"the parameters' sha256": params, "the data's sha256": self.data_sha256}
        return facts | environment.bit_settings(here)

    @property
    def trained(self) -> Trained:
        """The model with its parameters and state."""
        return Trained(self.model, self.params, self.state)

    @property
    def image_arguments(self) -> dict[str, Any]:
        """Arguments of the figures of images: how to show pixels, and the name for the title."""
        return {"pixels": self.recipe.pixels, "name": self.recipe.name}


@checks.arguments
def load(
    path: str | Path, *, device: str = "cpu", data: str | Path | None = None, data_dir: str | Path | None = None
) -> Run:
    """Loads a finished run from its folder.

    Args:
        data: file or folder of the data, if they have moved.
        data_dir: folder of the named data sets, if they have moved.

    Raises:
        Missing: the folder or one of its files does not exist, or the device is not available.
        BadData: a file is damaged, or another version of funcvae made the run.
    """
    path = Path(path)
    checks.device(device)
    config, manifest = read_run(path, data, data_dir)
    recipe, shape = recipe_of(config.system), manifest["data"]["shape"]
    if not _has_shape(recipe, shape) or math.prod(shape) > _MOST_NUMBERS:
        raise BadData(f"{path / MANIFEST} is not the manifest of a run of {config.system}: data.shape is {shape}")
    model = recipe.model(torch.zeros(1, *shape, device=device))
    if not (path / PARAMS).is_file():
        lost = f"{path / PARAMS} is missing: the run is not finished, or lost the file"
        raise Missing(f"{lost}; to continue it: funcvae train --resume {path}")
    like = model.init(random.key(0, device=device))
    params, state = checkpoint.load_params(path / PARAMS, *like)
    return Run(path, config, recipe, model, params, state, device, manifest["data_sha256"])


@checks.arguments
def has_run(path: str | Path) -> bool:
    """Whether a folder holds a run, finished or not."""
    return Path(path, CONFIG).is_file()


def read_run(path: Path, data: str | Path | None, data_dir: str | Path | None) -> tuple[Config, Manifest]:
    """The configuration and manifest of the run in a folder; `data` and `data_dir`, if given, replace the locations."""
    config, manifest = read_config(path), read_manifest(path)
    check_same_config(config, manifest, path)
    return replace(config, data=str(data or config.data), data_dir=str(data_dir or config.data_dir)), manifest


def read_config(path: Path) -> Config:
    """The configuration of the run in a folder. Raises Missing if there is no run, BadData if the file is damaged."""
    if not path.is_dir():
        raise Missing(f"{path}: no such run folder")
    if not (path / CONFIG).is_file():
        raise Missing(f"{path} is not a run folder: it has no config.json")
    content = files.read_json(path / CONFIG)
    try:
        return parse_config(content)
    except (BadType, BadValue) as error:
        raise BadData(f"{path / CONFIG} is not the configuration of a run: {error}") from None


def read_manifest(path: Path) -> Manifest:
    """The manifest of the run in a folder; raises as `files.read_json` and `environment.parse_manifest` do."""
    return environment.parse_manifest(files.read_json(path / MANIFEST), path / MANIFEST)


@checks.arguments
def initial_run(
    system: str, *, seed: int = 0, device: str = "cpu", data: str | Path | None = None, data_dir: str | Path = "data",
    size: int | None = None,
) -> Run:  # fmt: skip
    """A named system with the initial parameters of this seed, as a run without a folder.

    Args:
        data, data_dir, size: see `Options`.

    Raises:
        BadValue: no such system.
        Missing, BadData: the data are not found, or the system cannot take them.
    """
    config = configure(system, data=data, data_dir=data_dir, seed=seed, device=device, size=size, out="")
    recipe = recipe_of(system)
    dataset = fitted(recipe, load_data(config))
    model = recipe.model(dataset.train.to(device))
    ts = train.init(model, recipe.optimizer(1), random.key(seed, device=device))
    return Run(Path(system), config, recipe, model, ts.params, ts.state, device, dataset.sha256())


def load_data(config: Config) -> data.Dataset:
    """The data of a configuration."""
    try:
        return data.load(config.data, root=config.data_dir, size=config.size)
    except Missing as error:
        raise Missing(f"{error}; if the data have moved, set data or data_dir") from None


def check_same_data(dataset: data.Dataset, sha256: str, path: Path) -> None:
    """Raises BadData unless these are the data of the run in a folder."""
    if dataset.sha256() != sha256:
        raise BadData(f"{dataset.name} is not the data that {path} was trained on")


def check_same_config(config: Config, manifest: Manifest, path: Path) -> None:
    """Raises BadData unless the run in a folder started with this configuration."""
    if manifest["config_sha256"] != config_sha256(config):
        raise BadData(f"{path / CONFIG} was changed after the run started: restore it, or start another run")


def fitted(recipe: Recipe, dataset: data.Dataset) -> data.Dataset:
    """The data set with items of the system's shape; images [H, W] or [H, W, C] become [C, H, W], with a notice.

    Raises BadData if the shape is another or may be read in two ways, or if pixels lie outside [0, 1].
    """
    got = list(dataset.train.shape[1:])
    readings: dict[str, Callable[[Tensor], Tensor]] = {"[C, H, W]": lambda x: x}
    if len(recipe.shape) == 3:
        readings |= {"[H, W]": lambda x: x.unsqueeze(1), "[H, W, C]": lambda x: x.movedim(-1, 1).contiguous()}
    fitting = {name: read for name, read in readings.items() if _has_shape(recipe, read(dataset.train[:1]).shape[1:])}
    if not fitting:
        want = ", ".join("any" if n is None else str(n) for n in recipe.shape)
        raise BadData(f"{recipe.name} takes items of shape [{want}]: {dataset.name} has {got}")
    if len(fitting) > 1:
        ways = " or ".join(fitting)
        raise BadData(f"{dataset.name} has items of shape {got}, which may be {ways}: save images of another size")
    ((reading, read),) = fitting.items()
    dataset = dataset._replace(train=read(dataset.train), test=read(dataset.test))
    if reading != "[C, H, W]":
        shape = list(dataset.train.shape[1:])
        _print_once(f"{dataset.name} has items of shape {got}: they are read as {reading}, so as images {shape}")
    for x in (dataset.train, dataset.test):
        if x.dtype != torch.uint8 and len(recipe.shape) == 3 and not (x.min() >= 0 and x.max() <= 1):
            span = f"{float(x.min()):g} to {float(x.max()):g}"
            raise BadData(f"{dataset.name} has pixels from {span}: they must lie in [0, 1], or be uint8")
    return dataset


@cache  # once for each process, because a sweep reads the same data for each cell
def _print_once(line: str) -> None:
    tqdm.write(f"funcvae: {line}", file=sys.stderr)


def _has_shape(recipe: Recipe, shape: Sequence[int]) -> bool:
    return len(shape) == len(recipe.shape) and all(a in (None, b) for a, b in zip(recipe.shape, shape, strict=True))


_MOST_NUMBERS = 2**24  # numbers in one item
