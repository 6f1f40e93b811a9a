"""Diagnostics of the replicates' importance weights: the effective sample size, and how heavy the tail is."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from funcvae import bounds
from funcvae.estimators.types import Estimator, GradientEstimator
from funcvae.evaluate import psis
from funcvae.variance.intervals import HEAVY_WEIGHT_TAIL
from funcvae.variance.problem import Problem

__all__ = [
    "Flags", "Importance", "WeightSums", "add", "empty_sums", "flags", "importance", "no_log_weights", "summarize",
]  # fmt: skip


class Importance(NamedTuple):
    """The weights w_k of the K samples of a datum, over data and replicates."""

    ess: float
    """The mean effective sample size 1/sum_k v_k² of K samples, v the weights normalised over k."""
    least_ess: float
    """The same of the datum where it is least."""
    k_hat: float
    """Pareto shape of the tail of all weights, each datum's divided by their mean. From ½ on the weights have no
    variance, from ¼ on no fourth moment. NaN where log-weights are not finite."""

    @property
    def flag(self) -> str:
        """Why an interval for a variance that is made with these weights is unreliable; empty where it is not."""
        if math.isnan(self.k_hat):
            return "importance weights whose tail cannot be judged"
        heavy = f"Pareto k̂ {self.k_hat:.2f} of the importance weights, {HEAVY_WEIGHT_TAIL} or more"
        return heavy if self.k_hat >= HEAVY_WEIGHT_TAIL else ""


class Flags(NamedTuple):
    """Why the weights make intervals of an estimator's gradient unreliable; empty where they do not."""

    encoder: str
    decoder_and_prior: str

    def for_leaves(self, names: Iterable[str]) -> str:
        """The flag of the gradient in the leaves of these names."""
        found = (self.encoder if name.startswith("encoder/") else self.decoder_and_prior for name in names)
        return next(filter(None, found), "")


class WeightSums(NamedTuple):
    """What is kept of the weights so far."""

    ess: Tensor
    """[B]: the sum of the effective sample sizes."""
    replicates: int
    log_w: list[Tensor]
    """[c, N, B'] each: of the first replicates, and of the first data where there are very many samples."""


def empty_sums(problem: Problem) -> WeightSums:
    """No weights yet."""
    return WeightSums(torch.zeros(len(problem.x), dtype=torch.float64), 0, [])


def no_log_weights(problem: Problem) -> Tensor:
    """What is kept of no replicates: [0, N, B']."""
    shape = 1, problem.samples, len(problem.x)
    return summarize(torch.zeros(shape, dtype=torch.float64), 0)[1][:0]


def summarize(log_w: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """Of the log-weights [c, N, B] of replicates first, first+1, …: the effective sample sizes [c, B], and what is kept
    of them [c' <= c, N, B']."""
    log_w = log_w.double().cpu()
    ess = 1 / log_w.softmax(1).square().sum(1)
    kept = log_w[:, :, : max(1, _MOST_WEIGHTS // log_w.shape[1])]
    return ess, kept[: max(0, max(1, _MOST_WEIGHTS // kept[0].numel()) - first)]


def add(sums: WeightSums, ess: Tensor, log_w: Tensor) -> WeightSums:
    """The sums with further replicates, as `summarize` returns them."""
    kept = [*sums.log_w, log_w] if len(log_w) else sums.log_w
    return WeightSums(sums.ess + ess.sum(0), sums.replicates + len(ess), kept)


def importance(sums: WeightSums) -> Importance:
    """The diagnostics of all weights so far."""
    ess = sums.ess / sums.replicates
    log_w = torch.cat(sums.log_w).flatten(0, 1)  # [R·N, B']
    pooled = (log_w - bounds.iwae(log_w)).flatten()
    pooled = pooled[pooled != -math.inf]  # weights of 0 are in no tail
    known = len(pooled) > 0 and bool(pooled.isfinite().all())
    k_hat = float(psis.k_hat(pooled.unsqueeze(1))[0]) if known else math.nan
    return Importance(float(ess.mean()), float(ess.min()), k_hat)


def flags(weights: Importance, estimator: GradientEstimator, samples: int) -> Flags:
    """Flags for an estimator's intervals, where its own weights depend on the log-weights.

    The encoder's gradient is made with path and score, the decoder's and the prior's with theta. Those of `elbo`,
    `elbo_mc` and `stl` do not depend on them, and of `score` and `rloo` theta does not.
    """
    if not isinstance(estimator, Estimator):
        return Flags(weights.flag, weights.flag)  # nothing is known of it
    if estimator.weights is None:
        return Flags("", "")
    flat = torch.zeros(samples, 1, dtype=torch.float64)
    steep = torch.arange(samples, dtype=torch.float64).unsqueeze(1) + 1
    path, score, theta = map(torch.equal, estimator.weights(flat), estimator.weights(steep))
    return Flags("" if path and score else weights.flag, "" if theta else weights.flag)


_MOST_WEIGHTS = 2**20
