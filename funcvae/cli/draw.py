"""Commands that draw figures of a trained model: `sample`, `reconstruct`, `interpolate` and `latent`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from matplotlib.figure import Figure

from funcvae import figures, random, runs
from funcvae.cli.options import Flat, LoadOptions, RunPath
from funcvae.errors import BadValue
from funcvae.figures import decoding, of_model

__all__ = ["FigureOptions", "interpolate", "latent", "reconstruct", "sample"]


@dataclass(frozen=True)
class FigureOptions(LoadOptions):
    """How to draw figures of a run."""

    out: str | None = None
    """PNG file; one named for the picture, under figures/ in the run's folder, unless given."""
    seed: int = 0
    """Seed of the key for draws from the model, and for data that are binarized anew each time."""

    def keys(self) -> tuple[random.Key, random.Key]:
        """Two keys of the given seed: one to observe data with, one to draw from the model with."""
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
        run: The run's folder.
        n: How many; 100 images, or as many points as were trained on, unless given.
        drawn: Draw x from p(x|z), the decoder's noise included, rather than take its mean.
        options: How to load the run, and where to save the figure.
    """
    loaded, (_, key) = options.load(run), options.keys()
    if loaded.recipe.shape == (2,):
        dataset = loaded.dataset()
        n = len(dataset.train) if n is None else n
        figure = of_model.point_samples(*loaded.trained, key, n, dataset, drawn=drawn, name=loaded.recipe.name)
    else:
        n = decoding.SAMPLES if n is None else n
        figure = of_model.image_samples(*loaded.trained, key, n, drawn=drawn, **loaded.image_arguments)
    options.save(figure, loaded, "samples_drawn" if drawn else "samples")


def reconstruct(run: RunPath, /, *, n: int | None = None, options: Annotated[FigureOptions, Flat] = DEFAULTS) -> None:
    """Draw test images beside what a trained model makes of them.

    Args:
        run: The run's folder.
        n: How many, from the test set's beginning; 20 unless given.
        options: How to load the run, and where to save the figure.
    """
    loaded = options.load(run)
    test = loaded.dataset().test
    n = min(decoding.PAIRS, len(test)) if n is None else n
    if not 1 <= n <= len(test):
        raise BadValue(f"--n is {n}: the test set has {len(test)} items, so it must lie between 1 and {len(test)}")
    observe_key, key = options.keys()
    x = loaded.recipe.observe(observe_key, test[:n].to(loaded.device))
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
    """Decode the line between two test items' latents: a strip, and beside it a GIF that goes there and back.

    Args:
        run: The run's folder.
        first: Index of the first item in the test set, from 0.
        second: Index of the second.
        steps: Images in the strip.
        frames: Frames of the GIF, one way.
        options: How to load the run, and where to save the figure.
    """
    for option, value, most in (("--steps", steps, 50), ("--frames", frames, 1000)):
        if not 2 <= value <= most:
            raise BadValue(f"{option} is {value}: it must lie between 2, the two ends, and {most}")
    loaded = options.load(run)
    test = loaded.dataset().test
    for index in (first, second):
        if not 0 <= index < len(test):
            raise BadValue(f"there is no test item {index}: the test set has items 0 to {len(test) - 1}")
    observe_key, _ = options.keys()
    start, end = loaded.recipe.observe(observe_key, test[[first, second]].to(loaded.device))
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
    """Draw the latent space: where test data are encoded, or images decoded on a grid over that part of it.

    Args:
        run: The run's folder.
        what: A scatter by class (in the first two principal components where Z > 2), or a grid (Z = 2 only).
        options: How to load the run, and where to save the figure.
    """
    loaded = options.load(run)
    dataset = loaded.dataset()
    observe_key, _ = options.keys()
    x = loaded.recipe.observe(observe_key, dataset.test[: decoding.POINTS].to(loaded.device))
    if what == "grid":
        figure = of_model.latent_grid(*loaded.trained, x, **loaded.image_arguments)
    else:
        labels = None if dataset.test_labels is None else dataset.test_labels[: len(x)]
        figure = of_model.latent_scatter(*loaded.trained, x, labels, name=loaded.recipe.name)
    options.save(figure, loaded, f"latent_{what}")
