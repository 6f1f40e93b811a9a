"""Commands that draw figures of a model: `sample`, `reconstruct`, `interpolate` and `latent`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from cyclopts import Parameter
from matplotlib.figure import Figure
from torch import Tensor

from funcvae import data, figures, random, runs
from funcvae._support import checks, examples
from funcvae._support.examples import Data
from funcvae.cli.options import OUTPUT, FigureOutput, Flag, Int, LoadOptions
from funcvae.errors import BadValue
from funcvae.figures import decoding, of_model, of_results
from funcvae.train import streaming

__all__ = ["FigureOptions", "interpolate", "latent", "reconstruct", "sample"]


@Parameter(name="*", group=OUTPUT)
@dataclass(frozen=True, kw_only=True)
class FigureOptions(FigureOutput):
    """Where to save a figure, and the seed of its draws."""

    out: Path | None = None
    """PNG, PDF or SVG file. By default NAME.png in figures/ of the run folder."""
    seed: Int = 0
    """Seed of the key for draws from the model, and for the binarization of data."""

    def keys(self, run: runs.Run) -> tuple[random.Key, random.Key]:
        """Two keys of the seed: one to observe data, one to draw from the model."""
        observe_key, draw_key = random.split(random.key(self.seed, device=run.device))
        return observe_key, draw_key

    def save_of(self, figure: Figure, run: runs.Run, name: str) -> Path:
        """Saves a figure of a run, by default in its folder, and prints and returns the path."""
        return self.save(figure, self.out or run.path / "figures" / name)


LOADING, FIGURE = LoadOptions(), FigureOptions()


def sample(
    run: Path, /, *, n: Int | None = None, drawn: Flag = False, loading: LoadOptions = LOADING,
    options: FigureOptions = FIGURE,
) -> None:  # fmt: skip
    """Draw samples of a model: z from the prior, and the mean of p(x|z).

    Args:
        run: The run folder.
        n: Number of samples, at most 100,000. By default 100 images, or as many points as training data.
        drawn: Draw x from p(x|z), with the decoder's noise, instead of its mean.
        loading: How to load the run.
        options: Where to save the figure.
    """
    options.check(*figures.ENDINGS)
    if n is not None and not 1 <= n <= of_model.MOST_POINTS:
        raise BadValue(f"--n is {n}: it must lie between 1 and {of_model.MOST_POINTS:,}")
    loaded = loading.load(run)
    _, key = options.keys(loaded)
    if loaded.recipe.shape == (2,):
        dataset = loaded.dataset()
        n = min(streaming.count(dataset.train), of_model.MOST_POINTS) if n is None else n
        figure = of_model.point_samples(
            *loaded.trained, key, n, dataset, drawn=drawn, condition=_conditions(loaded, torch.arange(n)),
            name=loaded.title,
        )  # fmt: skip
    else:
        at, rows = _rows(loaded, of_results.SAMPLES if n is None else n)
        figure = of_model.image_samples(
            *loaded.trained, key, len(at), drawn=drawn, condition=_conditions(loaded, at), rows=rows,
            **loaded.image_arguments,
        )  # fmt: skip
    options.save_of(figure, loaded, "samples_drawn" if drawn else "samples")


def _rows(loaded: runs.Run, n: int) -> tuple[Tensor, list[str]]:
    """The test items whose conditions n images get, by class, and the names of their rows."""
    if loaded.model.condition is None:
        return torch.arange(n), []
    dataset = loaded.dataset()
    return of_model.rows_by_class(dataset, n, streaming.count(dataset.test))


def _conditions(loaded: runs.Run, at: Tensor) -> Data | None:
    """The conditions of the given test items, from the start again if there are fewer; None without conditions."""
    if loaded.model.condition is None:
        return None
    test = loaded.dataset().test
    x = loaded.observed(random.key(0, device=loaded.device), test, at % streaming.count(test))
    return loaded.model.condition(x)


def reconstruct(
    run: Path, /, *, n: Int | None = None, mean: Flag = False, loading: LoadOptions = LOADING,
    options: FigureOptions = FIGURE,
) -> None:  # fmt: skip
    """Draw test images and their reconstructions.

    Args:
        run: The run folder.
        n: Number of images, from the start of the test set. By default 20.
        mean: Decode the mean of q(z|x), instead of a draw.
        loading: How to load the run.
        options: Where to save the figure.
    """
    options.check(*figures.ENDINGS)
    loaded = loading.load(run)
    test = loaded.dataset().test
    most = streaming.count(test)
    n = min(of_results.PAIRS, most) if n is None else n
    if not 1 <= n <= most:
        raise BadValue(f"--n is {n}: it must lie between 1 and {most}, the number of test items")
    observe_key, key = options.keys(loaded)
    x = loaded.observed(observe_key, test, torch.arange(n))
    figure = of_model.reconstructions(*loaded.trained, x, None if mean else key, **loaded.image_arguments)
    options.save_of(figure, loaded, "reconstructions_mean" if mean else "reconstructions")


def interpolate(
    run: Path,
    first: Int | None = None,
    second: Int | None = None,
    /,
    *,
    classes: tuple[str, str] | None = None,
    steps: Int = 12,
    frames: Int = 50,
    loading: LoadOptions = LOADING,
    options: FigureOptions = FIGURE,
) -> None:
    """Decode the line between the latents of two test items: a strip, and a GIF that runs back and forth.

    Args:
        run: The run folder.
        first: Index of the first item in the test set, from 0.
        second: Index of the second item.
        classes: Two classes, by name or number, such as --classes 1 0. Takes the first test item of each.
        steps: Number of images in the strip.
        frames: Number of frames of the GIF in one direction.
        loading: How to load the run.
        options: Where to save the figure; the GIF has the same name.
    """
    options.check(*figures.ENDINGS)
    for option, value, most in (("--steps", steps, 50), ("--frames", frames, 1000)):
        if not 2 <= value <= most:
            raise BadValue(f"{option} is {value}: it must lie between 2 and {most}")
    if (second is None) if classes is None else (first is not None):
        raise BadValue("give two test items, as in `interpolate RUN 3 5`, or two classes, as in --classes 1 0")
    loaded = loading.load(run)
    dataset = loaded.dataset()
    pair = [_first_of_class(dataset, name) for name in classes or ()] or [first or 0, second or 0]
    test = dataset.test
    for index in pair:
        if not 0 <= index < streaming.count(test):
            raise BadValue(f"no test item {index}: it must lie between 0 and {streaming.count(test) - 1}")
    observe_key, _ = options.keys(loaded)
    x = loaded.observed(observe_key, test, torch.tensor(pair))
    start, end = examples.each(lambda part: part[0], x), examples.each(lambda part: part[1], x)
    names = (of_model.item_name(dataset, pair[0]), of_model.item_name(dataset, pair[1]))
    strip = of_model.interpolation(*loaded.trained, start, end, steps, names=names, **loaded.image_arguments)
    images = loaded.recipe.pixels(decoding.interpolated(*loaded.trained, start, end, frames)).cpu()
    path = options.save_of(strip, loaded, f"interpolation_{pair[0]}_{pair[1]}")
    print(figures.save_gif(images, path.with_suffix(".gif"), over=options.force))


def _first_of_class(dataset: data.Dataset, name: str) -> int:
    """The index of the first test item of a class, which is given by name or number."""
    if dataset.test_labels is None:
        raise BadValue(f"--classes is {name}: {dataset.name} has no classes; give two test items by their index")
    known = {str(label): label for label in dataset.test_labels.unique().tolist()}
    known |= {dataset.classes[label]: label for label in known.values() if dataset.classes}
    checks.known(f"class of {dataset.name}", name, known)
    return of_model.first_of_class(dataset.test_labels, known[name])


def latent(
    run: Path,
    what: Literal["scatter", "grid", "traversal"] = "scatter",
    /,
    *,
    range_: Annotated[tuple[float, float] | None, Parameter(name="range")] = None,
    n: Int | None = None,
    loading: LoadOptions = LOADING,
    options: FigureOptions = FIGURE,
) -> None:
    """Draw the latent space: a scatter of encoded test data, or decoded images on a grid or along each latent.

    Args:
        run: The run folder.
        what: A scatter by class (of the first two principal components if Z > 2), a grid (Z = 2 only), or a traversal:
            a row for each of the latents with the highest KL, which varies while the others stay at those of the
            first test item.
        range_: Least and greatest value. Grid: of z, by default a square that holds most of the encoded test data.
            Traversal: in standard deviations of the prior, by default -3 3.
        n: Number of values in that range. By default 20 in a grid, and 7 in a traversal.
        loading: How to load the run.
        options: Where to save the figure.
    """
    options.check(*figures.ENDINGS)
    if n is not None and not 2 <= n <= 50:
        raise BadValue(f"--n is {n}: it must lie between 2 and 50")
    if what == "scatter" and (n or range_):
        raise BadValue("--range and --n are for a grid or a traversal: leave them out, or draw one of these")
    if range_ and not range_[0] < range_[1]:
        raise BadValue(f"--range is {range_[0]:g} {range_[1]:g}: the first number must be below the second")
    loaded = loading.load(run)
    dataset = loaded.dataset()
    observe_key, _ = options.keys(loaded)
    first = torch.arange(min(of_results.POINTS, streaming.count(dataset.test)))
    x = loaded.observed(observe_key, dataset.test, first)
    if what == "grid":
        figure = of_model.latent_grid(*loaded.trained, x, span=range_, n=n or 20, **loaded.image_arguments)
    elif what == "traversal":
        span = range_ or (-3.0, 3.0)
        figure = of_model.latent_traversal(*loaded.trained, x, span=span, n=n or 7, **loaded.image_arguments)
    else:
        labels = None if dataset.test_labels is None else dataset.test_labels[: len(first)]
        figure = of_model.latent_scatter(*loaded.trained, x, labels, classes=dataset.classes, name=loaded.title)
    options.save_of(figure, loaded, f"latent_{what}")
