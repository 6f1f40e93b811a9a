"""The moments of one estimator's gradient, coordinate by coordinate."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from funcvae import compilation, random, tree
from funcvae._support import checks
from funcvae.distributed.collectives import SINGLE, Processes
from funcvae.estimators.types import GradientEstimator
from funcvae.evaluate.importance_sampling import Progress
from funcvae.model import VAE
from funcvae.modules import Params, State
from funcvae.noise import Noise, iid
from funcvae.variance import online_moments
from funcvae.variance.intervals import Measured
from funcvae.variance.online_moments import Leaves, Sums
from funcvae.variance.problem import (
    Gradients,
    Problem,
    ReplicateSettings,
    estimator_name,
    gradients,
    make_problem,
    noise_chunks,
    target_of,
)
from funcvae.variance.replicate_loop import Accumulator, ChunkStep, Lane, LaneRows
from funcvae.variance.snr import Group

__all__ = ["Moments", "moments"]


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
    estimator: GradientEstimator,
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
        processes: from `process_group()`: each computes some of the replicates, all have the result, and
            its bits are the same for every number of them.
        progress: called with the number of replicates done, and of all.

    Raises:
        BadValue: samples, replicates or chunk below one; a group that matches no parameter; or the estimator requires
            independent samples, and the noise scheme's are not.
        BadData: data the model cannot take, or that are not finite.
        NonFinite: a gradient that is not finite; the message names the replicate and the key that replays it.

    References: Rainforth et al. (2018), arXiv:1802.04537, for the signal-to-noise ratios; `intervals.mean_interval`
    and `online_moments` for intervals and sums.
    """
    settings = ReplicateSettings(samples, replicates, chunk, noise, groups, train, compile)
    problem = make_problem(model, params, state, x, key, settings)
    checks.function("progress", progress)
    lane = Lane(
        estimator_name(estimator, "the estimator"), estimator, settings.noise, target_of(estimator, settings.noise, "")
    )
    members_of = problem.parameter_groups()
    gradient = gradients((estimator,), model, problem.names, train)
    ((_, eps),) = noise_chunks(problem, settings.noise, range(1), compile=False)
    center = [leaf[0] for leaf in gradient(params, state, x, eps)[0][0]]
    accumulator = Accumulator([lane], problem, _step(lane, problem, gradient), [center], _ORDER, processes)
    accumulator.add(range(settings.replicates), progress)
    (found,) = accumulator.statistics(members_of)
    trees = _by_coordinate(found.sums, params)
    return Moments(**trees, groups=found.groups, bound=found.bound, replicates=settings.replicates)


_ORDER = 4  # of the powers that are summed


def _step(lane: Lane, problem: Problem, gradient: Gradients) -> ChunkStep:
    """The accumulator's step; where a whole chunk is compiled, gradients and sums are compiled together."""
    eager = whole = _chunk_sums(gradient)
    if problem.settings.compile:
        model, names, train = problem.model, problem.names, problem.settings.train
        whole = _compiled_chunk_sums((lane.estimator,), model, names, train, problem.x.device)
    chunk = problem.chunk

    def step(
        eps: list[Tensor], centers: list[Leaves], powers: list[list[Leaves]]
    ) -> tuple[list[LaneRows], list[Tensor]]:
        chunk_sums = whole if len(eps[0]) == chunk else eager
        square, along, log_w, bound = chunk_sums(
            problem.params, problem.state, problem.x, eps[0], centers[0], powers[0]
        )
        bounds = bound.double().cpu().unsqueeze(1)
        return [LaneRows(square, along, bounds, square.new_zeros(len(square), 0))], [log_w]

    return step


class ChunkSums(Protocol):
    """Adds the powers of a chunk's gradients to their sums, in place."""

    def __call__(
        self, params: Params, state: State, x: Tensor, eps: Tensor, center: Leaves, powers: list[Leaves]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """From eps [c, N, B, Z] to ‖g_r - c‖² and (g_r - c)·c [c, L], the log-weights [c, N, B] and the bounds [c]."""
        ...


def _chunk_sums(gradient: Gradients) -> ChunkSums:
    def chunk_sums(params: Params, state: State, x: Tensor, eps: Tensor, center: Leaves, powers: list[Leaves]) -> Any:
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
