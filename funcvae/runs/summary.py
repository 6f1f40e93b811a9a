"""Summaries of runs: what they are and how they went, from the files of their folders. No model is built."""

import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from datetime import datetime
from itertools import islice
from pathlib import Path
from shlex import join
from typing import Any, NamedTuple, TypedDict

from funcvae._support import checks, files
from funcvae._support.checks import Count
from funcvae._support.tables import table
from funcvae.errors import BadData, BadType, BadValue, FuncvaeError, Missing
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
    read_manifest,
)  # fmt: skip
from funcvae.train.checkpoint import in_folder
from funcvae.train.settings import Row

__all__ = ["Summary", "runs_in", "runs_table", "side_by_side", "summarize"]


class Summary(NamedTuple):
    """What a run is and how it went; `print` shows it as text of 80 columns."""

    path: Path
    state: str
    """"finished", "unfinished", "diverged" (numbers became NaN or infinite), or "unreadable" (see `note`)."""
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
    commands: Sequence[str] = ()
    """Commands to look at the run or to continue it."""

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
            "training": f"{found['optimizer']}, lr {found['lr']}, batch {found['batch']}, {found['epochs']} epochs, "
            f"seed {found['seed']}",
            "other": ", ".join(f"{name} {found[name]}" for name in _unusual(found)),
            "made with": f"funcvae {self.version} on {found['device']}" + (f" of {self.host}" if self.host else ""),
            "made": f"{self.steps:,} of {self.all_steps:,} steps, {known.get('epochs', 0)} of {found['epochs']} epochs",
            "time": _duration(known.get("seconds")),
            "test bound": _number(known.get("test_bound")),
            "best": f"{_number(known.get('best_test_bound'))} after epoch {known.get('best_epoch', 0)}",
            "train bound": _number(known.get("train_bound")),
            "checkpoints": ", ".join(map(str, self.checkpoints)) or "none",
            "figures": ", ".join(self.figures) or "none",
        }
        if "kl" in known and "reconstruction" in known:
            parts = f"reconstruction {_number(known['reconstruction'])}, KL {_number(known['kl'])}"
            lines["train bound"] += f" ({parts})"
        if known.get("best_test_bound") == known.get("test_bound"):
            del lines["best"]
        text = [str(self.path)]
        for name, value in lines.items():  # no line for an empty value
            text += textwrap.wrap(value, 80, initial_indent=f"  {name:<13}", subsequent_indent=" " * 15)
        return "\n".join([*text, *(f"next: {command}" for command in self.commands)])


@checks.arguments
def summarize(path: str | Path) -> Summary:
    """Summarizes the run in a folder, also of an earlier version of funcvae, and also during its training.

    The code of an own system is not needed.

    Raises:
        Missing: there is no such run folder, or one of its files does not exist.
        BadData: a file is damaged, or a later version of funcvae made the run.
    """
    return _summary(Path(path), None)


@checks.arguments
def runs_in(folder: str | Path) -> list[Summary]:
    """Summarizes all runs below a folder, the newest first, without the best epoch of each.

    A run with damaged files is "unreadable". Hidden folders are left out.

    Raises:
        Missing: there is no such folder.
    """
    if not Path(folder).is_dir():
        raise Missing(f"{folder}: no such folder")
    found = []
    for name, inner, _ in os.walk(folder):
        if not _is_run(path := Path(name)):
            inner[:] = [each for each in inner if not each.startswith(".")]
            continue
        inner.clear()
        try:
            found.append(_summary(path, 1))
        except FuncvaeError as error:
            found.append(Summary(path, "unreadable", str(error), _changed(path)))
    return sorted(found, key=lambda each: each.changed, reverse=True)


@checks.arguments
def runs_table(summaries: Sequence[Summary], width: Count = 80) -> str:
    """A table with a row for each run, and a line for each run that diverged or is unreadable."""
    rows = []
    for each, name in zip(summaries, _names(summaries), strict=True):
        cells = [str(each.settings.get(field, "")) for field in ("system", "estimator", "samples")]
        changed = f"{datetime.fromtimestamp(each.changed):%Y-%m-%d %H:%M}"
        rows.append([name, *cells, _state(each), _number(each.results.get("test_bound")), changed])
    notes = [f"{each.state}: {each.path}: {each.note}" for each in summaries if each.note]
    header = ["run", "system", "estimator", "K", "state", "test bound", "changed"]
    return "\n".join([_fitted(rows, header, width), *notes])


