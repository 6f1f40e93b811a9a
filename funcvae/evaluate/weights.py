"""Importance-weight statistics: functions of the log-weights log w_k = log p(x, z_k) - log q(z_k|x), [K, B], alone.

Estimates of log p(x), of the bounds below it and of KL(q(z|x) ‖ p(z|x)), each with its standard error for the
Monte-Carlo noise, and diagnostics of that error. All in nats.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from funcvae import bounds
from funcvae._support import checks
from funcvae.errors import BadType, BadValue, NonFinite
from funcvae.evaluate import psis

__all__ = [
    "Estimated", "Likelihood", "Untrusted", "check_item_values", "check_ladder", "first_bad_item", "ladder",
    "likelihood", "posterior_gap", "standard_error", "untrusted_message",
]  # fmt: skip


class Untrusted(UserWarning):
    """An estimate by importance weights whose tail is too heavy for its standard error to mean much."""


class Estimated(NamedTuple):
    """Estimates for each of B data, in nats, with standard errors for the Monte-Carlo noise."""

    value: Tensor
    """[B]."""
    se: Tensor
    """[B]; infinite where one sample says nothing of its own error."""

    @property
    def mean(self) -> float:
        """The mean over the data."""
        return float(self.value.mean())

    @property
    def mean_se(self) -> float:
        """The standard error of `mean` as an estimate for these data: what more samples would reduce."""
        return float(self.se.square().sum().sqrt()) / len(self.se)

    @property
    def sampling_se(self) -> float:
        """The standard error of `mean` as an estimate for all data of this kind: what more data would reduce."""
        return float(self.value.std()) / math.sqrt(len(self.value)) if len(self.value) > 1 else math.inf


class Likelihood(NamedTuple):
    """log p(x) by importance sampling, with diagnostics of its standard error."""

    log_p: Estimated
    """L_K for each datum. Its expectation lies below log p(x): see `shortfall`."""
    ess: Tensor
    """[B]: the effective sample size 1/sum_k v_k² of the normalised weights, of K."""
    k_hat: Tensor
    """[B]: the Pareto shape of the weights' tail."""
    samples: int
    """K."""

    @property
    def shortfall(self) -> Tensor:
        """[B]: about how far L_K lies below log p(x) in expectation, ½ se²; too little where `untrusted`."""
        return self.log_p.se.square() / 2

    @property
    def untrusted(self) -> Tensor:
        """[B]: where k̂ is above min(1 - 1/log10 K, 0.7), and the standard error is not to be trusted."""
        return self.k_hat > psis.threshold(self.samples)


def likelihood(log_w: Tensor) -> Likelihood:
    """log p(x) from log-weights [K, B], with errors.

    With v the weights normalised over k, the delta method gives the standard error of the logarithm of their mean,

        se² = (1/K) Var(w)/mean(w)² = (K sum_k v_k² - 1)/(K - 1),

    with the unbiased variance; 1/sum_k v_k² is the effective sample size.
    """
    log_w, samples = _log_weights(log_w), len(log_w)
    square = _square_sum(log_w)
    k_hat = torch.from_numpy(psis.k_hat(log_w)).to(log_w.device)
    return Likelihood(Estimated(bounds.iwae(log_w), _delta_se(square, samples)), 1 / square, k_hat, samples)


def untrusted_message(found: Likelihood, items: Tensor | None = None) -> str:
    """One line on the data whose standard error is not to be trusted; `items` [B] are their numbers, if not 0 … B-1."""
    if not isinstance(found, Likelihood):
        raise BadType(f"found is {checks.describe(found)}: it must be what `likelihood` returns")
    bad, samples = found.untrusted, found.samples
    if not bad.any():
        raise BadValue("no datum is untrusted")
    first = first_bad_item(bad, items)
    which = f"{int(bad.sum())} of {len(bad)} data, first for item {first}"
    if found.k_hat[bad].isinf().all():
        return f"{samples} samples are too few to judge the tail of the importance weights of {which}"
    least = f"{float(found.ess[bad].min()):.1f} of {samples}"
    return (
        f"Pareto k̂ is above {psis.threshold(samples):.2f} for {which} (least effective sample size {least}): "
        f"L_{samples} still lies below log p(x) in expectation, but its standard error is not to be trusted there"
    )


