"""Computes what a model encodes, decodes and samples, for figures.

Functions take (model, params, state) and tensors [n, ...], and run the model in evaluation mode.
"""

from typing import Annotated

import torch
from einops import rearrange
from torch import Tensor

from funcvae import random
from funcvae._support import checks
from funcvae._support.checks import Count
from funcvae.errors import BadData, BadValue
from funcvae.model import VAE, check_trained, noise_dtype
from funcvae.modules import Params, State

__all__ = ["decoded", "decoded_grid", "interpolated", "latent_plane", "latents", "reconstructed", "samples"]
_CELLS = 20  # rows and columns of a latent grid
_CHUNK = 500  # items in one call of a network


def _points(name: str, z: Tensor) -> Tensor:
    """Checks that latents hold at least one value, in single or double precision."""
    if not checks.floating(name, checks.concrete(name, z)).numel() or z.element_size() < 4:
        raise BadValue(f"{name} is {checks.describe(z)}: it must be float32 or float64 and not empty")
    return z


@checks.arguments
@torch.no_grad()
def latents(model: VAE, params: Params, state: State, x: Annotated[Tensor, "n ..."]) -> Tensor:
    """The posterior's location [n, Z] for each datum."""
    check_trained(model, params, state)
    model = model.unchecked()
    return torch.cat([model.encode(params, state, part)[0].loc for part in x.split(_CHUNK)])


@checks.arguments
@torch.no_grad()
def decoded(model: VAE, params: Params, state: State, z: Annotated[Tensor, "n Z"]) -> Tensor:
    """The mean of p(x|z) for each latent of z [n, Z]."""
    check_trained(model, params, state)
    model = model.unchecked()
    return torch.cat([model.decode(params, state, part)[0].mean for part in z.split(_CHUNK)])


@checks.arguments
@torch.no_grad()
def reconstructed(model: VAE, params: Params, state: State, x: Annotated[Tensor, "n ..."], key: random.Key) -> Tensor:
    """Reconstructions of x [n, ...]: the mean of p(x|z), with z sampled from q(z|x) as in training.

    z is sampled because the posterior's location may be far from all its samples, and then its image is not
    typical of the model.
    """
    check_trained(model, params, state)
    model = model.unchecked()
    checks.same_device(key=key, x=x)
    eps = random.normal(key, (len(x), model.latent), noise_dtype(params))
    parts = zip(x.split(_CHUNK), eps.split(_CHUNK), strict=True)
    z = torch.cat([model.encode(params, state, x_n)[0].sample(eps_n) for x_n, eps_n in parts])
    return checks.unchecked(decoded)(model, params, state, z)


@checks.arguments
@torch.no_grad()
def samples(model: VAE, params: Params, state: State, key: random.Key, n: Count, *, drawn: bool = True) -> Tensor:
    """n samples of the model: z from the prior, and x sampled from p(x|z), or the mean of p(x|z) if not `drawn`.

    Both options use the same latents for the same key.
    """
    check_trained(model, params, state)
    model = model.unchecked()
    z_key, x_key = random.split(key)
    dtype = noise_dtype(params)
    eps = random.normal(z_key, (n, model.latent), dtype)
    z = model.prior(params, state, eps)[0].sample(eps)
    if not drawn:
        return decoded(model, params, state, z)
    parts = [model.decode(params, state, part)[0] for part in z.split(_CHUNK)]
    noise = random.normal(x_key, (n, *parts[0].mean.shape[1:]), dtype)
    return torch.cat([p.sample(eps_n) for p, eps_n in zip(parts, noise.split(_CHUNK), strict=True)])


@checks.arguments
def interpolated(
    model: VAE,
    params: Params,
    state: State,
    first: Tensor,
    second: Tensor,
    steps: Annotated[int, checks.at_least(2)],
) -> Tensor:
    """Means [steps, ...] decoded on the straight line between the latents of two items, from the first to the second.

    Raises:
        BadValue: the two items differ in shape, dtype or device.
    """
    if (first.shape, first.dtype, first.device) != (second.shape, second.dtype, second.device):
        both = f"first is {checks.describe(first)} and second {checks.describe(second)}"
        raise BadValue(f"{both}: they must have the same shape, dtype and device")
    checks.fits("steps", (steps, model.latent))
    start, end = latents(model, params, state, torch.stack([first, second]))
    t = torch.linspace(0, 1, steps, dtype=start.dtype, device=start.device).unsqueeze(1)
    return decoded(model, params, state, start + (end - start) * t)


@checks.arguments
def latent_plane(z: Annotated[Tensor, "n Z", _points]) -> tuple[Tensor, Tensor]:
    """The plane in which to draw latents z [n, Z]: (origin [Z], two orthonormal directions [2, Z]).

    It is the latent space itself for Z = 2, else the plane of the first two principal components through the mean. For
    Z = 1 the second direction is zero.

    Raises:
        BadData: z holds NaN or infinite values, and Z is not 2.
    """
    if z.shape[1] == 2:
        return z.new_zeros(2), torch.eye(2, dtype=z.dtype, device=z.device)
    origin = z.mean(0)
    if not z.isfinite().all():
        raise BadData("z holds NaN or infinite values: it has no principal components")
    _, vectors = torch.linalg.eigh((z - origin).T @ (z - origin))  # ascending
    directions = vectors.T.flip(0)[:2]
    return origin, torch.cat([directions, z.new_zeros(2 - len(directions), z.shape[1])])


@checks.arguments
def decoded_grid(
    model: VAE, params: Params, state: State, z: Annotated[Tensor, "n Z", _points]
) -> tuple[Tensor, tuple[float, float, float, float]]:
    """Means decoded on a grid over latents z [n, 2]: images [20, 20, C, H, W] and the extent of `figures.image_grid`.

    The grid spans the middle 98% of the latents on each axis, so that a few outliers do not stretch it.

    Raises:
        BadValue: z is not [n, 2].
    """
    if z.shape[1] != 2:
        raise BadValue(f"z has shape {list(z.shape)}: a grid needs latents [n, 2]")
    low, high = z.quantile(torch.tensor([0.01, 0.99], dtype=z.dtype, device=z.device), dim=0)
    # Where all latents are equal, the grid extends by 1 on both sides.
    low, high = torch.where(low < high, low, low - 1), torch.where(low < high, high, high + 1)
    middles = (torch.arange(_CELLS, dtype=z.dtype, device=z.device) + 0.5) / _CELLS
    across, up = (low + middles.unsqueeze(1) * (high - low)).unbind(1)
    at = torch.cartesian_prod(up, across).flip(1)
    (left, bottom), (right, top) = low.tolist(), high.tolist()
    images = rearrange(decoded(model, params, state, at), "(rows cols) ... -> rows cols ...", rows=_CELLS)
    return images, (left, right, bottom, top)
