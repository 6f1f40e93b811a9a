import io
import itertools
import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from funcvae import plots
from funcvae.errors import BadValue

RNG = np.random.default_rng(0)
classes = np.repeat(np.arange(10), 50)
Z = 4 * RNG.normal(size=(10, 2))[classes] + RNG.normal(size=(500, 2))
GRID = RNG.uniform(size=(3, 4, 1, 5, 6))
MEAN, COV = np.array([1.0, -0.5]), np.array([[1.0, 0.8], [0.8, 1.5]])
SAMPLES = RNG.multivariate_normal(MEAN, COV, 5000)
STEP = np.arange(1, 1001)
BOUND = -480 - 1020 * np.exp(-STEP / 20) + 5 * RNG.normal(size=1000)
TEST_STEP, TEST_BOUND = np.arange(200, 1001, 200), np.array([-495.0, -488, -485, -484, -483])

FIGURES = {
    "scatter": lambda: plots.latent_scatter(Z, classes),
    "scatter, one colour": lambda: plots.latent_scatter(Z),
    "scatter, quantity": lambda: plots.latent_scatter(Z, Z[:, 0]),
    "scatter, one point": lambda: plots.latent_scatter([[0, 0]], ["a"]),
    "scatter, tensors": lambda: plots.latent_scatter(torch.tensor(Z), torch.tensor(classes)),
    "grid": lambda: plots.image_grid(GRID, extent=(-3, 3, -2, 2)),
    "grid, RGB tensor": lambda: plots.image_grid(torch.zeros(2, 9, 3, 4, 4)),
    "grid, tall": lambda: plots.image_grid(GRID.transpose(1, 0, 2, 3, 4)[:, :1]),
    "reconstructions": lambda: plots.reconstructions(GRID[0], GRID[1]),
    "reconstructions, blocks": lambda: plots.reconstructions(np.ones((25, 3, 4, 4)), np.zeros((25, 3, 4, 4))),
    "curves": lambda: plots.training_curves(STEP, BOUND, TEST_STEP, TEST_BOUND, grad_norm=-BOUND),
    "curves, no test": lambda: plots.training_curves(STEP, BOUND, [], []),
    "curves, one step": lambda: plots.training_curves([1], [-500], [1], [-500], grad_norm=[0]),
    "densities": lambda: plots.densities(SAMPLES, SAMPLES + 1, MEAN, COV),
    "densities, astray": lambda: plots.densities(SAMPLES, 1e4 * SAMPLES, MEAN, COV),
}


@pytest.mark.parametrize("name", FIGURES)
def test_draws_without_a_warning_and_explains_itself(name):
    before = dict(matplotlib.rcParams)
    figure = FIGURES[name]()
    assert isinstance(figure, Figure)
    figure.savefig(file := io.BytesIO())
    assert file.getvalue().startswith(b"\x89PNG")
    assert figure.get_suptitle() or figure.axes[0].get_title()
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_is_clipped(name):
    figure = FIGURES[name]()
    figure.draw_without_rendering()
    tight, inches = figure.get_tightbbox(), figure.get_size_inches()
    assert (tight.min >= -0.01).all()
    assert (tight.max <= inches + 0.01).all()


def test_arguments_survive():
    z, images = Z.copy(), 2 * GRID
    plots.latent_scatter(z, classes)
    plots.image_grid(images)
    assert np.array_equal(z, Z)
    assert np.array_equal(images, 2 * GRID)


def test_pyplot_is_not_imported():
    code = "import io, sys, funcvae.plots as p; p.latent_scatter([[0, 0]], [1]).savefig(io.BytesIO());"
    code += "assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_scatter_names_each_class_at_its_median():
    figure = plots.latent_scatter(Z, classes)
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == [str(k) for k in range(10)]
    placed = {t.get_text(): t.get_position() for t in figure.axes[0].texts}
    for k in range(10):
        assert placed[str(k)] == pytest.approx(np.median(Z[classes == k], axis=0))


def test_scatter_gives_each_point_the_colour_of_its_class():
    figure = plots.latent_scatter(Z, np.array(list("abcdefghij"))[classes])
    (points,) = figure.axes[0].collections
    colour = {tuple(z): tuple(c[:3]) for z, c in zip(points.get_offsets(), points.get_facecolors(), strict=True)}
    assert len(colour) == len(Z)
    assert all(colour[tuple(z)] == to_rgb(plots.PALETTE[k]) for z, k in zip(Z, classes, strict=True))
    legend = {t.get_text(): h.get_color() for t, h in _legend(figure.legends[0])}
    assert legend == dict(zip("abcdefghij", plots.PALETTE, strict=True))


