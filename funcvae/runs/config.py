"""Run configuration."""

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch

from funcvae import compilation, optim
from funcvae._support import checks, files
from funcvae._support.checks import Count, Natural
from funcvae._support.reprs import short_repr
from funcvae.compilation import PRECISIONS
from funcvae.distributed import sharding
from funcvae.errors import BadType, BadValue, Missing, unknown
from funcvae.estimators import Estimator, needs_steps, parse_scheduled
from funcvae.models import SYSTEMS, System
from funcvae.runs.systems import find_system
from funcvae.train.stopping import Until, early_stopping
from funcvae.variance.monitor import MonitorSettings

__all__ = [
    "SPLITS", "Config", "Options", "configure", "new_run_folder", "resolve_device", "split_names", "with_defaults",
]  # fmt: skip


def _compile(name: str, value: Any) -> bool | str:
    if value is not True and value is not False and value != "auto":
        raise BadType(f'{name} is {checks.describe(value)}: it must be True, False or "auto"')
    return value


Compile = Annotated[bool | str, checks.Only(_compile)]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Requested fields of a `Config`. The recipe or the default decides each field that is None."""

    system: System | str | None = None
    """One of `funcvae list systems`, or FILE.py:NAME or package.module:NAME for one of your own."""
    model: Mapping[str, Any] | None = None
    """Options of the system's model, by name. By default those of the system."""
    data: str | None = None
    """A name in `funcvae list data`, a folder of images, FILE.npy or FILE.npz. By default the recipe's."""
    data_dir: str | None = None
    """Folder of named data sets. By default data/."""
    stream: bool | None = None
    """Read FILE.npy batch by batch during training, for data that do not fit in memory. The bits are those of data in
    memory, unless the model starts from the training data (their mean, for instance): it then sees the first 10,000."""
    size: int | None = None
    """Resize the images of a folder: the shorter side to this many pixels, and keep the square in the centre. By
    default all images must have one size."""
    epochs: int | None = None
    """Passes over the training data. By default the recipe's."""
    batch: int | None = None
    """Batch size. By default the recipe's."""
    samples: int | None = None
    """Monte-Carlo samples N for each datum, the K of L_K. By default the recipe's."""
    chunk: int | None = None
    """Samples to decode at a time, to limit memory. By default (or 0) chosen by the batch size."""
    shards: int | None = None
    """Split each step into this many shards, and add up their results in a fixed order: the bits do not depend on the
    number of processes. By default (or 0) one shard for each process, added up in the fastest order."""
    split: str | None = None
    """What the shards divide: the rows of the batch, or the samples of each datum. By default rows."""
    estimator: str | None = None
    """NAME or NAME:ARGUMENT, one of `funcvae list estimators`; or with a schedule, as in
    beta_elbo:linear:0:1:10000. By default the recipe's."""
    noise: str | None = None
    """Noise scheme, one of `funcvae list noise`. By default iid."""
    optimizer: str | None = None
    """adam, adamw, adamw:WEIGHT_DECAY, sgd or sgd:MOMENTUM. By default adam."""
    lr: float | str | None = None
    """Learning rate: a number, or a schedule such as cosine:1e-3 or linear:1e-3:0:10000. By default the recipe's."""
    clip: float | None = None
    """Largest norm of the gradient, to which it is scaled. By default (or 0) no limit."""
    early_stopping: int | None = None
    """End when the test bound has not improved for this many epochs. By default (or 0) all epochs are made."""
    test_every: int | None = None
    """Epochs between test bounds; the last epoch always has one. It changes no parameters, unless the run ends early or
    keeps its best parameters. By default 1."""
    keep_best: bool | None = None
    """Keep the parameters of the epoch with the highest test bound, not those of the last."""
    seed: int | None = None
    """Seed of the key; equal seeds give equal bits. By default 0."""
    out: str | None = None
    """Run folder, new or empty."""
    checkpoint_every: int | None = None
    """Steps between checkpoints; 0 for only the last one. By default 1000."""
    keep: int | None = None
    """Number of newest checkpoints to keep. By default 2."""
    device: str | None = None
    """Where to train: "cpu" or "cuda". By default "cpu"."""
    precision: str | None = None
    """Precision of float32 matrix products (torch.set_float32_matmul_precision). By default highest.
    "medium" is faster on many machines, and uses bfloat16 on CPUs with AMX."""
    compile: Compile | None = None
    """Whether to run the step under torch.compile. By default (or "auto") if that saves more time than it takes, judged
    by the number and the size of the steps."""
    deterministic: bool | None = None
    """Use only algorithms with reproducible bits (torch.use_deterministic_algorithms)."""
    sample_each_step: bool | None = None
    """Keep samples of the model after every step, and draw how they evolve (data in the plane only)."""
    variance_every: int | None = None
    """Steps between measurements of the variance of the estimator's gradient, on one batch."""
    variance_of: str | None = None
    """Further estimators to measure on the same noise: names separated by commas."""
    variance_replicates: int | None = None
    """Draws of the noise for each measurement. By default 100."""

    def __post_init__(self) -> None:
        _check_fields(self)

    def specified(self) -> dict[str, Any]:
        """The fields that are not None."""
        return {name: value for name, value in vars(self).items() if value is not None}


