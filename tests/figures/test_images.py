import io
import itertools

import numpy as np
import pytest

from funcvae import figures

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_ascends_to_the_right_and_upwards(channels):
    images = RNG.uniform(-0.2, 1.2, size=(3, 4, channels, 5, 6))
    (drawn,) = figures.image_grid(images, extent=(-3, 3, 10, 20)).axes[0].images
    picture = np.asarray(drawn.get_array()).reshape(15, 24, channels)
    assert drawn.get_extent() == [-3, 3, 10, 20]
    assert drawn.origin == "upper"  # so the array's last rows are the lowest
    for i, j in itertools.product(range(3), range(4)):
        cell = picture[5 * (2 - i) : 5 * (3 - i), 6 * j : 6 * (j + 1)]
        assert np.array_equal(cell, images[i, j].transpose(1, 2, 0).clip(0, 1))


def test_grid_draws_each_image_at_its_coordinates():
    images = np.zeros((2, 3, 1, 4, 4))
    images[0, 2] = 1  # lowest row, last column
    figure = figures.image_grid(images, extent=(0, 3, 0, 2))
    pixels = _pixels(figure)
    for i, j in itertools.product(range(2), range(3)):
        x, y = figure.axes[0].transData.transform((j + 0.5, i + 0.5)).round().astype(int)
        assert pixels[-1 - y, x, 0] == 255 * images[i, j, 0, 0, 0]


def test_grid_has_square_pixels_and_a_fixed_grey_scale():
    figure = figures.image_grid(np.full((3, 4, 1, 5, 6), 0.5), extent=(-3, 3, 0, 0.1))
    figure.draw_without_rendering()
    box = figure.axes[0].get_window_extent()
    assert box.height / box.width == pytest.approx(15 / 24)
    assert figure.axes[0].images[0].get_clim() == (0, 1)


def test_reconstructions_are_below_their_originals():
    originals, reconstructed = RNG.uniform(size=(2, 13, 1, 4, 5))
    axes = figures.reconstructions(originals, reconstructed).axes
    assert len(axes) == 2
    for n in range(13):
        picture = np.asarray(axes[n // 10].images[0].get_array())
        assert picture.shape == (8, 50)
        column = slice(5 * (n % 10), 5 * (n % 10) + 5)
        assert np.array_equal(picture[:4, column], originals[n, 0])
        assert np.array_equal(picture[4:, column], reconstructed[n, 0])
    assert (np.asarray(axes[1].images[0].get_array())[:, 15:] == 1).all()
    errors = [f"{error:#.3g}".rstrip(".") for error in ((originals - reconstructed) ** 2).sum((1, 2, 3))]
    assert [t.get_text() for ax in axes for t in ax.get_xticklabels()] == errors
    for ax in axes:
        # Pixel centres are whole numbers, so the two labels belong at 1.5 and 5.5.
        assert list(ax.get_yticks()) == [1.5, 5.5]
        assert [t.get_text() for t in ax.get_yticklabels()] == ["original", "reconstruction"]


@pytest.mark.parametrize(
    ("n", "rows", "cols"), [(1, 1, 1), (2, 1, 2), (3, 2, 2), (5, 2, 3), (12, 3, 4), (13, 4, 4), (100, 10, 10)]
)
def test_samples_are_drawn_row_by_row(n, rows, cols):
    images = RNG.uniform(-0.2, 1.2, size=(n, 1, 4, 5))
    (drawn,) = figures.sample_grid(images).axes[0].images
    picture = np.asarray(drawn.get_array())
    assert picture.shape == (rows * 4, cols * 5)
    assert drawn.origin == "upper"
    cells = [picture[4 * i : 4 * i + 4, 5 * j : 5 * j + 5] for i in range(rows) for j in range(cols)]
    assert np.array_equal(cells[:n], images[:, 0].clip(0, 1))
    assert all((cell == 1).all() for cell in cells[n:])


@pytest.mark.parametrize("channels", [1, 3])
def test_interpolation_runs_from_left_to_right_between_its_ends(channels):
    images, ends = RNG.uniform(size=(5, channels, 4, 6)), RNG.uniform(size=(2, channels, 4, 6))
    figure = figures.interpolation(images, ends=ends)
    pictures = [np.asarray(ax.images[0].get_array()).reshape(4, -1, channels) for ax in figure.axes]
    for picture, items in zip(pictures, (ends[:1], images, ends[1:]), strict=True):
        assert np.array_equal(picture, np.concatenate(items.transpose(0, 2, 3, 1), axis=1))
    # The three parts do not overlap, and their images have the same size.
    figure.draw_without_rendering()
    boxes = [ax.get_window_extent() for ax in figure.axes]
    assert boxes[0].x1 < boxes[1].x0 < boxes[1].x1 < boxes[2].x0
    assert [box.height for box in boxes] == pytest.approx([boxes[0].height] * 3)
    assert boxes[1].width == pytest.approx(5 * boxes[0].width)
    assert [ax.get_xlabel().split()[0] for ax in figure.axes] == ["first", "t:", "second"]


@pytest.mark.parametrize("n", [2, 3, 4, 5, 20])
def test_interpolation_puts_each_t_under_its_image(n):
    (ax,) = figures.interpolation(np.zeros((n, 1, 4, 6))).axes
    t = [float(label.get_text()) for label in ax.get_xticklabels()]
    assert t[0] == 0
    assert t[-1] == 1
    # The i-th image covers columns 6 i to 6 i + 5, so i / (n - 1) belongs at their centre, 6 i + 2.5.
    middles = 6 * np.arange(n) + 2.5
    assert ax.get_xticks() == pytest.approx(np.interp(t, np.linspace(0, 1, n), middles))
    # An axis from edge to edge would be wrong by half an image.
    assert ax.get_xticks()[0] != pytest.approx(-0.5)


def test_a_traversal_has_a_row_for_each_latent_and_a_column_for_each_value():
    images = RNG.uniform(size=(2, 3, 1, 4, 6))
    (ax,) = figures.traversal(images, ["z4", "z1"], [-3, 0, 3]).axes
    picture = np.asarray(ax.images[0].get_array())
    for i, j in itertools.product(range(2), range(3)):
        assert np.array_equal(picture[4 * i : 4 * i + 4, 6 * j : 6 * j + 6], images[i, j, 0])
    assert (list(ax.get_yticks()), list(ax.get_xticks())) == ([1.5, 5.5], [2.5, 8.5, 14.5])
    assert [t.get_text() for t in ax.get_yticklabels()] == ["z4", "z1"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["−3", "0", "3"]


def _pixels(figure):
    # Reads the pixels that Agg draws, rows from the top.
    figure.savefig(file := io.BytesIO(), format="rgba", dpi=figure.dpi)
    width, height = (figure.get_size_inches() * figure.dpi).astype(int)
    return np.frombuffer(file.getvalue(), np.uint8).reshape(height, width, 4)
