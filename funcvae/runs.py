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
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from funcvae import checkpoint, data, estimators, pictures, plots, random, tracking, train
from funcvae.errors import BadValue, Missing, unknown
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
    dataset = data.load(config.data, root=config.data_dir, download=download)
    model = recipe_.model(dataset.train)
    steps_per_epoch = -(-len(dataset.train) // config.batch)
    opt = recipe_.optimizer(steps_per_epoch, config.lr)
    ts = train.init(model, opt, key)
    x_train, x_test = dataset.train.to(config.device), dataset.test.to(config.device)
    train.check_data(model, ts.params, ts.state, x_train, recipe_.observe, name=f"data {config.data!r}")

    out.mkdir(parents=True, exist_ok=True)
    _write_json(out / "config.json", asdict(config))
    _write_json(out / "manifest.json", _manifest(config, dataset))
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
    figures = pictures.of_run(model, ts, dataset, recipe_.observe, history, name=config.system)
    for name, figure in figures.items():
        plots.save(figure, out / "figures" / f"{name}.png")
    return out


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


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a file that is there whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)
