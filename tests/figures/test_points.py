import numpy as np
import pytest
import torch

from funcvae import figures
from funcvae.errors import BadType

RNG = np.random.default_rng(0)
MEAN, COV = np.array([1.0, -0.5]), np.array([[1.0, 0.8], [0.8, 1.5]])
SAMPLES = RNG.multivariate_normal(MEAN, COV, 5000)


def test_density_contours_are_the_gaussians():
    figure = figures.densities(SAMPLES, SAMPLES, MEAN, COV)
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
    figure = figures.densities(SAMPLES, SAMPLES[:4000] + shift, MEAN, COV)
    data, model = figure.axes[:2]
    assert (data.get_title(), model.get_title()) == ("data", "model")
    assert (data.get_xlim(), data.get_ylim()) == (model.get_xlim(), model.get_ylim())
    assert data.get_aspect() == 1
    for ax, mean, samples in (data, MEAN, SAMPLES), (model, MEAN + shift, SAMPLES[:4000] + shift):
        (cells,) = ax.collections
        edges = cells.get_coordinates()
        density, area = np.asarray(cells.get_array()), np.prod(edges[1, 1] - edges[0, 0])
        inside = ((samples >= edges[0, 0]) & (samples <= edges[-1, -1])).all(1).mean()
        assert density.sum() * area == pytest.approx(inside)
        assert inside > 0.99
        centres = (edges[1:, 1:] + edges[:-1, :-1]) / 2
        found = (density[..., None] * centres).sum((0, 1)) * area
        assert np.abs(found - mean).max() < 5 * np.sqrt(COV.max() / 4000)  # five standard errors


def test_density_panels_have_the_given_names():
    figure = figures.densities(SAMPLES, SAMPLES, MEAN, COV, names=("drawn", "learned"))
    assert [ax.get_title() for ax in figure.axes[:2]] == ["drawn", "learned"]


@pytest.mark.parametrize("learned", [np.tile(MEAN, (5000, 1)), SAMPLES[:, [0, 0]], SAMPLES / 10])
def test_density_of_the_data_stays_dark_beside_concentrated_samples(learned):
    figure = figures.densities(SAMPLES, learned, MEAN, COV)
    data, model = (ax.collections[0] for ax in figure.axes[:2])
    assert data.norm.vmax == model.norm.vmax == 2 * data.get_array().max()
    assert figure.axes[2].collections  # the colour bar is drawn
    assert model.colorbar.extend == "max"
    # With colours up to the model's highest density, the data would be paler than half grey.
    darkest, wrong = data.get_array().max() / np.array([data.norm.vmax, model.get_array().max()])
    assert data.cmap(np.sqrt(darkest))[0] < 0.2 < 0.45 < data.cmap(np.sqrt(wrong))[0]


def test_density_of_a_good_model_has_no_arrow():
    figure = figures.densities(SAMPLES[:2500], SAMPLES[2500:], MEAN, COV)
    data, model = (ax.collections[0] for ax in figure.axes[:2])
    assert data.norm.vmax == max(data.get_array().max(), model.get_array().max())
    assert model.colorbar.extend == "neither"


def test_evolution_shows_the_data_and_at_most_15_steps():
    step, samples = np.arange(1, 80), RNG.normal(size=(79, 30, 2))
    figure = figures.evolution(step, samples, SAMPLES)
    data, *others = [ax for ax in figure.axes if ax.axison]
    assert len(others) == 13  # some of the first of 15 places coincide
    assert data.get_title() == "data"
    assert np.array_equal(data.lines[0].get_xydata(), SAMPLES)
    shown = np.array([int(ax.get_title().removeprefix("after step ")) for ax in others])
    assert (shown[0], shown[-1]) == (1, 79)
    ratio = 79 ** (1 / 14)  # of neighbours on the log axis
    late = shown > 10
    assert shown[1:][late[1:]] / shown[:-1][late[1:]] == pytest.approx(ratio, rel=0.1)
    for k, ax in zip(shown, others, strict=True):
        assert np.array_equal(ax.lines[0].get_xydata(), samples[k - 1])
    assert {ax.lines[0].get_color() for ax in others} == {others[0].lines[0].get_color()}
    assert data.lines[0].get_color() != others[0].lines[0].get_color()
    assert figure.get_supylabel() == "x2"


