"""What the importance weights of the replicates say: whether they share the work, and how heavy their tail is."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from funcvae import bounds, pareto
from funcvae.engine import Estimator
from funcvae.variance.replicates import AnyEstimator, Problem
from funcvae.variance.statistics import WEIGHT_TAIL


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
        """What this says against an interval for a variance that is made with these weights."""
        heavy = self.k_hat >= WEIGHT_TAIL
        return f"Pareto k̂ {self.k_hat:.2f} of the importance weights" if heavy else ""


class Seen(NamedTuple):
    """What is kept of the weights so far."""

    ess: Tensor
    """[B]: the sum of the effective sample sizes."""
    replicates: int
    log_w: list[Tensor]
    """[c, N, B] each, of the first replicates."""


def start(problem: Problem) -> Seen:
    """No weights yet."""
    return Seen(torch.zeros(len(problem.x), dtype=torch.float64), 0, [])


def add(seen: Seen, log_w: Tensor) -> Seen:
    """With the log-weights [c, N, B] of further replicates."""
    log_w = log_w.double().cpu()
    ess = 1 / log_w.softmax(1).square().sum(1)
    room = max(0, _MOST_WEIGHTS // log_w[0].numel() - sum(map(len, seen.log_w)))
    kept = [*seen.log_w, log_w[:room]] if room else seen.log_w
    return Seen(seen.ess + ess.sum(0), seen.replicates + len(log_w), kept)


def judge(seen: Seen) -> Importance:
    """What the weights seen say."""
    ess = seen.ess / seen.replicates
    log_w = torch.cat(seen.log_w).flatten(0, 1) if seen.log_w else torch.zeros(0, len(ess))  # [R·N, B]
    known = len(log_w) > 0 and bool(log_w.isfinite().all())
    pooled = (log_w - bounds.iwae(log_w)).flatten() if known else None
    k_hat = math.nan if pooled is None else float(pareto.k_hat(pooled.unsqueeze(1))[0])
    return Importance(float(ess.mean()), float(ess.min()), k_hat)


def looks_at_weights(estimator: AnyEstimator, samples: int) -> bool:
    """Whether any of an estimator's weights depend on the log-weights: those of `elbo`, `elbo_mc` and `stl` do not."""
    if not isinstance(estimator, Estimator):
        return True  # nothing is known of it
    if estimator.weights is None:
        return False
    flat = torch.zeros(samples, 1, dtype=torch.float64)
    steep = torch.arange(samples, dtype=torch.float64).unsqueeze(1) + 1
    return not all(map(torch.equal, estimator.weights(flat), estimator.weights(steep)))


_MOST_WEIGHTS = 2**20
