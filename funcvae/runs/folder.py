"""Loads run folders."""

import math
import shlex
from array import array
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypedDict

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from funcvae import data, estimators, random, tracking, train, tree
from funcvae._support import checks, examples, files
from funcvae._support.examples import Data
from funcvae._support.progress import notice
from funcvae._support.reprs import short_repr
from funcvae.data.named_sets import DRAWN
from funcvae.errors import BadData, BadValue, FuncvaeError, Missing, NonFinite
from funcvae.estimators.types import Estimator, by_step
from funcvae.model import VAE, Trained
from funcvae.models import SYSTEMS, Recipe, System
from funcvae.modules import Params, State
from funcvae.runs import environment
from funcvae.runs.config import Config, config_sha256, configure, parse_config, upgraded
from funcvae.runs.environment import Manifest, check_same_version, is_of_earlier_version
from funcvae.runs.systems import differs_from, find_system, resume_command
from funcvae.tracking.metrics_file import LINE_LIMIT
from funcvae.train import streaming
from funcvae.train.checkpoint import in_folder, load_params
from funcvae.train.loop import History
from funcvae.train.streaming import Stream

__all__ = ["Result", "Run", "has_run", "history_of", "initial_run", "load", "load_data", "read_result"]

CHECKPOINTS = "checkpoints"
CONFIG = "config.json"
FIGURES = "figures"
MANIFEST = "manifest.json"
METRICS = "metrics.jsonl"
PARAMS = "params.safetensors"
RESULT = "result.json"
SAMPLES = "samples.npy"
TIMES = "times.jsonl"


@short_repr
class Run(NamedTuple):
    """A run, finished or not, with the parameters after some step."""

    path: Path
    """The folder."""
    config: Config
    """The configuration."""
    model: VAE
    """The model."""
    params: Params
    """The trained parameters."""
    state: State
    """The trained state."""
    device: str
    """Where the parameters are."""
    data_sha256: str
    """The hash of the data of the training."""
    steps: int
    """The steps made; if the best parameters are kept, those may be of an earlier step."""
    all_steps: int
    """The steps of all epochs."""
    finished: bool
    """Whether the parameters are the result of the run, not those of a checkpoint."""

    @property
    def recipe(self) -> Recipe:
        """The recipe of the run's system."""
        return self.config.system.recipe

    def dataset(self) -> data.Dataset:
        """The data the run was trained on.

        Raises:
            Missing: the data are not found.
            BadData: the data have changed. (Drawn data are not compared, because their last bits depend on the
                processor.)
        """
        dataset = fitted(self.config.system, load_data(self.config))
        if self.config.data not in DRAWN:  # whose last bits depend on the processor
            check_same_data(dataset.name, dataset.sha256(), self.data_sha256, self.path)
        return dataset

    def observed(self, key: random.Key, x: Data | Stream, rows: Tensor) -> Data:
        """The given rows of data [n, ...], as the model sees them."""
        return self.recipe.observe(key, examples.each(lambda part: part.to(self.device), streaming.take(x, rows)))

    def estimator(self, spec: str) -> Estimator:
        """The estimator that a string names; of a schedule, that after `steps`. Raises as `parse_scheduled` does."""
        at = by_step(estimators.parse_scheduled(spec, max(1, self.all_steps)))
        return at(torch.tensor(self.steps))

    @property
    def history(self) -> History:
        """The metrics of the training so far. Raises BadData if `metrics.jsonl` is damaged."""
        return history_of(self.path)

    def shared_facts(self) -> dict[str, Any]:
        """The values that must be equal in all processes that measure the run together."""
        here = replace(self.config, device=self.device)
        params = tree.sha256({"params": self.params, "state": self.state})
        facts = {name: here.content()[name] for name in ("system", "model", "precision", "device")}
        facts |= {"the parameters' sha256": params, "the data's sha256": self.data_sha256}
        return facts | environment.bit_settings(here)

    @property
    def trained(self) -> Trained:
        """The model with its parameters and state."""
        return Trained(self.model, self.params, self.state)

    @property
    def title(self) -> str:
        """The system and the epochs made, for titles of figures."""
        if self.finished and self.config.keep_best:
            return f"{self.config.system.name} after its best epoch"
        return trained_for(self.config.system.name, self.steps, self.all_steps / self.config.epochs)

    @property
    def image_arguments(self) -> dict[str, Any]:
        """Arguments of the figures of images: how to show pixels, and the name for the title."""
        return {"pixels": self.recipe.pixels, "name": self.title}


