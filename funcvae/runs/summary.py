"""Summaries of runs: what they are and how they went, from the files of their folders. No model is built."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, fields
from datetime import datetime
from functools import partial
from pathlib import Path
from shlex import join
from typing import Any, NamedTuple, NotRequired, TypedDict, TypeVar

from funcvae._support import checks, files
from funcvae._support.tables import WIDTH, in_parts, table, unbroken
from funcvae.errors import BadData, FuncvaeError, Missing
from funcvae.models import SYSTEMS
from funcvae.runs.config import Config
from funcvae.runs.environment import Size, is_of_earlier_version
from funcvae.runs.folder import (
    CHECKPOINTS,
    CONFIG,
    FIGURES,
    MANIFEST,
    METRICS,
    PARAMS,
    RESULT,
    TIMES,
    has_run,
    read_content,
    read_manifest,
    times_in,
)  # fmt: skip
from funcvae.runs.grid import target_of
from funcvae.tracking.metrics_file import LINE_LIMIT, renamed
from funcvae.tracking.training_progress import duration
from funcvae.train.checkpoint import in_folder

__all__ = ["Summary", "runs_in", "runs_table", "side_by_side", "summarize"]


class Summary(NamedTuple):
    """What a run is and how it went; `print` shows it as text of 80 columns."""

    path: Path
    state: str
    """"finished", "training" (a process writes in its folder), "unfinished", "diverged" (numbers became NaN or
    infinite), or "unreadable" (see `note`)."""
    note: str = ""
    """Why a run is unreadable, or what diverged; one line."""
    changed: float = 0.0
    """When a row of metrics was last written: seconds since 1970."""
    version: str = ""
    """The version of funcvae that made the run."""
    settings: Mapping[str, Any] = {}
    """The fields of `Config`, with the defaults of those that an earlier version did not have; options of the model as
    "model.NAME"."""
    items: tuple[int, int] = (0, 0)
    """The number of training and of test data."""
    steps: int = 0
    """The steps made; the newest checkpoint may have fewer."""
    all_steps: int = 0
    """The steps of all epochs."""
    results: Mapping[str, float] = {}
    """Those of the last epoch that are known, in nats per example: "test_bound", "train_bound", "reconstruction" and
    "kl". Further "epochs" made; "best_test_bound" and its "best_epoch", counted from 1; and "seconds" of training."""
    host: str = ""
    """The computer that trained the run, if known."""
    checkpoints: Sequence[int] = ()
    """The steps of the checkpoints."""
    figures: Sequence[str] = ()
    """The names of the files of figures."""
    target: str = ""
    """The bound that the training ascends, such as "ELBO" or "L_5"; empty if it is not known."""
    active_units: int | None = None
    """The number of latents that a finished run uses, if known: see `Result`."""
    commands: Sequence[str] = ()
    """Commands to look at the run or to continue it."""

    @property
    def terms(self) -> str:
        """Reconstruction and KL of the last epoch as text, if known. They are the terms of the ELBO."""
        if not {"reconstruction", "kl"} <= self.results.keys():
            return ""
        of = "" if self.target == "ELBO" else "ELBO: "
        return f"{of}reconstruction {self.results['reconstruction']:.4f}, KL {self.results['kl']:.4f}"

    def __str__(self) -> str:
        if not self.settings:
            return f"{self.path}: {self.state}: {self.note}"
        found, known = self.settings, self.results
        train, test = self.items
        model = [f"{name.removeprefix('model.')} {found[name]}" for name in found if name.startswith("model.")]
        lines = {
            "state": self.state + (f": {self.note}" if self.note else ""),
            "system": ", ".join([found["system"], *model]),
            "data": f"{found['data']}, {train:,} items for training and {test:,} for testing",
            "estimator": f"{found['estimator']}, K = {found['samples']}, noise {found['noise']}",
            "training": f"{found['optimizer']}, lr {found['lr']}, batch {found['batch']}, epochs {found['epochs']}, "
            f"seed {found['seed']}",
            "other": ", ".join(f"{name} {found[name]}" for name in _unusual(found)),
            "made with": f"funcvae {self.version} on {found['device']}" + (f" of {self.host}" if self.host else ""),
            "made": f"{self.steps:,} of {self.all_steps:,} steps, epoch {known.get('epochs', 0)} of {found['epochs']}",
            "time": _time(known),
            "test bound": _number(known.get("test_bound")),
            "best": f"{_number(known.get('best_test_bound'))} after epoch {known.get('best_epoch', 0)}",
            "train bound": _number(known.get("train_bound")),
            "active units": "" if self.active_units is None else f"{self.active_units}",
            "checkpoints": f"after step {', '.join(map(str, self.checkpoints))}" if self.checkpoints else "none",
            "figures": ", ".join(self.figures) or "none",
        }
        if self.terms:
            lines["train bound"] += f" ({self.terms})"
        if known.get("best_test_bound") == known.get("test_bound"):
            lines["best"] = ""
        shown = table([(f"  {name}", value) for name, value in lines.items() if value], align="<", width=WIDTH)
        return "\n".join([str(self.path), shown, *(f"next: {command}" for command in self.commands)])


@checks.arguments
def summarize(path: str | Path) -> Summary:
    """Summarizes the run in a folder, also of an earlier version of funcvae, and also during its training.

    The code of an own system is not needed.

    Raises:
        Missing: there is no such run folder, or one of its files does not exist.
        BadData: a file is damaged, or a later version of funcvae made the run.
    """
    path = Path(path)
    content, manifest = read_content(path), read_manifest(path)
    _checked(content, _Shown, path / CONFIG)
    train, source = manifest["data"]["train"], manifest["system"]["source"] if "system" in manifest else ""
    per_epoch = -(-train // content["batch"])
    result: _Ended = {}
    if (path / RESULT).is_file():
        result = _checked(files.read_json(path / RESULT), _Ended, path / RESULT)
    made, results = _results(path / METRICS)
    if times := times_in(path / TIMES):
        results["seconds"] = times[-1]["seconds"]
    state = "diverged" if "diverged" in result else "finished" if (path / PARAMS).is_file() else "unfinished"
    state = "training" if state == "unfinished" and files.in_use(path) else state
    checkpoints = list(in_folder(path / CHECKPOINTS))
    resumable = state == "unfinished" and not is_of_earlier_version(manifest)
    return Summary(
        path, state, result.get("diverged", ""), _changed(path), manifest["versions"]["funcvae"],
        _settings(content, per_epoch), (train, manifest["data"]["test"]), made, content["epochs"] * per_epoch,
        results | {"epochs": made // per_epoch}, result.get("host", ""), checkpoints,
        sorted(file.name for file in (path / FIGURES).glob("[!.]*.*")), _target(content), result.get("active_units"),
        [] if source is None else _commands(path, source, resumable, bool(checkpoints) or state == "finished"),
    )  # fmt: skip


@checks.arguments
def runs_in(folder: str | Path) -> list[Summary]:
    """Summarizes all runs below a folder, the newest first.

    A run with damaged files is "unreadable". Hidden folders are left out.

    Raises:
        Missing: there is no such folder.
    """
    if not Path(folder).is_dir():
        raise Missing(f"{folder}: no such folder")
    found = []
    for name, inner, _ in os.walk(folder):
        path = Path(name)
        if not (has_run(path) and (path / MANIFEST).is_file()):  # other programs have files named config.json, too
            inner[:] = [each for each in inner if not each.startswith(".")]
            continue
        inner.clear()
        try:
            found.append(summarize(path))
        except FuncvaeError as error:
            found.append(Summary(path, "unreadable", str(error), _changed(path)))
    return sorted(found, key=lambda each: each.changed, reverse=True)


@checks.arguments
def runs_table(summaries: Sequence[Summary], *, wide: bool = False) -> str:
    """A table with a row for each run, and a line for each run that diverged or is unreadable.

    It fits 80 columns: if names are long, it leaves out the time of the last change, and the system. With `wide`, lines
    are as long as it takes.
    """
    rows = []
    for each, name in zip(summaries, short_names(summaries), strict=True):
        cells = [str(each.settings.get(field, "")) for field in ("estimator", "samples")]
        changed = unbroken(f"{datetime.fromtimestamp(each.changed):%Y-%m-%d %H:%M}")
        system = str(each.settings.get("system", ""))
        rows.append([name, *cells, _state(each), _number(each.results.get("test_bound")), system, changed])
    header = ["run", "estimator", "K", "state", "test bound", "system", "changed"]
    while not wide and len(header) > _FEWEST and max(map(len, table(rows, header).splitlines())) > WIDTH:
        header, rows = header[:-1], [row[:-1] for row in rows]
    notes = [f"{each.state}: {each.path}: {each.note}" for each in summaries if each.note]
    return "\n".join([table(rows, header, "<<><><", None if wide else WIDTH), *notes])


@checks.arguments
def side_by_side(summaries: Sequence[Summary], *, wide: bool = False) -> str:
    """A table with a row for each run: the settings that differ, and the results.

    If it does not fit 80 columns, it is split into several tables; with `wide` it is not.
    """
    columns = {
        {"samples": "K"}.get(name, name): [str(each.settings.get(name, "")) for each in summaries]
        for name in dict.fromkeys(name for each in summaries for name in each.settings if name not in _PLACES)
    }
    columns["target"] = [each.target for each in summaries]
    columns = {name: cells for name, cells in columns.items() if len(set(cells)) > 1}
    columns["state"] = [_state(each) for each in summaries]
    columns["steps"] = [f"{each.steps:,}" for each in summaries]
    for field in ("test_bound", "best_test_bound", "train_bound", "reconstruction", "kl"):
        columns[field.replace("_", " ")] = [_number(each.results.get(field)) for each in summaries]
    columns["time"] = [_time(each.results) for each in summaries]
    columns = {name: cells for name, cells in columns.items() if any(cells)}
    short = [name if len(name) <= _LONGEST else f"…{name[1 - _LONGEST :]}" for name in short_names(summaries)]
    rows = [list(row) for row in zip(short, *columns.values(), strict=True)]
    return in_parts(rows, ["run", *columns], None if wide else WIDTH) + "\n" + _UNITS


class _Shown(TypedDict):
    """The fields of a configuration that every version has."""

    system: str
    data: str
    epochs: Size
    batch: Size
    samples: Size
    estimator: str


class _Ended(TypedDict, total=False):
    """The fields of `result.json` that are shown."""

    host: str
    diverged: str
    active_units: int | None


class _Epoch(TypedDict):
    """The row of an epoch with the present names."""

    epoch: int
    test_bound: float
    train_bound: float
    train_reconstruction: NotRequired[float]
    train_kl: NotRequired[float]


T = TypeVar("T")

_DEFAULTS = {field.name: field.default for field in fields(Config) if field.default is not MISSING}
_DEFAULTS["compile"] = False  # a run stores what "auto" decided
_PLACES = {"out", "data_dir", "checkpoint_every", "keep"}  # settings that do not change the result
_SHOWN = {"system", "data", "epochs", "batch", "samples", "estimator", "noise", "optimizer", "lr", "seed", "device"}
_LONGEST = 24  # characters of a name
_FEWEST = 5  # columns of a table of runs
_UNITS = "bounds: of each run's target; these, reconstruction and KL: nats per example"


def _checked(content: Mapping[str, Any], kind: type[T], path: Path) -> T:
    with files.reading(path, "of a run"):
        return files.typed(content, kind)


def _settings(content: Mapping[str, Any], per_epoch: int) -> dict[str, Any]:
    """The settings of a run with the defaults of this version."""
    system = SYSTEMS.get(content["system"])
    given = content.get("model")
    model = (system.defaults if system else {}) | (given if isinstance(given, dict) else {})
    found = _DEFAULTS | {name: value for name, value in content.items() if name != "model"}
    if found["lr"] is None:
        lr = system.recipe.lr(per_epoch) if system else None
        found["lr"] = f"{lr:g}" if isinstance(lr, float) else "of the recipe"
    return found | {f"model.{name}": tuple(v) if isinstance(v, list) else v for name, v in model.items()}


def _target(content: Mapping[str, Any]) -> str:
    """The bound of a run's estimator, with its number of samples."""
    with suppress(FuncvaeError):  # the estimator may be of another version
        target = target_of(content["estimator"], content.get("noise", "iid"))
        if target.startswith("ELBO"):
            return target
        return f"L_{content['samples']}" if target == "L_K" else f"{target}, K = {content['samples']}"
    return ""