@checks.arguments
def side_by_side(summaries: Sequence[Summary], width: Count = 80) -> str:
    """A table with a row for each run: the settings that differ, and the results.

    It is split into several tables if it is wider than `width`.
    """
    settings = {name: None for each in summaries for name in each.settings if name not in _PLACES}
    columns: dict[str, list[str]] = {
        _SHORT.get(name, name): [str(each.settings.get(name, "")) for each in summaries] for name in settings
    }
    columns = {name: cells for name, cells in columns.items() if len(set(cells)) > 1}
    columns["state"] = [_state(each) for each in summaries]
    columns["steps"] = [f"{each.steps:,}" for each in summaries]
    for field in ("test_bound", "best_test_bound", "train_bound", "reconstruction", "kl"):
        columns[field.replace("_", " ")] = [_number(each.results.get(field)) for each in summaries]
    columns["time"] = [_duration(each.results.get("seconds")) for each in summaries]
    columns = {name: cells for name, cells in columns.items() if any(cells)}
    rows = [list(row) for row in zip(_names(summaries), *columns.values(), strict=True)]
    return _fitted(rows, ["run", *columns], width)


class _Shown(TypedDict):
    """The fields of a configuration that every version has."""

    system: str
    data: str
    epochs: Size
    batch: Size
    samples: Size
    estimator: str


_DEFAULTS = {field.name: field.default for field in fields(Config) if field.default is not MISSING}
_PLACES = {"out", "data_dir", "checkpoint_every", "keep"}  # settings that do not change the result
_SHOWN = {"system", "data", "epochs", "batch", "samples", "estimator", "noise", "optimizer", "lr", "seed", "device"}
_SHORT = {"samples": "K"}