@pytest.mark.parametrize("labels", [Z[:, 0], np.arange(500), np.where(classes > 4, 0.5, 1.0)])
def test_scatter_draws_a_quantity_with_a_colour_bar(labels):
    figure = plots.latent_scatter(Z, labels)
    assert not figure.legends
    assert [ax.get_ylabel() for ax in figure.axes] == ["z2", "label"]
    (points,) = figure.axes[0].collections
    value = {tuple(z): v for z, v in zip(points.get_offsets(), points.get_array(), strict=True)}
    assert all(value[tuple(z)] == v for z, v in zip(Z, labels, strict=True))


def test_palette_stays_apart_for_colour_blind_eyes():
    # Red- and green-blindness as in Machado, Oliveira & Fernandes (2009); distances in CIELAB, where about 2
    # is just visible.
    eyes = {
        "usual": np.eye(3),
        "red-blind": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
        "green-blind": [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9690]],
    }

    def nearest(colours, eye):
        rgb = np.array([to_rgb(c) for c in colours])
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ np.transpose(eyes[eye])
        xyz = np.clip(linear, 0, 1) @ np.array(
            [[0.4339, 0.2126, 0.0177], [0.3762, 0.7152, 0.1094], [0.1899, 0.0722, 0.8729]]
        )
        f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
        lab = np.stack([116 * f[:, 1], 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)
        return min(np.linalg.norm(a - b) for a, b in itertools.combinations(lab, 2))

    assert nearest(plots.PALETTE, "usual") > 30
    assert min(nearest(plots.PALETTE, eye) for eye in eyes) > 18
    # The check has teeth: matplotlib's own ten colours fail it.
    assert min(nearest(matplotlib.color_sequences["tab10"], eye) for eye in eyes) < 9


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_grows_to_the_right_and_upwards(channels):
    images = RNG.uniform(-0.2, 1.2, size=(3, 4, channels, 5, 6))
    (drawn,) = plots.image_grid(images, extent=(-3, 3, 10, 20)).axes[0].images
    picture = np.asarray(drawn.get_array()).reshape(15, 24, channels)
    assert drawn.get_extent() == [-3, 3, 10, 20]
    assert drawn.origin == "upper"  # so the array's last rows are the lowest
    for i, j in itertools.product(range(3), range(4)):
        cell = picture[5 * (2 - i) : 5 * (3 - i), 6 * j : 6 * (j + 1)]
        assert np.array_equal(cell, images[i, j].transpose(1, 2, 0).clip(0, 1))


def test_grid_is_drawn_where_the_array_says():
    images = np.zeros((2, 3, 1, 4, 4))
    images[0, 2] = 1  # lowest row, last column
    figure = plots.image_grid(images, extent=(0, 3, 0, 2))
    pixels = _pixels(figure)
    for i, j in itertools.product(range(2), range(3)):
        x, y = figure.axes[0].transData.transform((j + 0.5, i + 0.5)).round().astype(int)
        assert pixels[-1 - y, x, 0] == 255 * images[i, j, 0, 0, 0]


def test_grid_has_square_pixels_and_a_fixed_grey_scale():
    figure = plots.image_grid(np.full((3, 4, 1, 5, 6), 0.5), extent=(-3, 3, 0, 0.1))
    figure.draw_without_rendering()
    box = figure.axes[0].get_window_extent()
    assert box.height / box.width == pytest.approx(15 / 24)
    assert figure.axes[0].images[0].get_clim() == (0, 1)


def test_reconstructions_stand_below_their_originals():
    originals, reconstructed = RNG.uniform(size=(2, 13, 1, 4, 5))
    axes = plots.reconstructions(originals, reconstructed).axes
    assert len(axes) == 2
    for n in range(13):
        picture = np.asarray(axes[n // 10].images[0].get_array())
        assert picture.shape == (8, 50)
        column = slice(5 * (n % 10), 5 * (n % 10) + 5)
        assert np.array_equal(picture[:4, column], originals[n, 0])
        assert np.array_equal(picture[4:, column], reconstructed[n, 0])
    assert (np.asarray(axes[1].images[0].get_array())[:, 15:] == 1).all()
    for ax in axes:
        # Pixel centres are whole numbers, so the two labels belong at 1.5 and 5.5.
        assert list(ax.get_yticks()) == [1.5, 5.5]
        assert [t.get_text() for t in ax.get_yticklabels()] == ["original", "reconstruction"]


def test_curves_show_the_later_part_and_say_what_they_cut():
    ax = plots.training_curves(STEP, BOUND, TEST_STEP, TEST_BOUND).axes[0]
    low, high = ax.get_ylim()
    assert -530 < low < BOUND[250:].min()
    assert BOUND.max() < high < -440
    assert low < TEST_BOUND.min()
    cut = np.sum(np.clip(BOUND, low, high) != BOUND)
    assert cut > 0
    assert [t.get_text() for t in ax.texts] == [f"outside this axis: {cut} of 1,000 training values"]


def test_curves_that_fit_have_no_note():
    ax = plots.training_curves(STEP, np.linspace(-500, -480, 1000), TEST_STEP, TEST_BOUND).axes[0]
    assert ax.get_ylim()[0] < -500
    assert not ax.texts


def test_curves_widen_for_a_test_set_far_below():
    ax = plots.training_curves(STEP, BOUND, TEST_STEP, TEST_BOUND - 200).axes[0]
    assert ax.get_ylim()[0] < TEST_BOUND.min() - 200


def test_curves_are_the_values_and_their_mean():
    figure = plots.training_curves(STEP, BOUND, TEST_STEP, TEST_BOUND, grad_norm=STEP, name="ELBO", unit="nats")
    top, bottom = figure.axes
    values, mean, test = top.lines
    assert np.array_equal(values.get_xydata(), np.stack([STEP, BOUND], 1))
    assert np.array_equal(test.get_xydata(), np.stack([TEST_STEP, TEST_BOUND], 1))
    assert mean.get_xydata()[0] == pytest.approx([STEP[:20].mean(), BOUND[:20].mean()])
    assert mean.get_xydata()[-1] == pytest.approx([STEP[-20:].mean(), BOUND[-20:].mean()])
    assert [t.get_text() for t in top.get_legend().get_texts()] == [
        "training batch",
        "mean of 20 batches",
        "test set",
    ]
    # Steps and values share their windows, so the mean of a straight line lies on it.
    assert np.array_equal(*bottom.lines[1].get_data())
    assert (top.get_ylabel(), bottom.get_ylabel()) == ("ELBO [nats]", "norm of the\nwhole gradient")
    assert bottom.get_yscale() == "log"
    assert bottom.get_xlabel() == "training step"


def test_curves_leave_gaps_where_training_diverged():
    bound = np.where(STEP % 100 == 0, np.nan, BOUND)
    bound[500:502] = np.inf, -np.inf
    figure = plots.training_curves(STEP, bound, TEST_STEP, [np.nan, -490, -485, -484, -np.inf], grad_norm=bound)
    figure.savefig(io.BytesIO())
    assert np.isnan(figure.axes[0].lines[0].get_ydata()).sum() == 12


def test_density_contours_are_the_gaussians():
    figure = plots.densities(SAMPLES, SAMPLES, MEAN, COV)
    gaussian = torch.distributions.MultivariateNormal(torch.tensor(MEAN), torch.tensor(COV))
    peak = gaussian.log_prob(torch.tensor(MEAN))
    for ax in figure.axes[:2]:
        for radius, line in zip((1, 2, 3), ax.lines, strict=True):
            points = torch.tensor(line.get_xydata())
            assert torch.allclose(gaussian.log_prob(points), peak - radius**2 / 2)
            assert points[:-1].mean(0).numpy() == pytest.approx(MEAN)
            assert torch.equal(points[0].round(decimals=9), points[-1].round(decimals=9))


def test_density_panels_share_limits_and_hold_the_samples():
    shift = np.array([2, 0])
    figure = plots.densities(SAMPLES, SAMPLES[:4000] + shift, MEAN, COV)
    data, model = figure.axes[:2]
    assert (data.get_title(), model.get_title()) == ("data", "model")
    assert (data.get_xlim(), data.get_ylim()) == (model.get_xlim(), model.get_ylim())
    assert data.get_aspect() == 1
    for ax, mean in (data, MEAN), (model, MEAN + shift):
        (cells,) = ax.collections
        edges = cells.get_coordinates()
        density, area = np.asarray(cells.get_array()), np.prod(edges[1, 1] - edges[0, 0])
        assert density.sum() * area == pytest.approx(1)
        centres = (edges[1:, 1:] + edges[:-1, :-1]) / 2
        found = (density[..., None] * centres).sum((0, 1)) * area
        assert np.abs(found - mean).max() < 5 * np.sqrt(COV.max() / 4000)  # five standard errors


@pytest.mark.parametrize(
    "call",
    [
        lambda: plots.latent_scatter(np.zeros((5, 3))),
        lambda: plots.latent_scatter(np.zeros((0, 2))),
        lambda: plots.latent_scatter(np.zeros(5)),
        lambda: plots.latent_scatter(np.full((5, 2), np.nan)),
        lambda: plots.latent_scatter(np.zeros((5, 2)), np.zeros(4)),
        lambda: plots.latent_scatter(np.zeros((11, 2)), list("abcdefghijk")),
        lambda: plots.image_grid(GRID[0]),
        lambda: plots.image_grid(np.zeros((2, 2, 2, 5, 5))),
        lambda: plots.image_grid(GRID, extent=(3, -3, 0, 1)),
        lambda: plots.reconstructions(GRID, GRID),
        lambda: plots.reconstructions(GRID[0], GRID[0, :2]),
        lambda: plots.training_curves([1, 2], [1, 2, 3], [], []),
        lambda: plots.training_curves([1, 2], [1, 2], [1], []),
        lambda: plots.training_curves([1, 2], [1, 2], [[1]], [[1]]),
        lambda: plots.training_curves([1, 2], [1, 2], [], [], grad_norm=[1]),
        lambda: plots.training_curves([1, 2], [np.nan, np.nan], [], []),
        lambda: plots.training_curves([], [], [], []),
        lambda: plots.densities(SAMPLES[:, :1], SAMPLES, MEAN, COV),
        lambda: plots.densities(SAMPLES, SAMPLES, MEAN[:1], COV),
        lambda: plots.densities(SAMPLES, SAMPLES, MEAN, COV[0]),
        lambda: plots.densities(SAMPLES, SAMPLES, MEAN, [[1, 2], [2, 1]]),
        lambda: plots.densities(SAMPLES, SAMPLES, MEAN, [[1, 0.5], [0, 1]]),
        lambda: plots.save(Figure(), "figure.pdf"),
    ],
)
def test_wrong_arguments_raise_one_line(call):
    with pytest.raises(BadValue) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["scatter", "grid", "reconstructions", "curves", "densities"])
def test_saving_twice_gives_equal_bytes(tmp_path, name):
    figure = FIGURES[name]()
    paths = [plots.save(f, tmp_path / "new" / f"{k}.png") for k, f in enumerate((figure, figure, FIGURES[name]()))]
    first, *others = (path.read_bytes() for path in paths)
    assert others == [first, first]
    assert b"Software" not in first
    assert sorted(os.listdir(tmp_path / "new")) == ["0.png", "1.png", "2.png"]


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    figure = plots.latent_scatter(Z)
    path = plots.save(figure, tmp_path / "z.png")
    old = path.read_bytes()

    def fail(file, content):
        with file.open("wb") as half:
            half.write(content[:100])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="disk full"):
        plots.save(figure, path)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["z.png"]


def _legend(legend):
    return zip(legend.get_texts(), legend.legend_handles, strict=True)


def _pixels(figure):
    # Agg, to read back what is drawn; rows from the top.
    figure.savefig(file := io.BytesIO(), format="rgba", dpi=figure.dpi)
    width, height = (figure.get_size_inches() * figure.dpi).astype(int)
    return np.frombuffer(file.getvalue(), np.uint8).reshape(height, width, 4)


def test_names_of_classes_with_one_median_are_pushed_apart():
    z = np.tile([[0.0, 0.0], [1e-6, 0.0], [10.0, 10.0]], (5, 1))
    figure = plots.latent_scatter(z, np.tile([0, 1, 2], 5))
    placed = {t.get_text(): np.array(t.get_position()) for t in figure.axes[0].texts}
    assert np.linalg.norm(placed["0"] - placed["1"]) > 0.4
    assert placed["2"] == pytest.approx([10, 10])
