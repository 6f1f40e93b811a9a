"""Run configuration."""

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import torch

from funcvae import compilation
from funcvae._support import checks
from funcvae.compilation import PRECISIONS
from funcvae.distributed import sharding
from funcvae.errors import BadData, BadType, BadValue, Missing, unknown
from funcvae.models import RECIPES
from funcvae.models.recipe import Recipe
from funcvae.variance.monitor import MonitorSettings

__all__ = ["SPLITS", "Config", "Options", "configure", "recipe", "resolve_device", "split_names", "with_defaults"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Requested fields of a `Config`; the recipe or the default decides each field that is None."""

    system: str | None = None
    """One of `funcvae list systems`."""
    data: str | None = None
    """A name in `funcvae list data`, a folder of images, FILE.npy or FILE.npz; the recipe's unless given."""
    data_dir: str | None = None
    """Where named data sets are kept; data/ unless given."""
    epochs: int | None = None
    """Passes over the training data; the recipe's number unless given."""
    batch: int | None = None
    """Batch size; the recipe's unless given."""
    samples: int | None = None
    """Monte-Carlo samples N for each datum, the K of L_K; the recipe's unless given."""
    chunk: int | None = None
    """Samples decoded at a time, where there are more: it bounds the memory. Chosen by the batch's size unless
    given, or at 0."""
    shards: int | None = None
    """Cut each step's work into so many and add up in a fixed order: the same bits on any number of processes,
    up to so many. Unless given, or at 0, each process has one, and they add up as is fastest."""
    split: str | None = None
    """What is cut: the batch's rows, or each datum's samples; rows unless given."""
    estimator: str | None = None
    """NAME or NAME:ARGUMENT, one of `funcvae list estimators`; the recipe's unless given."""
    noise: str | None = None
    """Noise scheme, one of `funcvae list noise`; iid unless given."""
    lr: float | None = None
    """Learning rate; the recipe's rate or schedule unless given."""
    seed: int | None = None
    """The key's seed, 0 unless given: the same seed gives the same bits."""
    out: str | None = None
    """Run folder, new or empty."""
    checkpoint_every: int | None = None
    """Steps between two checkpoints, 1000 unless given; 0 for none but the last one."""
    keep: int | None = None
    """How many checkpoints stay, the newest; 2 unless given."""
    device: str | None = None
    """Where to train: "cpu", unless given, or "cuda"."""
    precision: str | None = None
    """Precision of float32 matrix products, highest unless given (torch.set_float32_matmul_precision):
    "medium" is faster on many machines, and bfloat16 where the CPU has AMX."""
    compile: bool | None = None
    """Whether to run the step under torch.compile."""
    deterministic: bool | None = None
    """Use no algorithm whose bits may change from run to run (torch.use_deterministic_algorithms)."""
    sample_each_step: bool | None = None
    """Keep samples of the model after every step, and draw how they evolve (data in the plane only)."""
    variance_every: int | None = None
    """Log the variance of the estimator's gradient on one batch, after every so many steps."""
    variance_of: str | None = None
    """Log that of these estimators too, on the same noise: names with commas between them."""
    variance_replicates: int | None = None
    """Draws of the noise for that; 100 unless given."""

    def specified(self) -> dict[str, Any]:
        """The fields that are not None."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Config:
    """Run configuration: all that decides a run's result, and where and how it is kept.

    `Options` describes the fields. `chunk`, `shards` and `variance_every` are 0 where they are not used.
    """

    system: str
    data: str
    epochs: int
    batch: int
    samples: int
    estimator: str
    out: str
    data_dir: str = "data"
    noise: str = "iid"
    chunk: int = 0
    shards: int = 0
    split: str = "rows"
    lr: float | None = None
    seed: int = 0
    device: str = "cpu"
    precision: str = "highest"
    compile: bool = False
    deterministic: bool = False
    sample_each_step: bool = False
    variance_every: int = 0
    variance_of: str = ""
    variance_replicates: int = 100
    checkpoint_every: int = 1000
    keep: int = 2

    @property
    def monitor(self) -> MonitorSettings:
        """How the gradient's variance is monitored during training."""
        specs = self.estimator, *split_names(self.variance_of)
        return MonitorSettings(self.variance_every, specs, self.variance_replicates, self.samples, self.batch)


SPLITS = {"rows": sharding.by_rows, "samples": sharding.by_samples}
"""What a step's work is cut along, by name."""

MAY_CHANGE = {"epochs", "data", "data_dir", "out", "checkpoint_every", "keep"}
"""Fields that may change when a run is resumed; of data, only the location."""


def split_names(text: str) -> list[str]:
    """The names in a text that separates them by commas."""
    return [name.strip() for name in checks.text("text", text).split(",") if name.strip()]


def recipe(system: str) -> Recipe:
    """The recipe of a named system, or an error with the nearest name."""
    if checks.text("system", system) not in RECIPES:
        raise unknown("system", system, RECIPES)
    return RECIPES[system]


def configure(system: str, **options: Any) -> Config:
    """A configuration of the named system: its recipe's where an option is not given, or None.

    Args:
        system: its name.
        options: fields of `Options`.

    Raises:
        BadValue: an unknown system or option; or out is missing.
        BadType: an option has another type than its field.
    """
    known = [field.name for field in fields(Options)]
    if strange := sorted(options.keys() - set(known)):
        raise unknown("field", strange[0], known)
    return with_defaults(Options(system=system, **options))


def with_defaults(options: Options) -> Config:
    """The configuration with these options; the system's recipe and the defaults decide the others."""
    values = _plain(_checked_options(options))
    if "system" not in values:
        raise BadValue("system is missing: name one of `funcvae list systems`")
    defaults = recipe(values["system"])
    recipe_values = {name: getattr(defaults, name) for name in ("data", "epochs", "batch", "samples", "estimator")}
    if "out" not in values:
        raise BadValue("out is missing: name the run's folder")
    return _checked(Config(**{**recipe_values, **values}))


def resumed(config: Config, options: Options, run: Path) -> Config:
    """The configuration of the run in a folder when it is resumed with these options.

    Raises:
        BadType: the options are no `Options`.
        BadValue: something may not change; the message names all that differs.
    """
    values = _plain(_checked_options(options))
    if pairs := differences(config, values, MAY_CHANGE):
        raise BadValue(f"{run} cannot go on otherwise than it began: {pairs}; leave that out, or start another run")
    return _checked(replace(config, **{**values, "out": str(run)}))


def _checked_options(options: Options) -> Options:
    if not isinstance(options, Options):
        raise BadType(f"options is {checks.describe(options)}: it must be an Options, as in Options(epochs=20)")
    return options


def differences(config: Config, values: Mapping[str, Any], may_change: Collection[str]) -> str:
    """Describes the values that differ from a configuration's fields and may not; empty if there are none."""
    differing = {name: value for name, value in values.items() if value != getattr(config, name)}
    wrong = [name for name in differing if name not in may_change]
    return ", ".join(f"{name} was {getattr(config, name)!r} and is {values[name]!r} now" for name in wrong)


def parse_config(content: Mapping[str, Any]) -> Config:
    """The configuration in a JSON object.

    Raises:
        BadData: it holds none; the message names a field.
    """
    if strange := sorted(content.keys() - {field.name for field in fields(Config)}):
        raise BadData(f"there is no field {strange[0]!r}")
    for field in fields(Config):
        if field.name not in content and field.default is MISSING:
            raise BadData(f"{field.name} is missing")
    config = Config(**content)
    for name in _wrong_types(config):
        raise BadData(f"{name} is {getattr(config, name)!r}")
    return config


def _plain(options: Options) -> dict[str, Any]:
    """The specified options: a path as a string, numpy's number as Python's, and the learning rate as a float."""
    values = {name: _plain_value(value) for name, value in options.specified().items()}
    if "lr" in values:
        values["lr"] = float(checks.number("lr", values["lr"]))
    return values


def _plain_value(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.item() if isinstance(value, np.generic) else value


def _checked(config: Config) -> Config:
    """The configuration itself. Raises BadType where a field has another type than it should."""
    for name, kind in _wrong_types(config).items():
        raise BadType(
            f"{name} is {checks.describe(getattr(config, name))}: it must be of type {getattr(kind, '__name__', kind)}"
        )
    return config


def _wrong_types(config: Config) -> dict[str, type]:
    """The fields whose value is not of the field's type, with that type. (A bool is an int, too.)"""
    kinds = get_type_hints(Config).items()
    values = {name: getattr(config, name) for name, _ in kinds}
    return {name: kind for name, kind in kinds
            if not isinstance(values[name], kind) or (isinstance(values[name], bool) and kind is not bool)}  # fmt: skip


def check_config(config: Config) -> None:
    """Raises BadValue, in the words of the command line, for what is wrong with a configuration by itself."""
    if not isinstance(config, Config):
        raise BadType(f"config is {checks.describe(config)}: it must be a Config, as runs.configure makes it")
    for name in ("epochs", "batch", "samples", "keep"):
        if getattr(config, name) < 1:
            raise BadValue(f"--{name} is {getattr(config, name)}: it must be at least 1")
    for name, what in {"checkpoint_every": " of steps", "chunk": " of samples", "shards": ""}.items():
        if getattr(config, name) < 0:
            option = name.replace("_", "-")
            raise BadValue(f"--{option} is {getattr(config, name)}: it must be a number{what}, or 0")
    for name, known in {"precision": PRECISIONS, "device": ("cpu", "cuda"), "split": tuple(SPLITS)}.items():
        if getattr(config, name) not in known:
            raise unknown(name, getattr(config, name), known)
    if config.sample_each_step and recipe(config.system).shape != (2,):
        raise BadValue(f"--sample-each-step draws points in the plane, and {config.system}'s data are images")
    resolve_device(config.device)
    if config.compile and not compilation.available():
        raise Missing(f"the run's step is compiled, and {compilation.NO_COMPILER}")


def config_sha256(config: Config) -> str:
    """The SHA-256 of the fields that may not change."""
    fixed = {name: value for name, value in asdict(config).items() if name not in MAY_CHANGE}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


def resolve_device(name: str) -> str:
    """The device that "auto", "cpu" or "cuda" means here."""
    if checks.text("device", name) == "cuda" and not torch.cuda.is_available():
        raise Missing("no CUDA device is available: use --device cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
