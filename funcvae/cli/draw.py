"""Commands that draw what a run has learned."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from matplotlib.figure import Figure

from funcvae import figures, random, runs
from funcvae.cli.options import Device, RunPath
from funcvae.errors import BadValue
from funcvae.figures import decoding, of_model, of_results


@dataclass(frozen=True)
class Look:
    """What every command that looks at a run takes."""

    out: str | None = None
    """PNG file; one named for the picture, under figures/ in the run's folder, unless given."""
    seed: int = 0
    """Seed of the key for draws from the model, and for data that are binarized anew each time."""
    data: str | None = None
    """The data's file or folder, if it has moved since training."""
    data_dir: str | None = None
    """Where named data sets are kept now; where they were in training unless given."""
    device: Device = "auto"
    """Where to compute."""

    def at(self, run: str) -> runs.Run:
        """The run to look at."""
        return runs.load(run, device=runs.resolve_device(self.device), data=self.data, data_dir=self.data_dir)

    def keys(self) -> tuple[random.Key, random.Key]:
        """Two keys of the given seed: one to observe data with, one to draw from the model with."""
        observe_key, draw_key = random.split(random.key(self.seed, device=runs.resolve_device(self.device)))
        return observe_key, draw_key

    def save(self, figure: Figure, run: runs.Run, name: str) -> Path:
        """Saves a figure of the run and prints where."""
        path = figures.save(figure, self.out or run.path / "figures" / f"{name}.png")
        print(path)
        return path


LookOptions = Annotated[Look, tyro.conf.arg(name="")]
LOOK = Look()


def sample(run: RunPath, /, *, n: int | None = None, drawn: bool = False, look: LookOptions = LOOK) -> None:
    """Draw samples of a trained model: z from the prior, and the mean of p(x|z).

    Args:
        run: The run's folder.
        n: How many; 100 images, or as many points as were trained on, unless given.
        drawn: Draw x from p(x|z), the decoder's noise included, rather than take its mean.
        look: What every such command takes.
    """
    at, (_, key) = look.at(run), look.keys()
    if at.recipe.shape == (2,):
        dataset = at.dataset()
        n = len(dataset.train) if n is None else n
        figure = of_model.point_samples(*at.trained, key, n, dataset, drawn=drawn, name=at.recipe.name)
    else:
        n = of_results.SAMPLES if n is None else n
        figure = of_model.image_samples(*at.trained, key, n, drawn=drawn, **at.titled)
    look.save(figure, at, "samples_drawn" if drawn else "samples")


def reconstruct(run: RunPath, /, *, n: int | None = None, look: LookOptions = LOOK) -> None:
    """Draw test images beside what a trained model makes of them.

    Args:
        run: The run's folder.
        n: How many, from the test set's beginning; 20 unless given.
        look: What every such command takes.
    """
    at = look.at(run)
    test = at.dataset().test
    n = min(of_results.PAIRS, len(test)) if n is None else n
    if not 1 <= n <= len(test):
        raise BadValue(f"--n is {n}: the test set has {len(test)} items, so it must lie between 1 and {len(test)}")
    observe_key, key = look.keys()
    x = at.recipe.observe(observe_key, test[:n].to(at.device))
    look.save(of_model.reconstructions(*at.trained, x, key, **at.titled), at, "reconstructions")


def interpolate(
    run: RunPath,
    first: tyro.conf.Positional[Annotated[int, tyro.conf.arg(metavar="FIRST")]],
    second: tyro.conf.Positional[Annotated[int, tyro.conf.arg(metavar="SECOND")]],
    /,
    *,
    steps: int = 12,
    frames: int = 50,
    look: LookOptions = LOOK,
) -> None:
    """Decode the line between two test items' latents: a strip, and beside it a GIF that goes there and back.

    Args:
        run: The run's folder.
        first: Index of the first item in the test set, from 0.
        second: Index of the second.
        steps: Images in the strip.
        frames: Frames of the GIF, one way.
        look: What every such command takes.
    """
    for option, value, most in (("--steps", steps, 50), ("--frames", frames, 1000)):
        if not 2 <= value <= most:
            raise BadValue(f"{option} is {value}: it must lie between 2, the two ends, and {most}")
    at = look.at(run)
    test = at.dataset().test
    for index in (first, second):
        if not 0 <= index < len(test):
            raise BadValue(f"there is no test item {index}: the test set has items 0 to {len(test) - 1}")
    observe_key, _ = look.keys()
    start, end = at.recipe.observe(observe_key, test[[first, second]].to(at.device))
    strip = of_model.interpolation(*at.trained, start, end, steps, **at.titled)
    images = at.recipe.pixels(decoding.interpolated(*at.trained, start, end, frames)).cpu()
    path = look.save(strip, at, f"interpolation_{first}_{second}")
    print(figures.save_gif(images, path.with_suffix(".gif")))


def latent(
    run: RunPath,
    what: tyro.conf.Positional[Literal["scatter", "grid"]] = "scatter",
    /,
    *,
    look: LookOptions = LOOK,
) -> None:
    """Draw the latent space: where test data are encoded, or images decoded on a grid over that part of it.

    Args:
        run: The run's folder.
        what: A scatter by class (in the first two principal components where Z > 2), or a grid (Z = 2 only).
        look: What every such command takes.
    """
    at = look.at(run)
    dataset = at.dataset()
    observe_key, _ = look.keys()
    x = at.recipe.observe(observe_key, dataset.test[: of_results.POINTS].to(at.device))
    if what == "grid":
        figure = of_model.latent_grid(*at.trained, x, **at.titled)
    else:
        labels = None if dataset.test_labels is None else dataset.test_labels[: len(x)]
        figure = of_model.latent_scatter(*at.trained, x, labels, name=at.recipe.name)
    look.save(figure, at, f"latent_{what}")
