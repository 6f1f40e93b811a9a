"""Commands that draw figures of a trained model: `sample`, `reconstruct`, `interpolate` and `latent`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from matplotlib.figure import Figure

from funcvae import figures, random, runs
from funcvae._support import examples
from funcvae._support.examples import Data
from funcvae.cli.options import Flat, LoadOptions, RunPath
from funcvae.errors import BadValue
from funcvae.figures import decoding, of_model, of_results
from funcvae.train import streaming

__all__ = ["FigureOptions", "interpolate", "latent", "reconstruct", "sample"]


@dataclass(frozen=True)
class FigureOptions(LoadOptions):
    """How to draw figures of a run."""

    out: str | None = None
    """PNG file. None: a file in figures/ in the run folder."""
    seed: int = 0
    """Seed of the key for draws from the model, and for the binarization of data."""

    def keys(self) -> tuple[random.Key, random.Key]:
        """Two keys of the seed: one to observe data, one to draw from the model."""
        observe_key, draw_key = random.split(random.key(self.seed, device=runs.resolve_device(self.device)))
        return observe_key, draw_key

    def save(self, figure: Figure, run: runs.Run, name: str) -> Path:
        """Saves a figure of the run and prints its path."""
        path = figures.save(figure, self.out or run.path / "figures" / f"{name}.png")
        print(path)
        return path


DEFAULTS = FigureOptions()


def sample(
    run: RunPath, /, *, n: int | None = None, drawn: bool = False, options: Annotated[FigureOptions, Flat] = DEFAULTS
) -> None:
    """Draw samples of a trained model: z from the prior, and the mean of p(x|z).

    Args:
        run: The run folder.
        n: Number of samples. None: 100 images, or as many points as training data, at most 10,000.
        drawn: Draw x from p(x|z), with the decoder's noise, instead of its mean.
        options: How to load the run, and where to save the figure.
    """
    loaded, (_, key) = options.load(run), options.keys()
    if loaded.recipe.shape == (2,):
        dataset = loaded.dataset()
        n = min(streaming.count(dataset.train), of_model.MOST_POINTS) if n is None else n
        figure = of_model.point_samples(
            *loaded.trained, key, n, dataset, drawn=drawn, condition=_conditions(loaded, n),
            name=loaded.config.system.name,
        )  # fmt: skip
    else:
        n = of_results.SAMPLES if n is None else n
        figure = of_model.image_samples(
            *loaded.trained, key, n, drawn=drawn, condition=_conditions(loaded, n), **loaded.image_arguments
        )
    options.save(figure, loaded, "samples_drawn" if drawn else "samples")


def _conditions(loaded: runs.Run, n: int) -> Data | None:
    """The conditions of the first n test items, from the start again if there are fewer; None without conditions."""
    if loaded.model.condition is None:
        return None
    test = loaded.dataset().test
    x = loaded.observed(random.key(0, device=loaded.device), test, torch.arange(n) % streaming.count(test))
    return loaded.model.condition(x)


def reconstruct(run: RunPath, /, *, n: int | None = None, options: Annotated[FigureOptions, Flat] = DEFAULTS) -> None:
    """Draw test images and their reconstructions.

    Args:
        run: The run folder.
        n: Number of images, from the start of the test set. None: 20.
        options: How to load the run, and where to save the figure.
    """
    loaded = options.load(run)
    test = loaded.dataset().test
    most = streaming.count(test)
    n = min(of_results.PAIRS, most) if n is None else n
    if not 1 <= n <= most:
        raise BadValue(f"--n is {n}: it must lie between 1 and {most}, the number of test items")
    observe_key, key = options.keys()
    x = loaded.observed(observe_key, test, torch.arange(n))
    options.save(of_model.reconstructions(*loaded.trained, x, key, **loaded.image_arguments), loaded, "reconstructions")


def interpolate(
    run: RunPath,
    first: tyro.conf.Positional[Annotated[int, tyro.conf.arg(metavar="FIRST")]],
    second: tyro.conf.Positional[Annotated[int, tyro.conf.arg(metavar="SECOND")]],
    /,
    *,
    steps: int = 12,
    frames: int = 50,
    options: Annotated[FigureOptions, Flat] = DEFAULTS,
) -> None:
    """Decode the line between the latents of two test items: a strip, and a GIF that runs back and forth.

    Args:
        run: The run folder.
        first: Index of the first item in the test set, from 0.
        second: Index of the second item.
        steps: Number of images in the strip.
        frames: Number of frames of the GIF in one direction.
        options: How to load the run, and where to save the figure.
    """
    for option, value, most in (("--steps", steps, 50), ("--frames", frames, 1000)):
        if not 2 <= value <= most:
            raise BadValue(f"{option} is {value}: it must lie between 2 and {most}")
    loaded = options.load(run)
    test = loaded.dataset().test
    for index in (first, second):
        if not 0 <= index < streaming.count(test):
            raise BadValue(f"no test item {index}: it must lie between 0 and {streaming.count(test) - 1}")
    observe_key, _ = options.keys()
    x = loaded.observed(observe_key, test, torch.tensor([first, second]))
    start, end = examples.each(lambda part: part[0], x), examples.each(lambda part: part[1], x)
    strip = of_model.interpolation(*loaded.trained, start, end, steps, **loaded.image_arguments)
    images = loaded.recipe.pixels(decoding.interpolated(*loaded.trained, start, end, frames)).cpu()
    path = options.save(strip, loaded, f"interpolation_{first}_{second}")
    print(figures.save_gif(images, path.with_suffix(".gif")))


def latent(
    run: RunPath,
    what: tyro.conf.Positional[Literal["scatter", "grid"]] = "scatter",
    /,
    *,
    options: Annotated[FigureOptions, Flat] = DEFAULTS,
) -> None:
    """Draw the latent space: a scatter of encoded test data, or images decoded on a grid.

    Args:
        run: The run folder.
        what: A scatter by class (of the first two principal components if Z > 2), or a grid (Z = 2 only).
        options: How to load the run, and where to save the figure.
    """
    loaded = options.load(run)
    dataset = loaded.dataset()
    observe_key, _ = options.keys()
    n = min(of_results.POINTS, streaming.count(dataset.test))
    x = loaded.observed(observe_key, dataset.test, torch.arange(n))
    if what == "grid":
        figure = of_model.latent_grid(*loaded.trained, x, **loaded.image_arguments)
    else:
        labels = None if dataset.test_labels is None else dataset.test_labels[:n]
        figure = of_model.latent_scatter(
            *loaded.trained, x, labels, classes=dataset.classes, name=loaded.config.system.name
        )
    options.save(figure, loaded, f"latent_{what}")
