"""One training step: its keys, and the step itself, pure and plain or in shards.

A run's four keys are `RunKeys(*split(ts.key, 4))`. Epoch e visits the data in the order
`permutation(fold_in(order_key, e), n)`; step s uses `noise_key, observe_key = split(fold_in(step_key, s))`. So a
`TrainState` holds all that the rest of the run depends on, and any step can be replayed alone. (The pictures of a run
use the fourth key of the same split.)
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcvae import compilation, noise, tree
from funcvae._support import checks
from funcvae.compilation import Wrap, unchanged
from funcvae.distributed.processes import Processes, cut
from funcvae.distributed.sharding import Seen, Split, add_up, unpack
from funcvae.errors import BadType, BadValue
from funcvae.estimators.chunks import in_chunks
from funcvae.estimators.engine import Estimator, check_estimator
from funcvae.model import VAE, Observe, as_is, check_model
from funcvae.modules import Params, State
from funcvae.optim import Optimizer, check_optimizer
from funcvae.train.settings import Scale, check_shards, per_example
from funcvae.train.state import Metrics, TrainState, check_train_state

Step = Callable[[TrainState, Tensor, Tensor], tuple[TrainState, Metrics]]


def make_step(
    model: VAE,
    estimator: Estimator,
    update: Callable[..., tuple[Params, Any]],
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
        BadValue: the estimator leans on independent samples, and the noise scheme's are not.
    """

    samples, offset = _check_settings(model, estimator, update, samples, observe, noise, scale, offset)

    def step(ts: TrainState, keys: Tensor, x: Tensor) -> tuple[TrainState, Metrics]:
        check_train_state(ts)
        x, eps = observed(keys, x, model, samples, observe, noise)
        out = estimator(model, ts.params, ts.state, x, eps, train=True)
        return _descended(ts, update, out.grads, out.bound.mean(), out.state, scale(len(x)), offset)

    return step


def _check_settings(
    model: VAE, estimator: Estimator, update: Callable[..., Any], samples: int, observe: Observe, noise: noise.Noise,
    scale: Scale, offset: float,
) -> tuple[int, float]:  # fmt: skip
    """Raises what `make_step` says that it raises; returns the numbers."""
    check_model(model)
    checked_estimator(estimator).claims_under(noise)
    samples, offset = checks.whole("samples", samples, 1), checks.number("offset", offset)
    functions: dict[str, Callable[..., Any]] = {"update": update, "observe": observe, "scale": scale}
    for name, function in functions.items():
        checks.function(name, function)
    return samples, offset


def _descended(
    ts: TrainState, update: Callable[..., tuple[Params, Any]], grads: Params, bound: Tensor, state: State,
    scale: float, offset: float,
) -> tuple[TrainState, Metrics]:  # fmt: skip
    """The TrainState after a step along the gradient of a batch's mean loss."""
    c = _number("what scale returned", scale)
    grads = grads if c == 1 else tree.map(lambda g: c * g, grads)
    params, opt_state = _two(update(grads, ts.opt_state, ts.params))
    new = TrainState(ts.step + 1, ts.key, params, state, opt_state)
    return new, Metrics(c * (-bound - offset), bound, tree.norm(grads))


class RunStep(NamedTuple):
    """The step that a run makes, in buffers of its own."""

    call: Callable[[TrainState, Tensor, Tensor], tuple[TrainState, Metrics]]
    """(ts, keys, rows of the training data) -> (ts, Metrics)."""
    seen: Callable[[TrainState, Tensor, Tensor], Seen]
    """What that step sees, and the estimate, outside the compiler."""
    stopped: Callable[[], bool]
    """Whether a process asked to stop, by the last step."""
    rows: int
    """Into how many shards a batch's rows are cut."""

    def __call__(self, ts: TrainState, keys: Tensor, rows: Tensor) -> tuple[TrainState, Metrics]:
        """The step."""
        return self.call(ts, keys, rows)


