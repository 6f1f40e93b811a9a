"""The training loop over epochs."""

import math
from array import array
from collections.abc import Callable
from contextlib import closing, nullcontext
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch

from funcvae import compilation, noise, random, tree
from funcvae._support import checks, examples, tables
from funcvae._support.checks import Count
from funcvae._support.examples import Data
from funcvae._support.progress import Progress, silent
from funcvae._support.reprs import short_repr
from funcvae.distributed.collectives import SINGLE, Processes
from funcvae.distributed.sharding import GradientSettings, Split, by_rows
from funcvae.errors import BadData, BadType, BadValue, NonFinite
from funcvae.estimators.types import Estimator, EstimatorAt, by_step
from funcvae.model import VAE, Observe, as_is, check_items
from funcvae.optim import Optimizer
from funcvae.train import streaming
from funcvae.train.drawing import step_inputs
from funcvae.train.settings import NO_CALLBACKS, Callbacks, Log, Row, Save, Scale, StepSettings, Watch, per_example
from funcvae.train.state import Metrics, TrainState, check_train_state, run_keys, step_keys
from funcvae.train.step import run_step
from funcvae.train.stopping import Interrupt, Until
from funcvae.train.streaming import Readable, Source, Stream, training_batches
from funcvae.train.task import Task, checked_task

__all__ = ["History", "fit", "fit_task", "test_bound"]


@short_repr
class History(NamedTuple):
    """The metrics of a run, as float64 arrays."""

    loss: np.ndarray
    """[steps]."""
    bound: np.ndarray
    """[steps], in nats per example."""
    grad_norm: np.ndarray
    """The norm of the loss's gradient, before it is clipped [steps]."""
    reconstruction: np.ndarray
    """[steps], in nats per example: mean_k log p(x|z_k)."""
    kl: np.ndarray
    """[steps], in nats per example: the KL itself, without a factor such as that of `beta_elbo`; see `Estimate.kl`.
    `reconstruction - kl` is the ELBO, which an estimator of L_K or of another target does not report as `bound`."""
    test_bound: np.ndarray
    """[epochs], in nats per example, NaN after an epoch without one (`test_every`); empty without a test set."""
    steps_per_epoch: int = 0
    """0 if it is not known, or if the history starts within an epoch."""

    def to_dict(self) -> dict[str, list[float]]:
        """The columns of `to_pandas` as lists."""
        steps, per_epoch = len(self.loss), self.steps_per_epoch
        columns: dict[str, Any] = {"step": np.arange(steps)}
        if per_epoch:
            columns["epoch"] = columns["step"] // per_epoch
        columns |= dict(zip(Metrics._fields, self, strict=False))
        if per_epoch and len(self.test_bound) == steps // per_epoch:
            columns["test_bound"] = np.full(steps, np.nan)
            columns["test_bound"][per_epoch - 1 :: per_epoch] = self.test_bound
        return {name: column.tolist() for name, column in columns.items()}

    def to_csv(self) -> str:
        """`to_pandas` as comma-separated values under a line of names."""
        columns = self.to_dict()
        return tables.as_csv([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])

    def to_pandas(self) -> Any:
        """A pandas.DataFrame with one row for each step, counted from the first step of the history.

        If `steps_per_epoch` is known, it has a column "epoch", and the "test_bound" at the last step of each epoch, NaN
        at other steps.

        Raises:
            Missing: pandas is not installed.
        """
        return tables.as_frame(self.to_dict())


NO_HISTORY = History(*np.zeros((6, 0)))