def _unusual(settings: Mapping[str, Any]) -> list[str]:
    """The settings that differ from the defaults and are not shown elsewhere."""
    return [
        name for name, value in settings.items()
        if name not in _SHOWN | _PLACES and not name.startswith("model.") and value != _DEFAULTS.get(name)
    ]  # fmt: skip


def _commands(path: Path, source: str, resumable: bool, loadable: bool) -> list[str]:
    """The commands for the run in a folder; `source` is that of an own system, or empty."""
    system = ["--system", source] if source else []
    looks = [join(["funcvae", name, str(path), *system]) for name in ("sample", "evaluate", "variance") if loadable]
    resume = ["funcvae", "train", *system[1:], "--resume", str(path)]
    return [join(resume)] * resumable + looks


def _results(path: Path) -> tuple[int, dict[str, float]]:
    """The number of steps in a file of metrics, and the results. Parses the rows of epochs and the last row only."""
    epochs, end = list[bytes](), b""
    if path.is_file():
        with path.open("rb") as file:
            for line in iter(partial(file.readline, LINE_LIMIT), b""):
                if line.endswith(b"\n"):  # the last row may be incomplete
                    epochs += [line] * (b'"test_bound"' in line)
                    end = line
    if not end:
        return 0, {}
    row = files.parse_json(end, str(path))
    if type(row.get("step")) is not int:
        raise BadData(f"{path} is not the metrics of a run: its last row has no integer step")
    made = row["step"] + ("loss" in row)  # the rows of steps count from 0
    rows = [_checked(renamed(files.parse_json(line, str(path))), _Epoch, path) for line in epochs]
    if not rows:
        return made, {}
    best, last = max(rows, key=lambda each: each["test_bound"]), rows[-1]
    found = {"best_test_bound": best["test_bound"], "best_epoch": best["epoch"] + 1}
    found |= {"test_bound": last["test_bound"], "train_bound": last["train_bound"]}
    parts = {"reconstruction": last.get("train_reconstruction"), "kl": last.get("train_kl")}
    return made, found | {name: value for name, value in parts.items() if value is not None}


def _changed(path: Path) -> float:
    newest = path / METRICS if (path / METRICS).is_file() else path / CONFIG
    return newest.stat().st_mtime


def _state(summary: Summary) -> str:
    """The state of a run in a table, with the fraction of the steps that an unfinished run has made."""
    if summary.state not in ("unfinished", "training") or not summary.all_steps:
        return summary.state
    made = f"{100 * summary.steps // summary.all_steps}%"
    return f"{made} made" if summary.state == "unfinished" else f"training, {made}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _time(results: Mapping[str, float]) -> str:
    return duration(results["seconds"]) if "seconds" in results else ""


def short_names(summaries: Sequence[Summary]) -> list[str]:
    """The paths of runs without the folder that all have in common."""
    parents = {os.path.abspath(each.path.parent) for each in summaries}
    common = os.path.commonpath(parents) if parents else ""
    return [os.path.relpath(each.path, common) for each in summaries]
