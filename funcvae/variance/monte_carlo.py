"""The moments of one estimator's gradient, coordinate by coordinate."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from funcvae import compilation, random, tree
from funcvae._support import checks
from funcvae._support.examples import Data
from funcvae._support.progress import Progress, silent
from funcvae._support.reprs import short_repr
from funcvae.distributed.collectives import SINGLE, Processes
from funcvae.estimators.types import GradientEstimator
from funcvae.model import VAE
from funcvae.modules import Params, State
from funcvae.noise import Noise, iid
from funcvae.variance import online_moments
from funcvae.variance.intervals import Measured
from funcvae.variance.online_moments import Leaves, Sums
from funcvae.variance.problem import (
    Gradients,
    Lane,
    Problem,
    ReplicateSettings,
    estimator_name,
    gradients,
    make_lane,
    make_problem,
    noise_chunks,
)
from funcvae.variance.replicate_loop import Accumulator, ChunkStep, LaneRows
from funcvae.variance.snr import Group

__all__ = ["Moments", "moments"]


@short_repr
class Moments(NamedTuple):
    """Mean, variance and signal-to-noise ratio of a gradient over the noise, with standard errors.

    Trees are like params, in float64, and hold one number for each coordinate. Gradients are `Estimate.grads`: the
    direction to descend, in nats per example and unit of the parameter.
    """

    mean: Params
    """E g."""
    mean_se: Params
    """(Var g/R)^½."""
    variance: Params
    """Var g, unbiased; NaN if R = 1."""
    variance_se: Params
    """((m₄ - (R-3)/(R-1) Var²)/R)^½, with m₄ the fourth central moment; infinite if R = 1."""
    snr: Params
    """|E g|/(Var g)^½. If E g = 0, the expectation of this estimate is about 0.8/√R, not 0."""
    snr_se: Params
    """((1 - θγ + θ²(κ-1)/4)/R)^½ by the delta method, with θ = E g/σ, γ the skewness and κ the kurtosis of g."""
    groups: dict[str, Group]
    """The groups of parameters: "all"; "encoder", "decoder" and "prior" if they have parameters; each parameter, such
    as "encoder/0.weight"; and the patterns given."""
    bound: Measured
    """Expectation of the batch's mean bound, in nats per example."""
    replicates: int


@checks.arguments
@torch.no_grad()
def moments(
    estimator: GradientEstimator,
    model: VAE,
    params: Params,
    state: State,
    x: Data,
    key: random.Key,
    *,
    samples: int,
    replicates: int = 1000,
    chunk: int | None = None,
    noise: Noise = iid,
    groups: str | Sequence[str] = (),
    train: bool = False,
    compile: bool = False,
    fresh_layers: bool = False,
    processes: Processes = SINGLE,
    progress: Progress = silent,
) -> Moments:
    """The moments of `estimator(...).grads` over R independent replicates of the noise, by Monte Carlo.

    The replicates are summed in one pass, in float64. For P parameters, memory is O(P·chunk) for the gradients and O(P)
    for the sums, plus a few numbers for each replicate and leaf. The noise of replicate r is `noise(fold_in(key, r),
    ...)`, with the same bits for every `chunk`. Results repeat bit for bit with one chunk size, and agree to rounding
    between chunk sizes.

    Args:
        estimator: an Estimator, or any function of the same arguments that returns an Estimate.
        x: data [B, ...]: the batch whose gradient is computed.
        samples, replicates: K and R.
        chunk: number of replicates computed at a time; by default it depends on model and batch and is at most 16.
        noise: the noise scheme; it is `vmap`ped over keys.
        groups: further groups of parameters, as patterns such as "encoder/*.bias".
        train: whether networks are in training mode. BatchNorm normalises by the batch only in training mode.
        compile: run under `torch.compile`. Compilation takes about half a minute, so it pays for tens of thousands of
            replicates.
        fresh_layers: whether random layers, such as dropout, draw anew in each replicate, which then counts what they
            draw as noise; needs `train`. Otherwise all replicates share what they draw, from the keys in `state`.
        processes: from `process_group()`. Each process computes some of the replicates, and all return the result. Its
            bits do not depend on the number of processes.
        progress: called with the number of replicates done and the total number.

    Raises:
        BadValue: samples, replicates or chunk is below one, a group matches no parameter, or the estimator requires
            independent samples and those of the noise scheme are not.
        BadData: the model cannot take the data, or they are not finite.
        NonFinite: a gradient or bound is not finite; the message names the replicate and the key of its noise.
        ProcessLost, ReportedElsewhere: another process has ended, or has reported an error.

    References: Rainforth et al. (2018), arXiv:1802.04537, for the signal-to-noise ratios. `intervals.mean_interval`
    and `online_moments` describe the intervals and the sums.
    """
    settings = ReplicateSettings(samples, replicates, chunk, noise, groups, train, compile, fresh_layers)
    problem = make_problem(model, params, state, x, key, settings)
    lane = make_lane(problem, estimator_name(estimator, "estimator"), estimator, noise)
    problem = replace(problem, decodes=lane.decodes)
    members_of = problem.parameter_groups()
    gradient = gradients((estimator,), problem.model, problem.names, train)
    ((_, eps),) = noise_chunks(problem, noise, range(1), compile=False)
    center = [leaf[0] for leaf in gradient(params, problem.state_of(range(1)), x, eps)[0][0]]
    step = _step(lane, problem, gradient)
    accumulator = Accumulator([lane], problem, step, [center], order=4, processes=processes)
    accumulator.add(range(replicates), progress)
    (found,) = accumulator.statistics(members_of)
    trees = _by_coordinate(found.sums, params)
    return Moments(**trees, groups=found.groups, bound=found.bound, replicates=replicates)