@checks.readable
def fit(
    ts: TrainState,
    model: VAE,
    estimator: Estimator | EstimatorAt,
    opt: Optimizer,
    train: Data | Source,
    *,
    test: Data | Source | None = None,
    test_every: int = 1,
    epochs: int = 1,
    batch: int = 128,
    samples: int = 1,
    chunk: int | None = None,
    shards: int | None = None,
    split: Split = by_rows,
    processes: Processes = SINGLE,
    observe: Observe = as_is,
    noise: noise.Noise = noise.iid,
    scale: Scale = per_example,
    offset: float = 0.0,
    compile: bool = True,
    precision: str = "highest",
    history: History | None = None,
    log: Log = lambda row: None,
    watch: Watch = lambda step, ts: None,
    save: Save = lambda ts: None,
    save_every: int = 0,
    stop: Callable[[], bool] = lambda: False,
    until: Until | None = None,
    best: Save | None = None,
    progress: Progress = silent,
) -> tuple[TrainState, History]:
    """Trains for `epochs` epochs, from the step of `ts`. Returns the new TrainState and the history; `ts` is unchanged.

    To continue a stopped run, pass its `ts` and `history`: it ends with the same bits as an uninterrupted run. The rest
    of a partial epoch counts as one of `epochs`.

    Every epoch visits all of `train` once, including a last short batch. Then the target bound of the estimator on
    `test` is computed in evaluation mode, with the same noise after every epoch, so that its curve varies only with the
    model.

    Several processes train one model if each calls this with the same arguments and `process_group()`. Each process
    draws the noise and the data of its own shards from the same keys, and all have the same `ts` after every step.
    `log`, `watch` and `save` are called in every process: write only in the main one. `stop` may differ between
    processes: if one requests a stop, all stop after the same step.

    The process keeps freed memory from then on: see `funcvae.compilation.keep_freed`.

    Args:
        estimator: an Estimator, or a function of the number of steps made, an int64 tensor without axes, that returns
            one, as in `lambda step: estimators.beta_elbo(optim.linear(0, 1, 10_000)(step))`. It is part of the compiled
            step, so it must not read the value of the tensor. The test bound is that of the step that was reached.
        train: data [n, ...], which are all moved to the device of `ts`, or a `Source` of them, which is read batch by
            batch, ahead of the steps. The bits are the same as with all data in memory.
        test: data [m, ...] for the test bound, or a source of them.
        test_every: the number of epochs between test bounds; the last epoch of a call always has one. It changes no
            parameter, unless `until` or `best` depends on it.
        batch: the batch size B.
        samples: the number N of Monte-Carlo samples for each datum, in training and test.
        chunk: the number of samples to decode at a time (`funcvae.estimators.in_chunks`), which bounds the memory. By
            default, 2^25 numbers are decoded at a time. Networks with layers larger than their output may need a
            smaller chunk.
        shards: the number of shards to divide each step into. They are summed along a fixed tree, so the bits are the
            same for every number of processes. By default, each process has one shard, and torch.distributed chooses
            the fastest order. See `distributed.sharding`.
        split: how to divide a step, `funcvae.distributed.by_rows` or `funcvae.distributed.by_samples`.
        observe: maps (key, x) to the input of the model, for instance by a new random binarization in each step. A run
            that is not compiled may call it for several steps ahead, and under `vmap` if that keeps the bits.
        scale, offset: the loss is scale(B) · (-bound - offset): see `make_step`.
        compile: run the step under `torch.compile` if possible. The numbers are equal to rounding. The first step of a
            call takes several seconds, or about two if this process has compiled the same step before.
            `funcvae.compilation.pays` decides whether that pays. A short last batch runs uncompiled.
        precision: the precision of float32 matrix products: see `funcvae.compilation.precision`.
        history: the history of earlier calls for the same run, to which this call appends.
        log: called with a `Row` for every step, and for every epoch with `test_bound` and the means over the items of
            the epoch. Rows of steps arrive in groups, because each read makes the device wait; the row of an epoch
            arrives before the next step.
        watch: called after every step with the number of steps made and the new TrainState. The next step overwrites
            its buffers, so copy what you keep.
        save: called with the TrainState after every `save_every` steps of the run (never for 0), after the last step,
            and after a stop. Before that, all parameters are checked to be finite, and all earlier rows are logged.
        stop: called after every step; if it returns True, `fit` returns early. `interrupt()` returns when the user
            interrupts.
        until: called after every epoch that has a test bound, with those of all epochs so far [epochs], NaN where it
            was not computed; if it returns True, `fit` returns. `early_stopping(patience)` makes one.
        best: called with the TrainState after every epoch whose test bound is the highest so far. `keep_best()` makes
            one that keeps a copy.
        progress: called with the number of steps made and that of all steps; `funcvae.tracking.bar` shows
            a progress bar.

    Raises:
        BadValue: epochs, batch, samples, chunk, shards or test_every is below one, or save_every is below zero; the
            precision is unknown; there are more shards than rows or samples, or more processes than shards; `shards` is
            None for several processes and a model with running statistics; or the estimator requires independent
            samples, and those of the noise scheme are not.
        BadType: an argument has the wrong type, or the function of the step does not return an Estimator.
        BadData: the model cannot take the data: they have a wrong shape, values outside the range of the likelihood,
            or non-finite values; or a model with BatchNorm would get a batch or shard of a single item.
        ProcessLost, ReportedElsewhere: another process exited, or reported an error.
        NonFinite: the loss, its gradient, the parameters or the test bound became NaN or infinite. The message and
            the `step` of the error name the step to `replay`. All earlier rows are logged.

    Warns:
        compilation.Uncompiled: the step runs without the compiler: none was found, or it cannot compile the model.
    """
    settings = StepSettings(
        batch=batch, samples=samples, chunk=chunk, shards=shards, split=split, observe=observe, noise=noise,
        scale=scale, offset=offset, compile=compile, precision=precision,
    )  # fmt: skip
    task = Task(model, estimator, opt, train, settings, processes)
    callbacks = Callbacks(log, watch, save, save_every, stop, until, best, progress)
    return fit_task(ts, task, test=test, test_every=test_every, epochs=epochs, callbacks=callbacks, history=history)