def trained_for(name: str, steps: int, steps_per_epoch: float) -> str:
    """A model and how long it was trained, such as "mnist_vae after 2.5 epochs", for titles of figures."""
    if not steps:
        return f"{name}, untrained"
    if steps < steps_per_epoch:
        return f"{name} after {steps:,} step{'s' * (steps != 1)}"
    epochs = f"{steps / steps_per_epoch:,.2f}".rstrip("0").rstrip(".")
    return f"{name} after {epochs} epoch{'s' * (epochs != '1')}"


class Result(TypedDict):
    """How a finished run went: the content of `result.json`. Bounds are in nats per example."""

    system: str
    estimator: str
    epochs: int
    """The number of epochs made."""
    steps: int
    test_bound: float
    """Of the last epoch, as are the next three."""
    train_bound: float
    reconstruction: float | None
    """The mean over the training data; None if it is not finite."""
    kl: float | None
    """The mean over the training data; None if it is not finite."""
    active_units: int | None
    """The number of latents that the trained model uses, see `funcvae.evaluate.active_units`; None if that is not
    known, or if q(z|x) is a point."""
    best_epoch: int | None
    """The epoch whose parameters the run has, counted from 0; None if they are those of the last one."""
    best_test_bound: float | None
    seconds: float | None
    """The duration of the training, without interruptions; None if `times.jsonl` is lost."""
    steps_per_second: float | None
    host: str
    """The name of the machine that finished the run."""


class Time(TypedDict):
    """A row of `times.jsonl`: the seconds of training up to a step."""

    step: int
    epoch: int
    seconds: Annotated[float, Meta(ge=0, le=1e12)]


@checks.arguments
def load(
    path: str | Path, *, checkpoint: int | None = None, system: System | str | None = None, device: str = "cpu",
    data: str | Path | None = None, data_dir: str | Path | None = None,
) -> Run:  # fmt: skip
    """Loads a run from its folder, also of an earlier version of funcvae, and also during its training.

    If the run is not finished, loads its newest checkpoint, and prints a line on stderr.

    A folder runs no code, so the run of an own system needs the system. A line on stderr says if its code has changed.

    Args:
        checkpoint: the step of the checkpoint to load instead.
        system: the own system of the run, or its FILE.py:NAME or package.module:NAME.
        data: file or folder of the data, if they have moved.
        data_dir: folder of the named data sets, if they have moved.

    Raises:
        Missing: the folder or one of its files does not exist, the run has no checkpoint yet, or the device is not
            available.
        BadData: a file is damaged, or a later version of funcvae made the run.
        BadValue: the run has no such checkpoint; or its system is your own, and `system` is missing or another one.
    """
    path = Path(path)
    checks.device(device)
    config, manifest = read_run(path, system, data, data_dir)
    shape = manifest["data"]["shape"]
    shapes = shape if isinstance(shape, dict) else {"": shape}
    prepared = config.system.recipe.prepare is not Recipe.prepare
    fits = prepared or _shapes_fit(config.system.recipe, shapes)
    if not fits or sum(map(math.prod, shapes.values())) > _MOST_NUMBERS:
        raise BadData(f"{path / MANIFEST} is not the manifest of a run of {config.system.name}: data.shape is {shape}")
    if changed := differs_from(config.system, manifest.get("system")):
        _print_once(f"{changed} was changed after the run in {path} started")
    zeros = examples.whole({name: torch.zeros(1, *each, device=device) for name, each in shapes.items()})
    model = config.system.build(zeros, **config.model)
    like, steps = model.init(random.key(0, device=device)), config.steps(manifest["data"]["train"])
    finished = checkpoint is None and (path / PARAMS).is_file()
    if finished:
        made, (params, state) = max(in_folder(path / CHECKPOINTS), default=steps), load_params(path / PARAMS, *like)
    elif checkpoint is None:
        reason = files.read_json(path / RESULT).get("diverged") if (path / RESULT).is_file() else None
        if reason and not in_folder(path / CHECKPOINTS):
            raise Missing(f"{path} diverged before its first checkpoint: {reason}")
        made, (params, state), errors = _newest(path, *like)
        if reason:
            then = f"; it diverged: {reason}"
        elif files.in_use(path):
            then = "; it is training now"
        elif is_of_earlier_version(manifest):
            then = ""
        else:
            then = f"; to continue it: {resume_command(path, config.system)}"
        taken = f"this is its checkpoint of step {made:,} of {steps:,}"
        _print_once("; ".join([*map(str, errors), f"{path} is not finished: {taken}{then}"]))
    else:
        made, (params, state) = checkpoint, load_params(_checkpoint(path, checkpoint), *like)
    return Run(path, config, model, params, state, device, manifest["data_sha256"], made, steps, finished)