def _step(lane: Lane, problem: Problem, gradient: Gradients) -> ChunkStep:
    """The accumulator's step. With `compile`, gradients and sums of a whole chunk are compiled together."""
    eager = whole = _chunk_sums(gradient)
    if problem.settings.compile:
        model, names, train = problem.model, problem.names, problem.settings.train
        whole = _compiled_chunk_sums((lane.estimator,), model, names, train, problem.device)
    params, x, chunk = problem.params, problem.x, problem.chunk

    def step(first: int, eps: list[Tensor], centers: list[Leaves], powers: list[list[Leaves]]) -> Any:
        chunk_sums = whole if len(eps[0]) == chunk else eager
        state = problem.state_of(range(first, first + len(eps[0])))
        square, along, log_w, bound = chunk_sums(params, state, x, eps[0], centers[0], powers[0])
        bounds = rearrange(bound.double().cpu(), "c -> c 1")
        return [LaneRows(square.cpu(), along.cpu(), bounds, bounds.new_zeros(len(bounds), 0))], [log_w]

    return step


ChunkSums = Callable[[Params, State, Data, Tensor, Leaves, list[Leaves]], tuple[Tensor, Tensor, Tensor, Tensor]]
"""Adds the powers of a chunk's gradients to sums of powers, in place.

(params, state, x, eps [c, N, B, Z], center, powers) -> (‖g_r - c‖² [c, L], (g_r - c)·c [c, L], log w [c, N, B], the
mean bounds of the batch [c])
"""


def _chunk_sums(gradient: Gradients) -> ChunkSums:
    def chunk_sums(params: Params, state: State, x: Data, eps: Tensor, center: Leaves, powers: list[Leaves]) -> Any:
        (grads,), log_w, (bound,) = gradient(params, state, x, eps)
        return *online_moments.sum_powers_(center, powers, grads), log_w, bound

    return chunk_sums


@lru_cache(maxsize=8)
def _compiled_chunk_sums(
    estimators: tuple[GradientEstimator], model: VAE, names: tuple[str, ...], train: bool, device: torch.device
) -> ChunkSums:
    return compilation.compiled(_chunk_sums(gradients(estimators, model, names, train)), device=device)


def _by_coordinate(sums: Sums, params: Params) -> dict[str, Any]:
    """The fields of `Moments` that are trees."""
    columns: dict[str, Leaves] = {}
    for mean, _, *powers in zip(online_moments.mean(sums), *online_moments.central_powers(sums), strict=True):
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
