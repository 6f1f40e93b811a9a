"""The pictures of a trained model: what to encode, decode and draw for them, which `funcvae.figures` then shows.

Functions take (model, params, state) and what the model sees of the data, x [n, ...]; those that return a Figure take
`pixels` too, which maps x and what is decoded to pixels in [0, 1], and the model's name for the title.
"""

from collections.abc import Callable

from matplotlib.figure import Figure
from torch import Tensor

from funcvae import random
from funcvae._support import checks
from funcvae.data.dataset import Dataset
from funcvae.data.named_sets import GAUSSIAN2D_COV, GAUSSIAN2D_MEAN
from funcvae.errors import BadType, BadValue
from funcvae.figures import images, latent, points
from funcvae.figures.decoding import (
    check_inputs,
    decoded_grid,
    interpolated,
    latent_plane,
    latents,
    reconstructed,
    samples,
)
from funcvae.model import VAE
from funcvae.modules import Params, State

__all__ = [
    "Pixels", "as_is", "image_samples", "interpolation", "latent_grid", "latent_scatter", "point_samples",
    "reconstructions",
]  # fmt: skip

Pixels = Callable[[Tensor], Tensor]
"""A function from what the model sees, or decodes, to pixels in [0, 1]."""


def as_is(x: Tensor) -> Tensor:
    """The `pixels` of a model whose images are in [0, 1]."""
    return x


def latent_scatter(
    model: VAE, params: Params, state: State, x: Tensor, labels: Tensor | None = None, *, name: str
) -> Figure:
    """Where the encoder puts each datum, by class, in the latent plane or that of the first two components."""
    z = latents(model, params, state, x)
    origin, directions = latent_plane(z)
    axes = ("z1", "z2") if model.latent <= 2 else ("1st principal component of z", "2nd principal component of z")
    checks.text("name", name)
    plane = ((z - origin) @ directions.T).cpu()
    return latent.latent_scatter(plane, labels, axes=axes, title=f"{name}: latent means of {len(x):,} test items")


def latent_grid(model: VAE, params: Params, state: State, x: Tensor, *, pixels: Pixels = as_is, name: str) -> Figure:
    """Images decoded on a grid over the part of the latent plane where the data x are encoded.

    Raises:
        BadValue: the latent space is no plane, or the data are no images.
    """
    check_inputs(model, params, state, x=x)
    _check_shown(pixels, name)
    _check_images(x, "a latent grid")
    if model.latent != 2:
        raise BadValue(
            f"a latent grid needs Z = 2, and {checks.one_line(name, 60)} has Z = {model.latent}: ask for the scatter"
        )
    cells, extent = decoded_grid(model, params, state, latents(model, params, state, x))
    title = f"{name}: images decoded from the latent plane"
    return images.image_grid(_on_cpu(pixels, cells), extent=extent, title=title)


def reconstructions(
    model: VAE, params: Params, state: State, x: Tensor, key: random.Key, *, pixels: Pixels = as_is, name: str
) -> Figure:
    """Images above what the model makes of them, by way of a draw from the posterior."""
    _check_shown(pixels, name)
    _check_images(x, "a picture of reconstructions")
    x_hat = reconstructed(model, params, state, x, key)
    title = f"{name}: test images, each decoded again from a draw of z"
    return images.reconstructions(_on_cpu(pixels, x), _on_cpu(pixels, x_hat), title=title)


def interpolation(
    model: VAE, params: Params, state: State, first: Tensor, second: Tensor, steps: int, *,
    pixels: Pixels = as_is, name: str,
) -> Figure:  # fmt: skip
    """A strip of images decoded between two items, which stand at its ends."""
    _check_shown(pixels, name)
    _check_images(checks.tensor("first", first).unsqueeze(0), "an interpolation")
    strip = interpolated(model, params, state, first, second, steps)
    title = f"{name}: from one test image to another, along a straight line between their latents"
    ends = (_on_cpu(pixels, first), _on_cpu(pixels, second))
    return images.interpolation(_on_cpu(pixels, strip), ends=ends, title=title)


def image_samples(
    model: VAE, params: Params, state: State, key: random.Key, n: int, *, drawn: bool = False,
    pixels: Pixels = as_is, name: str,
) -> Figure:  # fmt: skip
    """n images of the model, side by side: means of p(x|z) at draws of the prior, or draws from p(x|z) itself."""
    _check_shown(pixels, name)
    x = samples(model, params, state, key, n, drawn=drawn)
    how = "drawn from the model" if drawn else "decoded from draws of the prior"
    return images.sample_grid(_on_cpu(pixels, x), title=f"{name}: images {how}")


def point_samples(
    model: VAE,
    params: Params,
    state: State,
    key: random.Key,
    n: int,
    dataset: Dataset,
    *,
    drawn: bool = True,
    name: str,
) -> Figure:
    """The density of n points of the model beside that of the data, under the true one's contours where it is known."""
    check_dataset(dataset)
    checks.text("name", name)
    x = samples(model, params, state, key, n, drawn=drawn)
    contours = (GAUSSIAN2D_MEAN, GAUSSIAN2D_COV) if dataset.name == "gaussian2d" else ()
    names = ("data", "model" if drawn else "model, means of p(x|z) alone")
    how = "drawn from the model" if drawn else "decoded from draws of the prior"
    return points.densities(dataset.train, x.cpu(), *contours, names=names, title=f"{name}: points {how}")


def _check_shown(pixels: Pixels, name: str) -> None:
    checks.function("pixels", pixels, "a function from what the model sees to pixels")
    checks.text("name", name)


def _on_cpu(pixels: Pixels, x: Tensor) -> Tensor:
    """The pixels of x on the CPU."""
    return checks.tensor("what pixels returned", pixels(x)).cpu()


def check_dataset(dataset: Dataset) -> None:
    """Raises unless it is a Dataset."""
    if not isinstance(dataset, Dataset):
        raise BadType(f"dataset is {checks.describe(dataset)}: it must be a Dataset, as data.load gives it")


def _check_images(x: Tensor, what: str) -> None:
    if checks.tensor("x", x).ndim != 4:
        raise BadValue(f"{what} needs images [C, H, W]: these data have items of shape {list(x.shape[1:])}")
