"""The pictures of a trained model: what to decode and encode for them, which `funcvae.plots` then draws."""

import torch
from matplotlib.figure import Figure
from torch import Tensor

from funcvae import plots, random
from funcvae.data import GAUSSIAN2D_COV, GAUSSIAN2D_MEAN, Dataset
from funcvae.train import History, Observe, TrainState
from funcvae.vae import VAE

_POINTS, _CELLS, _PAIRS = 5000, 20, 20


@torch.no_grad()
def of_run(
    model: VAE, ts: TrainState, dataset: Dataset, observe: Observe, history: History, *, name: str, target: str
) -> dict[str, Figure]:
    """Every figure that suits the model and its data, by file name; `target` is what the history's bound is of."""
    _, _, _, key = random.split(ts.key, 4)  # the first three are training's
    observe_key, sample_key = random.split(key)
    x = observe(observe_key, dataset.test[:_POINTS].to(ts.step.device))
    labels = None if dataset.test_labels is None else dataset.test_labels[:_POINTS]
    z = model.encode(ts.params, ts.state, x)[0].loc
    origin, directions = latent_plane(z)
    axes = ("z1", "z2") if model.latent <= 2 else ("1st principal component", "2nd principal component")

    figures = {
        "training": training(history, name=target, title=f"Training of {name}"),
        "latent_scatter": plots.latent_scatter(
            ((z - origin) @ directions.T).cpu(), labels, axes=axes, title=f"{name}: latent means of test data"
        ),
    }
    if x.ndim == 4:
        images, extent = decoded_grid(model, ts, z)
        figures["latent_grid"] = plots.image_grid(
            images.cpu(), extent=extent, axes=axes, title=f"{name}: images decoded from the latent plane"
        )
        decoded = model.decode(ts.params, ts.state, z[:_PAIRS])[0].mean
        figures["reconstructions"] = plots.reconstructions(
            x[:_PAIRS].cpu(), decoded.cpu(), title=f"{name}: test images and their reconstructions"
        )
    if x.shape[1:] == (2,):
        known = dataset.name == "gaussian2d"
        figures["densities"] = plots.densities(
            dataset.train.cpu(),
            samples(model, ts, sample_key, len(dataset.train)).cpu(),
            GAUSSIAN2D_MEAN if known else dataset.train.mean(0),
            GAUSSIAN2D_COV if known else dataset.train.T.cov(),
            title=f"{name}: samples of the data and of the model",
        )
    return figures


def training(history: History, *, name: str, title: str) -> Figure:
    """The bound at every training step and on the test set after every epoch."""
    steps, epochs = len(history.bound), len(history.test_bound)
    ends = [steps * (epoch + 1) // epochs for epoch in range(epochs)]
    return plots.training_curves(
        range(1, steps + 1),
        history.bound,
        ends,
        history.test_bound,
        grad_norm=history.grad_norm,
        name=name,
        title=title,
    )


def latent_plane(z: Tensor) -> tuple[Tensor, Tensor]:
    """The plane to look at latents z [n, Z] in: (origin [Z], two orthonormal directions [2, Z]).

    The latent space itself for Z = 2; else the plane of the first two principal components, through the mean.
    """
    if z.shape[1] == 2:
        return z.new_zeros(2), torch.eye(2, dtype=z.dtype, device=z.device)
    origin = z.mean(0)
    _, vectors = torch.linalg.eigh((z - origin).T @ (z - origin))  # ascending
    directions = vectors.T.flip(0)[:2]
    return origin, torch.cat([directions, z.new_zeros(2 - len(directions), z.shape[1])])


def decoded_grid(model: VAE, ts: TrainState, z: Tensor) -> tuple[Tensor, tuple[float, float, float, float]]:
    """Means decoded on a grid over the plane of latents z [n, Z]: images [cells, cells, C, H, W], and the extent.

    The grid spans the middle 98% of the latents on each axis: the outermost few would leave the rest no room.
    """
    origin, directions = latent_plane(z)
    plane = (z - origin) @ directions.T
    low, high = plane.quantile(torch.tensor([0.01, 0.99], dtype=z.dtype, device=z.device), dim=0)
    middles = (torch.arange(_CELLS, dtype=z.dtype, device=z.device) + 0.5) / _CELLS
    across, up = (low + middles.unsqueeze(1) * (high - low)).unbind(1)
    at = torch.stack(torch.meshgrid(up, across, indexing="ij")[::-1], dim=-1).reshape(-1, 2)
    images = model.decode(ts.params, ts.state, origin + at @ directions)[0].mean
    (left, bottom), (right, top) = low.tolist(), high.tolist()
    return images.unflatten(0, (_CELLS, _CELLS)), (left, right, bottom, top)


def samples(model: VAE, ts: TrainState, key: random.Key, n: int) -> Tensor:
    """n draws of x from the model: z from the prior, x from p(x|z), its noise included."""
    z_key, x_key = random.split(key)
    eps = random.normal(z_key, (n, model.latent))
    z = model.prior(ts.params, ts.state, eps)[0].sample(eps)
    p, _ = model.decode(ts.params, ts.state, z)
    return p.sample(random.normal(x_key, tuple(p.mean.shape)))
