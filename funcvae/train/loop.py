"""Training: the loop over epochs."""

import math
from array import array
from collections.abc import Callable
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from funcvae import compilation, noise, random, tree
from funcvae._support import checks
from funcvae.distributed.collectives import SINGLE, Processes
from funcvae.distributed.sharding import GradientSettings, Split, by_rows
from funcvae.errors import BadType, BadValue, NonFinite
from funcvae.estimators.types import Estimator, checked_estimator
from funcvae.model import VAE, Observe, as_is, check_data
from funcvae.optim import Optimizer
from funcvae.train.settings import NO_CALLBACKS, Callbacks, Log, Row, Save, Scale, StepSettings, Watch, per_example
from funcvae.train.state import Metrics, TrainState, batches_from, check_train_state, run_keys, step_keys
from funcvae.train.step import run_step, step_inputs
from funcvae.train.task import Task, checked_task

__all__ = ["History", "fit", "fit_task", "test_bound"]


class History(NamedTuple):
    """What `fit` reports, as float64 arrays."""

    loss: np.ndarray  # [steps]
    bound: np.ndarray  # [steps], nats per example
    grad_norm: np.ndarray  # [steps]
    test_bound: np.ndarray  # [epochs], nats per example; empty without a test set


def fit(
    ts: TrainState,
    model: VAE,
    estimator: Estimator,
    opt: Optimizer,
    train: Tensor,
    *,
    test: Tensor | None = None,
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
) -> tuple[TrainState, History]:
    """Trains for some epochs, from wherever `ts` stands, and leaves `ts` as it was.

    Memory that is freed stays with the process from then on: see `compilation.keep_freed`.

    A run that is stopped, and goes on with the `ts` and the `history` that it stopped with, ends with the bits of one
    that was not. An epoch that was begun counts as one of `epochs`.

    Every epoch visits all of `train` once, the last short batch included. After it the estimator's target bound on
    `test` is taken in evaluation mode, with the same noise every epoch, so that its curve shows the model's progress
    and not the noise's.

    Several processes train one model where each calls this with the same arguments and `process_group()`: each draws
    the noise and the data of its own shards, from the same keys, and all have the same `ts` after every step. `log`,
    `watch` and `save` are called in each: only the main process should write. `stop` may differ between processes:
    where one requests a stop, all stop after the same step.

    Args:
        train: data [n, ...]; kept whole on the device of `ts`.
        test: data [m, ...] for the test bound.
        samples: N, Monte-Carlo samples for each datum, in training and test.
        chunk: where there are more samples, so many are decoded at a time (`estimators.in_chunks`), which bounds the
            memory; by the size of a batch, such that 2^25 numbers are decoded, unless given. Networks whose layers are
            larger than their output may need fewer.
        shards: split each step into so many, and add them along a fixed tree: the bits are then the same for every
            number of processes. Unless it is given, each process has one, and torch.distributed adds them as is
            fastest. See `distributed.sharding`.
        split: what is split, `distributed.by_rows` or `distributed.by_samples`.
        processes: those that share the work.
        observe: (key, x) -> what the model sees of a batch, such as a binarization that is drawn anew each time.
        noise: the noise scheme.
        scale: the loss that is descended and reported is scale(B) · (-bound - offset): see `make_step`.
        offset: see `make_step`.
        compile: run the step under `torch.compile`, where there is a compiler and it can: the same numbers to rounding,
            after some seconds for the first step of every call (a second or two where the process has made it before).
        precision: of float32 matrix products: see `compilation.precision`.
        history: what earlier calls reported of the run that goes on, to be added to.
        log: called with a row (a flat dict) for every step, and for every epoch with `test_bound` and the epoch's mean
            training `bound`. Rows come in bursts, for reading a number back from the device makes it wait.
        watch: called after every step with the number of steps made and the new TrainState, whose buffers the next step
            writes over: copy what is to be kept.
        save: called with the TrainState after every `save_every` steps of the run (0: not then), after the last one,
            and when stopped, where all is finite and all rows before it have been logged.
        save_every: see `save`.
        stop: asked after every step; where it says so, `fit` returns early, with what there is.

    Raises:
        BadValue: epochs, batch, samples, chunk or shards below one, or save_every below zero; an unknown precision;
            more shards than rows or samples, or more processes than shards; or the estimator leans on independent
            samples, and the noise scheme's are not.
        BadType: data that are no tensor.
        BadData: data the model cannot take: a wrong shape, values outside the likelihood's range, or not finite; or a
            last batch, or a shard, of one item where there is BatchNorm.
        ProcessLost, ReportedElsewhere: another process has ended, or has said what is wrong.
        NonFinite: the loss, its gradient, the parameters or the test bound became NaN or infinite; the message, and the
            error's `step`, name the step to `replay`. All rows before it have been logged.

    Warns:
        compilation.Uncompiled: the step is not compiled: there is no compiler, or it cannot compile the model.
    """
    settings = StepSettings(
        batch=batch, samples=samples, chunk=chunk, shards=shards, split=split, observe=observe, noise=noise,
        scale=scale, offset=offset, compile=compile, precision=precision,
    )  # fmt: skip
    task = Task(model, estimator, opt, train, settings, processes)
    callbacks = Callbacks(log, watch, save, save_every, stop)
    return fit_task(ts, task, test=test, epochs=epochs, callbacks=callbacks, history=history)


