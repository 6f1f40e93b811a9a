"""A grid of runs: its file, the configuration of each cell, and the result of each cell.

    {
        "systems": ["burda_vae"],
        "estimators": ["iwae", "dreg"],
        "samples": [1, 5, 50],
        "seeds": [0, 1, 2],
        "settings": {"epochs": 20, "noise": "iid"},
        "replicates": 200
    }

has a cell for each system, estimator, number of samples and seed. All but the systems may be left out.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from funcvae import compilation, estimators
from funcvae._support import checks, files
from funcvae.errors import BadData, BadType, BadValue, unknown
from funcvae.runs.config import Config, Options, configure, recipe

__all__ = ["CellResult", "Grid", "expand_grid", "parse_grid", "read_grid"]

CELLS = "cells"
GRID = "grid.json"
RESULT = "result.json"

CellResult = dict[str, Any]


@dataclass(frozen=True)
class Grid:
    """A grid of runs: one for each combination of the first four fields."""

    systems: tuple[str, ...]
    estimators: tuple[str, ...] | None = None
    """None: each system's own."""
    samples: tuple[int, ...] | None = None
    """None: each system's own number."""
    seeds: tuple[int, ...] = (0,)
    settings: dict[str, Any] = field(default_factory=dict)
    """Further fields of `Options`, the same in every cell."""
    replicates: int | None = None
    """Draws of the noise by which the variance of a cell's gradient is measured at its end; None: it is not."""

    def as_json(self) -> dict[str, Any]:
        """The grid as `parse_grid` takes it."""
        return {name: _listed(value) for name, value in asdict(self).items() if value is not None}


def read_grid(path: str | Path) -> Grid:
    """The grid in a JSON file.

    Raises:
        Missing: there is no such file.
        BadData: it holds no grid; the message says where and why.
    """
    path = checks.path("path", path)
    content = files.read_json(path)
    try:
        return parse_grid(content)
    except (BadType, BadValue) as error:
        raise BadData(f"{path}: {error}") from None


def parse_grid(content: Mapping[str, Any]) -> Grid:
    """The grid in a JSON object; estimators by their full names, as "renyi:0.5" for "renyi:.5".

    Raises:
        BadType, BadValue: an unknown key, system or estimator; a list that is empty or names a thing twice; a value of
            the wrong kind; or a setting that a list of the grid decides.
    """
    if not isinstance(content, Mapping):
        raise BadType(f"a grid is {checks.describe(content)}: it must be a JSON object")
    known = [each.name for each in fields(Grid)]
    for name in content:
        if name not in known:
            raise unknown("key", checks.text("a key", name), known)
    if "systems" not in content:
        raise BadValue('systems is missing: name those to train, as in ["gaussian2d_vae"]')
    parsers: dict[str, Callable[[Any], Any]] = {
        "systems": lambda name: recipe(name).name,
        "estimators": lambda spec: estimators.parse(spec).name,
        "samples": lambda k: checks.integer("a number in samples", k, 1),
        "seeds": lambda seed: checks.integer("a number in seeds", seed),
    }
    axes = {name: _axis(name, content[name], parse) for name, parse in parsers.items() if name in content}
    settings = content.get("settings", {})
    if not isinstance(settings, Mapping):
        raise BadType(f'settings is {checks.describe(settings)}: it must be an object, as {{"epochs": 20}}')
    known_settings = [each.name for each in fields(Options) if each.name not in _NOT_SETTINGS]
    for name in settings:
        if name in _NOT_SETTINGS:
            raise BadValue(f"settings has {name}, which {_NOT_SETTINGS[name]}: leave it out there")
        if name not in known_settings:
            raise unknown("setting", checks.text("a setting", name), known_settings)
    replicates = content.get("replicates")
    if replicates is not None:
        checks.integer("replicates", replicates, 2)
    return Grid(**axes, settings=dict(settings), replicates=replicates)


def expand_grid(grid: Grid, folder: str | Path, *, device: str = "cpu") -> list[Config]:
    """The configurations of a grid's cells, each with a folder of its own: FOLDER/cells/NAME.

    Args:
        grid: from `read_grid` or `parse_grid`.
        folder: the sweep's.
        device: where to train, "cpu" or "cuda", unless the settings say.

    Raises:
        BadType, BadValue: a setting is of the wrong kind.
    """
    if not isinstance(grid, Grid):
        raise BadType(f"grid is {checks.describe(grid)}: `runs.parse_grid` makes one")
    folder, device = checks.path("folder", folder), checks.text("device", device)
    cells = []
    for system in grid.systems:
        defaults = recipe(system)
        settings = {"device": device, "compile": defaults.compile and compilation.available(), **grid.settings}
        for estimator in grid.estimators or [estimators.parse(defaults.estimator).name]:
            for samples in grid.samples or [defaults.samples]:
                for seed in grid.seeds:
                    out = folder / CELLS / f"{system}-{estimator}-k{samples}-s{seed}".replace(":", "_")
                    cells.append(
                        configure(system, **settings, estimator=estimator, samples=samples, seed=seed, out=str(out))
                    )
    return cells


def cell_name(cell: Config) -> str:
    """What a cell and its folder are called: SYSTEM-ESTIMATOR-kSAMPLES-sSEED, with _ for a colon."""
    return Path(cell.out).name


def read_result(cell: Config) -> CellResult | None:
    """The result of a cell; None if it has none yet.

    Raises:
        BadData: the file is damaged, or another cell's.
    """
    path = Path(cell.out, RESULT)
    if not path.is_file():
        return None
    content = files.read_json(path)
    for name, value in cell_id(cell).items():
        if content.get(name) != value:
            got = checks.describe(content.get(name))
            raise BadData(f"{path} is not the result of this cell: its {name} is {got}, and should be {value!r}")
    return content


def cell_id(cell: Config) -> dict[str, Any]:
    """The fields of a result that identify its cell."""
    return {name: getattr(cell, name) for name in ("system", "estimator", "samples", "seed")}


_NOT_SETTINGS = {
    "system": "`systems` lists",
    "estimator": "`estimators` lists",
    "samples": "`samples` lists",
    "seed": "`seeds` lists",
    "out": "is each cell's own",
}


def _axis(name: str, values: Any, parse: Callable[[Any], Any]) -> tuple[Any, ...]:
    """One of the grid's lists, parsed; its items must differ."""
    if not isinstance(values, list | tuple):
        raise BadType(f"{name} is {checks.describe(values)}: it must be a list")
    if not values:
        raise BadValue(f"{name} is empty: name one or more, or leave it out")
    parsed = tuple(parse(value) for value in values)
    for i, value in enumerate(parsed):
        if value in parsed[:i]:
            raise BadValue(f"{name} has {value!r} twice")
    return parsed


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
