"""The training step as a pure function, and the step of a run, which may be compiled, in chunks or in shards."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcvae import compilation, noise, tree
from funcvae._support import checks, examples
from funcvae._support.checks import Count
from funcvae._support.examples import Data
from funcvae.compilation import Wrap, unchanged
from funcvae.distributed import sharding
from funcvae.distributed.sharding import Batch, GradientSettings, StepDetails, nonempty_pieces
from funcvae.estimators.chunks import in_chunks_at
from funcvae.estimators.types import Estimator, EstimatorAt, by_step
from funcvae.model import VAE, Observe, as_is
from funcvae.modules import Params, State
from funcvae.optim.protocol import check_pair
from funcvae.train import streaming
from funcvae.train.drawing import Batches, drawn_ahead, step_inputs
from funcvae.train.settings import Scale, StepSettings, per_example
from funcvae.train.state import Metrics, TrainState
from funcvae.train.streaming import Stream
from funcvae.train.task import Task

__all__ = ["Step", "Update", "make_step"]


Inputs = tuple[Any, Any]
"""What a step takes beside its `ts`: its keys and data, or its observed data and noise."""
Step = Callable[[TrainState, Tensor, Data], tuple[TrainState, Metrics]]
"""Takes (ts, keys [2, 2], a batch x [B, ...]); the keys, from `step_keys`, are the noise key and the observe key."""
Update = Callable[[Params, Any, Params], tuple[Params, Any]]
"""Maps (the gradient of the loss, opt_state, params) to the new (params, opt_state)."""


@checks.arguments
def make_step(
    model: VAE,
    estimator: Estimator | EstimatorAt,
    update: Update,
    *,
    samples: Count = 1,
    observe: Observe = as_is,
    noise: noise.Noise = noise.iid,
    scale: Scale = per_example,
    offset: float = 0.0,
) -> Step:
    """Makes a training step, a function (ts, keys [2, 2], x [B, ...]) -> (ts, Metrics).

    The step descends the batch mean of

        loss = scale(B) · (-bound - offset)

    The `keys` of a step are its noise key and its observe key, from `step_keys`. The step does not check `ts`, which
    must be of this model.

    Args:
        estimator: an Estimator, or a function of the number of steps made, `ts.step`, that returns one.
        update: the update of an optimizer. With `opt.update` the step is pure; with `opt.update_` it overwrites its
            `ts`.
        scale: from the size of the batch to the factor of loss and gradient, for losses that are summed over a batch or
            divided by the number of pixels. It has little effect with Adam, except for epsilon and a short last batch.
        offset: nats per example to subtract from -bound, such as the log-normaliser of a fixed likelihood.

    Raises:
        BadType: the function of the step does not return an Estimator.
        BadValue: the estimator requires independent samples, and those of the noise scheme are not; or, from the step,
            keys is not [2, 2], or the noise has a wrong shape.
    """
    settings = StepSettings(samples=samples, observe=observe, noise=noise, scale=scale, offset=offset)
    estimator_at = by_step(estimator)
    estimator_at(torch.zeros((), dtype=torch.int64)).claims_under(noise)
    gradient = GradientSettings(model.unchecked(), estimator_at, samples, samples, observe, checks.unchecked(noise))
    return _step(gradient, checks.unchecked(update), settings)


def _step(gradient: GradientSettings, update: Update, settings: StepSettings) -> Step:
    drawn_step = _drawn_step(gradient, update, settings)

    def step(ts: TrainState, keys: Tensor, x: Data) -> tuple[TrainState, Metrics]:
        return drawn_step(ts, *step_inputs(ts.params, keys, x, gradient))

    return step


def _drawn_step(
    gradient: GradientSettings, update: Update, settings: StepSettings
) -> Callable[[TrainState, Data, Tensor], tuple[TrainState, Metrics]]:
    """The step on observed data x [B, ...] and their noise [N, B, Z]."""
    model, estimator_at, scale, offset = gradient.model, gradient.estimator_at, settings.scale, settings.offset

    def step(ts: TrainState, x: Data, eps: Tensor) -> tuple[TrainState, Metrics]:
        out = estimator_at(ts.step).estimate(model, ts.params, ts.state, x, eps, True)
        return _descended(ts, update, out.grads, out.means(), out.state, scale(examples.count(x)), offset)

    return step


def _descended(
    ts: TrainState, update: Update, grads: Params, means: Tensor, state: State, scale: float, offset: float
) -> tuple[TrainState, Metrics]:
    """Updates the TrainState from the gradient of a batch's mean bound, `Estimate.means`, and the new state."""
    if not isinstance(scale, Tensor) or scale.ndim:  # an array might broadcast
        scale = checks.number("the result of scale", scale)
    grads = grads if scale == 1 else tree.map(lambda g: scale * g, grads)
    params, opt_state = check_pair("update", update(grads, ts.opt_state, ts.params), "(params, opt_state)")
    new = TrainState(ts.step + 1, ts.key, params, state, opt_state)
    bound, reconstruction, kl = means.unbind()
    return new, Metrics(scale * (-bound - offset), bound, _norm(grads), reconstruction, kl)


class RunStep(NamedTuple):
    """The step of a run, and how to evaluate and stop the run."""

    inputs: Callable[[Batches, Params], Iterator[Inputs]]
    """Maps the batches of all steps to the inputs of each."""
    step: Callable[..., tuple[TrainState, Metrics]]
    """Maps (ts, *inputs) to (ts, Metrics); overwrites its ts."""
    evaluation: GradientSettings
    """The settings of the test bound; its estimator is in chunks if not all samples are decoded at once."""
    stop_requested: Callable[[], bool]  # whether any process has requested a stop by the end of the last step
    polls_each_step: bool
    """Whether to call `stop_requested` after every step; False for several processes on GPUs, which it would delay."""


