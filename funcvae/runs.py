"""A run on disk: from a configuration to a folder with everything one wants to know of it afterwards.

config.json         what was asked for, every default filled in
manifest.json       what it ran on: versions, device, threads, precision, the data's hash
metrics.jsonl       a row for every step and every epoch
params.safetensors  trained parameters and state; byte-identical for equal runs
figures/*.png
"""

import json
import os
import platform
import shutil
import sys
import sysconfig
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from funcvae import checkpoint, data, estimators, files, pictures, plots, random, tracking, train
from funcvae.errors import BadData, BadValue, Missing, unknown
from funcvae.models import RECIPES, Recipe


@dataclass(frozen=True)
class Config:
    """All that decides a run's result, and where it is kept."""

    system: str
    data: str
    data_dir: str
    epochs: int
    batch: int
    samples: int
    estimator: str
    lr: float | None
    """None: the recipe's own learning rate or schedule."""
    seed: int
    device: str
    precision: str
    compile: bool
    out: str


def recipe(system: str) -> Recipe:
    """The recipe of a named system, or an error with the nearest name."""
    if system not in RECIPES:
        raise unknown("system", system, RECIPES)
    return RECIPES[system]


def device(name: str) -> str:
    """The device that "auto", "cpu" or "cuda" means here."""
    if name == "cuda" and not torch.cuda.is_available():
        raise Missing("no CUDA device is available: use --device cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def can_compile() -> bool:
    """Whether this machine has what `torch.compile` needs: a C++ compiler and Python's headers."""
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    return shutil.which(os.environ.get("CXX", "g++")) is not None and header.is_file()


def run(config: Config, *, download: bool = False) -> Path:
    """Trains as configured and fills the run folder; returns its path.

    Everything that can be wrong with the input is found before the folder is made.
    """
    out = Path(config.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadValue(f"{out} exists and is not an empty folder: choose another --out")
    recipe_ = recipe(config.system)
    estimator = estimators.parse(config.estimator)
    for name in ("epochs", "batch", "samples"):
        if getattr(config, name) < 1:
            raise BadValue(f"--{name} is {getattr(config, name)}: it must be at least 1")
    key = random.key(config.seed, device=config.device)
    torch.set_float32_matmul_precision(config.precision)
    dataset = data.load(config.data, root=config.data_dir, download=download)
    _check_items(recipe_, dataset)
    model = recipe_.model(dataset.train)
    steps_per_epoch = -(-len(dataset.train) // config.batch)
    opt = recipe_.optimizer(steps_per_epoch, config.lr)
    ts = train.init(model, opt, key)
    x_train, x_test = dataset.train.to(config.device), dataset.test.to(config.device)
    for name, x in {"train": x_train, "test": x_test}.items():
        train.check_data(model, ts.params, ts.state, x, recipe_.observe, name=f"{config.data}: {name}")

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadValue(f"--out {out} cannot be made: {error.strerror}") from None
    files.write(out / "config.json", _json(asdict(config)))
    files.write(out / "manifest.json", _json(_manifest(config, dataset)))
    steps = config.epochs * steps_per_epoch
    with tracking.jsonl(out / "metrics.jsonl") as write, tracking.progress_bar(steps) as show:

        def log(row: train.Row) -> None:
            write(row)
            show(row)

        ts, history = train.fit(
            ts,
            model,
            estimator,
            opt,
            x_train,
            test=x_test,
            epochs=config.epochs,
            batch=config.batch,
            samples=config.samples,
            observe=recipe_.observe,
            compile=config.compile,
            log=log,
        )
    checkpoint.save_params(out / "params.safetensors", ts.params, ts.state)
    figures = pictures.of_run(
        model, ts, dataset, recipe_.observe, history, name=config.system, target=estimator.claims.target
    )
    for name, figure in figures.items():
        plots.save(figure, out / "figures" / f"{name}.png")
    return out


def _check_items(recipe_: Recipe, dataset: data.Dataset) -> None:
    """Raises BadData unless the items have the system's shape and, where they are images, pixels in [0, 1]."""
    got = tuple(dataset.train.shape[1:])
    if got != recipe_.shape:
        raise BadData(f"{recipe_.name} takes items of shape {list(recipe_.shape)}: {dataset.name} has {list(got)}")
    for x in (dataset.train, dataset.test):
        if len(got) == 3 and not (x.min() >= 0 and x.max() <= 1):
            span = f"{float(x.min()):g} to {float(x.max()):g}"
            raise BadData(f"{dataset.name} has pixels from {span}: they must lie in [0, 1], or be uint8")


def _manifest(config: Config, dataset: data.Dataset) -> dict[str, Any]:
    import funcvae

    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    on_cuda = config.device == "cuda"
    return {
        "command": sys.argv,
        "versions": {**versions, "funcvae": funcvae.__version__},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if on_cuda else config.device,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "compile": config.compile,
        "seed": config.seed,
        "data": {"source": config.data, "train": len(dataset.train), "test": len(dataset.test)},
        "data_sha256": dataset.sha256(),
    }


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
