"""The log-weights of a model, and log p(x) and its bounds by importance sampling from q(z|x)."""

import math
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcvae import compilation, noise, random
from funcvae._support import checks, examples
from funcvae._support.checks import Count
from funcvae._support.examples import Data
from funcvae._support.progress import Progress, silent
from funcvae.distributions import Bernoulli, Delta, Distribution, Posterior, SignedNormal
from funcvae.errors import BadType
from funcvae.evaluate import weights
from funcvae.evaluate.reconstruction import check_binary
from funcvae.evaluate.weights import Estimated, Likelihood, Untrusted
from funcvae.model import VAE, check_data, log_weight, noise_dtype
from funcvae.modules import Params, State

__all__ = ["bound_ladder", "log_likelihood", "log_weights"]


@checks.readable
def log_likelihood(
    model: VAE,
    params: Params,
    state: State,
    x: Data,
    key: random.Key,
    *,
    samples: int = 5000,
    chunk: int = 100,
    compile: bool = False,
    progress: Progress = silent,
) -> Likelihood:
    """log p(x) of each datum in nats by importance sampling: L_K with K = `samples`.

        L_K = log (1/K) sum_k w_k

    See `log_weights` for arguments and errors, and `likelihood` for the standard errors.

    Warns:
        Untrusted: k̂ shows that the standard error of at least one datum is not reliable.

    Reference: Burda, Grosse & Salakhutdinov (2016), arXiv:1509.00519, section 5.
    """
    log_w = log_weights(model, params, state, x, key, samples=samples, chunk=chunk, compile=compile, progress=progress)
    found = weights.likelihood(log_w)
    if found.untrusted.any():
        warnings.warn(weights.untrusted_message(found), Untrusted, stacklevel=2)
    return found


@checks.readable
def bound_ladder(
    model: VAE,
    params: Params,
    state: State,
    x: Data,
    key: random.Key,
    *,
    samples: Sequence[int] = (1, 10, 100, 1000, 5000),
    chunk: int = 100,
    compile: bool = False,
    progress: Progress = silent,
) -> dict[int, Estimated]:
    """L_K for each K of `samples`, on common noise; L_1 is the ELBO. See `ladder` and `log_weights`."""
    most = weights.rungs(samples)[-1]
    log_w = log_weights(model, params, state, x, key, samples=most, chunk=chunk, compile=compile, progress=progress)
    return weights.ladder(log_w, samples)


