"""The quality of reconstructions: the expected log-likelihood and the squared error."""

import torch
from einops import rearrange, reduce
from torch import Tensor

from funcvae import random
from funcvae._support import checks, examples
from funcvae._support.checks import Count
from funcvae._support.examples import Data
from funcvae.distributions import Bernoulli
from funcvae.errors import BadData
from funcvae.evaluate.weights import Estimated, check_item_values, first_bad_item, standard_error
from funcvae.model import VAE, check_data, log_p_x_given_z, noise_dtype
from funcvae.modules import Params, State

__all__ = ["check_binary", "reconstruction_error", "squared_error"]


@checks.arguments
@torch.no_grad()
def reconstruction_error(
    model: VAE, params: Params, state: State, x: Data, key: random.Key, *, samples: Count = 10, batch: Count = 200
) -> Estimated:
    """-E_q(z|x)[log p(x|z)] of each datum, in nats, estimated from `samples` draws of z.

    Raises:
        BadData: the likelihood is Bernoulli and the data are not binary.
    """
    check_data(model, params, state, x)
    examples.same_device(x, key=key)
    model = model.unchecked()
    checks.fits("samples", (samples, examples.count(x)), 8)
    checks.fits("samples", (samples, min(batch, examples.count(x)), model.latent), noise_dtype(params).itemsize)
    rows = []
    for i, part in enumerate(examples.split(x, batch)):
        q, _ = model.encode(params, state, part)
        eps = random.normal(random.fold_in(key, i), (samples, len(q.loc), model.latent), noise_dtype(params))
        p, _ = model.decode(params, state, q.sample(eps), **model.given(part))
        modelled = model.modelled(part)
        check_binary(p, modelled, torch.arange(i * batch, i * batch + len(q.loc)))
        rows.append(-log_p_x_given_z(p, modelled).double())
    error = torch.cat(rows, 1)
    check_item_values("reconstructions", error.isfinite().all(0))
    return Estimated(error.mean(0), standard_error(error))


@checks.arguments
@torch.no_grad()
def squared_error(model: VAE, params: Params, state: State, x: Data, *, batch: Count = 500) -> Tensor:
    """‖x - E[x|z]‖² [B] at the posterior's centre z, summed over all elements of a datum."""
    check_data(model, params, state, x)
    model = model.unchecked()
    rows = []
    for part in examples.split(x, batch):
        z = model.encode(params, state, part)[0].loc
        p, _ = model.decode(params, state, z, **model.given(part))
        difference = (model.modelled(part).to(p.mean.dtype) - p.mean).double()
        rows.append(rearrange(difference.square(), "b ... -> b (...)").sum(1))
    error = torch.cat(rows)
    check_item_values("reconstructions", error.isfinite())
    return error


def check_binary(p: object, x: Tensor, items: Tensor | None = None) -> None:
    """Raises BadData, naming the first datum, if p is a Bernoulli likelihood and x [B, ...] is not binary."""
    if isinstance(p, Bernoulli):
        grey = reduce((x != 0) & (x != 1), "b ... -> b", "any")
        if grey.any():
            what = f"item {first_bad_item(grey, items)} has values other than 0 and 1"
            advice = "binarize the data, or use another likelihood"
            raise BadData(f"{what}, which have no density under a Bernoulli likelihood: {advice}")
