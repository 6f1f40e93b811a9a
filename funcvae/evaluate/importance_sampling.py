"""The log-weights of a model, and log p(x) and its bounds by importance sampling from q(z|x)."""

import math
import warnings
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from funcvae import compilation, noise, random
from funcvae._support import checks
from funcvae.distributions import Delta, Posterior, SignedNormal
from funcvae.errors import BadType
from funcvae.evaluate.reconstruction import check_binary
from funcvae.evaluate.weights import (
    Estimated,
    Likelihood,
    Untrusted,
    check_item_values,
    check_ladder,
    first_bad_item,
    ladder,
    likelihood,
    untrusted_message,
)
from funcvae.model import VAE, check_data, log_weight
from funcvae.modules import Params, State

__all__ = ["Progress", "bound_ladder", "log_likelihood", "log_weights"]


class Progress(Protocol):
    """Reports the progress of a long computation."""

    def __call__(self, done: int, total: int, /) -> None:
        """Called after each part with how much is done, and how much there is in all."""
        ...


def log_likelihood(
    model: VAE,
    params: Params,
    state: State,
    x: Tensor,
    key: random.Key,
    *,
    samples: int = 5000,
    chunk: int = 100,
    compile: bool = False,
    progress: Progress = lambda done, total: None,
) -> Likelihood:
    """log p(x) of each datum by importance sampling, L_K with K = `samples` exactly, in nats.

        L_K = log (1/K) sum_k w_k

    The arguments and errors are those of `log_weights`, the formulas for the errors those of `likelihood`.

    Warns:
        Untrusted: k̂ says for some data that the standard error is not to be trusted.

    Reference: Burda, Grosse & Salakhutdinov (2016), arXiv:1509.00519, section 5.
    """
    log_w = log_weights(model, params, state, x, key, samples=samples, chunk=chunk, compile=compile, progress=progress)
    found = likelihood(log_w)
    if found.untrusted.any():
        warnings.warn(untrusted_message(found), Untrusted, stacklevel=2)
    return found


def bound_ladder(
    model: VAE,
    params: Params,
    state: State,
    x: Tensor,
    key: random.Key,
    *,
    samples: Sequence[int] = (1, 10, 100, 1000, 5000),
    chunk: int = 100,
    compile: bool = False,
) -> dict[int, Estimated]:
    """L_K for each K of `samples`, on common noise; L_1 is the ELBO. See `ladder` and `log_weights`."""
    check_ladder(samples)
    log_w = log_weights(model, params, state, x, key, samples=max(samples), chunk=chunk, compile=compile)
    return ladder(log_w, samples)


