"""Splits a step's gradient into shards, which one or several processes compute, and sums their shares.

The rows of a batch (`by_rows`) or the samples of each datum (`by_samples`) are split into S shards, whose sizes differ
by at most one. The share of a shard is one flat vector of its gradient, bound and new running statistics, weighted by
its size. The vector of the step is the sum

    total = sum_s share_s,     by_rows: share_s = B_s/B · [∇, bound, statistics] of the shard's rows alone.

The order of the sum depends on S alone (`distributed.reduction`), so its bits do not depend on the number of
processes.

An estimator's weights depend on all samples. So `by_samples` first exchanges the N·B log-weights, and every process
computes the same weights from them.

BatchNorm takes its statistics from each shard separately; the running statistics are the shards' average. Random
layers: shard s `by_rows` draws from `funcvae.modules.for_part` of each network's key with s. `by_samples`, the shards
share what the encoder draws, and the decoder draws for each sample by its number among all, as without shards.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcvae import random, tree
from funcvae._support import checks, examples
from funcvae._support.examples import Data
from funcvae.batching import from_sample
from funcvae.compilation import Wrap
from funcvae.distributed import reduction
from funcvae.distributed.collectives import SINGLE, Processes, split_evenly
from funcvae.estimators.chunks import in_chunks_at
from funcvae.estimators.engine import StateShare, add_trees, scale_tree, share_of_state, state_of_shares
from funcvae.estimators.types import Estimate, EstimatorAt, Seen, Weights, check_noise
from funcvae.model import VAE, Observe, noise_dtype, running
from funcvae.modules import Params, State, for_part
from funcvae.noise import Noise, accepts, in_parts

__all__ = [
    "Batch", "GradientSettings", "ShardedGradient", "Split", "StepDetails", "by_rows", "by_samples",
    "draw_noise",
]  # fmt: skip


class GradientSettings(NamedTuple):
    """How a step estimates its gradient: the model, the estimator, the samples and their noise."""

    model: VAE
    estimator_at: EstimatorAt
    samples: int
    """The number N of samples."""
    chunk: int
    """The largest number of samples that are decoded at a time."""
    observe: Observe
    noise: Noise


class Batch(NamedTuple):
    """The number, the keys and the data of one training step."""

    step: Tensor
    """The number of steps made."""
    keys: Tensor
    """The key of the noise and the key for `observe`, [2, 2]."""
    x: Data
    """The data [B, ...]."""


class StepDetails(NamedTuple):
    """The inputs of a step's gradient, and the estimate."""

    x: Data
    """The observed data [B, ...], which the model gets."""
    eps: Tensor
    """The noise [N, B, Z]."""
    estimate: Estimate


class ShardedGradient(NamedTuple):
    """A step's gradient as a sum of shares, which processes can compute apart."""

    length: Callable[[int], int]
    """Maps the batch size B to the number of rows or samples to split."""
    shares: Callable[[Params, State, Batch, list[range], Processes], Callable[[range], Tensor]]
    """Takes a step and its pieces; returns a function that maps a piece to its share, a flat vector."""
    details: Callable[[Params, State, Batch, list[range]], StepDetails]
    """Takes a step and its pieces; returns the details of the whole step, computed in one process."""


Split = Callable[[GradientSettings, Wrap], ShardedGradient]
"""A way to split a step's gradient, `by_rows` or `by_samples`; it wraps its functions of tensors by the `Wrap`."""


def by_rows(settings: GradientSettings, wrap: Wrap) -> ShardedGradient:
    """Splits the rows of a batch: each shard estimates the gradient of its rows' mean bound.

    An `observe` that takes `rows`, as observe(key, x, rows=rows), gets x of the shard's rows only. Any other `observe`
    gets the whole batch.
    """
    model, estimator_at, samples, chunk, observe, noise = settings
    draw, chunked = in_parts(noise), samples > chunk
    observe_rows: Any = observe if accepts(observe, "rows") else None
    if chunked:  # a loop over chunks, which the compiler would unroll: compile its parts instead
        estimator_at, draw = in_chunks_at(estimator_at, chunk, wrap), wrap(draw)

    def estimated(
        params: Params, state: State, step: Tensor, keys: Tensor, x: Data, at: Tensor, size: int
    ) -> StepDetails:
        noise_key, observe_key = keys
        if observe_rows:
            x = examples.of_each("observe", observe_rows(observe_key, x, rows=at), len(at))
        else:
            x = examples.take(examples.of_each("observe", observe(observe_key, x), size), at)
        eps = draw_noise(draw, noise_key, samples, size, model, params, x, rows=at)
        return StepDetails(x, eps, estimator_at(step).estimate(model, params, state, x, eps, True))

    def share(params: Params, state: State, step: Tensor, keys: Tensor, x: Data, at: Tensor, size: int) -> Tensor:
        out, weight = estimated(params, state, step, keys, x, at, size).estimate, len(at) / size
        grads, means = scale_tree((out.grads, out.means()), weight)
        return pack(grads, means, share_of_state(model, out.state, state, weight))

    share_of = share if chunked else wrap(share)

    def inputs(batch: Batch, piece: range) -> tuple[Tensor, Tensor, Data, Tensor, int]:
        step, keys, x = batch
        at = torch.arange(piece.start, piece.stop, device=examples.device(x))
        return step, keys, examples.take(x, at) if observe_rows else x, at, examples.count(x)

    def shares(
        params: Params, state: State, batch: Batch, pieces: list[range], processes: Processes
    ) -> Callable[[range], Tensor]:
        return lambda piece: share_of(params, for_part(state, pieces.index(piece)), *inputs(batch, piece))

    def details(params: Params, state: State, batch: Batch, pieces: list[range]) -> StepDetails:
        found = [estimated(params, for_part(state, s), *inputs(batch, piece)) for s, piece in enumerate(pieces)]
        total: Any = None
        for piece, (_, _, out) in zip(pieces, found, strict=True):
            weight = len(piece) / examples.count(batch.x)
            new = share_of_state(model, out.state, state, weight)
            total = add_trees(total, (scale_tree(out.grads, weight), new))
        grads, new = total
        xs, noises, outs = zip(*found, strict=True)
        bound, reconstruction, kl = [
            torch.cat([getattr(out, name) for out in outs]) for name in ("bound", "reconstruction", "kl")
        ]
        log_w = torch.cat([out.log_w for out in outs], 1)
        estimate = Estimate(grads, bound, log_w, state_of_shares(new, state), reconstruction, kl)
        return StepDetails(examples.joined(xs), torch.cat(noises, 1), estimate)

    return ShardedGradient(lambda size: size, shares, details)


