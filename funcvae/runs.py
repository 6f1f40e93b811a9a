"""A run on disk: from a configuration to a folder with everything one wants to know of it afterwards, and back.

config.json         what was asked for, every default filled in
manifest.json       what it ran on: versions, device, threads, precision, the data's hash
metrics.jsonl       a row for every step and every epoch, and for every look at the variance that was asked for
params.safetensors  trained parameters and state; byte-identical for equal runs
samples.npy         of the model, after every step [steps, n, 2]
figures/*.png

`samples.npy` is there where samples were to be kept.
"""

import json
import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import numpy as np
import torch

from funcvae import (
    __version__,
    checkpoint,
    data,
    estimators,
    files,
    noise,
    pictures,
    plots,
    probes,
    random,
    tracking,
    train,
)
from funcvae.errors import BadData, BadValue, Missing, unknown
from funcvae.models import RECIPES, Recipe
from funcvae.module import Params, State
from funcvae.probes import NEVER, Probe
from funcvae.train import TrainState
from funcvae.vae import VAE

MakeTracker = Callable[[Path, dict[str, Any]], AbstractContextManager[tracking.Tracker]]


@dataclass(frozen=True)
class Config:
    """All that decides a run's result, and where it is kept."""

    system: str
    data: str
    epochs: int
    batch: int
    samples: int
    estimator: str
    out: str
    data_dir: str = "data"
    noise: str = "iid"
    lr: float | None = None
    """None: the recipe's own learning rate or schedule."""
    seed: int = 0
    device: str = "cpu"
    precision: str = "highest"
    compile: bool = False


class Run(NamedTuple):
    """A finished run, as `load` finds it."""

    path: Path
    config: Config
    recipe: Recipe
    model: VAE
    params: Params
    state: State
    device: str
    data_sha256: str

    def dataset(self) -> data.Dataset:
        """The data it was trained on.

        Raises:
            Missing: they are not where they were.
            BadData: they have changed.
        """
        dataset = load_data(self.config)
        if dataset.sha256() != self.data_sha256:
            raise BadData(f"the data {self.config.data} are not those that {self.path} was trained on")
        return dataset

    @property
    def trained(self) -> tuple[VAE, Params, State]:
        """(model, params, state), as the pictures take them."""
        return self.model, self.params, self.state

    @property
    def titled(self) -> dict[str, Any]:
        """What pictures of images are also told: how to show pixels, and a name for the title."""
        return {"pixels": self.recipe.pixels, "name": self.recipe.name}


def recipe(system: str) -> Recipe:
    """The recipe of a named system, or an error with the nearest name."""
    if system not in RECIPES:
        raise unknown("system", system, RECIPES)
    return RECIPES[system]


def configure(system: str, **given: Any) -> Config:
    """A configuration of the named system: its recipe's where nothing is given, or None."""
    own = recipe(system)
    defaults = {name: getattr(own, name) for name in ("data", "epochs", "batch", "samples", "estimator")}
    given = {name: value for name, value in given.items() if value is not None}
    return Config(system=system, **{**defaults, **given})