def _newest(path: Path, params: Params, state: State) -> tuple[int, tuple[Params, State], list[BadData]]:
    """The newest intact checkpoint of a run: its step, its parameters and state, and the errors of newer ones."""
    errors: list[BadData] = []
    for step, file in reversed(in_folder(path / CHECKPOINTS).items()):
        try:
            return step, load_params(file, params, state), errors
        except BadData as error:
            errors.append(error)
        except Missing:  # the process that trains has removed it, after it wrote a newer one
            return _newest(path, params, state)
    if errors:
        raise errors[0]
    raise Missing(f"{path} is not finished and has no checkpoint yet: wait for the first one, or resume the run")


def _checkpoint(path: Path, step: int) -> Path:
    """The checkpoint of a step. Raises BadValue if the run does not have it."""
    found = in_folder(path / CHECKPOINTS)
    if step not in found:
        steps = ", ".join(map(str, found)) or "none"
        raise BadValue(f"{path} has no checkpoint of step {step}; it has: {steps}")
    return found[step]


@checks.arguments
def has_run(path: str | Path) -> bool:
    """Whether a folder holds a run, finished or not."""
    return Path(path, CONFIG).is_file()


def read_run(
    path: Path, system: System | str | None, data: str | Path | None, data_dir: str | Path | None
) -> tuple[Config, Manifest]:
    """The configuration and manifest of the run in a folder; `data` and `data_dir`, if given, replace the locations."""
    config, manifest = read_config(path, system), read_manifest(path)
    return replace(config, data=str(data or config.data), data_dir=str(data_dir or config.data_dir)), manifest


def read_config(path: Path, system: System | str | None = None) -> Config:
    """The configuration of the run in a folder.

    Raises Missing if there is no run, BadData if the file is damaged or was changed after the run started, BadValue
    unless `system` is the run's own system.
    """
    content = read_content(path)
    manifest = read_manifest(path) if (path / MANIFEST).is_file() else None
    name, own = content.get("system"), None if system is None else find_system(system)
    if own is None and name not in list(SYSTEMS) and manifest and "system" in manifest:
        source = manifest["system"]["source"]
        advice = "give system=SYSTEM in Python"
        if source:
            command = shlex.join(["funcvae", "train", source, "--resume", str(path)])
            advice = f"give --system {shlex.quote(source)}, or resume it by: {command}"
        raise BadValue(f"{path} is a run of your own system {name!r}, whose code is not in the folder: {advice}")
    if own is not None and name != own.name:
        raise BadValue(f"{path} is a run of {name}, not of {own.name}")
    earlier = manifest is not None and is_of_earlier_version(manifest)
    known, dropped = upgraded(content) if earlier else (content, {})
    with files.reading(path / CONFIG, "the configuration of a run"):
        config = parse_config(known, own)
    if manifest and manifest["config_sha256"] != config_sha256(content):
        raise BadData(f"{path / CONFIG} was changed after the run started: restore it, or start another run")
    if used := ", ".join(f"{name} {value!r}" for name, value in dropped.items() if value):
        _print_once(f"{path} has settings that this version of funcvae does not have, and ignores: {used}")
    return config