@checks.arguments
@torch.no_grad()
def log_weights(
    model: VAE,
    params: Params,
    state: State,
    x: Data,
    key: random.Key,
    *,
    samples: Count,
    chunk: Count = 100,
    compile: bool = False,
    progress: Progress = silent,
    items: Tensor | None = None,
) -> Tensor:
    """log w_k = log p(x, z_k) - log q(z_k|x) [K, B] in nats, K = `samples`.

    The noise of sample k is `normal(fold_in(key, k), (B, Z))`; it does not depend on `chunk`. It takes memory
    for the result [K, B] and O(max(B, 2000) · Z).

    Args:
        x: data [B, ...] as the model sees them; a Bernoulli likelihood needs binarized data.
        chunk: the most samples to decode at a time; fewer if they make more than 2,000 latents.
        compile: run under `torch.compile`. Compilation takes about ten seconds: use it from a million log-weights.
        progress: called with the number of samples done and the total number.
        items: the numbers [B] of the data in error messages; 0 … B-1 unless given.

    Raises:
        BadData: the model cannot take the data, they are not finite, or the likelihood is Bernoulli and they are not
            binary.
        BadType: the posterior has no density (Delta), or one that is not that of its samples (SignedNormal).
        NonFinite: a log-weight is NaN or +inf, or all log-weights of a datum are -inf; the message names the datum.
    """
    check_data(model, params, state, x)
    examples.same_device(x, key=key)
    model, n, device = model.unchecked(), examples.count(x), examples.device(x)
    weights.check_items(items, n)
    checks.fits("samples", (samples, n), 8)
    dtype = noise_dtype(params)
    # Decode at most _LATENTS at a time, which fit in the processor's cache. Take all data before the next samples, so
    # that little noise is drawn at once. All parts of the data have one size, so that one compiled function serves
    # them: the last begins before the end of the one before it, if need be.
    size = -(-n // -(-n // _LATENTS))
    parts = [slice(first, first + size) for first in (min(i, n - size) for i in range(0, n, size))]
    chunk = min(chunk, samples, max(1, _LATENTS // size))
    checks.fits("chunk", (chunk, n, model.latent), dtype.itemsize)
    compilation.keep_freed()
    xs = [examples.each(itemgetter(part), x) for part in parts]
    posteriors = [model.encode(params, state, x_part)[0] for x_part in xs]
    _check_density(model, params, state, x, posteriors[0], items)
    eager = _sampler(model, n, dtype)
    whole = _compiled_sampler(model, n, dtype, device) if compile else eager

    log_w = torch.empty(samples, n, dtype=torch.float64, device=device)
    first = 0
    progress(first, samples)
    for ks in torch.arange(samples, device=device).split(chunk):
        sampler = whole if len(ks) == chunk else eager  # the last samples may be fewer
        last, eps = first + len(ks), sampler.draw(key, ks)  # [chunk, B, Z]
        for part, x_part, q in zip(parts, xs, posteriors, strict=True):
            log_w[first:last, part] = sampler.weigh(params, state, x_part, q, eps[:, part])
        first = last
        progress(last, samples)
    weights.check_item_values("log-weights", (log_w < math.inf).all(0) & (log_w > -math.inf).any(0), items)
    return log_w


_LATENTS = 2000  # decoded at a time


class Sampler(NamedTuple):
    """Importance sampling from a model's posterior."""

    draw: Callable[[random.Key, Tensor], Tensor]  # (key, the samples' numbers [c]) -> their noise [c, B, Z]
    weigh: Callable[[Params, State, Data, Posterior, Tensor], Tensor]
    """(params, state, x [B, ...], q(z|x), eps [c, B, Z]) -> log w [c, B]."""


@lru_cache(maxsize=8)  # further calls on the same model do not compile again
def _compiled_sampler(model: VAE, batch: int, dtype: torch.dtype, device: torch.device) -> Sampler:
    # tanh(a) = 2 / (1 + exp(-2 a)) - 1 takes a quarter of the time of the library's. Its absolute error in float32 is
    # below 2e-7, and disappears in the sum over a datum; but small values lose digits, so training does without it.
    compiled = partial(compilation.compiled, device=device, options={"cpp.use_decompose_tanh": True})
    draw, weigh = _sampler(model, batch, dtype)
    return Sampler(compiled(draw), compiled(weigh))


def _sampler(model: VAE, batch: int, dtype: torch.dtype) -> Sampler:
    def decode(*args: Any, **given: Any) -> tuple[Distribution, State]:
        p, state = model.decode(*args, **given)
        return (_Summed(*p) if type(p) is Bernoulli and p.logits.dtype in _WIDE else p), state

    summed = model._replace(decode=decode)

    def weigh(params: Params, state: State, x: Data, q: Posterior, eps: Tensor) -> Tensor:
        return log_weight(summed, params, state, x, q, q.sample(eps), False)[0].log_w

    return Sampler(partial(checks.unchecked(noise.numbered), shape=(batch, model.latent), dtype=dtype), weigh)


_WIDE = (torch.float32, torch.float64)  # dtypes that can express 2^112


class _Summed(Bernoulli):
    """A Bernoulli likelihood whose `log_prob` is summed over the axes of a datum, in 0.5 to 0.6 of the time.

        sum_i log p(x_i) = sum_i (x_i a_i - max(a_i, 0)) - log prod_i (1 + exp(-|a_i|))

    The factors lie between 1 and 2. One logarithm is taken of at most 112 of them, whose product cannot overflow in
    float32; their number divides that of the pixels. Its error is as small as that of the sum of their logarithms.
    """

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) [N, B] for logits [N, B, ...] and x [B, ...]."""
        a = self.logits.reshape(*self.logits.shape[:2], -1)
        size = max(n for n in range(1, 113) if a.shape[-1] % n == 0)
        factors = a.abs().mul_(-math.log2(math.e)).exp2_().add_(1).unflatten(-1, (-1, size))
        return (x.reshape(len(x), -1) * a).sub_(a.relu()).sum(-1) - factors.prod(-1).log().sum(-1)


def _check_density(model: VAE, params: Params, state: State, x: Data, q: Posterior, items: Tensor | None) -> None:
    """Raises BadType or BadData unless p(x|z) and q(z|x) are densities at x; q is the posterior of the first data."""
    if isinstance(q, Delta):
        raise BadType("the posterior is a Delta, which has no density: importance sampling cannot estimate log p(x)")
    if isinstance(q, SignedNormal):
        raise BadType(
            "the posterior is a SignedNormal, whose density is not that of its samples: importance sampling cannot "
            "estimate log p(x); use heads.normal_logsigma"
        )
    p, _ = model.decode(params, state, q.loc[:1], **model.given(examples.head(x, 1)))
    check_binary(p, model.modelled(x), items)
