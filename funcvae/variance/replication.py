"""The moments of one estimator's gradient, coordinate by coordinate."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcvae import compilation, random, tree
from funcvae._support import checks
from funcvae.distributed.processes import SINGLE, Processes
from funcvae.model import VAE
from funcvae.modules import Params, State
from funcvae.noise import Noise, iid
from funcvae.variance import blocks, intervals, online_moments, weight_diagnostics
from funcvae.variance.blocks import Block
from funcvae.variance.intervals import Group, Measured
from funcvae.variance.replicates import (
    AnyEstimator,
    Gradients,
    Problem,
    Progress,
    at_once,
    called,
    check,
    check_finite,
    gradients,
    target_of,
)
from funcvae.variance.replicates import noise as noise_of


class Moments(NamedTuple):
    """Mean, variance and signal-to-noise ratio of a gradient over the noise, with standard errors.

    Trees like params, in float64, coordinate by coordinate. Gradients are `Estimate.grads`: the direction to descend,
    in nats per example and unit of the parameter.
    """

    mean: Params
    """E g."""
    mean_se: Params
    """(Var g/R)^½."""
    variance: Params
    """Var g, unbiased; NaN where R = 1."""
    variance_se: Params
    """((m₄ - (R-3)/(R-1) Var²)/R)^½, with m₄ the fourth central moment; infinite where R = 1."""
    snr: Params
    """|E g|/(Var g)^½. Where there is no signal its expectation is not 0 but about 0.8/√R."""
    snr_se: Params
    """((1 - θγ + θ²(κ-1)/4)/R)^½ by the delta method, with θ = E g/σ, γ the skewness and κ the kurtosis of g."""
    groups: dict[str, Group]
    """"all"; "encoder", "decoder", "prior" where they have parameters; each parameter, as "encoder/0.weight"; and those
    asked for."""
    bound: Measured
    """E of the batch's mean bound, in nats per example."""
    replicates: int


@torch.no_grad()
def moments(
    estimator: AnyEstimator,
    model: VAE,
    params: Params,
    state: State,
    x: Tensor,
    key: random.Key,
    *,
    samples: int,
    replicates: int = 1000,
    chunk: int | None = None,
    noise: Noise = iid,
    groups: Sequence[str] = (),
    train: bool = False,
    compile: bool = False,
    processes: Processes = SINGLE,
    progress: Progress = lambda done, total: None,
) -> Moments:
    """The moments of `estimator(...).grads` over R independent replicates of the noise, by Monte Carlo.

    One pass; sums are kept in float64, and memory is O(P·chunk) for P parameters, and O(P·log R) for the blocks that
    replicates are added up in, of which there are 1,024 at most; plus a few numbers for each replicate and leaf.
    Replicate r's noise is `noise(fold_in(key, r), ...)`: the same bits for every `chunk`.
    Gradients are equal to rounding between chunk sizes and bit for bit with one.

    Args:
        estimator: an Estimator, or any function of the same arguments that returns an Estimate.
        x: data [B, ...]: the gradient is that of this batch.
        samples: K.
        replicates: R.
        chunk: replicates at a time; by the sizes of model and batch, at most 16, unless given.
        noise: the noise scheme; it is `vmap`ped over keys.
        groups: further groups of parameters, as patterns such as "encoder/*.bias".
        train: whether networks are in training mode, as with BatchNorm they are when the gradient is used.
        compile: run under `torch.compile`: worth its half minute for tens of thousands of replicates.
        processes: who does it, from `process_group()`: each takes some of the replicates, all have the result, and
            its bits are the same for every number of them.
        progress: called with the number of replicates done, and of all.

    Raises:
        BadValue: samples, replicates or chunk below one; a group that matches no parameter; or the estimator leans on
            independent samples, and the noise scheme's are not.
        BadData: data the model cannot take, or that are not finite.
        NonFinite: a gradient that is not finite; the message names the replicate and the key that replays it.

    References: Rainforth et al. (2018), arXiv:1802.04537, for the signal-to-noise ratios; `statistics.of_mean` and
    `streaming` for intervals and sums.
    """
    problem = Problem(model, params, state, x, samples, train)
    check(model, params, state, x, samples=samples, replicates=replicates, chunk=chunk)
    checks.flag("train", train)
    checks.function("progress", progress)
    chunk = at_once(problem) if chunk is None else chunk
    target_of(estimator, noise, "")  # raises where the two do not suit each other
    named = tree.named_leaves(params)
    sizes = [leaf.numel() for leaf in named.values()]
    members_of = intervals.groups_of(list(named), sizes, groups)
    name = called(estimator, "the estimator")

    key = checks.valued("key", random.checked(key)).to(x.device)
    gradient = gradients((estimator,), model, problem.names, train)
    step = _compiled_step(estimator, model, problem.names, train, x.device) if compile else _step(gradient)
    ((_, eps),) = noise_of(problem, noise, key, 0, 1, 1)
    sums = online_moments.start([leaf[0] for leaf in gradient(params, state, x, eps)[0][0]], order=_ORDER)
    squares, alongs, bounds, seen, done = [], [], [], weight_diagnostics.start(problem), 0

    def nothing() -> Block:
        rows = torch.zeros(0, 2 * len(sizes) + 1 + len(x), dtype=torch.float64)
        return Block(online_moments.blank(sums.center, _ORDER), rows, [weight_diagnostics.unseen(problem)])

    def compute(piece: range) -> Block:
        nonlocal done
        flat, _, _ = nothing()
        powers, rows, more = online_moments.laid_out(flat, sums.center, _ORDER), [], []
        for start, eps in noise_of(problem, noise, key, piece.start, piece.stop, chunk, compile):
            how = step if len(eps) == chunk else _step(gradient)  # what is compiled is for these
            square, along, log_w, bound = how(params, state, x, eps, sums.center, powers)
            check_finite(name, key, start, square, along, bound.unsqueeze(1))
            ess, some = weight_diagnostics.look(log_w, start)
            rows.append(torch.cat([square, along, bound.double().cpu().unsqueeze(1), ess], 1))
            more.append(some)
        done += len(piece) * processes.size
        if done < end:
            progress(done, replicates)
        return Block(flat, torch.cat(rows), [torch.cat(more)])

    for begin, end in online_moments.segments(0, replicates):
        sums, done = online_moments.renewed(sums, begin), begin
        found = blocks.merged(blocks.blocks(begin, end, chunk), compute, processes, nothing)
        square, along, bound, ess = (
            part.contiguous() for part in found.rows.split([len(sizes), len(sizes), 1, len(x)], 1)
        )
        sums, seen = online_moments.merged(sums, found.sums, square), weight_diagnostics.add(seen, ess, found.more[0])
        squares.append(square)
        alongs.append(along)
        bounds.append(bound.flatten())
        progress(end, replicates)

    flags = weight_diagnostics.flags(weight_diagnostics.judge(seen), estimator, samples)
    series = intervals.series(sums, squares, alongs)
    return Moments(
        **_by_coordinate(sums, params),
        groups={
            group: intervals.group(
                series, members, sum(sizes[i] for i in members), flags.of(problem.names[i] for i in members)
            )
            for group, members in members_of.items()
        },
        bound=intervals.of_mean(torch.cat(bounds).numpy()),
        replicates=replicates,
    )