def ready(
    model: VAE, estimator: Estimator, opt: Optimizer, state: State, train: Tensor, *, batch: int, samples: int,
    chunk: int | None, shards: int | None, split: Split, processes: Processes, observe: Observe, noise: noise.Noise,
    scale: Scale, offset: float, compile: bool, stop: Callable[[], bool],
) -> tuple[Estimator, RunStep]:  # fmt: skip
    """The estimator, in chunks if there are more samples than decoded at once, and the step that a run makes."""
    wrap: Wrap = partial(compilation.compiled, device=train.device) if compile else unchanged
    samples = checks.whole("samples", samples, 1)
    check_optimizer(opt)
    checked_estimator(estimator)
    cut_rows = check_shards(min(batch, len(train)), samples, shards, split, processes, state)
    at_once = _at_once(chunk, train, batch)
    update, several = opt.update_ or opt.update, samples > at_once
    plain, chunked = (in_chunks(estimator, at_once, how) if several else estimator for how in (unchanged, wrap))
    settings = {"samples": samples, "observe": observe, "noise": noise, "scale": scale, "offset": offset}
    if shards is None and processes.size == 1:
        if several:  # a loop, which the compiler would unroll: it gets the parts
            settings["noise"], update = wrap(noise), wrap(update)
        step = make_step(model, chunked, update, **settings)  # type: ignore[arg-type]
        # The estimators differentiate by themselves: nothing out here needs a graph.
        step = torch.no_grad()(step if several else wrap(step))

        def seen(ts: TrainState, keys: Tensor, rows: Tensor) -> Seen:
            x, eps = observed(keys, train.index_select(0, rows), model, samples, observe, noise)
            return Seen(x, eps, plain(model, ts.params, ts.state, x, eps, train=True))

        return chunked, RunStep(
            lambda ts, keys, rows: step(ts, keys, train.index_select(0, rows)), seen, stop, cut_rows
        )
    _check_settings(model, estimator, update, **settings)  # type: ignore[arg-type]
    sharded = _sharded(
        model, estimator, update, train, cut_rows, samples=samples, chunk=at_once, shards=shards, split=split,
        processes=processes, observe=observe, noise=noise, scale=scale, offset=offset, wrap=wrap, stop=stop,
    )  # fmt: skip
    return chunked, sharded


def _sharded(
    model: VAE, estimator: Estimator, update: Callable[..., Any], train: Tensor, cut_rows: int, *, samples: int,
    chunk: int, shards: int | None, split: Split, processes: Processes, observe: Observe, noise: noise.Noise,
    scale: Scale, offset: float, wrap: Wrap, stop: Callable[[], bool],
) -> RunStep:  # fmt: skip
    """The step in shards, by one process or several."""
    count = processes.size if shards is None else shards
    kind = {"samples": samples, "chunk": chunk, "observe": observe, "noise": noise}
    work, plain = (split(model, estimator, **kind, wrap=how) for how in (wrap, unchanged))
    asked = [torch.zeros((), device=train.device)]

    def pieces_of(rows: Tensor) -> list[range]:
        return [piece for piece in cut(work.size(len(rows)), count) if len(piece)]  # fewer in a short last batch

    def descend(ts: TrainState, flat: Tensor, c: float) -> tuple[TrainState, Metrics]:
        grads, bound, state = unpack(flat, ts.params, ts.state)
        return _descended(ts, update, grads, bound, state, c, offset)

    descend = wrap(descend)

    @torch.no_grad()
    def step(ts: TrainState, keys: Tensor, rows: Tensor) -> tuple[TrainState, Metrics]:
        pieces = pieces_of(rows)
        leaf = work.shares(ts.params, ts.state, keys, train, rows, pieces, processes)
        wish = processes.size > 1 and bool(stop())
        flat = add_up(pieces, leaf, processes, wish, (ts.params, ts.state), ordered=shards is not None)
        asked[0] += flat[-1]
        return descend(ts, flat, scale(len(rows)))

    def seen(ts: TrainState, keys: Tensor, rows: Tensor) -> Seen:
        return plain.whole(ts.params, ts.state, keys, train, rows, pieces_of(rows))

    return RunStep(step, seen, stop if processes.size == 1 else lambda: bool(asked[0] > 0), cut_rows)


def _at_once(chunk: int | None, train: Tensor, batch: int) -> int:
    """How many samples to decode at a time."""
    if chunk is not None:
        return checks.whole("chunk", chunk, 1)
    return max(1, _DECODED_AT_ONCE // max(1, batch * train[0].numel()))


def observed(
    keys: Tensor, x: Tensor, model: VAE, samples: int, observe: Observe, noise: noise.Noise
) -> tuple[Tensor, Tensor]:
    """What a model sees of x [B, ...], and the noise [N, B, Z] for it, by a step's two keys."""
    if checks.tensor("keys", keys).shape != (2, 2):
        raise BadValue(
            f"keys has shape {list(keys.shape)}: it must be [2, 2], a key of the noise and one to observe with"
        )
    noise_key, observe_key = keys
    x = checks.tensor("what observe returned", observe(observe_key, checks.tensor("x", x, "B ...")), "B ...")
    return x, noise(noise_key, samples, (len(x), model.latent), dtype=x.dtype)


def checked_estimator(estimator: Estimator) -> Estimator:
    """The estimator itself, if it is an Estimator: raises BadType where it is not."""
    check_estimator("estimator", estimator)
    if not isinstance(estimator, Estimator):
        raise BadType(f"estimator is {checks.shown(estimator)}: it must be an Estimator, such as estimators.iwae()")
    return estimator


def _number(name: str, value: float) -> float:
    return value if isinstance(value, Tensor) and not value.ndim else checks.number(name, value)


def _two(updated: tuple[Params, Any]) -> tuple[Params, Any]:
    if not (isinstance(updated, tuple | list) and len(updated) == 2):
        raise BadType(f"update returned {checks.shown(updated)}: it must be the new parameters and optimizer state")
    return updated[0], updated[1]


_DECODED_AT_ONCE = 2**25  # numbers
