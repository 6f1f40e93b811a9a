"""The figure of a sweep: means over seeds with their intervals."""

import math

import numpy as np
import pytest

from funcvae import figures
from funcvae.errors import BadType, BadValue
from funcvae.figures import OverSeeds

LINE = OverSeeds(
    [1, 4], [-3.0, -2.0], [-3.5, -9.0], [-2.5, 5.0], [[-3.2, -2.8, -3.0], [-2.1, -1.9, math.nan]]
)  # at K = 4 with two seeds


def test_the_figure_shows_means_intervals_and_seeds_side_by_side():
    figure = figures.over_seeds({"a": {"iwae": LINE, "dreg": LINE}, "b": {"iwae": LINE}}, ylabel="nats", title="mine")
    left, right = figure.axes
    assert (left.get_title(), left.get_ylabel(), left.get_xlabel()) == ("a", "nats", "samples K")
    assert [t.get_text() for t in left.get_xticklabels()] == ["1", "4"]
    assert figure.get_suptitle() == "mine"
    left.figure.draw_without_rendering()
    bars = [(line, segment) for line in left.collections for segment in line.get_segments() if len(segment)]
    assert [segment.tolist() for _, segment in bars] == [[[1.0, -3.5], [1.0, -2.5]]] * 2, "none for two seeds"
    inches = [line.get_transform().transform((1, -3))[0] / figure.dpi for line, _ in bars]
    assert np.diff(inches) == pytest.approx(8 / 72), "no interval hides another"
    shown = [line for line in right.lines if line.get_marker() == "o" and line.get_markersize() > 5]
    assert shown[0].get_ydata().tolist() == [-3.0, -2.0]
    assert shown[0].get_xdata() == pytest.approx([1, 4])
    low, high = left.get_ylim()
    assert -3.7 < low < -3.5
    assert -1.9 < high < -1.7
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["iwae", "dreg"]
    note = figure.legends[0].get_title().get_text()
    assert note.replace("\n", " ").endswith("bars: 95% intervals of the mean (none below 3 seeds)")


def test_with_one_number_of_samples_the_axis_shows_the_estimators():
    one = OverSeeds([5], [1.0], [math.nan], [math.nan], [[1.0]])
    (ax,) = figures.over_seeds({"burda_vae": {"iwae (L_K)": one, "stl (ELBO)": one}}).axes
    assert ax.get_title() == "burda_vae, K = 5"
    assert [t.get_text() for t in ax.get_xticklabels()] == ["iwae\n(L_K)", "stl\n(ELBO)"]


@pytest.mark.parametrize(
    "call",
    [
        lambda: figures.over_seeds({}),
        lambda: figures.over_seeds({"a": {}}),
        lambda: figures.over_seeds({"a": {"b": LINE._replace(mean=[1.0])}}),
        lambda: figures.over_seeds({"a": {"b": LINE._replace(samples=[4, 1])}}),
        lambda: figures.over_seeds({"a": {"b": LINE}}, yscale="log"),
        lambda: figures.over_seeds({"a": {"b": LINE}}, yscale="logg"),
        lambda: figures.over_seeds({"a": {"b": [1, 2]}}),
    ],
)
def test_wrong_panels_are_refused(call):
    with pytest.raises((BadValue, BadType)):
        call()
