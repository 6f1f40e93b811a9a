"""Diagnostics of the replicates' importance weights: the effective sample size and the shape of the tail."""

import math
from typing import NamedTuple

import torch
from einops import rearrange, reduce
from torch import Tensor

from funcvae import bounds
from funcvae._support import examples
from funcvae._support.reprs import short_repr
from funcvae.evaluate import psis
from funcvae.variance.problem import Problem

__all__ = ["Importance", "WeightSums", "add", "empty_sums", "importance", "no_log_weights", "summarize"]


@short_repr
class Importance(NamedTuple):
    """Diagnostics of the weights w_k of the K samples of a datum, over data and replicates."""

    ess: float
    """The mean effective sample size 1/sum_k v_k² of K samples, with v the weights normalised over k."""
    least_ess: float
    """The smallest mean effective sample size of a datum."""
    k_hat: float
    """Pareto shape of the tail of all weights, each divided by the mean of its datum. If it is ½ or more, the weights
    have no variance. NaN if log-weights are not finite. It is a property of the proposal, not of a gradient: weights
    that are normalised over k are at most 1."""


class WeightSums(NamedTuple):
    """Sums over the weights so far, and some log-weights."""

    ess: Tensor  # [B]: the sum of the effective sample sizes
    replicates: int
    log_w: list[Tensor]
    """Log-weights [c, N, B'] of the first replicates, and of the first data only if there are very many samples."""


def empty_sums(problem: Problem) -> WeightSums:
    """Sums over no weights."""
    return WeightSums(torch.zeros(examples.count(problem.x), dtype=torch.float64), 0, [])


def no_log_weights(problem: Problem) -> Tensor:
    """The kept log-weights before the first replicate: an empty tensor [0, N, B']."""
    return summarize(torch.zeros(1, problem.samples, examples.count(problem.x)), 0)[1][:0]


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


_MOST_WEIGHTS = 2**20
