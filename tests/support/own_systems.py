"""A file with an own system, for the tests."""

from pathlib import Path

import numpy as np

import funcvae as fv

SOURCE = '''"""Small pictures."""
import torch
from torch import Tensor, nn

import funcvae as fv


def bird_vae(train: Tensor | None = None, latent: int = 3, hidden: tuple[int, ...] = (8,), alpha: float = 1) -> fv.VAE:
    sizes = (16, *hidden, 2 * latent)
    start = torch.zeros(16) if train is None else train.float().mean(0).flatten()

    def decoder() -> nn.Module:
        last = nn.Linear(latent, 16)
        last.bias = nn.Parameter(start.clone())
        return nn.Sequential(last, nn.Unflatten(-1, (1, 4, 4)))

    def encoder() -> nn.Module:
        return nn.Sequential(nn.Flatten(), *(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:])))

    likelihood = fv.heads.normal_fixed(alpha)
    return fv.vae(
        encoder=encoder, decoder=decoder, posterior=fv.heads.normal_logvar, likelihood=likelihood, latent=latent
    )


bird = fv.System("bird_vae", "VAE of birds", bird_vae, fv.models.Recipe(shape=(1, None, None), epochs=2, batch=5))
'''
SPEC = "my_systems.py:bird_vae"


def write_own_system(name: str = "my_systems.py") -> Path:
    """Writes the file and twelve training and five test pictures, birds.npz, to the current folder."""
    x = fv.random.uniform(fv.random.key(0), (17, 1, 4, 4)).numpy()
    np.savez("birds.npz", train=x[:12], test=x[12:])
    path = Path(name)
    path.write_text(SOURCE)
    return path