def read_content(path: Path) -> dict[str, Any]:
    """The content of config.json in a run folder. Raises Missing if there is no run, BadData if the file is damaged."""
    if not path.is_dir():
        raise Missing(f"{path}: no such run folder")
    if not has_run(path):
        raise Missing(f"{path} is not a run folder: it has no config.json")
    return files.read_json(path / CONFIG)


def read_manifest(path: Path) -> Manifest:
    """The manifest of the run in a folder; raises as `files.read_json` and `environment.parse_manifest` do."""
    return environment.parse_manifest(files.read_json(path / MANIFEST), path / MANIFEST)


@checks.arguments
def initial_run(
    system: System | str, *, model: Mapping[str, Any] | None = None, seed: int = 0, device: str = "cpu",
    data: str | Path | None = None, data_dir: str | Path = "data", size: int | None = None,
) -> Run:  # fmt: skip
    """A system with the initial parameters of this seed, as a run without a folder.

    Args:
        system: see `find_system`.
        model, data, data_dir, size: see `Options`.

    Raises:
        BadValue, BadType: see `configure`.
        Missing, BadData: system or data are not found, or the system cannot take the data.
    """
    config = configure(system, model=model, data=data, data_dir=data_dir, seed=seed, device=device, size=size, out="")
    dataset = fitted(config.system, load_data(config))
    vae = config.system.build(for_model(dataset.train), **config.model)
    ts = train.init(vae, config.system.recipe.optimizer(1), random.key(seed, device=device))
    path = Path(config.system.name)
    return Run(path, config, vae, ts.params, ts.state, device, dataset.sha256(), 0, 0, finished=False)


def load_data(config: Config) -> data.Dataset:
    """The data of a configuration, in memory or as streams. Raises Missing if they are not found."""
    try:
        return read_data(config)
    except Missing as error:
        raise Missing(f"{error}; if the data have moved, give data (--data) or data_dir (--data-dir)") from None


def size_of_rows(path: Path) -> int | None:
    """The number of bytes of a file of metrics without an incomplete last line; None if there is no file."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        start = file.seek(max(0, path.stat().st_size - LINE_LIMIT))
        return start + file.read(LINE_LIMIT).rfind(b"\n") + 1


@checks.arguments
def history_of(path: str | Path) -> History:
    """The metrics of the training in a run folder, finished or not. Raises BadData if `metrics.jsonl` is damaged."""
    metrics = Path(path, METRICS)
    return history_in(metrics, size_of_rows(metrics))


def history_in(path: Path, size: int | None = None) -> History:
    """The history in a file of metrics, or in its first `size` bytes."""
    numbers = array("d")  # takes a fifth of the memory of a list
    test_bounds: list[float] = []
    per_epoch = 0
    for row in tracking.MetricsReader(path, size):
        try:
            if row["kind"] == "step":
                numbers.extend([float(row[name]) for name in ("loss", "bound", "grad_norm")])
                numbers.extend([float(row.get(name, math.nan)) for name in ("reconstruction", "kl")])
            elif row["kind"] == "epoch":
                test_bounds.append(float(row.get("test_bound", math.nan)))
                per_epoch = int(row["step"]) // (int(row["epoch"]) + 1)
        except (KeyError, TypeError, ValueError, OverflowError):
            raise BadData(f"{path} has a damaged row at step {row['step']}") from None
    columns: list[Any] = [*np.array(numbers).reshape(-1, 5).T, np.array(test_bounds), per_epoch]
    return History(*columns)


def times_in(path: Path) -> list[Time]:
    """The rows of a file of times, up to the first damaged one. They may be lost, because no result depends on them."""
    rows: list[Time] = []
    with suppress(OSError, FuncvaeError):
        for line in path.read_bytes().splitlines():
            rows.append(files.typed(files.parse_json(line, str(path)), Time))
    return rows


@checks.arguments
def read_result(path: str | Path) -> Result:
    """How a finished run went, from its `result.json`.

    Raises:
        Missing: the run is not finished, or a version before 0.9 made it.
        NonFinite: a number of the run became NaN or infinite.
        BadData: the file is damaged.
    """
    file = Path(path, RESULT)
    content = files.read_json(file)
    if "diverged" in content:
        raise NonFinite(f"{path} diverged: {content['diverged']}")
    with files.reading(file, "the result of a run"):
        return files.typed(content, Result)


def read_data(config: Config, *, download: bool = False) -> data.Dataset:
    """The data of a configuration, in memory or as streams."""
    if config.stream:
        return data.stream(config.data)
    return data.load(config.data, root=config.data_dir, download=download, size=config.size)


def for_model(train: Data | Stream) -> Data:
    """The training data from which a system makes its model: all data in memory, or the first 10,000 of a stream."""
    return streaming.head(train, 10_000) if isinstance(train, Stream) else train


def check_same_data(name: str, now: str, then: str, path: Path) -> None:
    """Raises BadData unless data with the SHA-256 `now` are those of the run in a folder, with the SHA-256 `then`."""
    if now != then:
        raise BadData(f"{name} is not the data that {path} was trained on")


def check_same_system(system: System, manifest: Manifest, path: Path) -> None:
    """Raises BadData if another version of funcvae made the run in a folder, or an own system's code has changed."""
    check_same_version(manifest, path)
    if changed := differs_from(system, manifest.get("system")):
        raise BadData(f"{changed} was changed after the run in {path} started: restore it, or start another run")


