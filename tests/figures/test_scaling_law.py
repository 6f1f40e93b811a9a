import math

import numpy as np
import pytest
from matplotlib.colors import to_hex

from funcvae.errors import BadValue
from funcvae.figures import PALETTE, scaling
from tests.support.axes import arrows, assert_draws_well, intervals

NAMES = ["elbo_mc", "stl", "iwae", "dreg", "rloo", "vr_iwae_dreg:0.5, moment_matched"]
RNG = np.random.default_rng(0)
K = np.array([1, 2, 5, 10, 20, 50, 100, 200, 500, 1000])
SERIES = {
    name: (snr * K**slope, 0.05 * snr * K**slope)
    for name, snr, slope in zip(NAMES, (0.5, 1.3, 0.55, 1.2, 0.1, 1.1), (0.5, 0.52, -0.48, 0.48, 0.4, 0.3), strict=True)
}

FIGURES = {
    "scaling": lambda: scaling(K, SERIES),
    "scaling, slopes": lambda: scaling(K, SERIES, slopes=dict.fromkeys(NAMES, (0.5, 0.01))),
    "scaling, nothing": lambda: scaling([1], {"a": ([math.nan], [1])}, slopes={"a": (math.nan, math.nan)}),
    "scaling, twelve": lambda: scaling([1, 2], {str(k): ([1, k + 1], [9, math.inf]) for k in range(12)}),
}


@pytest.mark.parametrize("name", FIGURES)
def test_draws_without_a_warning_and_clips_no_text(name):
    assert_draws_well(FIGURES[name], (K, SERIES))


def test_a_sweep_of_two_decades_has_its_values_for_ticks():
    (ax,) = scaling([30, 100, 300, 1000, 3000], {"a": ([1, 2, 3, 4, 5], [0.1] * 5)}).axes
    assert [t.get_text() for t in ax.get_xticklabels()] == ["30", "100", "300", "1,000", "3,000"]


def test_scaling_draws_each_series_with_two_standard_errors():
    figure = scaling(K, SERIES, xlabel="K", ylabel="SNR", title="mine")
    (ax,) = figure.axes
    assert (ax.get_xscale(), ax.get_yscale(), ax.get_xlabel(), ax.get_ylabel()) == ("log", "log", "K", "SNR")
    lines = [line for line in ax.lines if not line.get_label().startswith("_")]
    assert [line.get_label() for line in lines] == NAMES
    for line, bars, colour, (value, se) in zip(lines, ax.collections, PALETTE, SERIES.values(), strict=False):
        np.testing.assert_array_equal(line.get_xydata(), np.stack([K, value], 1))
        ends = np.array(bars.get_segments())[..., 1]
        np.testing.assert_allclose(ends, np.stack([value - 2 * se, value + 2 * se], 1))
        assert line.get_color() == to_hex(bars.get_color()[0]).upper() == colour
    assert len({line.get_marker() for line in lines}) == len(NAMES)
    assert {line.get_linestyle() for line in lines} == {"None"}, "only fits are lines"
    assert not arrows(ax)
    assert [t.get_text() for t in figure.legends[0].get_texts()] == NAMES
    assert ax.get_title("left") == "bars: ±2 standard errors"


def test_fitted_lines_are_the_weighted_least_squares_lines():
    noisy = np.exp(0.3 * RNG.normal(size=10)) * K**0.5
    se = noisy * RNG.uniform(0.05, 0.5, size=10)
    slope, start = np.polyfit(np.log(K), np.log(noisy), 1, w=noisy / se)
    figure = scaling(K, {"dreg": (noisy, se), "stl": (noisy, se)}, slopes={"dreg": (slope, 0.0123)})
    (ax,) = figure.axes
    (fit,) = (line for line in ax.lines if line.get_linestyle() == "-")
    np.testing.assert_allclose(fit.get_ydata(), np.exp(start + slope * np.log(fit.get_xdata())))
    assert fit.get_xdata().tolist() == [1, 1000]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == [f"dreg: slope {slope:+.2f} ± 0.01", "stl"]
    assert ax.get_title("left") == "bars: ±2 standard errors; lines: fitted power laws, slopes ±1 standard error"


def test_the_error_of_a_slope_determines_its_decimals():
    slopes = {"a": (-0.4812, 0.2), "b": (0.48123, 0.0012), "c": (1, math.nan), "d": (math.nan, 1), "e": (0.5, 0)}
    figure = scaling([1, 2], dict.fromkeys("abcde", ([1, 2], [0, 0])), slopes=slopes)
    texts = [t.get_text() for t in figure.legends[0].get_texts()]
    assert texts[:2] == ["a: slope −0.48 ± 0.20", "b: slope +0.481 ± 0.001"]
    assert texts[2:] == ["c: slope +1.00", "d: slope undefined", "e: slope +0.50 ± 0.00"]
    assert sum(line.get_linestyle() == "-" for line in figure.axes[0].lines) == 4


def test_a_sweep_has_gaps_and_bars_that_end_at_the_edge():
    value, se = [1, -2, math.nan, 3, 4, 5], [0.1, 1, 1, 2, math.nan, math.inf]
    (ax,) = scaling(range(1, 7), {"a": (value, se)}).axes
    (line,) = (line for line in ax.lines if line.get_label() == "a")
    np.testing.assert_array_equal(line.get_ydata(), [1, math.nan, math.nan, 3, 4, 5])
    low, _ = ax.get_ylim()
    np.testing.assert_allclose(intervals(ax), [[[1, 0.8], [1, 1.2]], [[4, low], [4, 7]]])
    assert arrows(ax) == {("v", 4.0, low)}


def test_ticks_are_plain_numbers():
    def labels(axis):
        low, high = axis.get_view_interval()
        ticks = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True)
        return [label.get_text() for place, label in ticks if low <= place <= high]

    (wide,) = scaling([1, 1e3], {"a": ([2e-7, 1e-4], [0, 0])}).axes
    assert labels(wide.xaxis) == ["1", "10", "100", "1,000"]
    assert labels(wide.yaxis) == ["1e−6", "1e−5", "0.0001"]
    (narrow,) = scaling([12, 200], {"a": ([1, 1.1], [0, 0])}).axes
    assert labels(narrow.xaxis) == ["20", "50", "100", "200"]
    assert labels(narrow.yaxis) == ["1", "1.1", "1.2"]


@pytest.mark.parametrize(
    "call",
    [
        lambda: scaling(K[::-1], SERIES),
        lambda: scaling([1, 1], {"a": ([1, 1], [1, 1])}),
        lambda: scaling([0, 1], {"a": ([1, 1], [1, 1])}),
        lambda: scaling(K, {}),
        lambda: scaling(K, {"a": (K, K[:3])}),
        lambda: scaling(K[:3], {"a": (K, K)}),
        lambda: scaling(K, SERIES, slopes={"vimco": (0.5, 0.1)}),
    ],
)
def test_wrong_arguments_raise_one_line(call):
    with pytest.raises(BadValue) as caught:
        call()
    assert "\n" not in str(caught.value)