def fit_task(
    ts: TrainState,
    task: Task,
    *,
    test: Tensor | None = None,
    epochs: int = 1,
    callbacks: Callbacks = NO_CALLBACKS,
    history: History | None = None,
) -> tuple[TrainState, History]:
    """`fit` of a task."""
    epochs, record = checks.integer("epochs", epochs, 1), _Record(history)
    if not isinstance(callbacks, Callbacks):
        raise BadType(f"callbacks is {checks.describe(callbacks)}: it must be Callbacks")
    task = checked_task(ts, task)
    if test is not None:
        check_data(task.model, ts.params, ts.state, test, task.settings.observe, name="test")
        test = test.to(task.train.device)
    run = run_step(task, callbacks.stop)
    step, watch, save_every = run.step, callbacks.watch, callbacks.save_every
    ts = tree.map(torch.clone, ts)  # from here on the buffers are our own to write in
    compilation.mark_static((ts.params, ts.opt_state))
    batches, test_key = batches_from(ts, len(task.train), task.settings.batch), run_keys(ts.key).test
    made, per_epoch, stopped = int(ts.step), task.steps_per_epoch, False
    last = (made // per_epoch + epochs) * per_epoch

    compilation.keep_freed()
    with compilation.precision(task.settings.precision):
        while made < last and not stopped:
            # A burst of steps, whose metrics stay on the device.
            epoch, reports = made // per_epoch, list[Metrics]()
            for rows, keys in islice(batches, _burst_length(made, per_epoch, save_every)):
                ts, metrics = step(ts, keys, rows)
                reports.append(metrics)
                watch(made + len(reports), ts)
                if run.polls_each_step and (stopped := run.stop_requested()):
                    break
            stopped = stopped or (not run.polls_each_step and run.stop_requested())

            # The metrics as numbers, logged and kept.
            record.add(_read_and_log(reports, epoch, made, callbacks.log))
            made += len(reports)

            # The end of an epoch, and saving, if this is the time.
            epoch_ended = made % per_epoch == 0
            saving = stopped or made == last or (save_every and made % save_every == 0)
            row: Row = {"epoch": epoch, "step": made}
            if saving or epoch_ended:
                _check_finite("the parameters' norm", float(tree.norm(ts.params)), row)
            if epoch_ended:
                row["bound"] = record.mean_bound(per_epoch)
                if test is not None:
                    batch = task.settings.batch
                    row["test_bound"] = _test_bound(ts, test, test_key, run.evaluation, batch, task.processes)
                    _check_finite("test_bound", row["test_bound"], row)
                    record.test_bounds.append(row["test_bound"])
                callbacks.log(row)
            if saving:
                callbacks.save(ts)
    return ts, record.history()


def test_bound(
    model: VAE,
    estimator: Estimator,
    ts: TrainState,
    test: Tensor,
    key: random.Key,
    *,
    batch: int = 128,
    samples: int = 1,
    observe: Observe = as_is,
    noise: noise.Noise = noise.iid,
) -> float:
    """The estimator's target bound, mean over `test`, in nats per example. One key, one noise, one number."""
    settings = StepSettings(batch=batch, samples=samples, observe=observe, noise=noise)
    check_train_state(ts, model)
    checked_estimator(estimator).claims_under(noise)
    check_data(model, ts.params, ts.state, test, observe, name="test")
    random.checked(key)
    gradient = GradientSettings(model, estimator, settings.samples, settings.samples, observe, noise)
    return _test_bound(ts, test, key, gradient, settings.batch, SINGLE)


@torch.no_grad()
def _test_bound(
    ts: TrainState, test: Tensor, key: random.Key, gradient: GradientSettings, batch: int, processes: Processes
) -> float:
    """The sum over batches in their order, each process's own computed there."""
    model, estimator, batches = gradient.model, gradient.estimator, test.split(batch)
    own = processes.share_of(len(batches))
    sums = torch.zeros(len(own), dtype=torch.float64, device=test.device)
    for i, keys in enumerate(step_keys(key, torch.tensor(own, dtype=torch.int64, device=test.device))):
        x, eps = step_inputs(keys, batches[own[i]], gradient)
        sums[i] = estimator.bound(model, ts.params, ts.state, x, eps).sum()
    return sum(processes.all_gather_rows(sums).tolist()) / len(test)


class _Record:
    """The numbers of a `History` as they come, in arrays, so that a long run takes little memory."""

    def __init__(self, past: History | None) -> None:
        if past is None:
            past = History(*np.zeros((4, 0)))
        _check_history(past)
        self.metrics = array("d", np.stack(past[:3], axis=1).astype(float).tobytes())  # [steps, 3]
        self.test_bounds = array("d", past.test_bound.astype(float).tobytes())

    def add(self, metrics: np.ndarray) -> None:
        """Adds the metrics [steps, 3] of some steps."""
        self.metrics.extend(metrics.flat)

    def mean_bound(self, steps: int) -> float:
        """The mean training bound of the last steps, or of as many as there are."""
        return float(np.mean(self.metrics[-3 * steps :][1::3]))

    def history(self) -> History:
        """All of it."""
        loss, bound, grad_norm = np.array(self.metrics).reshape(-1, 3).T
        return History(loss, bound, grad_norm, np.array(self.test_bounds))


def _check_history(history: History) -> None:
    if not isinstance(history, History) or not all(isinstance(x, np.ndarray) and x.ndim == 1 for x in history):
        raise BadType(f"history is {checks.describe(history)}: it must be a History of arrays, as fit returns it")
    if len({len(x) for x in history[:3]}) > 1 or not all(x.dtype.kind in "fiu" for x in history):
        raise BadValue("the arrays of history must have the same length and hold numbers, as fit returns them")


def _burst_length(made: int, per_epoch: int, save_every: int) -> int:
    """The number of steps up to the next read-back: at the end of the epoch, before saving, or after some steps."""
    ends = [_READ_EVERY, per_epoch - made % per_epoch]
    return min([*ends, save_every - made % save_every] if save_every else ends)


def _read_and_log(reports: list[Metrics], epoch: int, first_step: int, log: Log) -> np.ndarray:
    """The reports as numbers [steps, 3], by one transfer, logged up to the first that is not finite."""
    read = torch.stack([number for report in reports for number in report]).view(-1, len(Metrics._fields)).tolist()
    for step, values in enumerate(read, first_step):
        row = {"epoch": epoch, "step": step, **Metrics(*values)._asdict()}
        for name, value in zip(Metrics._fields, values, strict=True):
            _check_finite(name, value, row)
        log(row)
    return np.array(read)


def _check_finite(name: str, value: float, row: Row) -> None:
    if not math.isfinite(value):
        at = "at" if "loss" in row else "after"
        step = row["step"] - (at == "after")  # such a row names the steps made
        cause = "a smaller learning rate may help" if row["step"] else "look at the data and the model's first output"
        error = NonFinite(f"{name} became {value} {at} step {step} (epoch {row['epoch']}): {cause}")
        error.step = step
        raise error


_READ_EVERY = 50  # steps; each read-back waits for the device
