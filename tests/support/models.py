"""Models with inputs for the laws, and comparisons of bits."""

import random as python_random
from functools import cache

import numpy as np
import torch
from torch import nn

import funcvae as fv
from funcvae import tree
from funcvae.estimators import parse
from tests.support.oracles import LearnedPrior
from tests.support.posteriors import flow_vae, full_normal_vae, two_layers_vae

B, N = 3, 4  # two groups of two


def batch_norm_vae(outputs=4, **heads):
    return fv.vae(
        encoder=lambda: nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, outputs)),
        decoder=lambda: nn.Sequential(nn.Linear(2, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)),
        latent=2,
        **heads,
    )


def bernoulli_vae():
    return batch_norm_vae(2, posterior=fv.heads.bernoulli, prior=fv.priors.learned_bernoulli(2))


def dropout_vae():
    return fv.vae(
        encoder=lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Dropout(0.3), nn.Linear(5, 4)),
        decoder=lambda: nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Dropout(0.3), nn.Linear(5, 3)),
        latent=2,
    )


class _Joined(nn.Sequential):
    """Takes a datum {"x", "y"}, or (z, y)."""

    def forward(self, *inputs):
        x, y = inputs[0].values() if isinstance(inputs[0], dict) else inputs
        return super().forward(torch.cat([x, nn.functional.one_hot(y, 2)], -1))


def conditional_vae():
    return fv.vae(
        encoder=lambda: _Joined(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 4)),
        decoder=lambda: _Joined(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)),
        latent=2,
        modelled=lambda data: data["x"],
        condition=lambda data: data["y"],
    )


def learned_prior_vae():
    return fv.vae(
        encoder=lambda: nn.Linear(3, 4),
        decoder=lambda: nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3)),
        likelihood=fv.heads.normal_fixed(0.5),
        prior=lambda: LearnedPrior(0.5, 2).float(),
        latent=2,
    )


MODELS = {
    "gaussian2d_vae": (lambda: fv.models.gaussian2d_vae(hidden=4), (2,)),
    "mnist_vae": (fv.models.mnist_vae, (1, 28, 28)),
    "burda_vae": (lambda: fv.models.burda_vae(latent=3), (1, 28, 28)),
    "mnist_ae": (fv.models.mnist_ae, (1, 28, 28)),
    "mnist_bn_vae": (fv.models.mnist_bn_vae, (1, 28, 28)),
    "mnist_sigma_vae": (fv.models.mnist_sigma_vae, (1, 28, 28)),
    "batch_norm": (batch_norm_vae, (3,)),
    "learned_prior": (learned_prior_vae, (3,)),
    "dropout": (dropout_vae, (3,)),
    "conditional": (conditional_vae, (3,)),
    "full_normal": (full_normal_vae, (3,)),
    "flow_mixture": (flow_vae, (3,)),
    "two_layers": (two_layers_vae, (3,)),
    "bernoulli": (bernoulli_vae, (3,)),
}


def allows(name, spec):
    """Whether the posterior of a model is of the kind that an estimator requires."""
    posterior, estimator = parse(spec).claims.posterior, spec.split(":")[0]
    if name == "mnist_ae":  # a Delta, without a density
        return estimator in ("elbo", "beta_elbo")
    if name == "bernoulli":
        return posterior != "reparameterised"
    if name in ("flow_mixture", "two_layers") and estimator in (
        "elbo",
        "beta_elbo",
        "free_bits",
    ):  # no KL in closed form
        return False
    if name in ("flow_mixture", "two_layers", "mnist_sigma_vae") and estimator == "quadratic_cv":  # not a normal
        return False
    return posterior != "discrete"


@cache
def made(name):
    factory, shape = MODELS[name]
    model = factory()
    init_key, x_key, noise_key = fv.random.split(fv.random.key(3), 3)
    params, state = model.init(init_key)
    x = fv.random.bernoulli(x_key, 0.5, (B, *shape)).float()
    x = x if model.condition is None else {"x": x, "y": torch.arange(B) % 2}
    return model, params, state, x, fv.noise.iid(noise_key, N, (B, model.latent))


def same_bits(a, b):
    return tree.structure(a) == tree.structure(b) and all(map(torch.equal, tree.leaves(a), tree.leaves(b)))


def layout(t):
    return tree.structure(t), [(leaf.shape, leaf.dtype, leaf.device) for leaf in tree.leaves(t)]


def generators():
    kind, words, *rest = np.random.get_state()  # noqa: NPY002
    return torch.get_rng_state().tolist(), kind, words.tolist(), rest, python_random.getstate()
