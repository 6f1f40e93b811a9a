"""One training step as a pure function, and the step that a run makes: compiled, in chunks or in shards."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from funcvae import compilation, noise, tree
from funcvae._support import checks
from funcvae.compilation import Wrap, unchanged
from funcvae.distributed.sharding import (  # fmt: skip
    Batch,
    GradientSettings,
    StepDetails,
    nonempty_pieces,
    sum_shares,
    unpack,
)
from funcvae.errors import BadType, BadValue
from funcvae.estimators.chunks import in_chunks
from funcvae.estimators.types import Estimator, checked_estimator
from funcvae.model import VAE, Observe, as_is, check_model
from funcvae.modules import Params, State
from funcvae.train.settings import Scale, StepSettings, per_example
from funcvae.train.state import Metrics, TrainState, check_train_state
from funcvae.train.task import Task

__all__ = ["Step", "Update", "make_step"]


class Step(Protocol):
    """A training step."""

    def __call__(self, ts: TrainState, keys: Tensor, x: Tensor, /) -> tuple[TrainState, Metrics]:
        """One step on a batch x [B, ...]; `keys` [2, 2] are its noise key and its observe key, as of `step_keys`."""
        ...


class Update(Protocol):
    """An optimizer's update."""

    def __call__(self, grads: Params, opt_state: Any, params: Params, /) -> tuple[Params, Any]:
        """The new parameters and optimizer state; `grads` point uphill in the loss."""
        ...


def make_step(
    model: VAE,
    estimator: Estimator,
    update: Update,
    *,
    samples: int = 1,
    observe: Observe = as_is,
    noise: noise.Noise = noise.iid,
    scale: Scale = per_example,
    offset: float = 0.0,
) -> Step:
    """One training step as a function: (ts, keys [2, 2], x [B, ...]) -> (ts, Metrics).

    It descends the batch mean of

        loss = scale(B) · (-bound - offset)

    Args:
        update: an optimizer's. With `opt.update` the step is pure; with `opt.update_` it uses up the TrainState it is
            given.
        scale: from the batch's size to what multiplies loss and gradient: others sum over a batch, or divide by pixels.
            Adam hardly notices, its epsilon and a short last batch apart.
        offset: nats per example that the loss leaves out of -bound, such as a fixed likelihood's log-normaliser.

    The step's `keys` are its noise key and its observe key, as `step_keys` derives them.

    Raises:
        BadValue: the estimator requires independent samples, and the noise scheme's are not.
    """
    settings = StepSettings(samples=samples, observe=observe, noise=noise, scale=scale, offset=offset)
    check_model(model)
    checked_estimator(estimator).claims_under(noise)
    checks.function("update", update)
    gradient = GradientSettings(model, estimator, settings.samples, settings.samples, observe, noise)
    return _step(gradient, update, settings)


def _step(gradient: GradientSettings, update: Update, settings: StepSettings) -> Step:
    """The step of `make_step`."""
    model, estimator, scale, offset = gradient.model, gradient.estimator, settings.scale, settings.offset

    def step(ts: TrainState, keys: Tensor, x: Tensor) -> tuple[TrainState, Metrics]:
        check_train_state(ts)
        x, eps = step_inputs(keys, x, gradient)
        out = estimator(model, ts.params, ts.state, x, eps, train=True)
        return _descended(ts, update, out.grads, out.bound.mean(), out.state, scale(len(x)), offset)

    return step


def step_inputs(keys: Tensor, x: Tensor, gradient: GradientSettings) -> tuple[Tensor, Tensor]:
    """What a model sees of x [B, ...], and the noise [N, B, Z] for it, by a step's two keys."""
    if checks.tensor("keys", keys).shape != (2, 2):
        raise BadValue(
            f"keys has shape {list(keys.shape)}: it must be [2, 2], a key of the noise and one to observe with"
        )
    noise_key, observe_key = keys
    x = gradient.observe(observe_key, checks.tensor("x", x, "B ..."))
    checks.tensor("what observe returned", x, "B ...")
    return x, gradient.noise(noise_key, gradient.samples, (len(x), gradient.model.latent), dtype=x.dtype)


def _descended(
    ts: TrainState, update: Update, grads: Params, bound: Tensor, state: State, scale: float, offset: float
) -> tuple[TrainState, Metrics]:
    """The TrainState after a step, from the gradient of a batch's mean loss, the mean bound and the new state."""
    c = scale if isinstance(scale, Tensor) and not scale.ndim else checks.number("what scale returned", scale)
    grads = grads if c == 1 else tree.map(lambda g: c * g, grads)
    params, opt_state = _pair(update(grads, ts.opt_state, ts.params))
    new = TrainState(ts.step + 1, ts.key, params, state, opt_state)
    return new, Metrics(c * (-bound - offset), bound, tree.norm(grads))