def _summary(path: Path, most: int | None) -> Summary:
    """The summary of a run, from the newest `most` epochs, or all."""
    if not has_run(path):
        raise Missing(f"{path} is not a run folder: it has no config.json")
    content, manifest = files.read_json(path / CONFIG), read_manifest(path)
    try:
        files.typed(content, _Shown)
    except (BadType, BadValue) as error:
        raise BadData(f"{path / CONFIG} is not the configuration of a run: {error}") from None
    result, rows = _parsed(path / RESULT), list(islice(_epoch_rows(path / METRICS), most))
    train = manifest["data"]["train"]
    per_epoch = -(-train // content["batch"])
    made, checkpoints = _steps(path / METRICS), in_folder(path / CHECKPOINTS)
    state = "diverged" if "diverged" in result else "finished" if (path / PARAMS).is_file() else "unfinished"
    known = _results(rows, most is None) | {"epochs": made // per_epoch}
    known |= {"seconds": seconds} if (seconds := _seconds(path, result)) is not None else {}
    source = manifest["system"]["source"] if "system" in manifest else ""
    resumable = state == "unfinished" and not is_of_earlier_version(manifest)
    return Summary(
        path, state, str(result.get("diverged", "")), _changed(path), manifest["versions"]["funcvae"],
        _settings(content, per_epoch), (train, manifest["data"]["test"]), made, content["epochs"] * per_epoch, known,
        str(result.get("host", "")), list(checkpoints), sorted(file.name for file in (path / FIGURES).glob("[!.]*.*")),
        [] if source is None else _commands(path, source, resumable, bool(checkpoints) or state == "finished"),
    )  # fmt: skip


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


def _results(rows: Sequence[Row], all_epochs: bool) -> dict[str, float]:
    """The results in the rows of epochs, the newest first."""
    if not rows:
        return {}
    last = rows[0]
    found = {name: last[key] for key, name in _RESULTS.items() if isinstance(last.get(key), float)}
    if all_epochs:
        best = max(rows, key=lambda row: row["test_bound"])
        found |= {"best_test_bound": best["test_bound"], "best_epoch": best["epoch"] + 1}
    return found


_RESULTS = {  # by the fields of a row of an epoch
    "test_bound": "test_bound", "bound": "train_bound", "train_bound": "train_bound",  # "bound" until version 0.8
    "train_reconstruction": "reconstruction", "train_kl": "kl",
}  # fmt: skip
_MARK = b'"test_bound"'  # only the rows of epochs have it
_BLOCK = 2**20  # bytes to read at a time


def _epoch_rows(path: Path) -> Iterator[Row]:
    """The rows of epochs in a file of metrics, the last one first, without damaged or incomplete ones."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        start, rest = path.stat().st_size, b""  # the rest of a line that begins before `start`
        while start > 0:
            end, start = start, max(0, start - _BLOCK)
            file.seek(start)
            block = file.read(end - start) + rest
            first = block.find(b"\n") + 1 if start else 0
            rest, at = block[:first], len(block)
            while (at := block.rfind(_MARK, first, at)) >= 0:
                line = block[block.rfind(b"\n", 0, at) + 1 : block.find(b"\n", at) + 1]
                row = _parsed(line)
                if type(row.get("epoch")) is int and type(row.get("test_bound")) is float:
                    yield row


def _parsed(content: bytes | Path) -> dict[str, Any]:
    """The JSON object in a line or file; empty if it is damaged or missing."""
    try:
        return files.parse_json(content, "") if isinstance(content, bytes) else files.read_json(content)
    except (BadData, Missing):
        return {}


def _last_row(path: Path) -> Row:
    """The last complete row in a file of rows; empty without one."""
    if not path.is_file():
        return {}
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 2**16))
        lines = file.read().split(b"\n")[:-1]
    return next(filter(None, map(_parsed, reversed(lines))), {})


def _steps(path: Path) -> int:
    """The number of steps made; the rows of steps count from 0."""
    row = _last_row(path)
    step = row.get("step", 0)
    return step + ("loss" in row) if type(step) is int else 0


def _seconds(path: Path, result: Mapping[str, Any]) -> float | None:
    """The seconds of training, if they are recorded."""
    seconds = result.get("seconds", _last_row(path / TIMES).get("seconds"))
    return float(seconds) if isinstance(seconds, int | float) and 0 <= seconds < 1e12 else None


def _is_run(path: Path) -> bool:
    """Whether a folder is that of a run, perhaps damaged; other programs have files named config.json, too."""
    return has_run(path) and ((path / MANIFEST).is_file() or "system" in _parsed(path / CONFIG))


def _changed(path: Path) -> float:
    newest = path / METRICS if (path / METRICS).is_file() else path / CONFIG
    return newest.stat().st_mtime


def _state(summary: Summary) -> str:
    """The state of a run in a table, with the fraction of the steps that an unfinished run has made."""
    unfinished = summary.state == "unfinished" and summary.all_steps
    return f"{100 * summary.steps // summary.all_steps}% made" if unfinished else summary.state


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _names(summaries: Sequence[Summary]) -> list[str]:
    """The paths of runs without the folder that all have in common."""
    parents = {os.path.abspath(each.path.parent) for each in summaries}
    common = os.path.commonpath(parents) if parents else ""
    return [os.path.relpath(each.path, common) for each in summaries]


_SHORTEST = 24  # characters of a name


def _fitted(rows: Sequence[Sequence[str]], header: Sequence[str], width: int) -> str:
    """A table, with shortened names in the first column or split into several tables if it is wider than `width`."""
    if not rows:
        return ""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    name = min(widths[0], max(_SHORTEST, width - sum(widths[1:]) - 2 * len(widths[1:])), width - 2 - max(widths[1:]))
    blocks: list[list[int]] = [[]]
    for column in range(1, len(widths)):
        if blocks[-1] and name + sum(widths[i] + 2 for i in [*blocks[-1], column]) > width:
            blocks.append([])
        blocks[-1].append(column)
    names = [text if len(text) <= name else f"…{text[1 - name :]}" for text, *_ in rows]
    tables = []
    for block in blocks:
        cells = [[text, *(row[i] for i in block)] for text, row in zip(names, rows, strict=True)]
        align = "<" + "".join(">" if any(_is_number(row[i]) for row in rows) else "<" for i in block)
        tables.append(table(cells, [header[0], *(header[i] for i in block)], align))
    return "\n\n".join(tables)


def _is_number(cell: str) -> bool:
    return cell.replace(",", "").replace(".", "").lstrip("-").isdecimal()
