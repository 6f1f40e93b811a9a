"""A grid of runs: its file, the configuration of each cell, and the result of each cell.

    {
        "systems": ["burda_vae"],
        "estimators": ["iwae", "dreg"],
        "samples": [1, 5, 50],
        "seeds": [0, 1, 2],
        "settings": {"epochs": 20, "noise": "iid"},
        "replicates": 200
    }

has a cell for each system, estimator, number of samples and seed. Only the systems are required.
"""

from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from funcvae import estimators, noise
from funcvae._support import checks, files
from funcvae.errors import BadData, BadType, BadValue
from funcvae.estimators import Estimator
from funcvae.models import SYSTEMS, System
from funcvae.runs.config import Config, Options, check_names, configure
from funcvae.runs.folder import RESULT
from funcvae.runs.systems import find_system

__all__ = ["CellResult", "Grid", "expand_grid", "parse_grid", "read_grid"]

GRID = "grid.json"
CELL = "cell.json"

CellResult = dict[str, Any]
"""The result of a cell, as in its cell.json; `train_grid` describes it."""
T = TypeVar("T")
Axis = Annotated[tuple[T, ...], Meta(min_length=1)]


@dataclass(frozen=True)
class Grid:
    """A grid of runs: one for each combination of the first four fields."""

    systems: Axis[str]
    """Named systems, or FILE.py:NAME or package.module:NAME."""
    estimators: Axis[str] | None = None
    """None: each system's own."""
    samples: Axis[Annotated[int, Meta(ge=1, le=2**63 - 1)]] | None = None
    """None: each system's own number."""
    seeds: Axis[Annotated[int, Meta(ge=0, le=2**63 - 1)]] = (0,)
    settings: dict[str, Any] = field(default_factory=dict)
    """Further fields of `Options`, the same in every cell."""
    replicates: Annotated[int, Meta(ge=2)] | None = None
    """Draws of the noise to measure the gradient variance of each finished cell; None: no measurement."""

    def as_json(self) -> dict[str, Any]:
        """The grid in the form that `parse_grid` takes."""
        return {name: value for name, value in msgspec.to_builtins(self).items() if value is not None}


@checks.arguments
def read_grid(path: str | Path) -> Grid:
    """The grid in a JSON file.

    Raises:
        Missing: no such file.
        BadData: the file does not hold a grid; the message gives the place and the reason.
    """
    content = files.read_json(Path(path))
    try:
        return parse_grid(content)
    except (BadType, BadValue) as error:
        raise BadData(f"{path}: {error}") from None


@checks.arguments
def parse_grid(content: Mapping[str, Any]) -> Grid:
    """The grid in a JSON object. Estimators get their full names, as in "renyi:0.5" for "renyi:.5".

    Raises:
        BadType, BadValue: a key, system or estimator is unknown; a list is empty or has a duplicate; a value has the
            wrong type or is out of range; or a setting is decided by a list of the grid.
    """
    check_names("key", content, Grid)
    for name, value in content.items():
        if isinstance(value, Set):  # its order is arbitrary
            raise BadType(f"{name} is a set: it must be a list")
    grid = files.typed(content, Grid)
    for name in filter(_NOT_SETTINGS.get, grid.settings):
        raise BadValue(f"settings has {name}, but {_NOT_SETTINGS[name]}: remove it from settings")
    check_names("setting", grid.settings, Options, but=_NOT_SETTINGS)
    for name, value in grid.settings.items():
        if isinstance(value, list | tuple):
            raise BadValue(f"setting {name} is a list: a setting has one value for all cells")
    specs = grid.estimators and tuple(_full_name(spec) for spec in grid.estimators)
    grid = replace(grid, estimators=specs)
    names = [checks.known("system", name, SYSTEMS) if ":" not in name else name for name in grid.systems]
    axes = {name: getattr(grid, name) for name in _AXES.values()}
    axes["systems"] = [name.rpartition(":")[2] for name in names]
    for name, values in axes.items():
        for value, count in Counter(values).items():
            if count > 1:
                raise BadValue(f"{name} has {value!r} twice")
    return grid


@checks.arguments
def expand_grid(
    grid: Grid, folder: str | Path, *, systems: Mapping[str, System] | None = None, device: str = "cpu"
) -> list[Config]:
    """The configurations of the cells of a grid, each with its own folder FOLDER/cells/NAME.

    Args:
        systems: the grid's systems by name; by default `find_system` finds them, which runs the code of own ones.
        device: where to train, "cpu" or "cuda"; the grid's settings have priority.
    """
    cells = []
    for spec in grid.systems:
        system = find_system(spec) if systems is None else systems[spec.rpartition(":")[2]]
        defaults = system.recipe
        settings = {"device": device, **grid.settings}
        for estimator in grid.estimators or [_full_name(defaults.estimator)]:
            for samples in grid.samples or [defaults.samples]:
                for seed in grid.seeds:
                    out = Path(folder, "cells") / f"{system.name}-{estimator}-k{samples}-s{seed}".replace(":", "_")
                    axes = {"estimator": estimator, "samples": samples, "seed": seed, "out": str(out)}
                    cells.append(configure(system, **settings, **axes))
    return cells


def cell_name(cell: Config) -> str:
    """The name of a cell and its folder: SYSTEM-ESTIMATOR-kSAMPLES-sSEED, with _ in place of a colon."""
    return Path(cell.out).name


def read_cell(cell: Config) -> CellResult | None:
    """The result of a cell; None before it is finished. Raises BadData if the file is damaged or of another cell."""
    path = Path(cell.out, CELL)
    if not path.is_file():
        path = Path(cell.out, RESULT)  # of a sweep of version 0.8 or earlier, or of the run itself
        if not path.is_file() or "target" not in files.read_json(path):
            return None
    content = files.read_json(path)
    for name, value in cell_id(cell).items():
        if content.get(name) != value:
            got = checks.describe(content.get(name))
            raise BadData(f"{path} is not the result of this cell: its {name} is {got}, not {value!r}")
    return content


def cell_id(cell: Config) -> dict[str, Any]:
    """The fields of a result that identify its cell."""
    return {name: cell.content()[name] for name in _AXES}


def target_of(estimator: str, scheme: str) -> str:
    """The bound that an estimator ascends under a noise scheme, both given by name."""
    return estimators.parse_final(estimator, _LATE).claims_under(noise.parse(scheme)).target


def _full_name(spec: str) -> str:
    """The name of an estimator with its arguments; with a schedule, the string itself."""
    parsed = estimators.parse_scheduled(spec, _LATE)
    return parsed.name if isinstance(parsed, Estimator) else spec


_LATE = 2**53  # after the end of every schedule
_AXES = {"system": "systems", "estimator": "estimators", "samples": "samples", "seed": "seeds"}
_NOT_SETTINGS = {name: f"the grid's `{axis}` determine it" for name, axis in _AXES.items()}
_NOT_SETTINGS["out"] = "each cell has its own folder"
