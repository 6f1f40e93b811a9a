import numpy as np
import pytest
from matplotlib.colors import to_rgb

from funcvae import figures
from funcvae.errors import BadValue

RNG = np.random.default_rng(0)
classes = np.repeat(np.arange(10), 50)
Z = 4 * RNG.normal(size=(10, 2))[classes] + RNG.normal(size=(500, 2))


def test_scatter_names_each_class_at_its_median():
    figure = figures.latent_scatter(Z, classes)
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == [str(k) for k in range(10)]
    placed = {t.get_text(): t.get_position() for t in figure.axes[0].texts}
    for k in range(10):
        assert placed[str(k)] == pytest.approx(np.median(Z[classes == k], axis=0))


def test_scatter_gives_each_point_the_colour_of_its_class():
    figure = figures.latent_scatter(Z, np.array(list("abcdefghij"))[classes])
    (points,) = figure.axes[0].collections
    colour = {tuple(z): tuple(c[:3]) for z, c in zip(points.get_offsets(), points.get_facecolors(), strict=True)}
    assert len(colour) == len(Z)
    assert all(colour[tuple(z)] == to_rgb(figures.PALETTE[k]) for z, k in zip(Z, classes, strict=True))
    legend = {t.get_text(): h.get_color() for t, h in _legend(figure.legends[0])}
    assert legend == dict(zip("abcdefghij", figures.PALETTE, strict=True))


@pytest.mark.parametrize("labels", [Z[:, 0], np.arange(500), np.where(classes > 4, 0.5, 1.0)])
def test_scatter_draws_a_quantity_with_a_colour_bar(labels):
    figure = figures.latent_scatter(Z, labels)
    assert not figure.legends
    assert [ax.get_ylabel() for ax in figure.axes] == ["z2", "label"]
    (points,) = figure.axes[0].collections
    value = {tuple(z): v for z, v in zip(points.get_offsets(), points.get_array(), strict=True)}
    assert all(value[tuple(z)] == v for z, v in zip(Z, labels, strict=True))


NAMES = [f"kind {k}" for k in range(10)]


def test_scatter_shows_the_names_of_classes():
    figure = figures.latent_scatter(Z[classes > 2], classes[classes > 2], classes=NAMES)
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == NAMES[3:]
    placed = {t.get_text(): t.get_position() for t in figure.axes[0].texts}
    assert placed["kind 4"] == pytest.approx(np.median(Z[classes == 4], axis=0))


def test_the_colour_bar_shows_names_of_many_classes():
    labels = np.arange(500) % 40
    figure = figures.latent_scatter(Z, labels, classes=[f"kind {k}" for k in range(40)])
    (bar,) = [ax for ax in figure.axes if ax.get_ylabel() == "class"]
    assert [t.get_text() for t in bar.get_yticklabels()] == [f"kind {k}" for k in range(0, 40, 2)]
    assert bar.get_yticks().tolist() == list(range(0, 40, 2))


@pytest.mark.parametrize("labels", [classes + 1, classes + 0.5, np.array(list("abcdefghij"))[classes], -classes])
def test_classes_that_do_not_name_the_labels_are_an_error(labels):
    with pytest.raises(BadValue, match="classes has 10 names: labels must be numbers from 0 to 9"):
        figures.latent_scatter(Z, labels, classes=NAMES)


def test_names_of_classes_with_one_median_are_pushed_apart():
    z = np.tile([[0.0, 0.0], [1e-6, 0.0], [10.0, 10.0]], (5, 1))
    figure = figures.latent_scatter(z, np.tile([0, 1, 2], 5))
    placed = {t.get_text(): np.array(t.get_position()) for t in figure.axes[0].texts}
    assert np.linalg.norm(placed["0"] - placed["1"]) > 0.4
    assert placed["2"] == pytest.approx([10, 10])


def test_scatter_has_one_scale_unless_an_axis_has_collapsed():
    usual, collapsed = (figures.latent_scatter(Z * [1, scale]).axes[0] for scale in (0.1, 0.01))
    assert usual.get_aspect() == 1
    assert not usual.texts
    assert collapsed.get_aspect() == "auto"
    assert [t.get_text() for t in collapsed.texts] == ["the axes have different scales"]
    # The collapsed dimension fills its axis too.
    assert np.ptp(collapsed.get_ylim()) < 1.2 * np.ptp(0.01 * Z[:, 1])


def test_scatter_notes_that_all_points_coincide():
    (text,) = figures.latent_scatter(np.ones((1234, 2))).axes[0].texts
    assert text.get_text() == "all 1,234 points coincide"
    assert not figures.latent_scatter(np.ones((1, 2))).axes[0].texts


@pytest.mark.parametrize("scale", [[1, 0.001], [1, 0], [0, 0], [1e-9, 1e-9]])
def test_names_of_classes_do_not_overlap_if_the_latent_space_collapses(scale):
    # Every class has the same median, so all names would overlap.
    z = np.tile(Z[:50], (10, 1)) * scale
    figure = figures.latent_scatter(z, classes)
    figure.draw_without_rendering()
    ax = figure.axes[0]
    placed = np.array([t.get_position() for t in ax.texts if t.get_text().isdigit()])
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    within = (placed - [left, bottom]) / [right - left, top - bottom]
    assert len(placed) == 10
    assert (within > 0).all()
    assert (within < 1).all()
    gaps = np.linalg.norm(within[:, None] - within, axis=-1)[~np.eye(10, dtype=bool)]
    assert gaps.min() > 0.03


def _legend(legend):
    return zip(legend.get_texts(), legend.legend_handles, strict=True)


def test_circles_of_the_prior_have_one_and_two_deviations():
    figure = figures.latent_scatter(Z, prior=[1, -2])
    for radius, line in zip((1, 2), figure.axes[0].lines, strict=True):
        assert np.hypot(*(line.get_xydata() - [1, -2]).T) == pytest.approx(radius)
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == ["standard normal prior at 1 and 2 standard deviations"]
    assert not figures.latent_scatter(Z).axes[0].lines


def test_a_collapsed_scatter_keeps_the_circles_round_and_names_no_class():
    (ax,) = figures.latent_scatter(Z * 1e-3, classes, prior=[0, 0]).axes
    assert ax.get_aspect() == 1
    assert [t.get_text() for t in ax.texts] == ["all points are close together"]


def test_each_class_has_a_shape():
    (points,) = figures.latent_scatter(Z, classes).axes[0].collections
    drawn = {
        tuple(z): path.vertices.tobytes() for z, path in zip(points.get_offsets(), points.get_paths(), strict=True)
    }
    shapes = {k: {drawn[tuple(z)] for z in Z[classes == k]} for k in range(10)}
    assert all(len(shape) == 1 for shape in shapes.values())
    assert len(set.union(*shapes.values())) == 10
