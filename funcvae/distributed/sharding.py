"""A step's work in shards, for one process to do or several: which shards there are, and how their shares add up.

The rows of a batch (`by_rows`) or the samples of each datum (`by_samples`) are cut into S shards, whose sizes differ by
at most one. A shard's share is one flat vector of gradient, bound and new running statistics, weighted by its size, so
that the step's is the sum

    total = sum_s share_s,     by_rows: share_s = B_s/B · [∇, bound, statistics] of the shard's rows alone.

It is taken in an order that depends on S alone (`funcvae.reduction`), and so its bits do not depend on how many
processes there are.

By samples the weights of an estimator hang on all samples: their log-weights are exchanged first, N·B numbers, and from
these every process computes the same weights by the estimator's own rule.

BatchNorm takes its statistics from each shard by itself, and the running ones are the shards' average.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcvae import tree
from funcvae.compilation import Wrap
from funcvae.distributed import reduction
from funcvae.distributed.processes import Processes, cut
from funcvae.estimators.chunks import in_chunks
from funcvae.estimators.engine import Estimate, Estimator, added, times
from funcvae.model import VAE, Observe
from funcvae.modules import Params, State
from funcvae.noise import Noise, accepts, in_parts

Leaf = Callable[[range], Tensor]


class Seen(NamedTuple):
    """What a step saw, and the estimate from it."""

    x: Tensor  # [B, ...], as the model saw it
    eps: Tensor  # [N, B, Z]
    estimate: Estimate


class Work(NamedTuple):
    """A step's work, to be cut."""

    size: Callable[[int], int]
    """How many things can be cut apart, for a batch of B rows."""
    shares: Callable[..., Leaf]
    """(params, state, keys, data, rows, pieces, processes) -> the function from a shard to its share, a flat vector."""
    whole: Callable[..., Seen]
    """(params, state, keys, data, rows, pieces) -> what all shards together see, outside the compiler."""


Split = Callable[..., Work]


def by_rows(
    model: VAE, estimator: Estimator, *, samples: int, chunk: int, observe: Observe, noise: Noise, wrap: Wrap
) -> Work:
    """The rows of a batch, in shards: each estimates the gradient of its rows' mean bound.

    Args:
        model: the model.
        estimator: how.
        samples: N.
        chunk: where there are more samples, so many are decoded at a time.
        observe: (key, x) -> what the model sees; one that takes `rows` too sees the shard's rows alone.
        noise: the noise scheme.
        wrap: what is done to functions of tensors, such as `machine.compiled`.
    """
    draw, alone, several = in_parts(noise), accepts(observe, "rows"), samples > chunk
    if several:  # a loop, which the compiler would unroll: it gets the parts
        estimator, draw = in_chunks(estimator, chunk, wrap), wrap(draw)

    def see(params: Params, state: State, keys: Tensor, x: Tensor, at: Tensor, batch: int) -> Seen:
        noise_key, observe_key = keys
        x = observe(observe_key, x, rows=at) if alone else observe(observe_key, x).index_select(0, at)
        eps = draw(noise_key, samples, (batch, model.latent), dtype=x.dtype, rows=at)
        return Seen(x, eps, estimator(model, params, state, x, eps, train=True))

    def share(params: Params, state: State, keys: Tensor, x: Tensor, at: Tensor, batch: int) -> Tensor:
        out, part = see(params, state, keys, x, at, batch).estimate, len(at) / batch
        grads, bound, new = times((out.grads, out.bound.mean(), out.state), part)
        return pack(grads, bound, new, state, part)

    run = share if several else wrap(share)

    def given(keys: Tensor, data: Tensor, rows: Tensor, piece: range) -> tuple[Tensor, Tensor, Tensor, int]:
        x = data.index_select(0, rows[piece.start : piece.stop] if alone else rows)
        return keys, x, torch.arange(piece.start, piece.stop, device=data.device), len(rows)

    def shares(
        params: Params, state: State, keys: Tensor, data: Tensor, rows: Tensor, pieces: list[range], _: Processes
    ) -> Leaf:
        return lambda piece: run(params, state, *given(keys, data, rows, piece))

    def whole(params: Params, state: State, keys: Tensor, data: Tensor, rows: Tensor, pieces: list[range]) -> Seen:
        seen = [see(params, state, *given(keys, data, rows, piece)) for piece in pieces]
        outs = [s.estimate for s in seen]
        total: Any = None
        for piece, out in zip(pieces, outs, strict=True):
            total = added(total, times((out.grads, out.state), len(piece) / len(rows)))
        grads, new = total
        bound, log_w = torch.cat([out.bound for out in outs]), torch.cat([out.log_w for out in outs], 1)
        x, eps = torch.cat([s.x for s in seen]), torch.cat([s.eps for s in seen], 1)
        return Seen(x, eps, Estimate(grads, bound, log_w, new))

    return Work(lambda batch: batch, shares, whole)