@pytest.mark.parametrize(("steps", "panels"), [(1, (1, 2)), (2, (2, 2)), (4, (2, 3)), (8, (3, 3)), (1000, (4, 4))])
def test_evolution_is_nearly_square(steps, panels):
    figure = figures.evolution(range(steps), np.zeros((steps, 5, 2)), SAMPLES)
    assert figure.axes[0].get_gridspec().get_geometry() == panels
    shown = [ax for ax in figure.axes if ax.axison]
    assert len(shown) <= 16
    assert shown[1].get_title() == "before training"
    # The lowest panel of each column has tick labels.
    figure.draw_without_rendering()
    lowest = [ax for ax in shown if figure.axes.index(ax) + panels[1] >= len(shown)]
    assert all(any(t.get_text() and t.get_visible() for t in ax.get_xticklabels()) for ax in lowest)
    assert [ax.get_xlabel() for ax in shown] == ["x1" if ax in lowest else "" for ax in shown]


def test_evolution_has_the_limits_of_the_data_and_counts_what_is_outside():
    true = np.array([[0.0, -5], [10, 5]])
    inside, edge, outside = [5.0, 0], [11.0, 6], [11.01, 0]
    figure = figures.evolution([1, 2, 3], [[inside, edge] * 2, [inside, outside] * 2, [outside] * 4], true)
    for ax in figure.axes[:4]:
        assert (ax.get_xlim(), ax.get_ylim()) == ((-1, 11), (-6, 6))
    assert [[t.get_text() for t in ax.texts] for ax in figure.axes[:4]] == [[], [], ["50% outside"], ["100% outside"]]


def test_evolution_draws_the_contours_of_the_true_gaussian():
    figure = figures.evolution([1, 2], np.stack([SAMPLES, SAMPLES]), SAMPLES, MEAN, COV)
    inverse = np.linalg.inv(COV)
    for ax in figure.axes[:3]:
        for radius, line in zip((1, 2, 3), ax.lines[1:], strict=True):
            away = line.get_xydata() - MEAN
            assert np.einsum("ni,ij,nj->n", away, inverse, away) == pytest.approx(radius**2)


def test_frames_show_the_first_and_the_last_step():
    samples = np.stack([np.full((20, 2), step) for step in np.linspace(-1, 1, 200)])
    true = np.array([[-1.0, -1.0], [1.0, 1.0]])
    frames = figures.evolution_frames(np.arange(200) + 1, samples, true, [0, 0], np.eye(2), frames=12)
    assert frames.shape == (12, 3, 400, 400)
    assert (frames.min(), frames.max()) == (0, 1)
    blue = (frames[:, 0] < 0.1) & (frames[:, 2] > 0.3)  # the model's points, at one place in each frame
    rows, cols = (np.array([np.argwhere(frame)[:, axis].mean() for frame in blue]) for axis in (0, 1))
    assert (np.diff(cols) >= 0).all()  # the points move to the right and upwards
    assert (np.diff(rows) <= 0).all()
    assert cols[-1] - cols[0] > 200


def test_densities_without_a_gaussian_have_no_contours():
    figure = figures.densities(np.eye(2), np.eye(2))
    assert not figure.legends
    assert all(not ax.lines for ax in figure.axes)
    figures.densities(np.ones((3, 2)), np.ones((3, 2)))  # all points coincide
    with pytest.raises(BadType, match="cov is None"):
        figures.densities(np.eye(2), np.eye(2), [0, 0])