@checks.arguments
def fit_task(
    ts: TrainState,
    task: Task,
    *,
    test: Readable | None = None,
    test_every: Count = 1,
    epochs: Count = 1,
    callbacks: Callbacks = NO_CALLBACKS,
    history: History | None = None,
) -> tuple[TrainState, History]:
    """Trains a task. Like `fit`, but takes its settings as value objects."""
    record = _Record(history or NO_HISTORY)
    task = checked_task(ts, task)
    if test is not None:
        check_items(task.model, ts.params, ts.state, streaming.first(test), task.settings.observe, name="test")
        test = streaming.on_device(test, ts.step.device)
    elif callbacks.until or callbacks.best:
        raise BadValue("until and best depend on the test bound: give test, too")
    if (callbacks.until or callbacks.best) and not isinstance(task.estimator, Estimator):
        raise BadValue(
            "until and best compare the test bounds of epochs, but the estimator, and so its bound, changes with the "
            "step: train without them, or with one estimator"
        )
    run = run_step(task, callbacks.stop)
    step, watch, save_every, batch = run.step, callbacks.watch, callbacks.save_every, task.settings.batch
    ts = tree.map(torch.clone, ts)  # steps overwrite these copies
    frozen = [leaf for path, leaf in tree.named_leaves(ts.state).items() if path in task.model.frozen]
    compilation.mark_static((ts.params, ts.opt_state, frozen))
    n, test_key = streaming.count(task.train), run_keys(ts.key).test
    made, per_epoch = int(ts.step), task.steps_per_epoch
    ended = made % per_epoch == 0 and len(record.test_bounds) > 0  # a history may end training at once
    stopped = ended and _ends(callbacks.until, record.test_bounds)
    last = (made // per_epoch + epochs) * per_epoch
    batches = training_batches(ts, task.train, batch, last - made)

    compilation.keep_freed()
    handled = callbacks.stop if isinstance(callbacks.stop, Interrupt) else nullcontext()
    callbacks.progress(made, last)
    with compilation.precision(task.settings.precision), handled, closing(batches):
        inputs = run.inputs(batches, ts.params)
        while made < last and not stopped:
            # Make a group of steps, whose metrics stay on the device.
            epoch, reports, unreadable = made // per_epoch, list[Metrics](), None
            try:
                for drawn in islice(inputs, _burst_length(made, per_epoch, save_every)):
                    ts, metrics = step(ts, *drawn)
                    reports.append(metrics)
                    watch(made + len(reports), ts)
                    callbacks.progress(made + len(reports), last)
                    if run.polls_each_step and (stopped := run.stop_requested()):
                        break
            except BadData as error:
                unreadable = error
            stopped = stopped or (not run.polls_each_step and run.stop_requested())

            # Read the metrics, log and keep them.
            record.add(_read_and_log(reports, epoch, made, callbacks.log))
            made += len(reports)
            if unreadable:
                raise unreadable

            # End the epoch and save, if due.
            epoch_ended = made % per_epoch == 0
            row: Row = {"kind": "epoch", "epoch": epoch, "step": made}
            if epoch_ended or _saving(stopped, made, last, save_every):
                _check_finite("the parameters' norm", float(tree.norm(ts.params)), row)
            if epoch_ended:
                row |= record.means(n, batch)
                due = (epoch + 1) % test_every == 0 or made == last
                if test is not None and due:
                    row["test_bound"] = _test_bound(ts, test, test_key, run.evaluation, batch, task.processes)
                    _check_finite("test_bound", row["test_bound"], row)
                if test is not None:
                    record.test_bounds.append(row.get("test_bound", math.nan))
                callbacks.log(row)
                if test is not None and due:
                    if callbacks.best and np.nanargmax(record.test_bounds) == len(record.test_bounds) - 1:
                        callbacks.best(ts)
                    stopped = stopped or _ends(callbacks.until, record.test_bounds)
            if _saving(stopped, made, last, save_every):
                callbacks.save(ts)
    return ts, record.history(made, per_epoch)


@checks.arguments
def test_bound(
    model: VAE,
    estimator: Estimator | EstimatorAt,
    ts: TrainState,
    test: Readable,
    key: random.Key,
    *,
    batch: Count = 128,
    samples: Count = 1,
    observe: Observe = as_is,
    noise: noise.Noise = noise.iid,
) -> float:
    """The target bound of the estimator (of the step that `ts` has reached), averaged over `test`, in nats per example.

    Raises:
        BadValue: the estimator requires independent samples, and those of the noise scheme are not.
        BadData: the model cannot take the data.
    """
    check_train_state(ts, model)
    estimator_at = by_step(estimator)
    estimator_at(ts.step).claims_under(noise)
    check_items(model.unchecked(), ts.params, ts.state, streaming.first(test), observe, name="test")
    if isinstance(test, Stream):
        test = streaming.on_device(test, key.device)
    examples.same_device(streaming.first(test), key=key)
    gradient = GradientSettings(model.unchecked(), estimator_at, samples, samples, observe, checks.unchecked(noise))
    return _test_bound(ts, test, key, gradient, batch, SINGLE)


@torch.no_grad()
def _test_bound(
    ts: TrainState, test: Data | Stream, key: random.Key, gradient: GradientSettings, batch: int, processes: Processes
) -> float:
    """The mean over `test`, summed in the order of the batches; each process computes its own batches."""
    model, estimator, n = gradient.model, gradient.estimator_at(ts.step), streaming.count(test)
    rows = torch.arange(n, device="cpu" if isinstance(test, Stream) else key.device).split(batch)
    own = processes.share_of(len(rows))
    sums = torch.zeros(len(own), dtype=torch.float64, device=key.device)
    keys = step_keys(key, torch.tensor(own, dtype=torch.int64, device=key.device))
    with closing(streaming.read(test, zip([rows[i] for i in own], keys, strict=True))) as batches:
        for i, (_, keys_i, x) in enumerate(batches):
            x, eps = step_inputs(ts.params, keys_i, x, gradient)
            sums[i] = estimator.evaluate(model, ts.params, ts.state, x, eps).sum()
    return sum(processes.all_gather_rows(sums).tolist()) / n


class _Record:
    """A growing `History`, in arrays, so that a long run takes little memory."""

    def __init__(self, past: History) -> None:
        *arrays, _ = past
        if not all(isinstance(x, np.ndarray) and x.ndim == 1 and x.dtype.kind in "fiu" for x in arrays):
            raise BadType("history must be a History of arrays of numbers, such as fit returns")
        lengths = [len(x) for x in arrays[:_WIDTH]]
        if len(set(lengths)) > 1:
            raise BadValue(f"history has {', '.join(Metrics._fields)} of lengths {lengths}: they must be equal")
        self.metrics = array("d", np.stack(arrays[:_WIDTH], axis=1).astype(float).tobytes())  # [steps, metrics]
        self.test_bounds = array("d", past.test_bound.astype(float).tobytes())

    def add(self, metrics: np.ndarray) -> None:
        self.metrics.extend(metrics.flat)

    def means(self, n: int, batch: int) -> dict[str, float]:
        """The finite means over the n items of the last epoch, or over those of the recorded steps of it."""
        items = np.diff([*range(0, n, batch), n]) / min(n, batch)  # of each step, relative to the first
        rows = np.array(self.metrics[-_WIDTH * len(items) :]).reshape(-1, _WIDTH)
        means = Metrics(*np.average(rows, axis=0, weights=items[-len(rows) :]).tolist())
        found = {f"train_{name}": getattr(means, name) for name in ("bound", "reconstruction", "kl")}
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def history(self, made: int, per_epoch: int) -> History:
        """The history of a run that has made a number of steps."""
        metrics = np.array(self.metrics).reshape(-1, _WIDTH).T
        from_start = (made - len(metrics[0])) % per_epoch == 0
        columns: list[Any] = [*metrics, np.array(self.test_bounds), per_epoch if from_start else 0]
        return History(*columns)


def _burst_length(made: int, per_epoch: int, save_every: int) -> int:
    """The number of steps until the metrics are read: at the end of the epoch, before saving, or every few steps."""
    ends = [_READ_EVERY, per_epoch - made % per_epoch]
    return min([*ends, save_every - made % save_every] if save_every else ends)


def _ends(until: Until | None, test_bounds: "array[float]") -> bool:
    return until is not None and bool(until(np.array(test_bounds)))


def _saving(stopped: bool, made: int, last: int, save_every: int) -> bool:
    return stopped or made == last or (save_every > 0 and made % save_every == 0)


def _read_and_log(reports: list[Metrics], epoch: int, first_step: int, log: Log) -> np.ndarray:
    """Reads the reports as numbers [steps, 5] in one transfer, and logs them up to the first that is not finite."""
    if not reports:
        return np.empty(0)
    read = torch.stack([number for report in reports for number in report]).view(-1, len(Metrics._fields)).tolist()
    for step, values in enumerate(read, first_step):
        row = {"kind": "step", "epoch": epoch, "step": step, **Metrics(*values)._asdict()}
        for name in ("loss", "bound", "grad_norm"):
            _check_finite(name, row[name], row)
        log({name: value for name, value in row.items() if name == "kind" or math.isfinite(value)})
    return np.array(read)


def _check_finite(name: str, value: float, row: Row) -> None:
    if not math.isfinite(value):
        at = "at" if row["kind"] == "step" else "after"
        step = row["step"] - (at == "after")  # the row of an epoch has the number of steps made
        cause = "a smaller learning rate may help" if row["step"] else "check the data and the model's first output"
        error = NonFinite(f"{name} became {value} {at} step {step} (epoch {row['epoch']}): {cause}")
        error.step = step
        raise error


_WIDTH = len(Metrics._fields)
_READ_EVERY = 50  # the number of steps between two reads of the metrics, which wait for the device
