"""Descriptions of networks, for the tests of models."""

import torch

import funcvae as fv
from tests.support.oracles import double

KEY = fv.random.key(11)
IMAGES = fv.random.uniform(fv.random.key(12), (3, 1, 28, 28))


def described(model):
    """Parameters and state in float64, so that a forward pass written out agrees to rounding."""
    params, state = model.init(KEY)
    return double(params), state


def layers(params):
    """(in, out) of each linear layer, by name."""
    return {name.removesuffix(".weight"): tuple(p.shape[::-1]) for name, p in params.items() if p.ndim == 2}


def linear(params, name, x):
    return x @ params[f"{name}.weight"].T + params[f"{name}.bias"]


def known(distribution, **fields):
    """Asserts that the fields of a distribution equal these."""
    for name, value in fields.items():
        torch.testing.assert_close(getattr(distribution, name), value, msg=lambda m, n=name: f"{n}: {m}")