def by_samples(
    model: VAE, estimator: Estimator, *, samples: int, chunk: int, observe: Observe, noise: Noise, wrap: Wrap
) -> Work:
    """The samples of each datum, in shards: each estimates with its samples' part of the weights of all.

    Takes what `by_rows` takes. The weights cost a forward pass over all samples before (not with an analytic KL).
    """
    draw, parts = in_parts(noise), estimator.parts

    def see(keys: Tensor, x: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        noise_key, observe_key = keys
        x = observe(observe_key, x)
        return x, draw(noise_key, samples, (len(x), model.latent), dtype=x.dtype, samples=at)

    def log_weights(params: Params, state: State, *seen: Tensor) -> Tensor:
        assert parts.log_w is not None
        x, eps = seen
        return parts.log_w(model, params, state, x, eps, True)

    def draw_and_weigh(params: Params, state: State, keys: Tensor, x: Tensor, at: Tensor) -> Tensor:
        return log_weights(params, state, *see(keys, x, at))

    def share(params: Params, state: State, keys: Tensor, x: Tensor, at: Tensor, bound: Tensor, *w: Tensor) -> Tensor:
        out = parts.share(model, params, state, *see(keys, x, at), True, samples, *w)
        return pack(out.grads, (out.bound + bound).mean(), out.state, state, len(at) / samples)

    run, log_w_of, weigh = wrap(share), wrap(draw_and_weigh), None if parts.weigh is None else wrap(parts.weigh)

    def numbered(piece: range, device: torch.device) -> list[Tensor]:
        """The piece's samples, at most `chunk` of them at a time."""
        return [*torch.arange(piece.start, piece.stop, device=device).split(chunk)]

    def shares(
        params: Params, state: State, keys: Tensor, data: Tensor, rows: Tensor, pieces: list[range],
        processes: Processes,
    ) -> Leaf:  # fmt: skip
        x = data.index_select(0, rows)
        w: tuple[Tensor, ...] = ()
        nothing = bound = x.new_zeros(len(x))
        if weigh is not None:
            own = [[pieces[i] for i in some] for some in cut(len(pieces), processes.size)]
            ats = [at for piece in own[processes.rank] for at in numbered(piece, x.device)]
            log_w = torch.cat([log_w_of(params, state, keys, x, at) for at in ats])
            w, bound = weigh(processes.all_gather_rows(log_w, [sum(map(len, some)) for some in own]))
            nothing = torch.zeros_like(bound)

        def leaf(piece: range) -> Tensor:
            total: Any = None
            for i, at in enumerate(numbered(piece, x.device)):
                once = bound if piece.start + i == 0 else nothing  # the weights' bound is that of all samples
                weights = [each.index_select(0, at) for each in w]
                total = added(total, run(params, state, keys, x, at, once, *weights))
            return total

        return leaf

    def whole(params: Params, state: State, keys: Tensor, data: Tensor, rows: Tensor, pieces: list[range]) -> Seen:
        x = data.index_select(0, rows)
        w: tuple[Tensor, ...] = ()
        ats = [at for piece in pieces for at in numbered(piece, x.device)]
        seen = [see(keys, x, at) for at in ats]
        if parts.weigh is not None:
            w, bound = parts.weigh(torch.cat([log_weights(params, state, *each) for each in seen]))
        total: Any = None
        log_w = []
        for at, each in zip(ats, seen, strict=True):
            weights = [all_.index_select(0, at) for all_ in w]
            out = parts.share(model, params, state, *each, True, samples, *weights)
            total = added(total, (out.grads, out.bound, out.state))
            log_w.append(out.log_w)
        grads, more, new = total
        eps = torch.cat([noise for _, noise in seen])
        return Seen(seen[0][0], eps, Estimate(grads, bound + more if w else more, torch.cat(log_w), new))

    return Work(lambda batch: samples, shares, whole)


def add_up(
    pieces: list[range], leaf: Leaf, processes: Processes, wish: bool, like: tuple[Params, State], *, ordered: bool
) -> Tensor:
    """The sum of all pieces' shares, and in its last element how many processes wish to stop.

    Args:
        pieces: of the whole, none of them empty.
        leaf: from a piece to its share.
        processes: who does what: each its own pieces.
        wish: whether this one wishes to stop.
        like: parameters and state: what the shares are of.
        ordered: along the tree, or as the engine will, which is faster.
    """
    here = reduction.own(len(pieces), lambda s: leaf(pieces[s]), processes, lambda: _nothing(like))
    here[0][-1] += wish
    if ordered:
        return reduction.exchanged(here, len(pieces), processes)
    return processes.all_reduce(here[0] if len(here) == 1 else torch.stack(here).sum(0))


def pack(grads: Params, bound: Tensor, new: State, old: State, part: float) -> Tensor:
    """One flat vector of a share: gradient, bound, state, and a zero for `add_up` to count wishes in.

    What of the state is no floating-point number, such as BatchNorm's count of batches, goes in by how much it grew.
    """
    grown = tree.map(lambda n, o: n if n.is_floating_point() else (n.long() - o.long()) * part, new, old)
    leaves = [*tree.leaves(grads), bound, *tree.leaves(grown), torch.zeros_like(bound)]
    kind = max((leaf.dtype for leaf in tree.leaves(grads)), key=lambda dtype: dtype.itemsize)
    return torch.cat([leaf.flatten().to(kind) for leaf in leaves])


def _nothing(like: tuple[Params, State]) -> Tensor:
    """The share of a process that has none of a short last batch."""
    params, state = like
    grads = tree.zeros_like(params)
    return pack(grads, tree.leaves(grads)[0].new_zeros(()), tree.zeros_like(state), tree.zeros_like(state), 0.0)


def unpack(flat: Tensor, params: Params, state: State) -> tuple[Params, Tensor, State]:
    """Gradient, bound and state again, in the structure of `params` and `state`, the old one."""
    leaves, kind = tree.flatten((params, torch.zeros_like(flat[0]), state))
    sizes = [leaf.numel() for leaf in leaves]
    parts = [part.view(leaf.shape) for part, leaf in zip(flat[:-1].split(sizes), leaves, strict=True)]
    grads, bound, grown = kind.unflatten(parts)

    def renewed(now: Tensor, old: Tensor) -> Tensor:
        return now.to(old.dtype) if old.is_floating_point() else (old + now.round().long()).to(old.dtype)

    return tree.map(lambda g, p: g.to(p.dtype), grads, params), bound, tree.map(renewed, grown, state)
