"""Computes what a model encodes, decodes and samples, for figures.

Functions take (model, params, state) and tensors [n, ...], and run the model in evaluation mode.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Annotated, Any

import torch
from einops import rearrange
from torch import Tensor

from funcvae import random
from funcvae._support import checks, examples
from funcvae._support.checks import Count
from funcvae._support.examples import Data
from funcvae.distributions import Distribution, Normal
from funcvae.errors import BadData, BadType, BadValue
from funcvae.model import VAE, check_trained, noise_dtype
from funcvae.modules import Params, State

__all__ = [
    "ascending", "check_condition", "decoded", "decoded_grid", "interpolated", "latent_plane", "latents", "pair",
    "reconstructed", "samples", "traversed",
]  # fmt: skip
Cells = Annotated[int, checks.within(1, 100)]  # rows or columns of images
_CHUNK = 500  # items in one call of a network


def _points(name: str, z: Tensor) -> Tensor:
    """Checks that latents hold at least one value, in single or double precision."""
    if not checks.floating(name, checks.concrete(name, z)).numel() or z.element_size() < 4:
        raise BadValue(f"{name} is {checks.describe(z)}: it must be float32 or float64 and not empty")
    return z


@checks.arguments
@torch.no_grad()
def latents(model: VAE, params: Params, state: State, x: Data) -> Tensor:
    """The posterior's location [n, Z] for each datum."""
    check_trained(model, params, state)
    model = model.unchecked()
    return torch.cat([model.encode(params, state, part)[0].loc for part in examples.split(x, _CHUNK)])


@checks.arguments
@torch.no_grad()
def decoded(
    model: VAE, params: Params, state: State, z: Annotated[Tensor, "n Z"], condition: Data | None = None
) -> Tensor:
    """The mean of p(x|z) for each latent of z [n, Z]; a conditional model also takes the conditions [n, ...]."""
    check_trained(model, params, state)
    check_condition(model, condition, len(z))
    return torch.cat([p.mean for p in _decoded(model.unchecked(), params, state, z, condition)])


def _decoded(model: VAE, params: Params, state: State, z: Tensor, condition: Data | None) -> Iterator[Distribution]:
    """p(x|z) for successive parts of z [n, Z]."""
    conditions = repeat(None) if condition is None else examples.split(condition, _CHUNK)
    for part, c in zip(z.split(_CHUNK), conditions, strict=False):
        yield model.decode(params, state, part, **_given(c))[0]


def _given(condition: Data | None) -> dict[str, Any]:
    return {} if condition is None else {"condition": condition}


def check_condition(model: VAE, condition: Data | None, n: int) -> None:
    """Raises BadValue unless there is a condition for each of n data exactly if the model is conditional."""
    if (condition is None) != (model.condition is None):
        has = "is conditional: give the conditions [n, ...]" if condition is None else "takes no condition"
        raise BadValue(f"the model {has}")
    if condition is not None and examples.count(condition) != n:
        raise BadValue(f"the condition has {examples.count(condition)} items: it must have {n}")


@checks.arguments
@torch.no_grad()
def reconstructed(model: VAE, params: Params, state: State, x: Data, key: random.Key | None = None) -> Tensor:
    """Reconstructions of x [n, ...]: the mean of p(x|z), with z sampled from q(z|x) as in training.

    Without a key, z is the location of q(z|x). It may be far from all samples, and then its image is not typical of the
    model.
    """
    check_trained(model, params, state)
    if key is None:
        z = checks.unchecked(latents)(model, params, state, x)
    else:
        model = model.unchecked()
        examples.same_device(x, key=key)
        eps = random.normal(key, (examples.count(x), model.latent), noise_dtype(params))
        parts = zip(examples.split(x, _CHUNK), eps.split(_CHUNK), strict=True)
        z = torch.cat([model.encode(params, state, x_n)[0].sample(eps_n) for x_n, eps_n in parts])
    return checks.unchecked(decoded)(model, params, state, z, **model.given(x))


@checks.arguments
@torch.no_grad()
def samples(
    model: VAE, params: Params, state: State, key: random.Key, n: Count, *, drawn: bool = True,
    condition: Data | None = None,
) -> Tensor:  # fmt: skip
    """n samples of the model: z from the prior, and x sampled from p(x|z), or the mean of p(x|z) if not `drawn`.

    Both options use the same latents for the same key. A conditional model takes the conditions [n, ...].
    """
    check_trained(model, params, state)
    model = model.unchecked()
    z_key, x_key = random.split(key)
    dtype = noise_dtype(params)
    eps = random.normal(z_key, (n, model.latent), dtype)
    check_condition(model, condition, n)
    z = model.prior(params, state, eps, **_given(condition))[0].sample(eps)
    parts = list(_decoded(model, params, state, z, condition))
    if not drawn:
        return torch.cat([p.mean for p in parts])
    noise = random.normal(x_key, (n, *parts[0].mean.shape[1:]), dtype)
    return torch.cat([p.sample(eps_n) for p, eps_n in zip(parts, noise.split(_CHUNK), strict=True)])


