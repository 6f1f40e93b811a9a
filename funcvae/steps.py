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

from funcvae import checks, machine, noise, random, tree
from funcvae.engine import Estimator, Wrap, check_estimator
from funcvae.errors import BadType, BadValue
from funcvae.module import Params, State
from funcvae.optim import Optimizer
from funcvae.processes import Processes, cut
from funcvae.shards import Observe, Seen, Split, add_up, by_samples, unpack
from funcvae.vae import VAE, check, check_model

Scale = Callable[[int], float]


class TrainState(NamedTuple):
    """Everything that a run carries from step to step."""

    step: Tensor  # int64, no dimensions: steps made
    key: random.Key
    params: Params
    state: State
    opt_state: Any


class Metrics(NamedTuple):
    """What one step reports, each a tensor of no dimensions."""

    loss: Tensor  # scale · (-bound - offset): minus the bound, unless one is given
    bound: Tensor  # mean over the batch, nats per example
    grad_norm: Tensor  # Euclidean norm of the loss's whole gradient


Step = Callable[[TrainState, Tensor, Tensor], tuple[TrainState, Metrics]]


def as_is(key: random.Key, x: Tensor, rows: Tensor | None = None) -> Tensor:
    """The `observe` that shows the model the data unchanged."""
    return x


def per_example(batch: int) -> float:
    """The `scale` of a loss in nats per example: 1."""
    return 1.0


def summed(batch: int) -> float:
    """The `scale` of a loss that is summed over the batch."""
    return float(batch)


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


class RunKeys(NamedTuple):
    """What the key of a TrainState is split into."""

    order: random.Key
    """Of the epochs' orders."""
    step: random.Key
    """Of each step's noise and observation."""
    test: random.Key
    """Of the test bound's noise, the same after every epoch."""
    pictures: random.Key
    """Not used in training."""


def run_keys(key: random.Key) -> RunKeys:
    """The keys of a run, from the key of its TrainState."""
    return RunKeys(*random.split(key, 4))


def step_keys(step_key: random.Key, steps: Tensor) -> Tensor:
    """Keys [S, 2, 2] of the given steps: (noise_key, observe_key) = split(fold_in(step_key, s)) for each."""
    random.checked(step_key)
    checks.same_device(step_key=step_key, steps=checks.tensor("steps", steps, "S"))
    if not len(steps):
        return step_key.new_empty(0, 2, 2)
    return torch.vmap(lambda s: random.split(random.fold_in(step_key, s)))(steps)


def batches(key: random.Key, n: int, batch: int, epoch: int) -> tuple[tuple[Tensor, ...], Tensor]:
    """What an epoch of a run with this key visits: the rows of each batch, and each step's keys [S, 2, 2]."""
    n, batch, epoch = (
        checks.whole("n", n, 1),
        checks.whole("batch", batch, 1),
        checks.whole("epoch", epoch, 0, 2**32 - 1),
    )
    keys = run_keys(key)
    rows = random.permutation(random.fold_in(keys.order, epoch), n).split(batch)
    steps = torch.arange(epoch * len(rows), (epoch + 1) * len(rows), device=key.device)
    return rows, step_keys(keys.step, steps)


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
    wrap: Wrap = partial(machine.compiled, device=train.device) if compile else _as_it_is
    samples = checks.whole("samples", samples, 1)
    check_optimizer(opt)
    checked_estimator(estimator)
    cut_rows = check_shards(min(batch, len(train)), samples, shards, split, processes, state)
    at_once = _at_once(chunk, train, batch)
    update, in_chunks = opt.update_ or opt.update, samples > at_once
    plain, chunked = (estimator.in_chunks(at_once, how) if in_chunks else estimator for how in (_as_it_is, wrap))
    settings = {"samples": samples, "observe": observe, "noise": noise, "scale": scale, "offset": offset}
    if shards is None and processes.size == 1:
        if in_chunks:  # a loop, which the compiler would unroll: it gets the parts
            settings["noise"], update = wrap(noise), wrap(update)
        step = make_step(model, chunked, update, **settings)  # type: ignore[arg-type]
        # The estimators differentiate by themselves: nothing out here needs a graph.
        step = torch.no_grad()(step if in_chunks else wrap(step))

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
    work, plain = (split(model, estimator, **kind, wrap=how) for how in (wrap, _as_it_is))
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