def run_step(task: Task, stop: Callable[[], bool]) -> RunStep:
    """The step of a task from `checked_task`."""
    settings, x = task.settings, streaming.first(task.train)
    device, several = examples.device(x), task.processes.size > 1
    gradient, update = _gradient_settings(task), task.opt.update_ or checks.unchecked(task.opt.update)
    requests = torch.zeros((), device=device)  # the number of processes that have requested a stop
    stop_requested = (lambda: bool(requests > 0)) if several else stop
    polling = stop_requested, not several or device.type == "cpu"

    def step_by(wrap: Wrap) -> Step:
        if task.is_sharded:
            return _sharded_step(task, gradient, update, wrap, stop, requests)
        # Estimators record their own graphs; no other part of a step needs one.
        if gradient.samples <= gradient.chunk:
            return torch.no_grad()(wrap(_step(gradient, update, settings)))
        # The compiler would unroll the loop over chunks: compile its parts instead.
        chunked = _chunked(gradient, wrap)._replace(noise=wrap(gradient.noise))
        return torch.no_grad()(_step(chunked, wrap(update), settings))

    if settings.compile:
        compiled: Wrap = partial(compilation.compiled, device=device)
        fast, eager = step_by(compiled), step_by(unchanged)
        full = min(settings.batch, streaming.count(task.train))

        def step(ts: TrainState, keys: Tensor, x: Data) -> tuple[TrainState, Metrics]:
            # A short last batch would be compiled anew.
            return (fast if examples.count(x) == full else eager)(ts, keys, x)

        return RunStep(_keys_and_data, step, _chunked(gradient, compiled), *polling)
    evaluation = _chunked(gradient, unchanged)
    if task.is_sharded:
        return RunStep(_keys_and_data, step_by(unchanged), evaluation, *polling)
    drawn_step = torch.no_grad()(_drawn_step(evaluation, update, settings))
    most = 1 + streaming.AHEAD if isinstance(task.train, Stream) else _DRAWN_TOGETHER
    return RunStep(partial(drawn_ahead, gradient, most), drawn_step, evaluation, *polling)


def _keys_and_data(batches: Batches, params: Params) -> Iterator[Inputs]:
    return ((keys, x) for _, keys, x in batches)


def step_details(task: Task, ts: TrainState, keys: Tensor, x: Data) -> StepDetails:
    """The inputs and the estimate of a step on a batch of the training data, computed without the compiler."""
    gradient = _gradient_settings(task)
    if task.is_sharded:
        work = task.settings.split(gradient, unchanged)
        pieces = nonempty_pieces(work.length(examples.count(x)), task.shards)
        return work.details(ts.params, ts.state, Batch(ts.step, keys, x), pieces)
    gradient = _chunked(gradient, unchanged)
    x, eps = step_inputs(ts.params, keys, x, gradient)
    estimator = gradient.estimator_at(ts.step)
    return StepDetails(x, eps, estimator.estimate(gradient.model, ts.params, ts.state, x, eps, True))


def _sharded_step(
    task: Task, gradient: GradientSettings, update: Update, wrap: Wrap, stop: Callable[[], bool], requests: Tensor
) -> Step:
    """Makes the step in shards, for one process or several. It adds the requests of several to stop to `requests`."""
    settings, processes = task.settings, task.processes
    work, scale, offset = settings.split(gradient, wrap), settings.scale, settings.offset
    ordered, several = settings.shards is not None, processes.size > 1

    def descend(ts: TrainState, flat: Tensor, c: float) -> tuple[TrainState, Metrics]:
        like = sharding.share_like(gradient.model, ts.params, ts.state)
        return _descended(ts, update, *sharding.unpack(flat, like, ts.state), c, offset)

    descend = wrap(descend)

    @torch.no_grad()
    def step(ts: TrainState, keys: Tensor, x: Data) -> tuple[TrainState, Metrics]:
        size = examples.count(x)
        pieces = nonempty_pieces(work.length(size), task.shards)
        share_of = work.shares(ts.params, ts.state, Batch(ts.step, keys, x), pieces, processes)
        stopping = several and bool(stop())
        like = sharding.share_like(gradient.model, ts.params, ts.state)
        flat = sharding.sum_shares(pieces, share_of, processes, like, stop=stopping, ordered=ordered)
        requests.add_(flat[-1])
        return descend(ts, flat, scale(size))

    return step


def _gradient_settings(task: Task) -> GradientSettings:
    """The gradient settings of a task, with a `chunk`, and without the checks of the noise scheme."""
    settings, chunk = task.settings, task.settings.chunk
    if chunk is None:
        datum = examples.head(streaming.first(task.train), 1)
        chunk = max(1, _DECODED_AT_ONCE // max(1, settings.batch * examples.numel(datum)))
    noise = checks.unchecked(settings.noise)
    return GradientSettings(task.model, task.estimator_at, settings.samples, chunk, settings.observe, noise)


def _chunked(gradient: GradientSettings, wrap: Wrap) -> GradientSettings:
    """The settings with the estimator in chunks, if there are more samples than are decoded at once."""
    if gradient.samples <= gradient.chunk:
        return gradient
    return gradient._replace(estimator_at=in_chunks_at(gradient.estimator_at, gradient.chunk, wrap))


_DRAWN_TOGETHER = 50  # steps whose inputs are drawn together, at most
_DECODED_AT_ONCE = 2**25  # elements of x̂, over all samples of a batch
_norm = checks.unchecked(tree.norm)
