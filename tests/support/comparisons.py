"""Comparisons of estimators on the toy, for several test files."""

from functools import cache

import torch

import funcvae as fv
from funcvae.estimators import parse
from funcvae.variance import compare
from tests.support.oracles import toy

X = torch.tensor([[1.0]], dtype=torch.float64)
KEY = fv.random.key(21)
SPECS = ("dreg", "iwae", "iwae_stl", "vimco", "ovis:0", "rws", "elbo_mc", "stl")


def arms(*specs):
    return {spec: parse(spec) for spec in specs}


@cache
def on_the_toy(seed=21, replicates=20_000, s2=2 / 3, m=0.8, samples=2, specs=SPECS, latent=1, x=1.0):
    data = torch.full((1, latent), x, dtype=torch.float64)
    key = fv.random.key(seed)
    return compare(
        arms(*specs), *toy(m, s2, 0.0, latent), data, key, samples=samples, replicates=replicates, chunk=1000, timings=0
    )
