"""Figures, each a function from arrays to a `matplotlib.figure.Figure`.

Arrays are numpy arrays or CPU tensors. Nothing here touches pyplot, so no figure is registered anywhere, no
setting changes and no display is needed: show a figure in a notebook, or write it with `save`.
"""

import os
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from numpy.typing import ArrayLike, NDArray

from funcvae import files
from funcvae.errors import BadValue

# Ten of Paul Tol's colours, chosen so that every two of them stay apart with red- and green-blindness too.
PALETTE = (
    "#0077BB", "#EE8866", "#228833", "#EE3377", "#66CCEE",
    "#332288", "#CCBB44", "#882255", "#009988", "#222222",
)  # fmt: skip
DARK, LIGHT, ACCENT = "#004488", "#A6CBE6", "#CC3311"

Floats = NDArray[np.float64]


def latent_scatter(
    z: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    axes: tuple[str, str] = ("z1", "z2"),
    title: str = "Latent means of the data",
) -> Figure:
    """Where the encoder puts each datum in a two-dimensional latent space.

    Up to ten classes are coloured, and each is named at its median, so that colour is never the only cue.
    More classes than that, and labels that are not whole numbers, are a quantity and get a colour bar.

    Args:
        z: latent means [n, 2], in units of the prior's standard deviation.
        labels: a class or a quantity for each datum [n].
        axes: names of the two latent dimensions.
        title: what the figure shows.

    Raises:
        BadValue: z is not [n, 2], labels are not [n], or they are more than ten different words.
    """
    z = _array("z", z, "n 2")
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    ax = figure.add_subplot()
    # The order is mixed, always in the same way: in sorted data the last class would hide the others.
    order = np.argsort(np.arange(len(z)) * 0.6180339887498949 % 1)
    x, y = z[order].T
    dots: Any = {"s": np.clip(3e4 / len(z), 4, 25), "alpha": 0.6, "linewidths": 0, "rasterized": True}
    if labels is None:
        ax.scatter(x, y, c=DARK, **dots)
    else:
        labels = np.asarray(labels)
        if labels.shape != (len(z),):
            raise BadValue(f"labels must be [{len(z)}], one for each row of z, got {list(labels.shape)}")
        classes, index = np.unique(labels, return_inverse=True)
        numeric = np.issubdtype(labels.dtype, np.number)
        if len(classes) <= len(PALETTE) and (not numeric or np.all(labels == np.round(labels))):
            ax.scatter(x, y, c=np.array(PALETTE)[index[order]], **dots)
            _name_classes(figure, ax, z, index, [f"{c:.0f}" if numeric else str(c) for c in classes])
        elif numeric:
            points = ax.scatter(x, y, c=labels[order], cmap="viridis", **dots)
            bar = figure.colorbar(points, label="label", shrink=0.8)
            if bar.solids is not None:
                # Else it takes on the points' transparency, and is paler than where they overlap.
                bar.solids.set_alpha(1)
        else:
            raise BadValue(f"labels must be numbers or at most {len(PALETTE)} words, got {len(classes)}")
    ax.set(xlabel=axes[0], ylabel=axes[1], title=title)
    ax.set_aspect("equal", adjustable="datalim")
    return figure


def image_grid(
    images: ArrayLike,
    *,
    extent: tuple[float, float, float, float] | None = None,
    axes: tuple[str, str] = ("z1", "z2"),
    title: str = "Images decoded from a grid of latent values",
) -> Figure:
    """One gap-free mosaic of images, laid out as a graph is: values grow to the right and upwards.

    `images[i, j]` belongs to the i-th value, ascending, of the vertical axis and the j-th of the horizontal
    one. So `images[0, 0]` is drawn at the bottom left, and `images[-1, 0]` at the top left.

    Args:
        images: [rows, cols, C, H, W] in [0, 1], with C = 1 (grey) or 3 (RGB); values outside are clipped.
        extent: latent values (left, right, bottom, top) at the mosaic's outer edges, so that column j is
            centred on `left + (j + 1/2) (right - left) / cols`. Without it the axes carry no numbers.
        axes: names of the horizontal and the vertical latent dimension.
        title: what the figure shows.

    Raises:
        BadValue: images have another shape, or an edge of the extent is not below its opposite.
    """
    images = _images("images", images, "rows cols C H W")
    rows, cols, _, height, width = images.shape
    left, right, bottom, top = extent or (0, cols, 0, rows)
    if not (left < right and bottom < top):
        raise BadValue(f"extent must be (left < right, bottom < top), got {extent}")
    shape = rows * height / (cols * width)
    # At most 6.4 inches either way, and room for the labels.
    wide, tall = 6.4 * min(1, 1 / shape), 6.4 * min(1, shape)
    figure = Figure(figsize=(max(wide, 3.8) + 0.6, tall + 0.8), layout="constrained")
    ax = figure.add_subplot()
    # The aspect undoes the extent's own proportions, so that pixels stay square.
    aspect = shape * (right - left) / (top - bottom)
    _show(ax, _mosaic(images[::-1]), extent=(left, right, bottom, top), aspect=aspect)
    ax.set(xlabel=axes[0], ylabel=axes[1], title=title)
    if extent is None:
        ax.set(xticks=[], yticks=[])
    return figure


