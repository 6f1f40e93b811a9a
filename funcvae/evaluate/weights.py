"""Statistics of importance weights, from the log-weights log w_k = log p(x, z_k) - log q(z_k|x) [K, B] alone.

They estimate log p(x), lower bounds on it and KL(q(z|x) ‖ p(z|x)), with standard errors for the Monte-Carlo noise and
diagnostics of these errors. All are in nats.
"""

import math
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import torch
from einops import rearrange, reduce
from torch import Tensor

from funcvae import bounds
from funcvae._support import checks
from funcvae._support.reprs import short_repr
from funcvae.errors import BadValue, NonFinite
from funcvae.evaluate import psis

__all__ = [
    "Estimated", "Likelihood", "LogW", "Untrusted", "check_item_values", "check_items", "first_bad_item",
    "ladder", "likelihood", "posterior_gap", "rungs", "standard_error", "untrusted_message",
]  # fmt: skip


class Untrusted(UserWarning):
    """The importance weights have a tail so heavy that the standard error of an estimate is not reliable."""


@short_repr
class Estimated(NamedTuple):
    """Estimates for each of B data, in nats, with standard errors for the Monte-Carlo noise."""

    value: Tensor
    """[B]."""
    se: Tensor
    """[B]; infinite where there is only one sample."""

    @property
    def mean(self) -> float:
        """The mean over the data."""
        return float(self.value.mean())

    @property
    def mean_se(self) -> float:
        """The standard error of `mean` for these data; more samples reduce it."""
        return float(self.se.square().sum().sqrt()) / len(self.se)

    @property
    def sampling_se(self) -> float:
        """The standard error of `mean` for the distribution of the data; more data reduce it."""
        return float(self.value.std()) / math.sqrt(len(self.value)) if len(self.value) > 1 else math.inf


@short_repr
class Likelihood(NamedTuple):
    """log p(x) by importance sampling, with diagnostics of its standard error."""

    log_p: Estimated
    """L_K of each datum. Its expectation is below log p(x): see `shortfall`."""
    ess: Tensor
    """The effective sample size [B], 1/sum_k v_k² of the normalised weights v, at most K."""
    k_hat: Tensor
    """The Pareto shape of the weights' tail [B]."""
    samples: int
    """The number K of samples."""

    @property
    def shortfall(self) -> Tensor:
        """½ se² [B], the approximate distance of E[L_K] below log p(x); too small where `untrusted`."""
        return self.log_p.se.square() / 2

    @property
    def untrusted(self) -> Tensor:
        """Whether the standard error [B] is unreliable, as k̂, pooled over the data, is above min(1 - 1/log10 K, ½).

        Measured with p(z|x) = N(0, I) and q = N(0, s² I), K = 1,000 and 5,000: where all data have one s, value ± 1.96
        se holds log p(x) for 90 to 95% of the data that are not flagged; where s goes from 0.55 to 0.95, for 86 to
        90%. So data that are not flagged are reliable only if few others are flagged.
        """
        return psis.pooled(self.k_hat, self.samples) > psis.threshold(self.samples)


def _is_log_weights(name: str, value: Tensor) -> Tensor:
    if not len(checks.floating(name, checks.concrete(name, value))):
        raise BadValue(f"{name} has shape {list(value.shape)}: it must be [K, B], with K >= 1")
    return value


LogW = Annotated[Tensor, "K B", _is_log_weights]  # log-weights of K samples for each of B data, K >= 1


@checks.arguments
def likelihood(log_w: LogW) -> Likelihood:
    """log p(x) from log-weights [K, B], with standard errors.

    With v the weights normalised over k, the delta method gives the standard error of the logarithm of their mean,

        se² = (1/K) Var(w)/mean(w)² = (K sum_k v_k² - 1)/(K - 1),

    where Var is the unbiased variance; 1/sum_k v_k² is the effective sample size.
    """
    log_w, samples = log_w.double(), len(log_w)
    square = _square_sum(log_w)
    k_hat = torch.from_numpy(psis.k_hat(log_w)).to(log_w.device)
    return Likelihood(Estimated(bounds.iwae(log_w), _delta_se(square, samples)), 1 / square, k_hat, samples)