def device(name: str) -> str:
    """The device that "auto", "cpu" or "cuda" means here."""
    if name == "cuda" and not torch.cuda.is_available():
        raise Missing("no CUDA device is available: use --device cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def can_compile() -> bool:
    """Whether this machine has what `torch.compile` needs: a C++ compiler and Python's headers."""
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    return shutil.which(os.environ.get("CXX", "g++")) is not None and header.is_file()


def run(
    config: Config,
    *,
    download: bool = False,
    trackers: Sequence[MakeTracker] = (),
    sample_each_step: bool = False,
    probe: Probe = NEVER,
) -> Path:
    """Trains as configured and fills the run folder; returns its path.

    Everything that can be wrong with the input is found before the folder is made.

    Args:
        config: what to train.
        download: fetch a named data set that is not there.
        trackers: each makes, from the run's folder and its configuration, the context manager of a tracker, which is
            shown every row and, where the data are images, `x` and `x_hat` after every epoch.
        sample_each_step: keep samples of the model after every step, of data in the plane: a figure shows them evolve.
        probe: log the variance of the gradient as training goes on. It changes no bit of the result.
    """
    out = Path(config.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadValue(f"{out} exists and is not an empty folder: choose another --out")
    recipe_ = recipe(config.system)
    if sample_each_step and recipe_.shape != (2,):
        raise BadValue(f"--sample-each-step draws points in the plane, and {recipe_.name}'s data are images")
    estimator, scheme = estimators.parse(config.estimator), noise.parse(config.noise)
    target = estimator.claims_under(scheme).target
    for name in ("epochs", "batch", "samples"):
        if getattr(config, name) < 1:
            raise BadValue(f"--{name} is {getattr(config, name)}: it must be at least 1")
    key = random.key(config.seed, device=config.device)
    torch.set_float32_matmul_precision(config.precision)
    dataset = data.load(config.data, root=config.data_dir, download=download)
    _check_items(recipe_, dataset)
    model = recipe_.model(dataset.train)
    steps_per_epoch = -(-len(dataset.train) // config.batch)
    steps = config.epochs * steps_per_epoch
    opt = recipe_.optimizer(steps_per_epoch, config.lr)
    ts = train.init(model, opt, key)
    x_train, x_test = dataset.train.to(config.device), dataset.test.to(config.device)
    for name, x in {"train": x_train, "test": x_test}.items():
        train.check_data(model, ts.params, ts.state, x, recipe_.observe, name=f"{config.data}: {name}")
    train.check_batches(model, ts.params, ts.state, x_train, config.batch)
    observe_key, figure_key, step_key, probe_key = random.split(train.run_keys(ts.key).pictures, 4)
    seen = recipe_.observe(observe_key, x_test[: pictures.POINTS])
    # Estimator and noise may not suit the model or the number of samples: let them say so now. (Values do not matter.)
    eps = torch.zeros_like(scheme(observe_key, config.samples, (1, model.latent)))
    follow = probes.follower(
        probe,
        estimator=config.estimator,
        scheme=scheme,
        samples=config.samples,
        data=x_train,
        batch=config.batch,
        observe=recipe_.observe,
        key=probe_key,
    )
    for each in [estimator, *(follow.arms.values() if follow else ())]:
        each(model, ts.params, ts.state, seen[:1], eps, train=False)

    with ExitStack() as stack:
        shown = [stack.enter_context(tracker(out, asdict(config))) for tracker in trackers]
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadValue(f"--out {out} cannot be made: {error.strerror}") from None
        files.write(out / "config.json", _json(asdict(config)))
        files.write(out / "manifest.json", _json(_manifest(config, dataset)))
        rows = [
            stack.enter_context(tracking.jsonl(out / "metrics.jsonl")),
            stack.enter_context(tracking.progress_bar(steps)),
            *shown,
        ]
        kept = np.empty((steps if sample_each_step else 0, pictures.POINTS_A_STEP, 2), np.float32)

        measured: dict[int, train.Row] = {}

        def log(row: train.Row) -> None:
            for track in rows:
                track(row)
            after = row["step"] + 1 if "loss" in row else row["step"]  # a step's row counts from 0
            if after in measured:
                log(measured.pop(after))

        def watch(step: int, ts: TrainState) -> None:
            trained = model, ts.params, ts.state
            if follow and step % probe.every == 0:
                measured[step] = {"epoch": (step - 1) // steps_per_epoch, "step": step, **follow(*trained, step)}
            if sample_each_step:
                key = random.fold_in(step_key, step)
                kept[step - 1] = pictures.samples(*trained, key, pictures.POINTS_A_STEP).cpu()
            if shown and seen.ndim == 4 and step % steps_per_epoch == 0:
                key, x = random.fold_in(step_key, step), seen[: pictures.TRACKED]
                x_hat = pictures.reconstructed(*trained, x, key)
                row = {"x": recipe_.pixels(x).cpu(), "x_hat": recipe_.pixels(x_hat).cpu()}
                for track in shown:
                    track({"epoch": step // steps_per_epoch - 1, "step": step, **row})

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
            noise=scheme,
            scale=recipe_.scale,
            offset=recipe_.offset,
            compile=config.compile,
            log=log,
            watch=watch,
        )
    checkpoint.save_params(out / "params.safetensors", ts.params, ts.state)

    figures = pictures.of_run(model, ts.params, ts.state, recipe_, dataset, seen, figure_key)
    figures["training"] = pictures.training(history, name=target, title=f"Training of {config.system}")
    if sample_each_step:
        array = BytesIO()
        np.save(array, kept)
        files.write(out / "samples.npy", array.getvalue())
        figures["evolution"] = pictures.evolution(kept, dataset, name=config.system)
    for name, figure in figures.items():
        plots.save(figure, out / "figures" / f"{name}.png")
    return out


def load(path: str | Path, *, device: str = "cpu", data: str | None = None, data_dir: str | None = None) -> Run:
    """A finished run from its folder.

    Args:
        path: the folder.
        device: where to put the parameters.
        data: the data's file or folder, if it has moved.
        data_dir: where the named data sets are kept now; where they were unless given.

    Raises:
        Missing: no such folder, no run folder, or one that lacks a file.
        BadData: a damaged file, or a run that another version made.
    """
    path = Path(path)
    if not path.is_dir():
        raise Missing(f"{path} is not there: give the folder of a run")
    if not (path / "config.json").is_file():
        raise Missing(f"{path} is no run folder: it has no config.json")
    manifest = _read_json(path / "manifest.json")
    try:
        made_by = manifest["versions"]["funcvae"]
        if made_by.split(".")[:2] != __version__.split(".")[:2]:  # a new minor version may change what is in a run
            raise BadData(
                f"{path} was made by funcvae {made_by}, this is {__version__}: train it again, or use that one"
            )
        config, hash_ = Config(**_read_json(path / "config.json")), manifest["data_sha256"]
        for name, type_ in get_type_hints(Config).items():
            if not isinstance(getattr(config, name), type_):
                raise TypeError(f"{name} is {getattr(config, name)!r}")
        recipe_, shape = recipe(config.system), manifest["data"]["shape"]
        if not all(isinstance(n, int) and n > 0 for n in shape) or not _fits(recipe_, shape):
            raise TypeError(f"shape is {shape}")
    except (AttributeError, KeyError, TypeError) as error:
        raise BadData(f"{path}: config.json and manifest.json are not those of a run ({error})") from None
    model = recipe_.model(torch.zeros(1, *shape, device=device))
    if not (path / "params.safetensors").is_file():
        raise Missing(f"{path / 'params.safetensors'} is missing: the run has lost it, or did not reach its end")
    like = model.init(random.key(0, device=device))
    params, state = checkpoint.load_params(path / "params.safetensors", *like)
    config = replace(config, data=data or config.data, data_dir=data_dir or config.data_dir)
    return Run(path, config, recipe_, model, params, state, device, hash_)


def untrained(
    system: str, *, seed: int = 0, device: str = "cpu", data: str | None = None, data_dir: str = "data"
) -> Run:
    """A named system as training with this seed would start it, in the form of a run (whose folder is not there).

    Raises:
        BadValue: no such system.
        Missing, BadData: its data are not there, or not fit for it.
    """
    config = configure(system, data=data, data_dir=data_dir, seed=seed, device=device, out="")
    dataset = load_data(config)
    recipe_ = recipe(system)
    _check_items(recipe_, dataset)
    model = recipe_.model(dataset.train.to(device))
    ts = train.init(model, recipe_.optimizer(1), random.key(seed, device=device))
    return Run(Path(system), config, recipe_, model, ts.params, ts.state, device, dataset.sha256())


def load_data(config: Config) -> data.Dataset:
    """The data that a configuration names; what is missing says by which option it may be named."""
    try:
        return data.load(config.data, root=config.data_dir)
    except Missing as error:
        raise Missing(f"{error}; if they have moved, say where by --data or --data-dir") from None


def _fits(recipe_: Recipe, shape: Sequence[int]) -> bool:
    """Whether items of this shape are the system's."""
    return len(shape) == len(recipe_.shape) and all(a in (None, b) for a, b in zip(recipe_.shape, shape, strict=True))


def _check_items(recipe_: Recipe, dataset: data.Dataset) -> None:
    """Raises BadData unless the items have the system's shape and, where they are images, pixels in [0, 1]."""
    got = dataset.train.shape[1:]
    if not _fits(recipe_, got):
        want = ", ".join("any" if n is None else str(n) for n in recipe_.shape)
        raise BadData(f"{recipe_.name} takes items of shape [{want}]: {dataset.name} has {list(got)}")
    for x in (dataset.train, dataset.test):
        if len(got) == 3 and not (x.min() >= 0 and x.max() <= 1):
            span = f"{float(x.min()):g} to {float(x.max()):g}"
            raise BadData(f"{dataset.name} has pixels from {span}: they must lie in [0, 1], or be uint8")


def _manifest(config: Config, dataset: data.Dataset) -> dict[str, Any]:
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    on_cuda = config.device == "cuda"
    shape = list(dataset.train.shape[1:])
    return {
        "command": sys.argv,
        "versions": {**versions, "funcvae": __version__},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if on_cuda else config.device,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "compile": config.compile,
        "seed": config.seed,
        "data": {"source": config.data, "train": len(dataset.train), "test": len(dataset.test), "shape": shape},
        "data_sha256": dataset.sha256(),
    }


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise Missing(f"{path} is missing: the run has lost it, or was cut off before its end")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadData(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise BadData(f"{path} holds no JSON object")
    return content