def reconstructions(
    originals: ArrayLike,
    reconstructed: ArrayLike,
    *,
    title: str = "Originals and their reconstructions",
) -> Figure:
    """Images above what the model makes of them, ten to a row.

    Args:
        originals: [n, C, H, W] in [0, 1], with C = 1 (grey) or 3 (RGB); values outside are clipped.
        reconstructed: the decoder's means for the same images, of the same shape.
        title: what the figure shows.

    Raises:
        BadValue: either has another shape, or the two shapes differ.
    """
    originals = _images("originals", originals, "n C H W")
    reconstructed = _images("reconstructed", reconstructed, "n C H W")
    if originals.shape != reconstructed.shape:
        shapes = f"{list(originals.shape)}, got {list(reconstructed.shape)}"
        raise BadValue(f"reconstructed must have the shape of originals, {shapes}")
    n, channels, height, width = originals.shape
    cols = min(n, 10)
    blocks = -(-n // cols)
    # Blank cells fill the last block, so that images in it are as large as in the others.
    pairs = np.ones((2, blocks * cols, channels, height, width))
    pairs[:, :n] = originals, reconstructed

    cell = 0.72  # inches
    tall = blocks * (2 * cell * height / width + 0.2) + 0.5
    figure = Figure(figsize=(max(cell * cols + 1.2, 4.0), tall), layout="constrained")
    figure.suptitle(title)
    for b, ax in enumerate(figure.subplots(blocks, squeeze=False)[:, 0]):
        _show(ax, _mosaic(pairs[:, b * cols : (b + 1) * cols]))
        ax.vlines(np.arange(1, cols) * width - 0.5, -0.5, 2 * height - 0.5, color="white", linewidth=1)
        ax.hlines(height - 0.5, -0.5, cols * width - 0.5, color="white", linewidth=1)
        ax.set(xticks=[], yticks=[height / 2 - 0.5, height * 1.5 - 0.5])
        ax.set_yticklabels(["original", "reconstruction"])
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    return figure


def training_curves(
    step: ArrayLike,
    bound: ArrayLike,
    test_step: ArrayLike,
    test_bound: ArrayLike,
    *,
    grad_norm: ArrayLike | None = None,
    unit: str = "nats per example",
    name: str = "bound",
    title: str = "Training",
) -> Figure:
    """The bound against the training step, for the training batches and for the test set.

    The first steps are often so bad that they would flatten all that follows. So the vertical axis spans the
    values within three interquartile ranges of the quartiles of the last three quarters of training, and
    likewise those of the test set; a note counts what is left out. Values that are not finite leave gaps.

    Args:
        step: numbers of the training steps [n], ascending.
        bound: the bound of each step's batch [n], in `unit`.
        test_step: steps after which the test set was evaluated [m]; m may be 0.
        test_bound: the bound on the test set [m], in `unit`.
        grad_norm: Euclidean norm of each step's gradient [n], in `unit`: a second panel with a log axis.
        unit: the unit of the bound.
        name: what the bound is called.
        title: what the figure shows.

    Raises:
        BadValue: the arrays are not [n], [n], [m] and [m], or no training bound is finite.
    """
    step, bound = _array("step", step, "n"), _array("bound", bound, "n", finite=False)
    norms = [] if grad_norm is None else [_array("grad_norm", grad_norm, "n", finite=False)]
    if any(value.shape != step.shape for value in (bound, *norms)):
        raise BadValue(f"bound and grad_norm must have one value for each of the {len(step)} steps")
    test_step, test_bound = (np.asarray(a, dtype=float) for a in (test_step, test_bound))
    if test_step.ndim != 1 or test_bound.shape != test_step.shape:
        shapes = f"{list(test_step.shape)} and {list(test_bound.shape)}"
        raise BadValue(f"test_step and test_bound must both be [m], got {shapes}")

    panels = 1 + len(norms)
    figure = Figure(figsize=(7.2, 2.2 + 1.9 * panels), layout="constrained")
    ratios = {"height_ratios": [2, 1][:panels]}
    ax, *rest = figure.subplots(panels, sharex=True, squeeze=False, gridspec_kw=ratios)[:, 0]
    _noisy(ax, step, bound)
    if test_step.size:
        ax.plot(test_step, test_bound, "o", color=ACCENT, mec="white", markersize=8, label="test set")
    # Above the axes, where it hides no curve.
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False)
    ax.set_title(title, pad=28)
    ax.set_ylabel(f"{name} [{unit}]")

    finite = bound[np.isfinite(bound)]
    if not finite.size:
        raise BadValue(f"bound must have finite values, got none among {len(bound)}")
    shown = np.concatenate([_typical(bound, finite[len(finite) // 4 :]), _typical(test_bound, test_bound)])
    margin = 0.06 * np.ptp(shown) or 1.0
    low, high = shown.min() - margin, shown.max() + margin
    ax.set_ylim(low, high)
    curves = {"training": bound, "test": test_bound}
    cut = {k: int(np.sum((v < low) | (v > high))) for k, v in curves.items()}
    if any(cut.values()):
        parts = [f"{cut[k]:,} of {v.size:,} {k} values" for k, v in curves.items() if cut[k]]
        note = "outside this axis: " + " and ".join(parts)
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 2}
        ax.text(0.01, 0.98, note, va="top", size="small", style="italic", bbox=box, transform=ax.transAxes)
    for panel, norm in zip(rest, norms, strict=True):
        _noisy(panel, step, np.where(norm > 0, norm, np.nan))
        panel.set(yscale="log", ylabel="norm of the\nwhole gradient")
    (rest or [ax])[-1].set_xlabel("training step")
    for panel in (ax, *rest):
        panel.margins(x=0.02)
        panel.grid(color="0.92")
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    return figure


def densities(
    true: ArrayLike,
    learned: ArrayLike,
    mean: ArrayLike,
    cov: ArrayLike,
    *,
    title: str = "Samples of the data and of the model",
) -> Figure:
    """Two-dimensional histograms of the data and of a model's samples, under the true Gaussian's contours.

    The contours of its density lie where `(x - mean)' cov^-1 (x - mean) = r^2` for r = 1, 2 and 3 standard
    deviations, and hold `1 - exp(-r^2 / 2)` of it: 39 %, 86 % and 99 %. Both panels share limits, bins and
    colours; a few of the farthest samples may lie outside.

    Args:
        true: samples of the data [n, 2].
        learned: samples of the model [m, 2], in the data's units.
        mean: the Gaussian's mean [2].
        cov: its covariance [2, 2], symmetric and positive definite.
        title: what the figure shows.

    Raises:
        BadValue: an array has another shape, or cov is not symmetric and positive definite.
    """
    samples = {"data": _array("true", true, "n 2"), "model": _array("learned", learned, "m 2")}
    mean, cov = _array("mean", mean, "2"), _array("cov", cov, "2 2")
    if not (np.allclose(cov, cov.T) and np.linalg.eigvalsh(cov)[0] > 0):
        raise BadValue(f"cov must be symmetric and positive definite, got {cov.tolist()}")

    # A square wide enough for the Gaussian, and for nearly all samples should the model have gone elsewhere.
    reach = 3.5 * np.sqrt(np.diag(cov))
    tails = [np.percentile(s, q, axis=0) for s in samples.values() for q in (0.1, 99.9)]
    low, high = np.min([mean - reach, *tails], axis=0), np.max([mean + reach, *tails], axis=0)
    half = np.max(high - low) / 2
    x, y = np.linspace((low + high) / 2 - half, (low + high) / 2 + half, 61).T
    counts = {k: np.histogram2d(s[:, 0], s[:, 1], bins=(x, y), density=True)[0] for k, s in samples.items()}
    # The square root, so that the tails are visible.
    norm = PowerNorm(0.5, vmin=0, vmax=max(c.max() for c in counts.values()))
    # A circle of radius r under the Cholesky factor is the contour at r standard deviations.
    angle = np.linspace(0, 2 * np.pi, 201)
    ellipse = np.linalg.cholesky(cov) @ [np.cos(angle), np.sin(angle)]

    figure = Figure(figsize=(8.0, 4.4), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for ax, (name, count) in zip(panels, counts.items(), strict=True):
        cells = ax.pcolormesh(x, y, count.T, cmap="Blues", norm=norm, rasterized=True)
        for r in (1, 2, 3):
            (line,) = ax.plot(*(mean[:, None] + r * ellipse), color="black", linewidth=1)
        ax.set(title=name, xlabel="x1", aspect="equal")
    panels[0].set_ylabel("x2")
    line.set_label("contours of the true Gaussian at 1, 2 and 3 standard deviations")
    figure.legend(handles=[line], loc="outside lower center", frameon=False)
    figure.colorbar(cells, ax=panels, label="density of the samples\n[per unit area]")
    return figure


def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a figure as a PNG file with 150 dots per inch, and return its path.

    The file appears whole or not at all, in a folder that is made if need be, and holds no date or version.
    From then on the figure keeps its layout, so that the same figure gives the same bytes.

    Raises:
        BadValue: the path does not end in .png.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise BadValue(f"path must end in .png, got {str(path)!r}")
    # An automatic layout starts from the one before, and so moves a little with every drawing: run it once.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    png = BytesIO()
    figure.savefig(png, format="png", dpi=150, metadata={"Software": None})
    return files.write(path, png.getvalue())


def _array(name: str, value: ArrayLike, axes: str, finite: bool = True) -> Floats:
    """The value as floats, with one axis for each word of `axes`; a number in it fixes that axis's size."""
    array, sizes = np.asarray(value, dtype=float), axes.split()
    fixed = [n if size.isdigit() else size for n, size in zip(array.shape, sizes, strict=False)]
    if array.ndim != len(sizes) or list(map(str, fixed)) != sizes or not array.size:
        raise BadValue(f"{name} must be [{', '.join(sizes)}], got {list(array.shape)}")
    if finite and not np.isfinite(array).all():
        raise BadValue(f"{name} must be finite, got {np.sum(~np.isfinite(array))} values that are not")
    return array


def _images(name: str, value: ArrayLike, axes: str) -> Floats:
    """Images [..., C, H, W] clipped to [0, 1]."""
    images = _array(name, value, axes)
    if images.shape[-3] not in (1, 3):
        raise BadValue(f"{name} must have C = 1 or 3 channels, third from last, got {list(images.shape)}")
    return images.clip(0, 1)


def _mosaic(images: Floats) -> Floats:
    """[rows, cols, C, H, W] as one picture [rows H, cols W, C], first row on top."""
    return rearrange(images, "rows cols c h w -> (rows h) (cols w) c")


def _show(ax: Axes, picture: Floats, **options: Any) -> None:
    """Draw a picture [H, W, C], with black at 0 and white at 1 for grey ones as well."""
    grey = picture.shape[-1] == 1
    ax.imshow(picture[..., 0] if grey else picture, cmap="gray", vmin=0, vmax=1, **options)


def _name_classes(figure: Figure, ax: Axes, z: Floats, index: NDArray[np.intp], names: list[str]) -> None:
    """Write each class at its median, or beside it where another's name stands, and the legend beside the axes."""
    medians = np.array([np.median(z[index == k], axis=0) for k in range(len(names))])
    for (x, y), name in zip(_apart(medians, 0.045 * np.ptp(z, axis=0).max()), names, strict=True):
        outline = [withStroke(linewidth=3, foreground="white")]
        ax.text(x, y, name, size="large", weight="bold", ha="center", va="center", path_effects=outline)
    dots = [Line2D([], [], marker="o", ls="", color=c, label=n) for c, n in zip(PALETTE, names, strict=False)]
    figure.legend(handles=dots, title="class", loc="outside right center", frameon=False)


def _apart(points: Floats, distance: float) -> Floats:
    """The points [n, 2], with those nearer than `distance` pushed apart until they are not."""
    points = points.copy()
    for _ in range(100):
        gap = points[:, None] - points
        near = np.hypot(*gap.transpose(2, 0, 1))
        push = np.clip(distance - near, 0, None) / np.maximum(near, 1e-9)
        np.fill_diagonal(push, 0)
        points += 0.5 * (push[..., None] * gap).sum(1)
    return points


def _noisy(ax: Axes, step: Floats, value: Floats) -> None:
    """A faint line through all values, and a dark one through their mean over a fiftieth of the steps.

    Under 100 steps there is nothing to average, and the line itself is dark.
    """
    width = max(1, len(step) // 50)
    value = np.where(np.isfinite(value), value, np.nan)
    faint = width > 1
    ax.plot(
        step,
        value,
        color=LIGHT if faint else DARK,
        linewidth=0.7 if faint else 1.2,
        marker="" if faint else ".",
        label="training batch",
    )
    if faint:
        # Steps and values are averaged over the same windows, so that the mean does not lag behind.
        windows = np.lib.stride_tricks.sliding_window_view(np.stack([step, value]), width, axis=1)
        ax.plot(*windows.mean(-1), color=DARK, linewidth=1.6, label=f"mean of {width:,} batches")


def _typical(values: Floats, reference: Floats) -> Floats:
    """The values within three interquartile ranges of the quartiles of the reference's finite ones."""
    reference = reference[np.isfinite(reference)]
    q1, q3 = np.percentile(reference, [25, 75]) if reference.size else (np.nan, np.nan)
    return values[np.abs(values - (q1 + q3) / 2) <= 3.5 * (q3 - q1)]