@short_repr
@dataclass(frozen=True)
class Config:
    """Run configuration: everything that decides the result of a run, and where and how it is stored.

    `Options` describes the fields. A `chunk`, `shards` or `variance_every` of 0 means that it is not used. `model` has
    all options of the model. A run decides a `compile` of "auto" at its start, and stores True or False.
    """

    system: System
    data: str
    epochs: Count
    batch: Count
    samples: Count
    estimator: str
    out: str
    data_dir: str = "data"
    noise: str = "iid"
    chunk: Natural = 0
    shards: Natural = 0
    split: str = "rows"
    optimizer: str = "adam"
    lr: str | None = None
    clip: Annotated[float, checks.at_least(0)] = 0.0
    early_stopping: Natural = 0
    test_every: Count = 1
    keep_best: bool = False
    stream: bool = False
    seed: int = 0
    device: str = "cpu"
    precision: str = "highest"
    compile: Compile = "auto"
    deterministic: bool = False
    sample_each_step: bool = False
    variance_every: Natural = 0
    variance_of: str = ""
    variance_replicates: Annotated[int, checks.at_least(2)] = 100
    checkpoint_every: Natural = 1000
    keep: Count = 2
    size: Count | None = None
    model: dict[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if isinstance(self.lr, int | float | np.number) and not isinstance(self.lr, bool):
            object.__setattr__(self, "lr", str(float(self.lr)))
        _check_fields(self)
        optim.parse(self.optimizer, 1e-3)
        self.depends_on_steps()  # checks both strings
        if (self.early_stopping or self.keep_best) and not isinstance(parse_scheduled(self.estimator, 1), Estimator):
            raise BadValue(
                f"early_stopping and keep_best compare the test bounds of epochs, but that of {self.estimator} changes "
                "with the step: leave them out, or give an estimator without a schedule"
            )
        for name, known in {"precision": PRECISIONS, "device": ("cpu", "cuda"), "split": SPLITS}.items():
            checks.known(name, getattr(self, name), known)
        object.__setattr__(self, "model", self.system.options(self.model))
        if self.system.recipe.shape != (2,) and self.sample_each_step:
            raise BadValue(f"sample_each_step needs data in the plane: {self.system.name} has images")

    def content(self) -> dict[str, Any]:
        """The content of config.json: all fields, with the name of the system."""
        return {**vars(self), "system": self.system.name}

    def steps(self, n: int) -> int:
        """The number of steps of all epochs, for n training data."""
        return self.epochs * -(-n // self.batch)

    def depends_on_steps(self) -> list[str]:
        """The fields with a schedule that depends on the number of steps of the whole run."""
        asks = {"lr": self.lr is not None and optim.needs_steps(self.lr), "estimator": needs_steps(self.estimator)}
        return [name for name, depends in asks.items() if depends]

    @property
    def until(self) -> Until | None:
        """Whether training ends after an epoch, if it may end early."""
        return early_stopping(self.early_stopping) if self.early_stopping else None

    @property
    def monitor(self) -> MonitorSettings:
        """How the gradient's variance is monitored during training."""
        specs = self.estimator, *split_names(self.variance_of)
        return MonitorSettings(self.variance_every, specs, self.variance_replicates, self.samples, self.batch)


SPLITS = {"rows": sharding.by_rows, "samples": sharding.by_samples}
"""The axes along which a step can be split, by name."""

MAY_CHANGE = {"epochs", "data", "data_dir", "out", "checkpoint_every", "keep"}
"""Fields that may change when a run is resumed; of `data`, only the location."""


@checks.arguments
def split_names(text: str) -> list[str]:
    """The names in a text that separates them by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def configure(system: System | str, **options: Any) -> Config:
    """The configuration of a system with fields of `Options`. Its recipe decides those that are missing or None.

    Raises:
        BadValue: an option is unknown, out or data is missing, or a value is not allowed.
        BadType: an option has the wrong type.
        BadValue, BadType, Missing, BadData: the system is not found: see `find_system`.
    """
    check_names("field", options, Options)
    return with_defaults(Options(system=system, **options))


@checks.arguments
def with_defaults(options: Options) -> Config:
    """The configuration with these options. The system's recipe and the defaults decide the others.

    Raises: see `configure`.
    """
    if options.system is None:
        raise BadValue("system is missing: give one of `funcvae list systems`")
    if options.out is None:
        raise BadValue("out is missing: give the run folder")
    system = find_system(options.system)
    given = options.specified() | {"system": system}
    recipe_values = {name: getattr(system.recipe, name) for name in ("data", "epochs", "batch", "samples", "estimator")}
    if options.data is None and system.recipe.data is None:
        raise BadValue(f"data is missing: give a folder of images, FILE.npy or FILE.npz to {system.name}")
    return Config(**recipe_values | given)


def new_run_folder(system: str) -> str:
    """The path of a new folder: runs/SYSTEM-DATE-TIME, with a number if it exists already."""
    stem = Path("runs", f"{system}-{datetime.now():%Y%m%d-%H%M%S}")
    path, count = stem, 1
    while path.exists():
        count += 1
        path = stem.with_name(f"{stem.name}-{count}")
    return str(path)


def resumed(config: Config, options: Options, run: Path) -> Config:
    """The configuration of a run that is resumed with these options. Raises BadValue if others than may change do."""
    values = options.specified()
    if options.system is not None:
        values["system"] = find_system(options.system)
    if options.model is not None:
        values["model"] = {**config.model, **options.model}
    if options.device is not None:
        values["device"] = resolve_device(options.device)
    if options.compile == "auto":
        values["compile"] = config.compile
    now = replace(config, **values | {"out": str(run)})
    if now.epochs != config.epochs and (scheduled := config.depends_on_steps()):
        what = " and ".join(f"{name} {getattr(config, name)}" for name in scheduled)
        raise BadValue(f"{run} cannot have other epochs: {what} depends on their number; give the schedule its steps")
    if pairs := differences(config, now, MAY_CHANGE):
        raise BadValue(f"{run} cannot be resumed with other settings: {pairs}; leave them out, or start another run")
    return now


def differences(then: Config, now: Config, may_change: Collection[str]) -> str:
    """Describes the fields that differ between two configurations and may not; empty if none differ."""
    before, after = then.content(), now.content()
    for content in (before, after):
        content |= {f"model.{name}": value for name, value in content.pop("model").items()}
    if after["compile"] == "auto":  # the run keeps what was decided at its start
        after["compile"] = before["compile"]
    wrong = [name for name in before if name not in may_change and before[name] != after.get(name)]

    def shown(name: str, value: Any) -> str:
        return "that of the recipe" if name == "lr" and value is None else repr(value)

    return ", ".join(f"{name} was {shown(name, before[name])} and is {shown(name, after[name])} now" for name in wrong)


def parse_config(content: Mapping[str, Any], system: System | None = None) -> Config:
    """The configuration in a JSON object. Raises BadType or BadValue if a field is unknown, missing or wrong.

    `system` has the name in the object; without it, it must be the name of a named system.
    """
    check_names("field", content, Config)
    if system is None and "system" in content:
        system = SYSTEMS[checks.known("system", content["system"], SYSTEMS)]
    return files.typed(content if system is None else {**content, "system": system}, Config)


def upgraded(content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The content of config.json of an earlier version as this version writes it, and the fields that it left out."""
    known = {field.name for field in fields(Config)}
    kept = {name: value for name, value in content.items() if name in known}
    if isinstance(kept.get("lr"), int | float):  # before 0.8
        kept["lr"] = str(kept["lr"])
    return kept, {name: value for name, value in content.items() if name not in known}


def check_names(kind: str, given: Mapping[str, Any], type_: Any, but: Collection[str] = ()) -> None:
    """Raises BadType or BadValue for a name that is not a field of a dataclass, or that is in `but`."""
    known = [field.name for field in fields(type_) if field.name not in but]
    for name in given:
        if checks.text(f"a {kind}", name) not in known:
            raise unknown(kind, name, known)


def _check_fields(value: Options | Config) -> None:
    """Checks every field against its annotation. Sets paths to strings, and NumPy's numbers to Python's."""
    for name, given in vars(value).items():
        plain = given.item() if isinstance(given, np.generic) else given
        object.__setattr__(value, name, os.fspath(plain) if isinstance(plain, os.PathLike) else plain)
    checks.fields(value)


def check_available(config: Config) -> None:
    """Raises Missing unless this machine has the device, and a compiler if the run needs one."""
    resolve_device(config.device)
    if config.compile is True and not compilation.available():
        raise Missing(f"the run compiles its step, and {compilation.NO_COMPILER}")


def config_sha256(content: Mapping[str, Any]) -> str:
    """The SHA-256 of the fields that must stay the same, from the content of config.json."""
    fixed = {name: value for name, value in content.items() if name not in MAY_CHANGE}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


@checks.arguments
def resolve_device(name: str) -> str:
    """The device that "auto", "cpu" or "cuda" stands for on this machine.

    Raises:
        Missing: the name is "cuda", and no CUDA device is available.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise Missing("no CUDA device is available: set device to cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