def _as_it_is(f: Callable[..., Any]) -> Callable[..., Any]:
    return f


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


def check_shards(
    batch: int, samples: int, shards: int | None, split: Split, processes: Processes, state: State | None = None
) -> int:
    """Into how many pieces the rows of a batch are cut.

    Raises:
        BadValue: there are more shards than rows, or samples, to cut; more processes than shards; or no shards are
            named, though the model has running statistics, which hang on them.
    """
    if not isinstance(processes, Processes):
        raise BadType(f"processes is {checks.shown(processes)}: it must be ALONE, or come from processes.joined()")
    checks.function("split", split, "one, such as shards.by_rows")
    count = processes.size if shards is None else checks.whole("shards", shards, 1)
    whole, what = (samples, "samples") if split is by_samples else (batch, "rows in a batch")
    if whole < count:
        each = "each process needs" if shards is None else f"--shards is {count}, and each needs"
        raise BadValue(f"{each} one of the {what} at least, and there are {whole}: use at most {whole}")
    if processes.size > count:
        raise BadValue(
            f"there are {processes.size} processes for {count} shard{'s' * (count != 1)}: use at most {count}"
        )
    if shards is None and processes.size > 1 and tree.leaves(state or {}):
        raise BadValue(
            "the model has running statistics, as of BatchNorm, which are taken for each shard: say by --shards how "
            "many, lest they hang on the number of processes"
        )
    return 1 if split is by_samples else count


def check_optimizer(opt: Optimizer) -> None:
    """Raises BadType unless this is an optimizer."""
    if not isinstance(opt, Optimizer):
        raise BadType(f"opt is {checks.shown(opt)}: it must be an Optimizer, such as optim.adam()")
    for name in ("init", "update"):
        checks.function(f"opt's {name}", getattr(opt, name))


def checked_estimator(estimator: Estimator) -> Estimator:
    """The estimator itself, if it is an Estimator: raises BadType where it is not."""
    check_estimator("estimator", estimator)
    if not isinstance(estimator, Estimator):
        raise BadType(f"estimator is {checks.shown(estimator)}: it must be an Estimator, such as estimators.iwae()")
    return estimator


def check_train_state(ts: TrainState, model: VAE | None = None) -> None:
    """Raises unless this is a TrainState; with a model, one of it, whose values are there."""
    if not isinstance(ts, TrainState):
        raise BadType(f"ts is {checks.shown(ts)}: it must be a TrainState, as train.init makes it")
    if checks.tensor("ts.step", ts.step, floating=False).ndim or ts.step.dtype != torch.int64:
        raise BadValue(f"ts.step is {checks.shown(ts.step)}: it must be an int64 tensor of no dimensions")
    if model is not None:  # out here, not in a step
        check(model, ts.params, ts.state)
        tree.checked(ts.opt_state, "ts.opt_state")
        random.checked(ts.key)
        if checks.valued("ts.step", ts.step) < 0:
            raise BadValue(f"ts.step is {int(ts.step)}: it must not be negative")


def _number(name: str, value: float) -> float:
    return value if isinstance(value, Tensor) and not value.ndim else checks.number(name, value)


def _two(updated: tuple[Params, Any]) -> tuple[Params, Any]:
    if not (isinstance(updated, tuple | list) and len(updated) == 2):
        raise BadType(f"update returned {checks.shown(updated)}: it must be the new parameters and optimizer state")
    return updated[0], updated[1]


_DECODED_AT_ONCE = 2**25  # numbers
