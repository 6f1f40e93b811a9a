"""Short training runs, for several test files."""

import torch

import funcvae as fv


def small() -> fv.VAE:
    return fv.models.gaussian2d_vae(hidden=4)


def fit(data: torch.Tensor, *, model: fv.VAE | None = None, lr: float = 1e-2, seed: int = 0, **options: object):
    model = model or small()
    opt = fv.optim.adam(lr)
    ts = fv.train.init(model, opt, fv.random.key(seed))
    options = {"batch": 16, "epochs": 2, "compile": False, **options}
    return fv.train.fit(ts, model, fv.estimators.elbo(), opt, data, **options)


def binarize01(key: fv.random.Key, x: torch.Tensor) -> torch.Tensor:
    return fv.random.bernoulli(key, x.sigmoid()).to(x.dtype)


# Stopping, saving, resuming and replaying.


def same(a: object, b: object) -> bool:
    return all(map(torch.equal, fv.tree.leaves(a), fv.tree.leaves(b)))


def begun(seed: int = 0):
    model, opt = small(), fv.optim.adam(lambda step: 1e-2 * 0.9 ** step.double())
    return fv.train.init(model, opt, fv.random.key(seed)), model, fv.estimators.iwae(), opt