@checks.arguments
def untrusted_message(found: Likelihood, items: Tensor | None = None) -> str:
    """One line about the data whose standard error is not reliable.

    Args:
        items: the numbers [B] of the data; 0 … B-1 unless given.

    Raises:
        BadValue: all standard errors are reliable, or items are not B whole numbers.
    """
    bad, samples = found.untrusted, found.samples
    check_items(items, len(bad))
    if not bad.any():
        raise BadValue("found has no untrusted data: call untrusted_message only if found.untrusted.any()")
    which = f"{int(bad.sum())} of {len(bad)} items (the first is item {first_bad_item(bad, items)})"
    if found.k_hat[bad].isinf().all():
        return f"{samples} samples are too few to estimate the tail of the importance weights of {which}"
    least = f"{float(found.ess[bad].min()):.1f} of {samples}"
    others = "" if bad.all() else "; the others may have missed their large weights"
    return (
        f"the standard error of L_{samples} is not reliable for {which}: a few samples dominate, with pooled Pareto k̂ "
        f"above {psis.threshold(samples):.2f} and effective sample sizes down to {least}{others}; L_{samples} is still "
        "a lower bound on log p(x) in expectation"
    )


@checks.arguments
def ladder(log_w: LogW, samples: Sequence[int]) -> dict[int, Estimated]:
    """L_K for each K of `samples` from log-weights [S, B], on common noise.

    The S samples make S//K groups of K. The value is the mean of the groups' bounds, and the standard error is that of
    this mean; if there is only one group, it is the delta method's. In expectation L_K increases with K.
    """
    ks, found = rungs(samples), {}
    if ks[-1] > len(log_w):
        raise BadValue(f"L_K needs K log-weights: K is {ks[-1]}, and there are {len(log_w)}")
    log_w = log_w.double()
    for k in ks:
        groups = len(log_w) // k
        each = bounds.iwae(rearrange(log_w[: groups * k], "(group k) b -> k group b", k=k))  # [group, B]
        se = standard_error(each) if groups > 1 else _delta_se(_square_sum(log_w[:k]), k)
        found[k] = Estimated(each.mean(0), se)
    return found


@checks.arguments
def posterior_gap(log_w: LogW) -> Estimated:
    """KL(q(z|x) ‖ p(z|x)) of each datum in nats, estimated from log-weights [K, B] as L_K - mean_k log w_k.

    E[L_K] is below log p(x), so the expectation is below the KL. The standard error is the delta method's: that of the
    mean of w_k/w̄ - log w_k, with w̄ = mean_k w_k.
    """
    log_w = log_w.double()
    influence = len(log_w) * log_w.softmax(0) - log_w
    return Estimated(bounds.iwae(log_w) - bounds.elbo(log_w), standard_error(influence))


def rungs(samples: Sequence[int]) -> list[int]:
    """The numbers of samples of a ladder in increasing order; raises BadType or BadValue if they are not counts."""
    if not checks.sequence("samples", samples):
        raise BadValue("samples is empty: give numbers of samples, such as (1, 10)")
    what = "a number in samples"
    return sorted({checks.at_least(1)(what, checks.integer(what, k)) for k in samples})


def check_item_values(name: str, finite: Tensor, items: Tensor | None = None) -> None:
    """Raises NonFinite, naming the first datum, unless `finite` [B] is true for all data."""
    if not finite.all():
        raise NonFinite(f"the {name} of item {first_bad_item(~finite, items)} are not finite: check the parameters")


def check_items(items: Tensor | None, count: int) -> None:
    """Raises BadType or BadValue unless `items` is None or `count` whole numbers."""
    if items is None:
        return
    if checks.concrete("items", items).shape != (count,) or items.is_floating_point() or items.is_complex():
        raise BadValue(f"items is {checks.describe(items)}: it must be whole numbers [{count}]")


def first_bad_item(bad: Tensor, items: Tensor | None) -> int:
    """The number of the first bad datum; `items` [B] are the data's numbers, or None for 0 … B-1."""
    first = int(bad.int().argmax())
    return first if items is None else int(items[first])


def standard_error(values: Tensor) -> Tensor:
    """The standard error [B] of the mean over the first axis; infinite if there is only one value."""
    several = len(values) > 1 and values.numel() > 0  # torch warns about a std over no data
    return values.std(0) / math.sqrt(len(values)) if several else torch.full_like(values[0], math.inf)


def _square_sum(log_w: Tensor) -> Tensor:
    """sum_k v_k² [B] of the normalised weights."""
    return reduce(log_w.softmax(0).square(), "k b -> b", "sum")


def _delta_se(square: Tensor, samples: int) -> Tensor:
    """The delta method's standard error [B] of log mean_k w_k, from sum_k v_k²: see `likelihood`."""
    if samples == 1:
        return torch.full_like(square, math.inf)
    return ((samples * square - 1).clamp(min=0) / (samples - 1)).sqrt()