def _pair(updated: tuple[Params, Any]) -> tuple[Params, Any]:
    if not (isinstance(updated, tuple | list) and len(updated) == 2):
        raise BadType(f"update returned {checks.describe(updated)}: it must be the new parameters and optimizer state")
    return updated[0], updated[1]


class RunStep(NamedTuple):
    """The step that a run makes."""

    step: Callable[[TrainState, Tensor, Tensor], tuple[TrainState, Metrics]]
    """From (ts, keys, rows of the training data [B]); it uses up the TrainState it is given."""
    evaluation: GradientSettings
    """With the estimator in chunks, where there are more samples than are decoded at once."""
    stop_requested: Callable[[], bool]
    """Whether any process has requested a stop, by the last step."""
    polls_each_step: bool
    """Whether to ask that after every step; not for several processes on a GPU, which would wait for the answer."""


def run_step(task: Task, stop: Callable[[], bool]) -> RunStep:
    """The step of a checked task whose data are on the device of the TrainState."""
    settings, train = task.settings, task.train
    wrap: Wrap = partial(compilation.compiled, device=train.device) if settings.compile else unchanged
    gradient, update = _gradient_settings(task), task.opt.update_ or task.opt.update
    evaluation = _chunked(gradient, wrap)
    polls_each_step = task.processes.size == 1 or train.device.type == "cpu"
    if task.is_sharded:
        sharded, stop_requested = _sharded_step(task, gradient, update, wrap, stop)
        return RunStep(sharded, evaluation, stop_requested, polls_each_step)
    # The estimators differentiate by themselves: nothing out here needs a graph.
    if evaluation is gradient:
        step = torch.no_grad()(wrap(_step(gradient, update, settings)))
    else:  # a loop over chunks, which the compiler would unroll: it gets the parts
        step = torch.no_grad()(_step(evaluation._replace(noise=wrap(gradient.noise)), wrap(update), settings))
    return RunStep(
        lambda ts, keys, rows: step(ts, keys, train.index_select(0, rows)), evaluation, stop, polls_each_step
    )


def step_details(task: Task, ts: TrainState, keys: Tensor, rows: Tensor) -> StepDetails:
    """What goes into a step on these rows of the training data, and its estimate, outside the compiler."""
    gradient = _gradient_settings(task)
    if task.is_sharded:
        work = task.settings.split(gradient, unchanged)
        pieces = nonempty_pieces(work.length(len(rows)), task.shards)
        return work.details(ts.params, ts.state, Batch(keys, task.train, rows), pieces)
    gradient = _chunked(gradient, unchanged)
    x, eps = step_inputs(keys, task.train.index_select(0, rows), gradient)
    return StepDetails(x, eps, gradient.estimator(gradient.model, ts.params, ts.state, x, eps, train=True))


def _sharded_step(
    task: Task, gradient: GradientSettings, update: Update, wrap: Wrap, stop: Callable[[], bool]
) -> tuple[Step, Callable[[], bool]]:
    """The step in shards, by one process or several, and the function that says whether any has requested a stop."""
    settings, processes, train = task.settings, task.processes, task.train
    work, scale, offset = settings.split(gradient, wrap), settings.scale, settings.offset
    ordered, several = settings.shards is not None, processes.size > 1
    requests = torch.zeros((), device=train.device)

    def descend(ts: TrainState, flat: Tensor, c: float) -> tuple[TrainState, Metrics]:
        return _descended(ts, update, *unpack(flat, ts.params, ts.state), c, offset)

    descend = wrap(descend)

    @torch.no_grad()
    def step(ts: TrainState, keys: Tensor, rows: Tensor) -> tuple[TrainState, Metrics]:
        pieces = nonempty_pieces(work.length(len(rows)), task.shards)
        share_of = work.shares(ts.params, ts.state, Batch(keys, train, rows), pieces, processes)
        stopping = several and bool(stop())
        flat = sum_shares(pieces, share_of, processes, (ts.params, ts.state), stop=stopping, ordered=ordered)
        requests.add_(flat[-1])
        return descend(ts, flat, scale(len(rows)))

    return step, (lambda: bool(requests > 0)) if several else stop


def _gradient_settings(task: Task) -> GradientSettings:
    """How the task's step estimates its gradient."""
    settings, chunk = task.settings, task.settings.chunk
    if chunk is None:
        chunk = max(1, _DECODED_AT_ONCE // max(1, settings.batch * task.train[0].numel()))
    return GradientSettings(task.model, task.estimator, settings.samples, chunk, settings.observe, settings.noise)


def _chunked(gradient: GradientSettings, wrap: Wrap) -> GradientSettings:
    """The same with the estimator in chunks, where there are more samples than are decoded at once."""
    if gradient.samples <= gradient.chunk:
        return gradient
    return gradient._replace(estimator=in_chunks(gradient.estimator, gradient.chunk, wrap))


_DECODED_AT_ONCE = 2**25  # numbers
