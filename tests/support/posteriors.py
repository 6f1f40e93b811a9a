"""Discrete and relaxed priors with posteriors for them; encoders whose posteriors carry the weights of small networks,
and models with them."""

import torch
from torch import nn

import funcvae as fv
from funcvae import priors
from funcvae.distributions import (
    Bernoulli,
    Categorical,
    Normal,
    RelaxedBernoulli,
    RelaxedCategorical,
    TopDown,
    layers_of,
)

PRIORS = {  # of six latents: the prior, a posterior head for it, its distribution, the shape of its logits
    "bernoulli": (priors.bernoulli, fv.heads.bernoulli, Bernoulli, (6,)),
    "learned_bernoulli": (priors.learned_bernoulli(6), fv.heads.bernoulli, Bernoulli, (6,)),
    "categorical": (priors.categorical(3), fv.heads.categorical(3), Categorical, (2, 3)),
    "learned_categorical": (priors.learned_categorical(3, 2), fv.heads.categorical(3), Categorical, (2, 3)),
    "concrete": (priors.concrete(0.5), fv.heads.concrete(0.5), RelaxedBernoulli, (6,)),
    "concrete of classes": (priors.concrete(0.5, 3), fv.heads.concrete(0.5, 3), RelaxedCategorical, (2, 3)),
}


class TwoLayersEncoder(nn.Module):
    """x [B, inputs] -> (loc, log_sigma, layers) of z_1, one number, and z_2, `second` numbers."""

    def __init__(self, inputs, second=1):
        super().__init__()
        self.first = nn.Linear(inputs, 2)
        self.second = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 2 * second))

    def forward(self, x):
        loc, log_sigma = self.first(x).chunk(2, -1)
        return loc, log_sigma, layers_of(self.second)


class FlowEncoder(nn.Module):
    """x [B, inputs] -> (loc, log_sigma, couplings) of two latents."""

    def __init__(self, inputs, couplings=2):
        super().__init__()
        self.base = nn.Linear(inputs, 4)
        self.couplings = nn.ModuleList(
            nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 2)) for _ in range(couplings)
        )

    def forward(self, x):
        loc, log_sigma = self.base(x).chunk(2, -1)
        return loc, log_sigma, tuple(map(layers_of, self.couplings))


class TopDownPrior(nn.Module):
    """p(z_2) p(z_1|z_2) of two latents."""

    def __init__(self):
        super().__init__()
        self.second = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 2))

    def forward(self, z):
        return TopDown(Normal(z.new_zeros(1), z.new_ones(1)), layers_of(self.second))


def decoder():
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3))


def full_normal_vae():
    return fv.vae(
        encoder=lambda: nn.Linear(3, 5),
        decoder=decoder,
        latent=2,
        posterior=fv.heads.full_normal,
        likelihood=fv.heads.normal_fixed(1.0),
    )


def flow_vae():
    return fv.vae(
        encoder=lambda: FlowEncoder(3),
        decoder=decoder,
        latent=2,
        posterior=fv.heads.coupling_flow,
        likelihood=fv.heads.normal_fixed(1.0),
        prior=fv.priors.mixture(3, 2),
    )


def two_layers_vae():
    return fv.vae(
        encoder=lambda: TwoLayersEncoder(3),
        decoder=decoder,
        latent=2,
        posterior=fv.heads.two_layers,
        likelihood=fv.heads.normal_fixed(1.0),
        prior=TopDownPrior,
    )


def weights(seed, *sizes):
    """Random weights of a network with these numbers of units, in float64."""
    keys = fv.random.split(fv.random.key(seed), 2 * len(sizes))
    return tuple(
        (fv.random.normal(w, (b, a), torch.float64), fv.random.normal(c, (b,), torch.float64))
        for a, b, w, c in zip(sizes, sizes[1:], keys[::2], keys[1::2], strict=False)
    )
