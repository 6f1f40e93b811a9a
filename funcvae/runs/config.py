"""What is asked of a run."""

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


@dataclass(frozen=True)
class Config:
    """All that decides a run's result, and where and how it is kept."""

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
    """Samples decoded at a time, where there are more; 0: by the size of a batch."""
    shards: int = 0
    """Into how many a step's work is cut, so that the bits are the same for every number of processes; 0: one for each
    process."""
    split: str = "rows"
    """What is cut: a batch's rows, or each datum's samples."""
    lr: float | None = None
    """None: the recipe's own learning rate or schedule."""
    seed: int = 0
    device: str = "cpu"
    precision: str = "highest"
    compile: bool = False
    deterministic: bool = False
    """Let torch use no algorithm whose bits may change from run to run."""
    sample_each_step: bool = False
    """Keep samples of the model after every step, of data in the plane: a figure shows them evolve."""
    variance_every: int = 0
    """Steps between two looks at the gradient's variance; 0 for none. They change no bit of the result."""
    variance_of: str = ""
    """Estimators to look at beside the one that trains, with commas between them."""
    variance_replicates: int = 100
    checkpoint_every: int = 1000
    """Steps between two checkpoints; 0 for none but the last one, and one where training is stopped."""
    keep: int = 2
    """How many checkpoints stay: the newest."""

    @property
    def monitor(self) -> MonitorSettings:
        """How the gradient's variance is monitored during training."""
        specs = self.estimator, *split_names(self.variance_of)
        return MonitorSettings(self.variance_every, specs, self.variance_replicates, self.samples, self.batch)


SPLITS = {"rows": sharding.by_rows, "samples": sharding.by_samples}
"""What a step's work is cut along, by name."""

MAY_CHANGE = {"epochs", "data", "data_dir", "out", "checkpoint_every", "keep"}
"""What may be another when a run goes on; of data, only the place."""


def split_names(given: str) -> list[str]:
    """Names with commas between them."""
    return [name.strip() for name in checks.text("given", given).split(",") if name.strip()]


def recipe(system: str) -> Recipe:
    """The recipe of a named system, or an error with the nearest name."""
    if checks.text("system", system) not in RECIPES:
        raise unknown("system", system, RECIPES)
    return RECIPES[system]


def configure(system: str, **given: Any) -> Config:
    """A configuration of the named system: its recipe's where nothing is given, or None."""
    own = recipe(system)
    defaults = {name: getattr(own, name) for name in ("data", "epochs", "batch", "samples", "estimator")}
    given = {name: _plain(value) for name, value in given.items() if value is not None}
    if "lr" in given:
        given["lr"] = float(checks.number("lr", given["lr"]))
    if strange := sorted(given.keys() - {field.name for field in fields(Config)}):
        raise unknown("field", strange[0], [field.name for field in fields(Config)])
    if "out" not in given:
        raise BadValue("out is missing: name the run's folder")
    config = Config(system=system, **{**defaults, **given})
    for name, kind in _wrong_kinds(config).items():
        raise BadType(
            f"{name} is {checks.shown(getattr(config, name))}: it must be of type {getattr(kind, '__name__', kind)}"
        )
    return config


def changed(config: Config, given: Mapping[str, Any], run: Path) -> Config:
    """The configuration of a run that goes on, where `given` holds what was asked for now, or None.

    Raises:
        BadValue: something may not change; the message names all that differs.
    """
    given = {name: value for name, value in given.items() if value is not None}
    if pairs := differences(config, given, MAY_CHANGE):
        raise BadValue(f"{run} cannot go on otherwise than it began: {pairs}; leave that out, or start another run")
    return replace(config, **given, out=str(run))


def differences(config: Config, given: Mapping[str, Any], may_change: Collection[str]) -> str:
    """In what the given fields differ from a configuration's, in words, but for those that may; empty if in nothing."""
    differing = {name: value for name, value in given.items() if value != getattr(config, name)}
    wrong = [name for name in differing if name not in may_change]
    return ", ".join(f"{name} was {getattr(config, name)!r} and is {given[name]!r} now" for name in wrong)


def parsed(content: Mapping[str, Any]) -> Config:
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
    for name in _wrong_kinds(config):
        raise BadData(f"{name} is {getattr(config, name)!r}")
    return config


def _plain(value: Any) -> Any:
    """A path as a string, and numpy's number as Python's."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.item() if isinstance(value, np.generic) else value


def _wrong_kinds(config: Config) -> dict[str, type]:
    """The fields that do not hold what they should, and what that is. (A bool is an int, too.)"""
    kinds = get_type_hints(Config).items()
    values = {name: getattr(config, name) for name, _ in kinds}
    return {name: kind for name, kind in kinds
            if not isinstance(values[name], kind) or (isinstance(values[name], bool) and kind is not bool)}  # fmt: skip


def check(config: Config) -> None:
    """Raises BadValue, in the words of the command line, for what is wrong with a configuration by itself."""
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


def sha256(config: Config) -> str:
    """The SHA-256 of the fields that may not change."""
    fixed = {name: value for name, value in asdict(config).items() if name not in MAY_CHANGE}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


def as_json(config: Config) -> dict[str, Any]:
    """The configuration as a JSON object."""
    return asdict(config)


def resolve_device(name: str) -> str:
    """The device that "auto", "cpu" or "cuda" means here."""
    if checks.text("device", name) == "cuda" and not torch.cuda.is_available():
        raise Missing("no CUDA device is available: use --device cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
