"""The variance of Monte-Carlo gradient estimators in variational autoencoders, as pure functions on `torch.func`.

    import funcvae as fv

The names below are the library. The edges (`funcvae.data`, `plots`, `tracking`, `checkpoint`) are imported by name.
"""

from funcvae import (
    bounds,
    distributions,
    errors,
    estimators,
    evaluate,
    heads,
    machine,
    models,
    noise,
    optim,
    priors,
    processes,
    random,
    shards,
    train,
    tree,
    variance,
)
from funcvae.estimators import Claims, Estimate, Estimator, Weights, surrogate
from funcvae.module import Functional, functional
from funcvae.vae import VAE, vae

__version__ = "0.6.0"

__all__ = [
    "VAE",
    "Claims",
    "Estimate",
    "Estimator",
    "Functional",
    "Weights",
    "bounds",
    "distributions",
    "errors",
    "estimators",
    "evaluate",
    "functional",
    "heads",
    "machine",
    "models",
    "noise",
    "optim",
    "priors",
    "processes",
    "random",
    "shards",
    "surrogate",
    "train",
    "tree",
    "vae",
    "variance",
]