def fitted(system: System, dataset: data.Dataset) -> data.Dataset:
    """The data set as the recipe prepares it, with items of the system's shape.

    Images [H, W] or [H, W, C] become [C, H, W], with a notice.

    Raises BadData if the shape is another or may be read in two ways, or if pixels lie outside [0, 1].
    """
    recipe = system.recipe
    dataset = dataset._replace(
        train=streaming.opened(dataset.name, dataset.train), test=streaming.opened(dataset.name, dataset.test)
    )
    if not (isinstance(recipe.shape, tuple) and isinstance(dataset.train, Tensor)):
        _check_shapes(system, dataset)
        return recipe.prepare(dataset)
    got = list(dataset.train.shape[1:])
    readings: dict[str, Callable[[Tensor], Tensor]] = {"[C, H, W]": lambda x: x}
    if len(recipe.shape) == 3:
        readings |= {"[H, W]": lambda x: x.unsqueeze(1), "[H, W, C]": lambda x: x.movedim(-1, 1).contiguous()}
    fitting = {name: read for name, read in readings.items() if _fits(recipe.shape, read(dataset.train[:1]).shape[1:])}
    if not fitting:
        _check_shapes(system, dataset)
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
    return recipe.prepare(dataset)


def _check_shapes(system: System, dataset: data.Dataset) -> None:
    """Raises BadData unless the items of a data set, which may be dicts, have the shapes of a system."""
    got = {name: list(x.shape[1:]) for name, x in examples.tensors(streaming.first(dataset.train)).items()}
    if not _shapes_fit(system.recipe, got):
        want = _shape_text(system.recipe.shape)
        has = _shape_text(examples.whole(got))
        raise BadData(f"{system.name} takes items of shape {want}: {dataset.name} has {has}")


def _shape_text(shape: Any) -> str:
    if isinstance(shape, Mapping):
        return "{" + ", ".join(f"{name}: {_shape_text(each)}" for name, each in shape.items()) + "}"
    return f"[{', '.join('any' if n is None else str(n) for n in shape)}]"


def _shapes_fit(recipe: Recipe, shapes: Mapping[str, Sequence[int]]) -> bool:
    """Whether tensors by name have the shapes of a recipe; a single tensor has the name ""."""
    wanted = recipe.shape if isinstance(recipe.shape, dict) else {"": recipe.shape}
    return wanted.keys() == shapes.keys() and all(_fits(wanted[name], shape) for name, shape in shapes.items())


@cache  # once for each process, because a sweep reads the same data for each cell
def _print_once(line: str) -> None:
    notice(line)


def _fits(wanted: Sequence[int | None], shape: Sequence[int]) -> bool:
    return len(shape) == len(wanted) and all(a in (None, b) for a, b in zip(wanted, shape, strict=True))


_MOST_NUMBERS = 2**24  # numbers in one item