_ORDER = 4  # of the powers that are summed


def _step(gradient: Gradients) -> Callable[..., Any]:
    """The gradients of some replicates, added to the sums, in place."""

    def step(params: Params, state: State, x: Tensor, eps: Tensor, center: Any, powers: Any) -> Any:
        (grads,), log_w, (bound,) = gradient(params, state, x, eps)
        return *online_moments.add_powers(center, powers, grads), log_w, bound

    return step


@lru_cache(maxsize=8)
def _compiled_step(
    estimator: AnyEstimator, model: VAE, names: tuple[str, ...], train: bool, device: torch.device
) -> Callable[..., Any]:
    return compilation.compiled(_step(gradients((estimator,), model, names, train)), device=device)


def _by_coordinate(sums: online_moments.Sums, params: Params) -> dict[str, Any]:
    """The fields of `Moments` that are trees."""
    columns: dict[str, online_moments.Leaves] = {}
    for mean, _, *powers in zip(online_moments.mean(sums), *online_moments.central(sums), strict=True):
        n, (m2, m3, m4) = sums.n, (power / sums.n for power in powers)
        unknown = torch.full_like(mean, torch.inf)
        variance = n * m2 / (n - 1) if n > 1 else torch.full_like(mean, torch.nan)
        fourth = m4 - (n - 3) / (n - 1) * variance**2 if n > 1 else unknown
        theta = mean.abs() / variance.sqrt()
        skew, kurtosis = mean.sign() * m3 / m2**1.5, m4 / m2**2
        found = {
            "mean": mean,
            "mean_se": (variance / n).sqrt() if n > 1 else unknown,
            "variance": variance,
            "variance_se": (fourth.clamp(min=0) / n).sqrt(),
            "snr": theta,
            "snr_se": ((1 - theta * skew + theta**2 * (kurtosis - 1) / 4).clamp(min=0) / n).sqrt()
            if n > 1
            else unknown,
        }
        for name, column in found.items():
            columns.setdefault(name, []).append(column)
    return {name: tree.like(leaves, params) for name, leaves in columns.items()}