@checks.arguments
def interpolated(
    model: VAE, params: Params, state: State, first: Any, second: Any, steps: Annotated[int, checks.at_least(2)]
) -> Tensor:
    """Means [steps, ...] decoded on the straight line between the latents of two items, from the first to the second.

    An item is a tensor [...], or a dict of such tensors. A conditional model keeps the condition of the first.

    Raises:
        BadValue: the two items differ in shape, dtype or device.
    """
    checks.fits("steps", (steps, model.latent))
    ends = pair(first, second)
    start, end = latents(model, params, state, ends)
    t = torch.linspace(0, 1, steps, dtype=start.dtype, device=start.device).unsqueeze(1)
    of_first = examples.each(lambda x: x[:1].expand(steps, *x.shape[1:]), ends)
    return decoded(model, params, state, start + (end - start) * t, **model.given(of_first))


def pair(first: Any, second: Any) -> Data:
    """Two items as data [2, ...]; raises BadType or BadValue if they differ in shape, dtype or device."""
    a, b = examples.tensors(first), examples.tensors(second)
    if a.keys() != b.keys():
        both = f"first is {checks.describe(first)} and second {checks.describe(second)}"
        raise BadType(f"{both}: they must be tensors, or dicts with the same parts")
    for name in a:
        x, y = (checks.tensor("an item", item[name]) for item in (a, b))
        if (x.shape, x.dtype, x.device) != (y.shape, y.dtype, y.device):
            both = f"first is {checks.describe(x)} and second {checks.describe(y)}"
            raise BadValue(f"{both}: they must have the same shape, dtype and device")
    return examples.whole({name: torch.stack([a[name], b[name]]) for name in a})


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
    model: VAE, params: Params, state: State, z: Annotated[Tensor, "n Z", _points], *,
    span: Sequence[float] | None = None, n: Cells = 20,
) -> tuple[Tensor, tuple[float, float, float, float]]:  # fmt: skip
    """Means decoded on a grid over the latent plane: images [n, n, C, H, W], and the extent of `image_grid`.

    Both axes go from `span[0]` to `span[1]`. Without a span they go from -r to r, where r is the smallest reach that
    holds the middle 98% of latents z [m, 2] on each axis, so that a few outliers do not stretch the grid.

    Raises:
        BadValue: z is not [m, 2], or span is not two ascending numbers.
    """
    if z.shape[1] != 2:
        raise BadValue(f"z has shape {list(z.shape)}: a grid needs latents [n, 2]")
    if span is None:
        ends = z.quantile(torch.tensor([0.01, 0.99], dtype=z.dtype, device=z.device), dim=0)
        reach = float(ends.abs().max()) or 1.0
        span = (-reach, reach)
    low, high = ascending("span", span)
    middles = low + (torch.arange(n, dtype=z.dtype, device=z.device) + 0.5) / n * (high - low)
    at = torch.cartesian_prod(middles, middles).flip(1)
    images = rearrange(decoded(model, params, state, at), "(rows cols) ... -> rows cols ...", rows=n)
    return images, (low, high, low, high)


@checks.arguments
@torch.no_grad()
def traversed(
    model: VAE, params: Params, state: State, item: Data, rows: Sequence[int], values: Sequence[float]
) -> Tensor:
    """Means [rows, values, ...] decoded from the latents of one datum, of which one varies at a time.

    In the row of latent u, z_u is the prior's mean plus `values` times its standard deviation. The other latents stay
    at the location of q(z|x) of the item, whose condition a conditional model keeps.

    Args:
        item: data [1, ...].
        rows: numbers u of latents, from 0.

    Raises:
        BadValue: item is not one datum, rows or values are empty or wrong, or the prior is not normal.
    """
    if examples.count(item) != 1:
        raise BadValue(f"item has {examples.count(item)} items: it must have 1")
    if not rows or not values:
        raise BadValue("rows or values is empty: both must have at least one entry")
    at = [checks.within(0, model.latent - 1)("a latent in rows", checks.whole("a latent in rows", u)) for u in rows]
    steps = [checks.is_finite("a number in values", value) for value in checks.numbers("values", values)]
    z = latents(model, params, state, item)
    p = model.prior(params, state, z, **model.given(item))[0]
    if not isinstance(p, Normal):
        raise BadValue(f"the prior is {type(p).__name__}: a traversal needs a normal one")
    mean, sigma = p.loc.expand_as(z), p.sigma.expand_as(z)
    points = z.repeat(len(at), len(steps), 1)
    for row, u in zip(points, at, strict=True):
        row[:, u] = mean[0, u] + sigma[0, u] * z.new_tensor(steps)
    flat = rearrange(points, "rows values z -> (rows values) z")
    of_item = examples.each(lambda x: x.expand(len(flat), *x.shape[1:]), item)
    images = decoded(model, params, state, flat, **model.given(of_item))
    return rearrange(images, "(rows values) ... -> rows values ...", rows=len(at))


def ascending(name: str, value: Sequence[float]) -> tuple[float, float]:
    """Checks that an object holds two ascending, finite numbers."""
    ends = checks.numbers(name, value)
    if len(ends) != 2 or not -math.inf < ends[0] < ends[1] < math.inf:
        raise BadValue(f"{name} is {checks.describe(value)}: it must be two numbers, the lower first")
    return ends[0], ends[1]