def ladder(log_w: Tensor, samples: Sequence[int]) -> dict[int, Estimated]:
    """L_K for each K of `samples` from log-weights [S, B], on common noise.

    The S samples make S//K groups of K; the value is the mean of their bounds, and the standard error that of the mean;
    where there is one group alone, the delta method's. In expectation the ladder rises.

    Raises:
        BadValue: a K below one or above S, or none at all.
    """
    check_ladder(samples)
    if max(samples) > len(bounds.checked(log_w)):
        raise BadValue(f"a bound of {max(samples)} samples needs as many log-weights: there are {len(log_w)}")
    log_w, rungs = _log_weights(log_w), {}
    for k in sorted(set(samples)):
        groups = len(log_w) // k
        each = bounds.iwae(bounds.groups(log_w[: groups * k], groups).transpose(0, 1))  # [groups, B]
        se = standard_error(each) if groups > 1 else _delta_se(_square_sum(log_w[:k]), k)
        rungs[k] = Estimated(each.mean(0), se)
    return rungs


def posterior_gap(log_w: Tensor) -> Estimated:
    """KL(q(z|x) ‖ p(z|x)) of each datum, estimated from log-weights [K, B] as L_K - mean_k log w_k, in nats.

    As L_K lies below log p(x) in expectation, this lies below the KL. The standard error is the delta method's, of the
    mean of w_k/w̄ - log w_k.
    """
    log_w = _log_weights(log_w)
    influence = len(log_w) * log_w.softmax(0) - log_w
    return Estimated(bounds.iwae(log_w) - bounds.elbo(log_w), standard_error(influence))


def check_item_values(name: str, finite: Tensor, items: Tensor | None = None) -> None:
    """Raises NonFinite, naming the first datum, unless the values of all are finite, as `finite` [B] says."""
    if not finite.all():
        raise NonFinite(f"the {name} of item {first_bad_item(~finite, items)} are not finite: look at the parameters")


def check_ladder(samples: Sequence[int]) -> None:
    """Raises BadType or BadValue unless these can be the numbers of samples of a ladder."""
    if not isinstance(samples, Sequence) or isinstance(samples, str | bytes):
        raise BadType(f"samples is {checks.describe(samples)}: give numbers of samples, as in (1, 10)")
    if not samples or min(checks.integer("a number of samples", k) for k in samples) < 1:
        raise BadValue(f"samples is {tuple(samples)}: give numbers of samples, each at least 1")


def _log_weights(log_w: Tensor) -> Tensor:
    """Log-weights [K, B] in float64."""
    return checks.tensor("log_w", bounds.checked(log_w), "K B").double()


def _square_sum(log_w: Tensor) -> Tensor:
    """sum_k v_k² [B] of the normalised weights."""
    return log_w.softmax(0).square().sum(0)


def _delta_se(square: Tensor, samples: int) -> Tensor:
    """The delta method's standard error [B] of log mean_k w_k, from sum_k v_k²: the formula of `likelihood`."""
    if samples == 1:
        return torch.full_like(square, math.inf)
    return ((samples * square - 1).clamp(min=0) / (samples - 1)).sqrt()


def standard_error(values: Tensor) -> Tensor:
    """The standard error [B] of the mean over the first axis; infinite where there is one value alone."""
    if not len(checks.tensor("values", values, "K ...", floating=True)):
        raise BadValue(f"values has shape {list(values.shape)}: at least one is needed")
    several = len(values) > 1 and values.numel() > 0  # of no data there is no std, torch warns
    return values.std(0) / math.sqrt(len(values)) if several else torch.full_like(values[0], math.inf)


def first_bad_item(bad: Tensor, items: Tensor | None) -> int:
    """The number of the first bad datum, where the data are numbered `items` [B] or else 0 … B-1."""
    if checks.concrete("bad", bad, "B").is_complex() or not len(bad):
        raise BadValue(f"bad is {checks.describe(bad)}: it must say of each datum whether it is bad")
    first = int(bad.int().argmax())
    if items is None:
        return first
    if len(checks.concrete("items", items, "B")) != len(bad) or not _is_whole(items):
        raise BadValue(f"items is {checks.describe(items)}: it must be whole numbers [{len(bad)}]")
    return int(items[first])


def _is_whole(x: Tensor) -> bool:
    return not (x.is_floating_point() or x.is_complex())
