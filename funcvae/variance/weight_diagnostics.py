"""Diagnostics of the replicates' importance weights: the effective sample size and the shape of the tail."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from einops import rearrange, reduce
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
    """Diagnostics of the weights w_k of the K samples of a datum, over data and replicates."""

    ess: float
    """The mean effective sample size 1/sum_k v_k² of K samples, with v the weights normalised over k."""
    least_ess: float
    """The smallest mean effective sample size of a datum."""
    k_hat: float
    """Pareto shape of the tail of all weights, each divided by the mean of its datum. If it is ½ or more, the weights
    have no variance; if it is ¼ or more, no fourth moment. NaN if log-weights are not finite."""

    @property
    def flag(self) -> str:
        """Why an interval for the variance of a gradient with these weights is unreliable; "" if it is reliable."""
        if math.isnan(self.k_hat):
            return "importance weights whose tail cannot be estimated"
        heavy = f"Pareto k̂ {self.k_hat:.2f} of the importance weights, {HEAVY_WEIGHT_TAIL} or more"
        return heavy if self.k_hat >= HEAVY_WEIGHT_TAIL else ""


class Flags(NamedTuple):
    """Why intervals for an estimator's gradient with these weights are unreliable; "" if they are reliable."""

    encoder: str
    decoder_and_prior: str

    def for_leaves(self, names: Iterable[str]) -> str:
        """The flag of the gradient in the leaves with these names."""
        found = (self.encoder if name.startswith("encoder/") else self.decoder_and_prior for name in names)
        return next(filter(None, found), "")


class WeightSums(NamedTuple):
    """Sums over the weights so far, and some log-weights."""

    ess: Tensor
    """[B]: the sum of the effective sample sizes."""
    replicates: int
    log_w: list[Tensor]
    """Log-weights [c, N, B'] of the first replicates, and of the first data only if there are very many samples."""


def empty_sums(problem: Problem) -> WeightSums:
    """Sums over no weights."""
    return WeightSums(torch.zeros(len(problem.x), dtype=torch.float64), 0, [])


def no_log_weights(problem: Problem) -> Tensor:
    """The kept log-weights before the first replicate: an empty tensor [0, N, B']."""
    shape = 1, problem.samples, len(problem.x)
    return summarize(torch.zeros(shape, dtype=torch.float64), 0)[1][:0]


def summarize(log_w: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """Maps the log-weights [c, N, B] of replicates first, first+1, … to the effective sample sizes [c, B] and the
    log-weights to keep [c' <= c, N, B']."""
    log_w = log_w.double().cpu()
    ess = 1 / reduce(log_w.softmax(1).square(), "c n b -> c b", "sum")
    kept = log_w[:, :, : max(1, _MOST_WEIGHTS // log_w.shape[1])]
    return ess, kept[: max(0, max(1, _MOST_WEIGHTS // kept[0].numel()) - first)]


def add(sums: WeightSums, ess: Tensor, log_w: Tensor) -> WeightSums:
    """The sums with further replicates added, from the results of `summarize`."""
    kept = [*sums.log_w, log_w] if len(log_w) else sums.log_w
    return WeightSums(sums.ess + ess.sum(0), sums.replicates + len(ess), kept)


def importance(sums: WeightSums) -> Importance:
    """The diagnostics of all weights so far."""
    ess = sums.ess / sums.replicates
    log_w = rearrange(torch.cat(sums.log_w), "r n b -> (r n) b")
    pooled = (log_w - bounds.iwae(log_w)).flatten()
    pooled = pooled[pooled != -math.inf]  # weights of 0 are not in the tail
    known = len(pooled) > 0 and bool(pooled.isfinite().all())
    k_hat = float(psis.k_hat(rearrange(pooled, "k -> k 1"))[0]) if known else math.nan
    return Importance(float(ess.mean()), float(ess.min()), k_hat)


def flags(weights: Importance, estimator: GradientEstimator, samples: int) -> Flags:
    """Flags for an estimator's intervals if the weights of its gradient depend on the log-weights.

    The encoder's gradient uses the weights path and score, that of decoder and prior uses theta. None of them depends
    on the log-weights for `elbo`, `elbo_mc` and `stl`; theta does not for `score` and `rloo`.
    """
    if not isinstance(estimator, Estimator):
        return Flags(weights.flag, weights.flag)  # the weights of a function are unknown
    if estimator.weights is None:
        return Flags("", "")
    flat = torch.zeros(samples, 1, dtype=torch.float64)
    steep = torch.arange(samples, dtype=torch.float64).unsqueeze(1) + 1
    path, score, theta = map(torch.equal, estimator.weights(flat), estimator.weights(steep))
    return Flags("" if path and score else weights.flag, "" if theta else weights.flag)


_MOST_WEIGHTS = 2**20