@torch.no_grad()
def log_weights(
    model: VAE,
    params: Params,
    state: State,
    x: Tensor,
    key: random.Key,
    *,
    samples: int,
    chunk: int = 100,
    compile: bool = False,
    progress: Progress = lambda done, total: None,
    items: Tensor | None = None,
) -> Tensor:
    """log w_k = log p(x, z_k) - log q(z_k|x) [K, B] in nats, K = `samples` exactly.

    Sample k's noise is `normal(fold_in(key, k), (B, Z))`, whatever the chunk. Memory is the [K, B] result and
    O(chunk · B · Z).

    Args:
        x: data [B, ...] as the model sees them: binarized, for a Bernoulli likelihood.
        chunk: samples at a time.
        compile: run under `torch.compile`: worth its ten seconds from a million log-weights or so.
        progress: called with the number of samples done, and of all.
        items: the data's numbers [B] in messages, if not 0 … B-1.

    Raises:
        BadValue: samples or chunk below one.
        BadData: data the model cannot take, or not finite, or greys under a Bernoulli likelihood, which then is none.
        BadType: the posterior has no density (Delta), or no proper one (SignedNormal).
        NonFinite: a log-weight is NaN or +inf, or all of a datum's are -inf; the message names the datum. (So do the
            other functions here, for what they compute.)
    """
    samples, chunk = checks.integer("samples", samples, 1), checks.integer("chunk", chunk, 1)
    check_data(model, params, state, x)
    random.checked(key)
    checks.function("progress", progress)
    checks.flag("compile", compile)
    checks.fits("samples", (samples, len(x)), 8)
    checks.fits("chunk", (min(chunk, samples), len(x), model.latent), x.element_size())
    if items is not None:
        first_bad_item(torch.ones(len(x), dtype=torch.bool), items)  # raises where they are none
    compilation.keep_freed()
    chunk = min(chunk, samples)
    rows = min(len(x), max(1, _ROWS // chunk))  # few enough to stay in the processor's cache
    parts = x.split(rows)
    posteriors = [model.encode(params, state, part)[0] for part in parts]
    _check_density(model, params, state, x, posteriors[0], items)
    eager = _sampler(model, len(x), x.dtype)
    whole = _compiled_sampler(model, len(x), x.dtype, x.device) if compile else eager

    log_w = torch.empty(samples, len(x), dtype=torch.float64, device=x.device)
    first = 0
    for ks in torch.arange(samples, device=x.device).split(chunk):
        draw = (whole if len(ks) == chunk else eager).draw
        eps, found = draw(key, ks), []  # [chunk, B, Z]
        for part, q, eps_part in zip(parts, posteriors, eps.split(rows, 1), strict=True):
            weigh = (whole if len(ks) == chunk and len(part) == rows else eager).weigh  # all but a rest
            found.append(weigh(params, state, part, q, eps_part))
        last = first + len(ks)
        log_w[first:last] = torch.cat(found, 1)
        first = last
        progress(last, samples)
    check_item_values("log-weights", (log_w < math.inf).all(0) & (log_w > -math.inf).any(0), items)
    return log_w


_ROWS = 4000  # decoded at a time


class Draw(Protocol):
    """Draws the noise of some samples."""

    def __call__(self, key: random.Key, numbers: Tensor, /) -> Tensor:
        """From the samples' numbers [c] to their noise [c, B, Z]."""
        ...


class Weigh(Protocol):
    """Computes the log-weights of some samples."""

    def __call__(self, params: Params, state: State, x: Tensor, q: Posterior, eps: Tensor, /) -> Tensor:
        """From x [B, ...], q(z|x) and eps [c, B, Z] to log w [c, B]."""
        ...


class Sampler(NamedTuple):
    """Importance sampling from a model's posterior."""

    draw: Draw
    weigh: Weigh


@lru_cache(maxsize=8)  # what is compiled once serves every call on the same model
def _compiled_sampler(model: VAE, batch: int, dtype: torch.dtype, device: torch.device) -> Sampler:
    draw, weigh = _sampler(model, batch, dtype)
    return Sampler(compilation.compiled(draw, device=device), compilation.compiled(weigh, device=device))


def _sampler(model: VAE, batch: int, dtype: torch.dtype) -> Sampler:
    def weigh(params: Params, state: State, x: Tensor, q: Posterior, eps: Tensor) -> Tensor:
        return log_weight(model, params, state, x, q, q.sample(eps), False)[0]

    return Sampler(partial(noise.numbered, shape=(batch, model.latent), dtype=dtype), weigh)


def _check_density(model: VAE, params: Params, state: State, x: Tensor, q: Posterior, items: Tensor | None) -> None:
    """Raises unless the log-weights of x are what they are called; q is the posterior of some of it."""
    if isinstance(q, Delta):
        raise BadType("a Delta posterior has no density, so log p(x) cannot be estimated by importance sampling")
    if isinstance(q, SignedNormal):
        raise BadType(
            "a SignedNormal posterior is no proper density of its samples, so importance sampling from it has no "
            "meaning: take normal_logsigma"
        )
    p, _ = model.decode(params, state, q.loc[:1])
    check_binary(p, x, items)
