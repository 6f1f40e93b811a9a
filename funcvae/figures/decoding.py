"""What a model encodes, decodes and draws: the arrays that figures of it show.

Functions take (model, params, state), and tensors [n, ...]; they run in evaluation mode.
"""

import torch
from torch import Tensor

from funcvae import random
from funcvae._support import checks
from funcvae.errors import BadData, BadValue
from funcvae.model import VAE, check_trained
from funcvae.modules import Params, State

__all__ = ["decoded", "decoded_grid", "interpolated", "latent_plane", "latents", "reconstructed", "samples"]
_CELLS = 20  # of a latent grid, either way
_CHUNK = 500  # items that go through a network at once


@torch.no_grad()
def latents(model: VAE, params: Params, state: State, x: Tensor) -> Tensor:
    """The posterior's centre [n, Z] for each datum."""
    check_inputs(model, params, state, x=x)
    return torch.cat([model.encode(params, state, part)[0].loc for part in x.split(_CHUNK)])


@torch.no_grad()
def decoded(model: VAE, params: Params, state: State, z: Tensor) -> Tensor:
    """The mean of p(x|z) for each latent of z [n, Z]."""
    check_inputs(model, params, state, z=z)
    return torch.cat([model.decode(params, state, part)[0].mean for part in z.split(_CHUNK)])


@torch.no_grad()
def reconstructed(model: VAE, params: Params, state: State, x: Tensor, key: random.Key) -> Tensor:
    """What the model makes of x [n, ...]: the mean of p(x|z), with z drawn from q(z|x) as in training.

    A posterior's centre may lie where no draw of it does, and then says little of the model.
    """
    check_inputs(model, params, state, x=x)
    eps = random.normal(key, (len(x), model.latent), x.dtype)
    parts = zip(x.split(_CHUNK), eps.split(_CHUNK), strict=True)
    z = torch.cat([model.encode(params, state, x_n)[0].sample(eps_n) for x_n, eps_n in parts])
    return decoded(model, params, state, z)


@torch.no_grad()
def samples(model: VAE, params: Params, state: State, key: random.Key, n: int, *, drawn: bool = True) -> Tensor:
    """n samples of the model: z from the prior, and x drawn from p(x|z), or its mean unless `drawn`.

    Both kinds have the same latents under one key.

    Raises:
        BadValue: n is below one.
    """
    if (n := checks.integer("n", n)) < 1:
        raise BadValue(f"{checks.describe(n)} samples are asked for: at least 1 is needed")
    check_inputs(model, params, state)
    checks.flag("drawn", drawn)
    checks.fits("n", (n, model.latent))
    z_key, x_key = random.split(key)
    eps = random.normal(z_key, (n, model.latent))
    z = model.prior(params, state, eps)[0].sample(eps)
    if not drawn:
        return decoded(model, params, state, z)
    parts = [model.decode(params, state, part)[0] for part in z.split(_CHUNK)]
    noise = random.normal(x_key, (n, *parts[0].mean.shape[1:]))
    return torch.cat([p.sample(eps_n) for p, eps_n in zip(parts, noise.split(_CHUNK), strict=True)])


def interpolated(model: VAE, params: Params, state: State, first: Tensor, second: Tensor, steps: int) -> Tensor:
    """Means [steps, ...] decoded on the straight line between two items' latents, from the first to the second.

    Raises:
        BadValue: steps is below two.
    """
    if (steps := checks.integer("steps", steps)) < 2:
        raise BadValue(
            f"an interpolation of {checks.describe(steps)} images is asked for: it has at least 2, its two ends"
        )
    check_inputs(model, params, state)
    checks.fits("steps", (steps, model.latent))
    if checks.tensor("first", first).shape != checks.tensor("second", second).shape or first.dtype != second.dtype:
        raise BadValue(f"first is {checks.describe(first)} and second {checks.describe(second)}: they must be alike")
    checks.same_device(first=first, second=second)
    start, end = latents(model, params, state, torch.stack([first, second]))
    t = torch.linspace(0, 1, steps, dtype=start.dtype, device=start.device).unsqueeze(1)
    return decoded(model, params, state, start + (end - start) * t)


def latent_plane(z: Tensor) -> tuple[Tensor, Tensor]:
    """The plane to look at latents z [n, Z] in: (origin [Z], two orthonormal directions [2, Z]).

    The latent space itself for Z = 2; else the plane of the first two principal components, through the mean.
    """
    _check_latents(z)
    if z.shape[1] == 2:
        return z.new_zeros(2), torch.eye(2, dtype=z.dtype, device=z.device)
    origin = z.mean(0)
    if not z.isfinite().all():
        raise BadData("z holds NaN or infinite values: they have no principal components")
    _, vectors = torch.linalg.eigh((z - origin).T @ (z - origin))  # ascending
    directions = vectors.T.flip(0)[:2]
    return origin, torch.cat([directions, z.new_zeros(2 - len(directions), z.shape[1])])


def decoded_grid(
    model: VAE, params: Params, state: State, z: Tensor
) -> tuple[Tensor, tuple[float, float, float, float]]:
    """Means decoded on a grid over latents z [n, 2]: images [cells, cells, C, H, W], and the extent.

    The grid spans the middle 98% of the latents on each axis: the outermost few would leave the rest no room.
    """
    if _check_latents(z).shape[1] != 2:
        raise BadValue(f"z has shape {list(z.shape)}: a grid needs latents [n, 2]")
    low, high = z.quantile(torch.tensor([0.01, 0.99], dtype=z.dtype, device=z.device), dim=0)
    # One point has no extent: it gets room.
    low, high = torch.where(low < high, low, low - 1), torch.where(low < high, high, high + 1)
    middles = (torch.arange(_CELLS, dtype=z.dtype, device=z.device) + 0.5) / _CELLS
    across, up = (low + middles.unsqueeze(1) * (high - low)).unbind(1)
    at = torch.stack(torch.meshgrid(up, across, indexing="ij")[::-1], dim=-1).reshape(-1, 2)
    (left, bottom), (right, top) = low.tolist(), high.tolist()
    return decoded(model, params, state, at).unflatten(0, (_CELLS, _CELLS)), (left, right, bottom, top)


def check_inputs(model: VAE, params: Params, state: State, **data: Tensor) -> None:
    """Raises unless this is a model, and the data [n, ...] are some."""
    check_trained(model, params, state)
    for name, value in data.items():
        if not len(checks.concrete(name, value, "n ...")):
            raise BadValue(f"{name} is empty: there is nothing to show")


def _check_latents(z: Tensor) -> Tensor:
    checks.concrete("z", z, "n Z", floating=True)
    if not z.numel() or z.element_size() < 4:
        raise BadValue(f"z is {checks.describe(z)}: it must be float32 or float64 latents [n, Z], one or more")
    return z
