"""Reproduces steps of a run: `verify` compares the first steps, `replay` shows one step."""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch

from funcvae import tracking, tree
from funcvae._support import checks
from funcvae._support.checks import Count
from funcvae._support.progress import Progress, notice, silent
from funcvae.errors import BadData, BadValue, NonFinite
from funcvae.models import System
from funcvae.runs import environment
from funcvae.runs.config import Config, check_available
from funcvae.runs.folder import (
    CHECKPOINTS,
    METRICS,
    check_same_data,
    check_same_system,
    load_data,
    read_run,
    size_of_rows,
)
from funcvae.runs.prepare import Setup, newest_checkpoint, prepare
from funcvae.train import checkpoint, loop
from funcvae.train.replaying import Replay, replay_task
from funcvae.train.settings import Callbacks, Row
from funcvae.train.state import TrainState

__all__ = ["TOLERANCE", "Verdict", "replay", "verify"]

TOLERANCE = 1e-4
"""Relative tolerance in a different environment; rounding errors grow during training."""


class Verdict(NamedTuple):
    """The result of `verify`: whether, and where, the repetition of a run differs from it."""

    steps: int
    """Number of reproduced steps."""
    environment: dict[str, tuple[Any, Any]]
    """The fields of the environment that differ, as (then, now)."""
    first_difference: str | None
    """Describes the first number that differs by a bit; None if all are identical."""
    largest_difference: float
    """The largest relative difference of losses, bounds, gradient norms, and parameters (by their norm)."""
    parameter_checks: int
    """How often the parameters were compared."""
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether all numbers are identical or, in a different environment, equal within the tolerance."""
        return self.first_difference is None or (bool(self.environment) and self.largest_difference <= self.tolerance)

    def __str__(self) -> str:
        times = f"{self.parameter_checks} time{'s' * (self.parameter_checks != 1)}"
        what = f"{self.steps:,} steps reproduced, parameters compared {times}"
        text = f"the environment differs: {environment.difference_text(self.environment)}" if self.environment else ""
        if self.first_difference is None:
            return "; ".join(filter(None, [f"{what}: identical to the bit", text]))
        size = f"first {self.first_difference}; largest relative difference {self.largest_difference:.1e}"
        if not self.environment:
            return f"{what}: NOT identical, though the environment is the same: {size}"
        within = "within" if self.holds else "NOT within"
        return f"{what}: {within} the tolerance of {self.tolerance:g}; {size}; {text}"


@checks.arguments
def verify(
    path: str | Path,
    steps: Count | None = None,
    *,
    tolerance: Annotated[float, checks.at_least(0)] = TOLERANCE,
    system: System | str | None = None,
    data: str | Path | None = None,
    data_dir: str | Path | None = None,
    progress: Progress = silent,
) -> Verdict:
    """Reproduces the first steps of a run with its number of threads, and compares losses and parameters.

    Compares the SHA-256 of the parameters after every epoch, and the parameters with every checkpoint on the way.

    Args:
        path: the run folder; nothing is written to it.
        steps: number of steps; by default those of the first epoch.
        tolerance: relative; applies if the environment differs.
        system, data, data_dir: see `load`. The code of an own system must not have changed.
        progress: called with the number of reproduced steps, and that of all.

    Raises:
        Missing, BadData, BadValue: see `load`; or the run has no steps.
    """
    path = Path(path)
    with _prepared(path, system, data, data_dir) as (setup, manifest):
        compare = _Comparison(_read_rows(path / METRICS))
        per_epoch = setup.task.steps_per_epoch
        wanted, made = min(setup.steps, per_epoch if steps is None else steps), 0
        stored = checkpoint.in_folder(path / CHECKPOINTS)

        def watch(step: int, ts: TrainState) -> None:
            nonlocal made
            made = step
            progress(made, wanted)
            if step % per_epoch == 0:
                compare.digests[step] = tree.sha256({"params": ts.params, "state": ts.state})
            if step in stored:
                compare.states(step, ts, checkpoint.load(stored[step], setup.start)[0])

        try:
            callbacks = Callbacks(log=compare.row, watch=watch, stop=lambda: made >= wanted or compare.ended)
            loop.fit_task(
                setup.start, setup.task, test=setup.test, test_every=setup.config.test_every,
                epochs=setup.config.epochs, callbacks=callbacks,
            )  # fmt: skip
        except NonFinite as error:
            compare.stopped(error)
        differing = environment.differences(manifest, environment.describe(setup.config))
    if not compare.steps:
        raise BadData(f"{path / METRICS} has no steps to compare with")
    return Verdict(compare.steps, differing, compare.first, compare.largest, compare.parameter_checks, tolerance)


@checks.arguments
def replay(
    path: str | Path, step: int, *, system: System | str | None = None, data: str | Path | None = None,
    data_dir: str | Path | None = None,
) -> tuple[Config, Replay]:  # fmt: skip
    """Reproduces one step of a run from the nearest checkpoint before it.

    Args:
        path: the run folder; nothing is written to it.
        step: counted from 0.
        system, data, data_dir: see `verify`.

    Returns:
        The configuration of the run, and the replay.

    Raises:
        BadValue: the run has no such step.
        Missing, BadData: see `load`.
    """
    path = Path(path)
    with _prepared(path, system, data, data_dir) as (setup, _):
        if not 0 <= step < setup.steps:
            raise BadValue(f"{path} has no step {step}: its steps are 0 to {setup.steps - 1}")
        ts, _, damaged = newest_checkpoint(setup, path, step)
        for error in damaged:
            notice(f"{error}; starting from step {int(ts.step)}")
        return setup.config, replay_task(ts, step, setup.task)


class _Comparison:
    """Compares reproduced rows and states with those of the run."""

    def __init__(self, rows: Iterator[Row]) -> None:
        self._rows = rows
        self.steps, self.parameter_checks, self.largest = 0, 0, 0.0
        self.differences: list[tuple[float, str]] = []  # (step, description)
        self.ended = False
        self.digests: dict[int, str] = {}

    @property
    def first(self) -> str | None:
        return min(self.differences)[1] if self.differences else None

    def row(self, now: Row) -> None:
        step, then = now["step"], next(self._rows, None)
        if then is None:
            self.ended = True
            return
        if then["kind"] != now["kind"] or then["step"] != step:
            raise BadData(f"metrics.jsonl has a row of step {then['step']} in place of step {step}")
        self.steps += now["kind"] == "step"
        for name in ("loss", "bound", "grad_norm", "train_bound", "test_bound"):
            if name in now:
                self._number(step, f"{name} at step {step}", then.get(name), now[name])
        if "params_sha256" in then:
            self.parameter_checks += 1
            if then["params_sha256"] != self.digests[step]:
                self.differences.append((step - 0.5, f"the parameters after {step:,} steps"))

    def stopped(self, error: NonFinite) -> None:
        """Records that a reproduced step was not finite. It is a difference unless the run ended there too."""
        if next(self._rows, None) is not None:
            self.differences.append((error.step or 0, f"{error}, but the run continued"))

    def states(self, step: int, now: TrainState, then: TrainState) -> None:
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


@contextmanager
def _prepared(
    path: Path, system: System | str | None, data: str | Path | None, data_dir: str | Path | None
) -> Iterator[tuple[Setup, environment.Manifest]]:
    """The run in a folder before its first step, and its manifest; within the context its settings apply."""
    config, manifest = read_run(path, system, data, data_dir)
    check_same_system(config.system, manifest, path)
    check_available(config)
    with environment.numerics(config, threads=manifest["threads"]):
        setup = prepare(config, load_data)
        check_same_data(setup.dataset.name, setup.dataset.sha256(), manifest["data_sha256"], path)
        yield setup, manifest


def _read_rows(path: Path) -> Iterator[Row]:
    """The rows of steps and epochs, without an incomplete last line."""
    for row in tracking.MetricsReader(path, size_of_rows(path)):
        if row["kind"] != "variance":
            yield row