def by_samples(settings: GradientSettings, wrap: Wrap) -> ShardedGradient:
    """Splits the samples of each datum: each shard uses its own samples' weights, computed from all log-weights.

    Except with an analytic KL, the weights need an additional forward pass over all samples.
    """
    model, estimator_at, samples, chunk, observe, noise = settings
    draw = in_parts(noise)

    def inputs(params: Params, keys: Tensor, x: Data, at: Tensor) -> tuple[Data, Tensor]:
        noise_key, observe_key = keys
        n = examples.count(x)
        x = examples.of_each("observe", observe(observe_key, x), n)
        return x, draw_noise(draw, noise_key, samples, n, model, params, x, samples=at)

    def log_weights(step: Tensor, params: Params, state: State, keys: Tensor, x: Data, at: Tensor) -> Tensor:
        log_w: Any = estimator_at(step).parts.log_w
        return log_w(model, params, from_sample(state, at[0]), *inputs(params, keys, x, at), True)

    def share(
        step: Tensor, params: Params, state: State, keys: Tensor, x: Data, at: Tensor, bound: Tensor, *w: Tensor
    ) -> Tensor:
        own, parts = from_sample(state, at[0]), estimator_at(step).parts
        out = parts.share(model, params, own, *inputs(params, keys, x, at), True, samples, *w)
        return pack(out.grads, out._replace(bound=out.bound + bound).means(), out.state)

    def seen(step: Tensor, params: Params, state: State, keys: Tensor, x: Data, at: Tensor) -> Seen:
        see: Any = estimator_at(step).parts.see
        return see(model, params, state, *inputs(params, keys, x, at), True)

    def weighed(step: Tensor, log_w: Tensor, *seen: Seen) -> tuple[Weights, Tensor]:
        weigh: Any = estimator_at(step).parts.weigh
        return weigh(log_w, *seen)

    share_of, log_w_of, weigh, see = wrap(share), wrap(log_weights), wrap(weighed), wrap(seen)

    def points_at(weights: Tensor, at: Tensor) -> Tensor:
        """Those of the weights [M, B, ...] that belong to the points of some samples."""
        return weights.unflatten(0, (samples, -1)).index_select(0, at).flatten(0, 1)

    def chunks(pieces: list[range], device: torch.device) -> list[Tensor]:
        """The indices of the pieces' samples, in chunks of at most `chunk`."""
        return [at for p in pieces for at in torch.arange(p.start, p.stop, device=device).split(chunk)]

    def weights(
        params: Params, state: State, batch: Batch, pieces: list[range], processes: Processes
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """The weights [M, B, ...] of all samples, if the shares take any, and the bound [B] to add to their bounds."""
        (step, keys, x), parts = batch, estimator_at(batch.step).parts
        device = examples.device(x)
        if parts.weigh is None:
            return (), torch.zeros(examples.count(x), dtype=noise_dtype(params), device=device)
        given = step, params, state, keys, x
        of_each = [pieces[own.start : own.stop] for own in _split_evenly(len(pieces), processes.size)]
        sizes = [sum(map(len, own)) for own in of_each]
        log_w = torch.cat([log_w_of(*given, at) for at in chunks(of_each[processes.rank], device)])
        m = len(log_w) // sizes[processes.rank]
        gathered = processes.all_gather_rows(log_w, [m * size for size in sizes])
        return weigh(step, gathered, *([see(*given, torch.arange(samples, device=device))] if parts.see else []))

    def shares(
        params: Params, state: State, batch: Batch, pieces: list[range], processes: Processes
    ) -> Callable[[range], Tensor]:
        x = batch.x
        w, bound = weights(params, state, batch, pieces, processes)
        zero = torch.zeros_like(bound)

        def summed(piece: range) -> Tensor:
            total: Any = None
            for i, at in enumerate(chunks([piece], examples.device(x))):
                once = bound if piece.start + i == 0 else zero  # the bound of all samples counts once
                own = [points_at(each, at) for each in w]
                total = add_trees(total, share_of(batch.step, params, state, batch.keys, x, at, once, *own))
            return total

        return summed

    def details(params: Params, state: State, batch: Batch, pieces: list[range]) -> StepDetails:
        x, parts = batch.x, estimator_at(batch.step).parts
        w, bound = weights(params, state, batch, pieces, SINGLE)
        total: Any = None
        eps, log_w = [], []
        for at in chunks(pieces, examples.device(x)):
            observed, drawn = inputs(params, batch.keys, x, at)
            own = [points_at(each, at) for each in w]
            out = parts.share(model, params, from_sample(state, at[0]), observed, drawn, True, samples, *own)
            total = add_trees(total, (out.grads, out.bound, out.state, out.reconstruction, out.kl))
            eps.append(drawn)
            log_w.append(out.log_w)
        grads, more, new, *split = total
        estimate = Estimate(grads, bound + more if w else more, torch.cat(log_w), state_of_shares(new, state), *split)
        return StepDetails(observed, torch.cat(eps), estimate)

    return ShardedGradient(lambda size: samples, shares, details)


def draw_noise(
    scheme: Noise, key: random.Key, n: int, size: int, model: VAE, params: Params, x: Data, **part: Tensor
) -> Tensor:
    """The noise [n, B, Z] of a step for observed data x [B, ...], in the dtype of the parameters.

    `size` is the number of data in the batch; `part` is `rows` or `samples`, to draw only a part: see
    `funcvae.noise.in_parts`. Raises BadType or BadValue unless the parameters are float32 or float64 and the noise has
    their dtype and its shape.
    """
    dtype = checks.float32_or_float64("the dtype of the parameters", noise_dtype(params))
    eps = scheme(key, n, (size, model.latent), dtype=dtype, **part)
    check_noise(model, params, x, eps, None if "samples" in part else n)
    return eps


def nonempty_pieces(length: int, shards: int) -> list[range]:
    """Splits range(length) into at most `shards` pieces, none of them empty; a short last batch may have fewer."""
    return [piece for piece in _split_evenly(length, shards) if len(piece)]


ShareTree = tuple[Params, Tensor, StateShare]  # a share before it is packed: gradient, means [3] and state


def share_like(model: VAE, params: Params, state: State) -> ShareTree:
    """Tensors of the structure and shapes of a share."""
    zero = tree.leaves(params)[0].new_zeros(())
    return params, zero.expand(3), {path: (buffer, zero) for path, buffer in running(model, state).items()}


def sum_shares(
    pieces: list[range], share_of: Callable[[range], Tensor], processes: Processes, like: ShareTree, *, stop: bool,
    ordered: bool,
) -> Tensor:  # fmt: skip
    """Sums the shares of all pieces; the last element of the sum is the number of processes that request a stop.

    Each process computes the shares of its own pieces. `like` is from `share_like`; `stop` is whether this process
    requests a stop. Unless `ordered`, torch.distributed chooses the order of the sum, which is faster.
    """

    def zeros() -> Tensor:
        return pack(*tree.zeros_like(like))

    sums = reduction.local_sums(len(pieces), lambda s: share_of(pieces[s]), processes, zeros)
    sums[0][-1] += stop
    if ordered:
        return reduction.combine_sums(sums, len(pieces), processes)
    return processes.all_reduce(sums[0] if len(sums) == 1 else torch.stack(sums).sum(0))


def pack(grads: Params, means: Tensor, state: StateShare) -> Tensor:
    """Packs a share into one flat vector, with a zero at the end where `sum_shares` counts stop requests."""
    leaves = [*tree.leaves((grads, means, state)), torch.zeros_like(means[:1])]
    dtype = max((leaf.dtype for leaf in tree.leaves(grads)), key=lambda each: each.itemsize)
    return torch.cat([leaf.flatten().to(dtype) for leaf in leaves])


def unpack(flat: Tensor, like: ShareTree, state: State) -> tuple[Params, Tensor, State]:
    """Unpacks the sum of all shares: gradient, means [3], and the new state that follows the given one."""
    leaves, structure = tree.flatten(like)
    sizes = [leaf.numel() for leaf in leaves]
    parts = [part.view(leaf.shape) for part, leaf in zip(flat[:-1].split(sizes), leaves, strict=True)]
    grads, means, shares = structure.unflatten(parts)
    return tree.map(lambda g, p: g.to(p.dtype), grads, like[0]), means, state_of_shares(shares, state)


_split_evenly = checks.unchecked(split_evenly)
