"""Estimators in bounded memory: a few samples of each datum at a time."""

from typing import Any

import torch
from torch import Tensor

from funcvae._support import checks
from funcvae._support.checks import Count
from funcvae._support.examples import Data
from funcvae._support.pickling import remembered
from funcvae.compilation import Wrap, unchanged
from funcvae.estimators.engine import add_trees, state_of_shares
from funcvae.estimators.types import Estimate, Estimator
from funcvae.model import VAE
from funcvae.modules import Params, State

__all__ = ["in_chunks"]


@remembered
@checks.arguments
def in_chunks(estimator: Estimator, chunk: Count, wrap: Wrap = unchanged) -> Estimator:
    """Makes an estimator that takes less memory: it decodes and pulls back `chunk` samples at a time.

    The weights depend on all samples, so a forward pass over all samples comes first (except with an analytic KL, which
    has no weights). A gradient costs up to a third more. Estimate and new state equal those of the given estimator to
    rounding: running statistics are averaged over all samples. The result cannot be differentiated.

    Args:
        estimator: an Estimator that is not in chunks already.
        chunk: the number of samples at a time.
        wrap: applied to the functions of one chunk, such as `compilation.compiled`.

    Raises:
        BadType: the estimator is not an Estimator, or is already in chunks.
        BadValue: chunk is below one.
    """
    parts = estimator.parts
    share_of = wrap(parts.share)
    log_w_of = None if parts.log_w is None else wrap(parts.log_w)
    at_draws = None if parts.at_draws is None else wrap(parts.at_draws)
    bound_of = None if parts.bound is None else wrap(parts.bound)

    def weighed(model: VAE, params: Params, state: State, x: Data, eps: Tensor, train: bool) -> Any:
        """The weights [M, B, ...], if they depend on all samples, and the bound that they add."""
        if log_w_of is None or parts.weigh is None:
            return (), None
        log_w = torch.cat([log_w_of(model, params, state, x, part, train) for part in eps.split(chunk)])
        return parts.weigh(log_w, *([parts.see(model, params, state, x, eps, train)] if parts.see else []))

    @torch.no_grad()
    def estimate(model: VAE, params: Params, state: State, x: Data, eps: Tensor, train: bool) -> Estimate:
        w, bound = weighed(model, params, state, x, eps, train)
        total, log_w = None, []
        points_of_chunk = [each.split(chunk * (len(each) // len(eps))) for each in w]
        for part, *weights in zip(eps.split(chunk), *points_of_chunk, strict=True):
            out = share_of(model, params, state, x, part, train, len(eps), *weights)
            log_w.append(out.log_w)
            total = add_trees(total, (out.grads, out.bound, out.state, out.reconstruction, out.kl))
        assert total is not None
        grads, more, shares, reconstruction, kl = total
        bound = more if bound is None else bound + more
        return Estimate(grads, bound, torch.cat(log_w), state_of_shares(shares, state), reconstruction, kl)

    def evaluate(model: VAE, params: Params, state: State, x: Data, eps: Tensor) -> Tensor:
        if at_draws is not None and parts.of_draws is not None:
            f = torch.cat([at_draws(model, params, state, x, part) for part in eps.split(chunk)])
            return parts.of_draws(f, model, params, state, x, len(eps))
        assert bound_of is not None
        return torch.stack([bound_of(model, params, state, x, part, len(eps)) for part in eps.split(chunk)]).sum(0)

    return Estimator(estimator.name, estimator.claims, estimator.weights, estimate, evaluate, estimator.points)
