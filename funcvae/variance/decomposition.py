"""Sources of a gradient's variance: the choice of the mini-batch, and the noise."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, NamedTuple

import numpy as np
import torch

from funcvae import random, tree
from funcvae._support import checks, examples, tables
from funcvae._support.checks import Count
from funcvae._support.examples import Data
from funcvae._support.progress import Progress, silent
from funcvae._support.reprs import short_repr
from funcvae.errors import BadValue
from funcvae.estimators.types import GradientEstimator
from funcvae.model import VAE, Observe, as_is, noise_dtype
from funcvae.modules import Params, State, for_part
from funcvae.noise import Noise, iid
from funcvae.variance import intervals, online_moments, snr
from funcvae.variance.intervals import Measured
from funcvae.variance.problem import ReplicateSettings, check_finite, gradients, make_lane, make_problem, noise_chunks
from funcvae.variance.snr import Series

__all__ = ["Decomposition", "Sources", "sources"]

AtLeastTwo = Annotated[int, checks.at_least(2)]  # a number of values: at least two, so that they have a variance


@short_repr
class Decomposition(NamedTuple):
    """The total variance of one mini-batch gradient in a group of parameters, in two parts."""

    data: Measured
    """tr Cov_x E[g|x]: the variance of the gradient without noise. Its estimate may be negative if it is small."""
    noise: Measured
    """E_x tr Cov[g|x]: the part that more samples K reduce."""
    total: Measured
    """tr Cov g, the sum of both."""
    share: Measured
    """data/total."""


@tables.shown
@short_repr
class Sources(NamedTuple):
    """The result of `sources`: the variance from the data and from the noise, in nats²."""

    groups: dict[str, Decomposition]
    batch: int
    batches: int
    replicates: int

    def table(self) -> str:
        """The result as text in 80 columns. `print` shows it."""
        return tables.as_text(self._blocks())

    def _blocks(self, wide: bool = False) -> list[tables.Block]:
        networks = [name for name in ("all", "encoder", "decoder", "prior") if name in self.groups]
        head = f"{self.batches:,} batches of {self.batch}, {self.replicates} replicates of the noise in each"
        rows = []
        for name in networks:
            *parts, share = self.groups[name]
            cells = [tables.unbroken(f"{m.value:.3g} ± {m.se:.1g}") for m in parts]
            rows.append([name, *cells, tables.unbroken(f"{share.value:.1%} ± {share.se:.1%}")])
        return [
            f"{head}; ± standard error",
            tables.Table(("", "data", "noise", "total", "share of the data"), {"": rows}),
        ]


@checks.arguments
@torch.no_grad()
def sources(
    estimator: GradientEstimator,
    model: VAE,
    params: Params,
    state: State,
    data: Data,
    key: random.Key,
    *,
    batch: Count,
    samples: int,
    batches: AtLeastTwo = 200,
    replicates: AtLeastTwo = 4,
    noise: Noise = iid,
    observe: Observe = as_is,
    groups: str | Sequence[str] = (),
    train: bool = False,
    fresh_layers: bool = False,
    progress: Progress = silent,
) -> Sources:
    """The variance of a mini-batch gradient, split by the law of total variance.

        Cov g = Cov_x E[g|x] + E_x Cov[g|x]

    over batches x of B data, drawn independently and each without replacement, and over the noise. With ḡ_m the mean
    and W_m the unbiased total variance of R gradients of batch m (a one-way analysis of variance):

        noise = mean_m W_m,    data = tr Cov_m ḡ_m - noise/R,    total = data + noise.

    Standard errors are over batches. Batch m and its replicates depend on keys `fold_in(…, m)` only.

    Args:
        estimator: an Estimator, or any function of the same arguments that returns an Estimate.
        data: [n, ...], from which batches are drawn.
        batch: B.
        samples: K.
        batches: M.
        replicates: R, the replicates of the noise for each batch.
        noise: the noise scheme.
        observe: (key, x) -> what the model sees of a batch. The variance of a random binarization is part of `data`.
        groups: further groups of parameters, as patterns such as "encoder/*.bias".
        train: whether networks are in training mode.
        fresh_layers: whether random layers draw anew in each batch and replicate, as noise; needs `train`. Otherwise
            all share what they draw.
        progress: called with the number of batches done and the total number.

    Raises:
        BadValue: batch is not in 1 … n, batches or replicates is below two, samples is below one, a group matches no
            parameter, or the estimator requires independent samples and those of the noise scheme are not.
        BadData: the model cannot take the data, or they are not finite.
        NonFinite: a gradient is not finite.
    """
    n = examples.count(data)
    if batch > n:
        raise BadValue(f"batch is {batch}: it must lie between 1 and {n}, the number of data")
    settings = ReplicateSettings(
        samples, replicates, noise=noise, groups=groups, train=train, fresh_layers=fresh_layers
    )
    whole = make_problem(model, params, state, data, key, settings, observe, batch)
    checks.fits("batches", (batches, len(tree.leaves(params))), 8)
    choice_key, observe_key, noise_key = random.split(whole.key, 3)
    x = observe(random.fold_in(observe_key, batches), examples.head(data, batch))
    make_lane(replace(whole, x=x, key=noise_key), "estimator", estimator, noise)  # checks estimator and noise
    members_of, gradient = whole.parameter_groups(), gradients((estimator,), model, whole.names, train)

    between, within, squares, alongs = None, [], [], []
    progress(0, batches)
    for m in range(batches):
        rows = random.permutation(random.fold_in(choice_key, m), n)[:batch]
        x = observe(random.fold_in(observe_key, m), examples.take(data, rows))
        own = for_part(state, m) if fresh_layers else state
        problem, sums = replace(whole, x=x, key=random.fold_in(noise_key, m), state=own), None
        for first, eps in noise_chunks(problem, noise, range(replicates), False):
            ((grads,), _, _) = gradient(params, problem.state_of(range(first, first + len(eps))), x, eps)
            sums = sums or online_moments.empty_sums([leaf[0] for leaf in grads], order=1)
            sums, square, along = online_moments.add_chunk_(sums, first, grads)
            check_finite(f"batch {m}", problem.key, first, square, along)
        assert sums is not None
        within.append(online_moments.total_variance(sums))
        means = online_moments.mean(sums)
        between = between or online_moments.empty_sums(means, order=1)
        between, square, along = online_moments.add_segment_(between, m, [leaf.unsqueeze(0) for leaf in means])
        squares.append(square)
        alongs.append(along)
        progress(m + 1, batches)
    assert between is not None
    series = snr.series_of(between, torch.cat(squares), torch.cat(alongs))
    (series,) = snr.zero_to_rounding([series], whole.names, torch.finfo(noise_dtype(whole.params)).eps)
    noise_variance = torch.stack(within).numpy()
    noise_variance = np.where(noise_variance < series.rounding, 0.0, noise_variance)
    found = {}
    for name, members in members_of.items():
        found[name] = _decomposition(series, noise_variance[:, members].sum(1), members, replicates)
    return Sources(found, batch, batches, replicates)


def _decomposition(series: Series, within: intervals.Floats, members: list[int], replicates: int) -> Decomposition:
    """The decomposition of one group, from the batches' mean gradients and their variances over the noise [M]."""
    terms = snr.scaled_squares(series, members)  # of batches 1, 2, …
    u, w = terms.sum(1), within[1:]
    flags = [intervals.unreliable_because(v, intervals.tail_shape(v)) for v in (u, within)]
    data_flag, noise_flag = (flag.replace("replicates", "batches") for flag in flags)
    flag = "; ".join(dict.fromkeys(filter(None, (data_flag, noise_flag))))
    excess, noise_excess = intervals.tail_excess(terms), intervals.tail_excess(within[:, None])
    noise = intervals.mean_interval(within, None, noise_flag, noise_excess)
    value = float(series.total[members].sum()) - noise.value / replicates
    data = intervals.mean_interval(u - w / replicates, value, data_flag, excess)
    whole = u + (1 - 1 / replicates) * w
    total = intervals.mean_interval(whole, data.value + noise.value, flag, excess + noise_excess)
    if not total.value > 0:
        return Decomposition(data, noise, total, Measured(math.nan, math.inf, math.nan, math.nan, flag))
    share = data.value / total.value
    influence = ((1 - share) * (u - w / replicates) - share * w) / total.value
    part = intervals.mean_interval(influence, share, flag, (1 - share) * excess / total.value)
    return Decomposition(data, noise, total, part._replace(low=part.low - max(share, 0.0) * noise_excess / total.value))
