"""Estimators in bounded memory: a few samples of each datum at a time."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from funcvae._support import checks
from funcvae._support.checks import Count
from funcvae._support.examples import Data
from funcvae._support.pickling import remembered
from funcvae.batching import from_sample
from funcvae.compilation import Wrap, unchanged
from funcvae.estimators.engine import add_trees, state_of_shares
from funcvae.estimators.types import Estimate, Estimator, EstimatorAt
from funcvae.model import VAE
from funcvae.modules import Params, State

__all__ = ["in_chunks", "in_chunks_at"]


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
        wrap: applied to the functions of one chunk, such as `funcvae.compilation.compiled`.

    Raises:
        BadType: the estimator is not an Estimator, or is already in chunks.
        BadValue: chunk is below one.
    """
    any_step: Any = None
    return in_chunks_at(lambda step: estimator, chunk, wrap)(any_step)


def in_chunks_at(estimator_at: EstimatorAt, chunk: int, wrap: Wrap) -> EstimatorAt:
    """Makes a function of the step that returns its estimator in chunks. All steps share the wrapped functions."""

    def wrapped(part: str) -> Callable[..., Any]:
        return wrap(lambda step, *args: getattr(estimator_at(step).parts, part)(*args))

    share_of, log_w_of, draws_of, bound_of = map(wrapped, ("share", "log_w", "at_draws", "bound"))

    def at(step: Tensor) -> Estimator:
        estimator = estimator_at(step)
        parts = estimator.parts

        def split(state: State, eps: Tensor) -> list[tuple[State, Tensor]]:
            """The state and the noise of each chunk."""
            return [(from_sample(state, i * chunk), part) for i, part in enumerate(eps.split(chunk))]

        def weighed(model: VAE, params: Params, state: State, x: Data, eps: Tensor, train: bool) -> Any:
            """The weights [M, B, ...], if they depend on all samples, and the bound that they add."""
            if parts.log_w is None or parts.weigh is None:
                return (), None
            log_w = torch.cat([log_w_of(step, model, params, own, x, part, train) for own, part in split(state, eps)])
            return parts.weigh(log_w, *([parts.see(model, params, state, x, eps, train)] if parts.see else []))

        @torch.no_grad()
        def estimate(model: VAE, params: Params, state: State, x: Data, eps: Tensor, train: bool) -> Estimate:
            w, bound = weighed(model, params, state, x, eps, train)
            total, log_w = None, []
            points_of_chunk = [each.split(chunk * (len(each) // len(eps))) for each in w]
            for (own, part), *weights in zip(split(state, eps), *points_of_chunk, strict=True):
                out = share_of(step, model, params, own, x, part, train, len(eps), *weights)
                log_w.append(out.log_w)
                total = add_trees(total, (out.grads, out.bound, out.state, out.reconstruction, out.kl))
            assert total is not None
            grads, more, shares, reconstruction, kl = total
            bound = more if bound is None else bound + more
            return Estimate(grads, bound, torch.cat(log_w), state_of_shares(shares, state), reconstruction, kl)

        def evaluate(model: VAE, params: Params, state: State, x: Data, eps: Tensor) -> Tensor:
            n, chunks = len(eps), eps.split(chunk)
            if parts.of_draws is not None:
                f = torch.cat([draws_of(step, model, params, state, x, part) for part in chunks])
                return parts.of_draws(f, model, params, state, x, n)
            return torch.stack([bound_of(step, model, params, state, x, part, n) for part in chunks]).sum(0)

        return Estimator(estimator.name, estimator.claims, estimator.weights, estimate, evaluate, estimator.points)

    return at
