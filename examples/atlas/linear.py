"""Probabilistic PCA of digits, a held-out system: funcvae train examples/atlas/linear.py:linear_vae"""

from torch import Tensor

import funcvae as fv


def pca_of_digits(latent: int = 20) -> fv.VAE:
    """p(x|z) = N(W z + mu, sigma² I) for images as vectors x [B, 784], with Z = `latent`."""
    return fv.models.linear_vae(28 * 28, latent)


def flat(key: fv.random.Key, x: Tensor) -> Tensor:
    """Images [B, 1, 28, 28] as vectors [B, 784]."""
    floats = fv.model.as_floats(key, x)
    assert isinstance(floats, Tensor)
    return floats.flatten(1)


recipe = fv.models.Recipe(shape=(1, 28, 28), data="mnist", observe=flat, epochs=5)
linear_vae = fv.System("linear_vae", "probabilistic PCA of digits", pca_of_digits, recipe)
