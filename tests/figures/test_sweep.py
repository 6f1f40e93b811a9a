"""The figure of a sweep: means over seeds with their intervals."""

import math

import pytest

from funcvae import figures
from funcvae.errors import BadType, BadValue
from funcvae.figures import OverSeeds

LINE = OverSeeds([1, 4], [-3.0, -2.0], [-3.5, math.nan], [-2.5, math.nan], [[-3.2, -2.8], [-2.0, math.nan]])


def test_the_figure_shows_means_intervals_and_seeds_side_by_side():
    figure = figures.over_seeds({"a": {"iwae": LINE, "dreg": LINE}, "b": {"iwae": LINE}}, ylabel="nats", title="mine")
    left, right = figure.axes
    assert (left.get_title(), left.get_ylabel(), left.get_xlabel()) == ("a", "nats", "samples K")
    assert [t.get_text() for t in left.get_xticklabels()] == ["1", "4"]
    assert figure.get_suptitle() == "mine"
    bars = [segment for bars in left.collections for segment in bars.get_segments()]
    assert sorted(bar[:, 1].tolist() for bar in bars) == [[-3.5, -2.5]] * 2
    assert len({bar[0, 0] for bar in bars}) == 2, "no interval hides another"
    shown = [line for line in right.lines if line.get_marker() == "o" and line.get_markersize() > 5]
    assert shown[0].get_ydata().tolist() == [-3.0, -2.0]
    assert shown[0].get_xdata() == pytest.approx([1, 4])
    names = [t.get_text() for t in figure.legends[0].get_texts()]
    assert names == ["iwae", "dreg", "mean over seeds", "95% interval of the mean", "single seed"]


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
