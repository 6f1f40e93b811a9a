"""A run made again, to be compared with what it left: its first steps, or one of them."""

import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from funcvae import tracking, train, tree
from funcvae._support import checks, files
from funcvae.errors import BadData, BadValue, NonFinite
from funcvae.runs import config as configs
from funcvae.runs import environment as manifests
from funcvae.runs.config import Config
from funcvae.runs.folder import CHECKPOINTS, METRICS, check_config, check_same, load_data, read_config, read_manifest
from funcvae.runs.prepare import Setup, nearest, prepare
from funcvae.tracking.metrics_file import LINE
from funcvae.train import checkpoint
from funcvae.train.replaying import Replay
from funcvae.train.settings import Row
from funcvae.train.state import TrainState

TOLERANCE = 1e-4
"""Relative, where the environment differs: rounding grows as training goes on."""


class Verdict(NamedTuple):
    """What became of a run's first steps when they were made again."""

    steps: int
    environment: dict[str, tuple[Any, Any]]
    """In what it differs, as (then, now)."""
    first: str | None
    """The first number that is not the same to the bit, in words; None if all are."""
    largest: float
    """The largest relative difference of losses, bounds and gradient norms, and of parameters (of their norms)."""
    parameters: int
    """How many times the parameters were compared."""
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether all is equal to the bit; or, where the environment differs, to the tolerance."""
        return self.first is None or (bool(self.environment) and self.largest <= self.tolerance)

    def __str__(self) -> str:
        what = (
            f"{self.steps:,} steps made again, parameters compared {self.parameters} time{'s' * (self.parameters != 1)}"
        )
        where = f"the environment differs: {manifests.described(self.environment)}" if self.environment else ""
        if self.first is None:
            return "; ".join(filter(None, [f"{what}: identical to the bit", where]))
        size = f"first {self.first}; largest relative difference {self.largest:.1e}"
        if not self.environment:
            return f"{what}: NOT identical, though the environment is the same: {size}"
        within = "within" if self.holds else "NOT within"
        return f"{what}: {within} the tolerance of {self.tolerance:g}; {size}; {where}"


def verify(
    path: str | Path,
    steps: int | None = None,
    *,
    tolerance: float = TOLERANCE,
    data: str | None = None,
    data_dir: str | None = None,
) -> Verdict:
    """Makes a run's first steps again, with its number of threads, and compares losses and parameters.

    The parameters are compared by their SHA-256 at the end of every epoch, and with every checkpoint on the way.

    Args:
        path: the run's folder, in which nothing is written.
        steps: how many; the first epoch's unless given.
        tolerance: relative, for where the environment differs.
        data, data_dir: where the data are now, if they have moved.

    Raises:
        BadValue: steps is below one, or the tolerance is negative.
        Missing, BadData: see `load`; or the run has made no step.
    """
    path = checks.path("path", path)
    steps = None if steps is None else checks.whole("--steps", steps, 1)
    if not checks.number("--tolerance", tolerance) >= 0:
        raise BadValue(f"--tolerance is {tolerance}: it must be a number, and not negative")
    config, manifest = _read(path, data, data_dir)
    with manifests.numerics(config, threads=manifest["threads"]):
        setup = _prepared(config, manifest, path)
        compare = _Comparison(_rows(path / METRICS))
        per_epoch = setup.steps_per_epoch
        wanted = min(setup.steps, per_epoch if steps is None else steps)
        made = 0
        stored = checkpoint.in_folder(path / CHECKPOINTS)

        def watch(step: int, ts: TrainState) -> None:
            nonlocal made
            made = step
            if step % per_epoch == 0:
                compare.digests[step] = tree.sha256({"params": ts.params, "state": ts.state})
            if step in stored:
                compare.states(step, ts, checkpoint.load(stored[step], setup.start)[0])

        with tqdm(total=wanted, unit="step", leave=False, dynamic_ncols=True) as bar:

            def log(row: Row) -> None:
                compare.row(row)
                bar.update(int(tracking.is_step(row)))

            try:
                train.fit(
                    setup.start, setup.model, setup.estimator, setup.opt, setup.train, test=setup.test,
                    epochs=-(-wanted // per_epoch), **setup.settings, log=log, watch=watch,
                    stop=lambda: made >= wanted or compare.ended,
                )  # fmt: skip
            except NonFinite as error:
                compare.stopped(error)
        differing = manifests.differences(manifest, manifests.environment(config))
    if not compare.steps:
        raise BadData(f"{path / METRICS} has no rows of steps to compare with")
    return Verdict(compare.steps, differing, compare.first, compare.largest, compare.parameters, tolerance)


def replay(
    path: str | Path, step: int, *, data: str | None = None, data_dir: str | None = None
) -> tuple[Config, Replay]:
    """One step of a run by itself, from the nearest checkpoint before it: its configuration, and its replay.

    Args:
        path: the run's folder, in which nothing is written.
        step: counted from 0.
        data, data_dir: where the data are now, if they have moved.

    Raises:
        BadValue: the run has no such step.
        Missing, BadData: see `load`.
    """
    path, step = checks.path("path", path), checks.whole("step", step)
    config, manifest = _read(path, data, data_dir)
    with manifests.numerics(config, threads=manifest["threads"]):
        setup = _prepared(config, manifest, path)
        if not 0 <= step < setup.steps:
            raise BadValue(f"{path} has no step {step}: its steps are 0 to {setup.steps - 1}")
        ts, _, damaged = nearest(setup, path, step)
        for error in damaged:
            tqdm.write(f"funcvae: {error}; beginning at step {int(ts.step)}", file=sys.stderr)
        return config, train.replay(ts, step, setup.model, setup.estimator, setup.opt, setup.train, **setup.settings)


class _Comparison:
    """Rows and states that were made again, held against those that were kept."""

    def __init__(self, rows: Iterator[Row]) -> None:
        self._rows = rows
        self.steps, self.parameters, self.largest = 0, 0, 0.0
        self.differences: list[tuple[float, str]] = []  # (when, what)
        self.ended = False
        self.digests: dict[int, str] = {}

    @property
    def first(self) -> str | None:
        """The earliest that is not the same, in words."""
        return min(self.differences)[1] if self.differences else None

    def row(self, now: Row) -> None:
        """Compares a row with the next that was kept."""
        then = next(self._rows, None)
        if then is None:
            self.ended = True
            return
        step = now["step"]
        if tracking.is_step(then) != tracking.is_step(now) or then["step"] != step:
            raise BadData(f"metrics.jsonl has a row of step {then['step']} where that of step {step} belongs")
        self.steps += tracking.is_step(now)
        for name in ("loss", "bound", "grad_norm", "test_bound"):
            if name in now:
                self._number(step, f"{name} at step {step}", then.get(name), now[name])
        if "params_sha256" in then:
            self.parameters += 1
            if then["params_sha256"] != self.digests[step]:
                self.differences.append((step - 0.5, f"the parameters after {step:,} steps"))

    def stopped(self, error: NonFinite) -> None:
        """The steps made again came to a number that is not finite: the run had stopped there too, or it differs."""
        if next(self._rows, None) is not None:
            self.differences.append((error.step or 0, f"{error}, and the run had gone on"))

    def states(self, step: int, now: TrainState, then: TrainState) -> None:
        """Compares what a checkpoint holds."""
        self.parameters += 1
        if not all(torch.equal(a, b) for a, b in zip(tree.leaves(then), tree.leaves(now), strict=True)):
            self.differences.append((step - 0.5, f"the checkpoint after {step:,} steps"))
        size = float(tree.norm(then.params))
        gap = float(tree.norm(tree.map(torch.sub, now.params, then.params)))
        self.largest = max(self.largest, gap / size if size else gap)

    def _number(self, step: int, what: str, then: Any, now: float) -> None:
        if type(then) is not float:
            raise BadData(f"metrics.jsonl has {then!r} for the {what}: it must be a number")
        if then != now:
            self.differences.append((step, f"{what}, which was {then!r} and is {now!r} now"))
        gap = abs(now - then) / max(abs(then), sys.float_info.min)
        self.largest = max(self.largest, gap if math.isfinite(gap) else math.inf)


def _read(path: Path, data: str | None, data_dir: str | None) -> tuple[Config, dict[str, Any]]:
    config, manifest = read_config(path), read_manifest(path)
    check_config(config, manifest, path)
    config = replace(config, data=data or config.data, data_dir=data_dir or config.data_dir)
    configs.check(config)
    return config, manifest


def _prepared(config: Config, manifest: dict[str, Any], path: Path) -> Setup:
    setup = prepare(config, load_data)
    check_same(setup.dataset, manifest["data_sha256"], path)
    return setup


def _rows(path: Path) -> Iterator[Row]:
    """The rows of steps and epochs, up to one that is cut off at the end."""
    size = path.stat().st_size if path.is_file() else 0
    whole = size - len(files.tail(path, LINE).rpartition(b"\n")[2]) if size else None
    for row in tracking.MetricsReader(path, whole):
        if tracking.is_step(row) or "test_bound" in row:
            yield row
