import math

import numpy as np
import pytest

from funcvae.errors import BadType, BadValue
from funcvae.figures import Course, variance_against_samples, variance_along_training
from tests.support.axes import arrows, assert_draws_well, intervals

K = np.array([1, 4, 16])


def course(variance, snr, trusted=(1, 1, 1)):
    spans = [np.stack([v, 0.8 * v, 1.25 * v]) for v in (np.asarray(variance, float), np.asarray(snr, float))]
    return Course(*spans, trusted)


IWAE, DREG = course([8, 4, 2], [0.4, 0.2, 0.1]), course([8, 1, 0], [0.4, 0.8, math.nan], (1, 0, 1))
NETWORKS = {"encoder": {"iwae": IWAE, "dreg": DREG}, "decoder": {"iwae": IWAE, "dreg": IWAE}}

FIGURES = {
    "samples": lambda: variance_against_samples(K, NETWORKS, noise=["iid", "sobol"], groups=["L_K", "ELBO"]),
    "samples, one": lambda: variance_against_samples([1], {"encoder": {"a": Course([[1]] * 3, [[0]] * 3, [1])}}),
    "training": lambda: variance_along_training([0, 10, 20], NETWORKS),
    "training, one": lambda: variance_along_training([5], {"encoder": {"a": Course([[1]] * 3, [[0]] * 3, [1])}}),
}


@pytest.mark.parametrize("name", FIGURES)
def test_draws_without_a_warning_and_clips_no_text(name):
    assert_draws_well(FIGURES[name], (K, IWAE, DREG))


def test_panels_show_variance_and_ratio_of_each_network_against_samples():
    figure = variance_against_samples(K, NETWORKS, title="mine")
    assert [ax.get_title("left") for ax in figure.axes] == ["encoder", "encoder", "decoder", "decoder"]
    assert [ax.get_ylabel() for ax in figure.axes[:2]] == ["total variance [nats²]", "signal-to-noise ratio"]
    assert {ax.get_xscale() + ax.get_yscale() for ax in figure.axes} == {"loglog"}
    assert [t.get_text() for t in figure.axes[2].get_xticklabels()] == ["1", "4", "16"]
    ax = figure.axes[0]
    lines = [line.get_ydata() for line in ax.lines if line.get_linestyle() == "-"]
    np.testing.assert_array_equal(lines, [[8, 4, 2], [8, 1, math.nan]])
    drawn = [segment.tolist() for segment in intervals(ax) if len(segment)]
    assert drawn[:3] == [[[k, 0.8 * v], [k, 1.25 * v]] for k, v in zip(K, [8, 4, 2], strict=True)]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["iwae", "dreg"]
    hollow = [line.get_ydata()[0] for line in ax.lines if line.get_markerfacecolor() == "white"]
    assert hollow == [1.0]


def test_estimators_with_equal_results_are_side_by_side():
    figure = variance_against_samples(K, NETWORKS)
    figure.draw_without_rendering()
    places = {line.get_transform().transform((4, 4))[0] for line in figure.axes[2].lines}
    assert len({round(place, 3) for place in places}) == 2


def test_an_interval_down_to_zero_ends_in_an_arrow():
    low = Course([[2, 1], [1.9, 0.9], [2.1, 1.1]], [[0.2, 0.0], [0.1, 0.0], [0.3, 0.15]], [1, 1])
    figure = variance_against_samples([1, 2], {"encoder": {"a": low}})
    assert not [line for line in figure.axes[1].lines if 0.0 in np.atleast_1d(line.get_ydata())]
    drawn = [segment.tolist() for segment in intervals(figure.axes[1]) if len(segment)]
    least = figure.axes[1].get_ylim()[0]
    assert drawn[1] == [[2.0, least], [2.0, 0.15]]
    assert not arrows(figure.axes[0])


def test_coinciding_lines_of_training_have_different_widths():
    figure = variance_along_training([0, 10, 20], NETWORKS)
    first, second = figure.axes[2].lines
    np.testing.assert_array_equal(first.get_ydata(), second.get_ydata())
    assert first.get_linewidth() > second.get_linewidth() + 1
    assert figure.axes[2].get_xscale() == "linear"
    assert len(figure.axes[0].collections) == 2, "a band for each estimator"


@pytest.mark.parametrize("draw", [variance_against_samples, variance_along_training])
@pytest.mark.parametrize(
    ("at", "networks"),
    [
        (K, {}),
        (K, {"encoder": {}}),
        (K, {"encoder": {"a": 3}}),
        (K[:2], NETWORKS),
        (K[::-1], NETWORKS),
        ([-1, 2, 3], NETWORKS),
        (K, {"encoder": {"a": IWAE._replace(snr=[1, 2, 3])}}),
    ],
)
def test_wrong_arguments_raise_one_line(draw, at, networks):
    with pytest.raises((BadValue, BadType)) as caught:
        draw(at, networks)
    assert "\n" not in str(caught.value)
