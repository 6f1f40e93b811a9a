"""Reproduces steps of a run: `verify` compares its first steps, `replay` shows one of them."""

import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from funcvae import tracking, tree
from funcvae._support import checks, files
from funcvae.errors import BadData, BadValue, NonFinite
from funcvae.runs import environment
from funcvae.runs.config import Config, check_config
from funcvae.runs.folder import (
    CHECKPOINTS,
    METRICS,
    check_same_config,
    check_same_data,
    load_data,
    read_config,
    read_manifest,
)
from funcvae.runs.prepare import Setup, newest_checkpoint, prepare
from funcvae.tracking.metrics_file import LINE_LIMIT
from funcvae.train import checkpoint, loop
from funcvae.train.replaying import Replay, replay_task
from funcvae.train.settings import Callbacks, Row
from funcvae.train.state import TrainState

__all__ = ["TOLERANCE", "Verdict", "replay", "verify"]

TOLERANCE = 1e-4
"""Relative, where the environment differs: rounding grows as training goes on."""


class Verdict(NamedTuple):
    """The result of `verify`."""

    steps: int
    """Steps reproduced."""
    environment: dict[str, tuple[Any, Any]]
    """The fields in which the environment differs, as (then, now)."""
    first_difference: str | None
    """Describes the first number that is not the same to the bit; None if all are."""
    largest_difference: float
    """The largest relative difference of losses, bounds and gradient norms, and of parameters (of their norms)."""
    parameter_checks: int
    """How many times the parameters were compared."""
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether all is equal to the bit; or, where the environment differs, to the tolerance."""
        return self.first_difference is None or (bool(self.environment) and self.largest_difference <= self.tolerance)

    def __str__(self) -> str:
        times = f"{self.parameter_checks} time{'s' * (self.parameter_checks != 1)}"
        what = f"{self.steps:,} steps made again, parameters compared {times}"
        text = f"the environment differs: {environment.difference_text(self.environment)}" if self.environment else ""
        if self.first_difference is None:
            return "; ".join(filter(None, [f"{what}: identical to the bit", text]))
        size = f"first {self.first_difference}; largest relative difference {self.largest_difference:.1e}"
        if not self.environment:
            return f"{what}: NOT identical, though the environment is the same: {size}"
        within = "within" if self.holds else "NOT within"
        return f"{what}: {within} the tolerance of {self.tolerance:g}; {size}; {text}"


def verify(
    path: str | Path,
    steps: int | None = None,
    *,
    tolerance: float = TOLERANCE,
    data: str | None = None,
    data_dir: str | None = None,
) -> Verdict:
    """Reproduces a run's first steps with its number of threads, and compares losses and parameters.

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
    steps = None if steps is None else checks.integer("--steps", steps, 1)
    if not checks.number("--tolerance", tolerance) >= 0:
        raise BadValue(f"--tolerance is {tolerance}: it must be a number, and not negative")
    config, manifest = _read_run(path, data, data_dir)
    with environment.numerics(config, threads=manifest["threads"]):
        setup = _prepare(config, manifest, path)
        compare = _Comparison(_read_rows(path / METRICS))
        per_epoch = setup.task.steps_per_epoch
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
                callbacks = Callbacks(log=log, watch=watch, stop=lambda: made >= wanted or compare.ended)
                epochs = -(-wanted // per_epoch)
                loop.fit_task(setup.start, setup.task, test=setup.test, epochs=epochs, callbacks=callbacks)
            except NonFinite as error:
                compare.stopped(error)
        differing = environment.differences(manifest, environment.describe(config))
    if not compare.steps:
        raise BadData(f"{path / METRICS} has no rows of steps to compare with")
    return Verdict(compare.steps, differing, compare.first, compare.largest, compare.parameter_checks, tolerance)


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
    path, step = checks.path("path", path), checks.integer("step", step)
    config, manifest = _read_run(path, data, data_dir)
    with environment.numerics(config, threads=manifest["threads"]):
        setup = _prepare(config, manifest, path)
        if not 0 <= step < setup.steps:
            raise BadValue(f"{path} has no step {step}: its steps are 0 to {setup.steps - 1}")
        ts, _, damaged = newest_checkpoint(setup, path, step)
        for error in damaged:
            tqdm.write(f"funcvae: {error}; beginning at step {int(ts.step)}", file=sys.stderr)
        return config, replay_task(ts, step, setup.task)


class _Comparison:
    """Compares reproduced rows and states with those of the run."""

    def __init__(self, rows: Iterator[Row]) -> None:
        self._rows = rows
        self.steps, self.parameter_checks, self.largest = 0, 0, 0.0
        self.differences: list[tuple[float, str]] = []  # (when, what)
        self.ended = False
        self.digests: dict[int, str] = {}

    @property
    def first(self) -> str | None:
        """Describes the earliest difference."""
        return min(self.differences)[1] if self.differences else None

    def row(self, now: Row) -> None:
        """Compares a row with the run's next one."""
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
            self.parameter_checks += 1
            if then["params_sha256"] != self.digests[step]:
                self.differences.append((step - 0.5, f"the parameters after {step:,} steps"))

    def stopped(self, error: NonFinite) -> None:
        """The reproduced steps stopped at a number that is not finite: a difference unless the run did, too."""
        if next(self._rows, None) is not None:
            self.differences.append((error.step or 0, f"{error}, and the run had gone on"))

    def states(self, step: int, now: TrainState, then: TrainState) -> None:
        """Compares a state with that of a checkpoint."""
        self.parameter_checks += 1
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


def _read_run(path: Path, data: str | None, data_dir: str | None) -> tuple[Config, dict[str, Any]]:
    config, manifest = read_config(path), read_manifest(path)
    check_same_config(config, manifest, path)
    config = replace(config, data=data or config.data, data_dir=data_dir or config.data_dir)
    check_config(config)
    return config, manifest


def _prepare(config: Config, manifest: dict[str, Any], path: Path) -> Setup:
    setup = prepare(config, load_data)
    check_same_data(setup.dataset, manifest["data_sha256"], path)
    return setup


def _read_rows(path: Path) -> Iterator[Row]:
    """The rows of steps and epochs, up to one that is cut off at the end."""
    size = path.stat().st_size if path.is_file() else 0
    whole = size - len(files.tail(path, LINE_LIMIT).rpartition(b"\n")[2]) if size else None
    for row in tracking.MetricsReader(path, whole):
        if tracking.is_step(row) or "test_bound" in row:
            yield row
