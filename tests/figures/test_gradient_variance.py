import itertools
import math

import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from funcvae.errors import BadValue
from funcvae.figures import PALETTE, gradient_variance
from funcvae.figures._style import DARK, LIGHT
from tests.support.axes import arrows, assert_draws_well, intervals

NAMES = ["elbo_mc", "stl", "iwae", "dreg", "rloo", "vr_iwae_dreg:0.5, moment_matched"]
VARIANCE = np.array([41.234, 12.1, 18.72, 5.43, 81234.0, 0.0391])
LOW, HIGH = 0.8 * VARIANCE, 1.25 * VARIANCE
SECONDS = np.array([0.0121, 0.0125, 0.0134, 0.0151, 0.0117, 0.0163])
LAYERS = [f"{a}/hidden.{k}.{b}" for a in ("encoder", "decoder") for k in (0, 1) for b in ("weight", "bias")]
RNG = np.random.default_rng(0)
BY_LAYER = VARIANCE[:, None] * np.exp(RNG.normal(size=(6, 8)))
ODD = np.array([41.2, 0, math.nan, math.inf])
ODD_LOW, ODD_HIGH = np.array([0, 0, math.nan, 1]), np.array([math.inf, 0, math.nan, math.inf])

FIGURES = {
    "bars": lambda: gradient_variance.variance_bars(NAMES, VARIANCE, LOW, HIGH, trusted=[1, 0, 1, 0, 1, 1]),
    "bars, odd values": lambda: gradient_variance.variance_bars(
        NAMES[:4], ODD, ODD_LOW, ODD_HIGH, trusted=[0, 1, 0, 0]
    ),
    "bars, only zero": lambda: gradient_variance.variance_bars(["a"], [0], [0], [0]),
    "bars, zero with an interval": lambda: gradient_variance.variance_bars(["a"], [0], [0], [1e-7]),
    "bars, tiny and near": lambda: gradient_variance.variance_bars(
        ["a", "b"], [1e-7, 1.05e-7], [9e-8, 1e-7], [1.1e-7, 1.1e-7]
    ),
    "bars, one": lambda: gradient_variance.variance_bars(["a"], [1], [1], [1], trusted=[False]),
    "bars, long title": lambda: gradient_variance.variance_bars(
        ["a", "b"], [1, 2], [1, 2], [1, 2], title="Variance of the gradient " * 4
    ),
    "layers": lambda: gradient_variance.variance_by_layer(NAMES, LAYERS, BY_LAYER),
    "layers, ratios": lambda: gradient_variance.variance_by_layer(NAMES, LAYERS, BY_LAYER, reference=0),
    "layers, two": lambda: gradient_variance.variance_by_layer(NAMES[-2:], LAYERS[:2], BY_LAYER[-2:, :2], reference=1),
    "layers, one": lambda: gradient_variance.variance_by_layer(["a"], ["b"], [[3.0]]),
    "layers, one ratio": lambda: gradient_variance.variance_by_layer(NAMES[-1:], ["b"], [[3.0]], reference=0),
    "layers, odd values": lambda: gradient_variance.variance_by_layer(list("abcd"), ["e"], ODD[:, None]),
    "layers, nothing": lambda: gradient_variance.variance_by_layer(["a", "b"], ["c"], [[0], [math.nan]], reference=0),
    "layers, many": lambda: gradient_variance.variance_by_layer(NAMES, 8 * LAYERS, np.tile(BY_LAYER, 8), reference=0),
    "layers, many of two": lambda: gradient_variance.variance_by_layer(NAMES[:2], 8 * LAYERS, np.tile(BY_LAYER[:2], 8)),
    "cost": lambda: gradient_variance.variance_cost(NAMES, SECONDS, VARIANCE, LOW, HIGH),
    "cost, odd values": lambda: gradient_variance.variance_cost(NAMES[:4], SECONDS[:4], ODD, ODD_LOW, ODD_HIGH),
    "cost, nothing": lambda: gradient_variance.variance_cost(["a"], [1], [0], [0], [0]),
    "cost, many at one place": lambda: gradient_variance.variance_cost(
        2 * NAMES, [1] * 12, [1] * 12, [1] * 12, [1] * 12
    ),
}
ARRAYS = VARIANCE, LOW, HIGH, SECONDS, BY_LAYER, ODD, ODD_LOW, ODD_HIGH


@pytest.mark.parametrize("name", FIGURES)
def test_draws_without_a_warning_and_clips_no_text(name):
    assert_draws_well(FIGURES[name], ARRAYS)


def dots(ax):
    """{(x, y): line} of the markers of values, without those of interval ends."""
    return {
        (x, y): line
        for line in ax.lines
        if line.get_marker() not in ("None", "_", "|") and line.get_clip_on()
        for x, y in zip(*map(np.atleast_1d, line.get_data()), strict=True)
    }


def written(ax):
    return [text.get_text() for text in ax.texts]


def test_bars_are_in_order_with_their_intervals_and_values():
    figure = gradient_variance.variance_bars(NAMES, VARIANCE, LOW, HIGH, unit="trace [nats²]", title="mine")
    (ax,) = figure.axes
    assert [t.get_text() for t in ax.get_yticklabels()] == NAMES
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first is on top
    assert list(dots(ax)) == list(zip(VARIANCE, range(6), strict=True))
    np.testing.assert_allclose(
        intervals(ax), [[[a, k], [b, k]] for k, (a, b) in enumerate(zip(LOW, HIGH, strict=True))]
    )
    assert written(ax) == ["41.2", "12.1", "18.7", "5.43", "81,200", "0.0391"]
    assert (figure.get_suptitle(), ax.get_xlabel(), ax.get_xscale()) == ("mine", "trace [nats²]", "log")
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["variance and its 95% interval"]


def test_bars_with_unreliable_intervals_are_hollow_and_pale():
    figure = gradient_variance.variance_bars(NAMES, VARIANCE, LOW, HIGH, trusted=[True, False, True, True, True, True])
    (ax,) = figure.axes
    fill = [to_rgb(line.get_markerfacecolor()) for _, line in sorted(dots(ax).items(), key=lambda dot: dot[0][1])]
    assert fill == [to_rgb(DARK), to_rgb("white")] + [to_rgb(DARK)] * 4
    firm, pale = ax.collections
    assert (to_hex(firm.get_color()[0]), to_hex(pale.get_color()[0])) == (DARK, LIGHT.lower())
    assert [segment[0, 1] for segment in pale.get_segments()] == [1]
    assert figure.legends[0].get_texts()[1].get_text() == "hollow: unreliable interval"


def test_bars_write_values_that_a_log_axis_cannot_show():
    (ax,) = gradient_variance.variance_bars(list("abcd"), ODD, ODD_LOW, ODD_HIGH).axes
    assert list(dots(ax)) == [(41.2, 0)]
    assert written(ax) == ["41.2", "0", "0", "undefined", "infinite"]
    assert ax.texts[2].get_position()[0] < 0.05  # at the left edge, beside the arrow
    left, right = ax.get_xlim()
    np.testing.assert_allclose(intervals(ax)[0][:, 0], [left, right])
    assert {("<", left, 0.0), (">", right, 0.0)} <= arrows(ax)


def test_an_undefined_variance_has_no_interval():
    (ax,) = gradient_variance.variance_bars(["a", "b"], [1, math.nan], [0.9, 0.9], [1.1, 1.1]).axes
    assert [segment[0, 1] for segment in intervals(ax)] == [0]


def test_an_interval_extends_the_axis_by_at_most_a_decade():
    (ax,) = gradient_variance.variance_bars(list("abc"), [1, 2, 3], [0.2, 0.05, 2], [2, 50, 4]).axes
    left, right = ax.get_xlim()
    assert 0.1 < left < 0.2
    assert 4 < right < 5
    assert {a[0] for a in arrows(ax)} == {"<", ">"}
    assert {a[2] for a in arrows(ax)} == {1.0}


def test_cells_are_coloured_by_variance_and_show_its_value():
    ax, bar = gradient_variance.variance_by_layer(NAMES, LAYERS, BY_LAYER).axes
    (mesh,) = ax.collections
    np.testing.assert_array_equal(mesh.get_array(), BY_LAYER.T)
    assert mesh.get_clim() == (pytest.approx(BY_LAYER.max() * 1e-6), BY_LAYER.max())
    assert [t.get_text() for t in ax.get_yticklabels()] == LAYERS
    assert [t.get_text().replace("\n", " ") for t in ax.get_xticklabels()] == NAMES
    assert ax.yaxis_inverted()
    placed = {t.get_position(): float(t.get_text().replace(",", "")) for t in ax.texts}
    for (e, r), value in np.ndenumerate(BY_LAYER):
        assert placed[e + 0.5, r + 0.5] == pytest.approx(value, rel=6e-3)
    assert bar.get_ylabel() == "variance of the gradient"


def test_ratios_to_the_reference_are_centred_at_one():
    value = [[2, 8, 1], [1, 10, 1.04], [8, 4000, 0.15]]
    figure = gradient_variance.variance_by_layer(["a", "b, c", "d"], list("xyz"), value, reference=1)
    ax, bar = figure.axes
    (mesh,) = ax.collections
    np.testing.assert_allclose(mesh.get_array(), (np.array(value) / value[1]).T)
    assert mesh.get_clim() == pytest.approx((0.01, 100))
    assert mesh.norm(1.0) == pytest.approx(0.5)
    assert written(ax) == ["×2.00", "×0.80", "×0.96", "×1.00", "×1.00", "×1.00", "×8.00", "×400", "×0.14"]
    assert mesh.colorbar.extend == "max"
    assert bar.get_ylabel() == "variance relative to\nb,\nc"
    assert not figure.legends


def test_cells_without_a_colour_are_grey_and_explained():
    value = [[1, 0, 0, 2, math.inf], [0, 1, 0, math.nan, 1]]
    figure = gradient_variance.variance_by_layer(["a", "b"], list("vwxyz"), value, reference=0)
    ax = figure.axes[0]
    assert written(ax) == ["×1.00", "–", "–", "×1.00", "–", "0", "∞", "–", "–", "–"]
    shown = ~np.ma.getmaskarray(ax.collections[0].get_array())
    assert shown.tolist() == [[True, False], [False, False], [False, False], [True, False], [False, False]]
    (text,) = figure.legends[0].get_texts()
    assert text.get_text() == "grey: 0 (zero to rounding), – (undefined), ∞ (infinite)"
    assert to_rgb(ax.get_facecolor()) == figure.legends[0].get_patches()[0].get_facecolor()[:3]
    odd = gradient_variance.variance_by_layer(list("abcd"), ["e"], ODD[:, None])
    assert written(odd.axes[0]) == ["41.2", "0", "–", "∞"]


@pytest.mark.parametrize("reference", [None, 0])
def test_numbers_have_enough_contrast_with_their_cells(reference):
    value = np.geomspace(1, 1e4, 50)[None].repeat(2, 0) / [[1e2], [1]]
    layers = [str(k) for k in range(50)]
    ax = gradient_variance.variance_by_layer(["a", "b"], layers, value, reference=reference).axes[0]
    (mesh,) = ax.collections

    def luminance(colour):
        rgb = np.array(to_rgb(colour))
        return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]

    for text in ax.texts:
        e, r = (math.floor(place) for place in text.get_position())
        low, high = sorted(luminance(c) for c in (text.get_color(), mesh.to_rgba(mesh.get_array()[r, e])))
        assert (high + 0.05) / (low + 0.05) > 4.5  # the contrast that the WCAG requires of text


def test_a_table_grows_with_its_layers():
    heights = [FIGURES[name]().get_size_inches()[1] for name in ("layers, ratios", "layers, many")]
    assert heights[1] > 64 * 0.2 > heights[0]


def test_cost_places_each_estimator_by_its_time_and_variance():
    figure = gradient_variance.variance_cost(NAMES, SECONDS, VARIANCE, LOW, HIGH, title="mine")
    (ax,) = figure.axes
    np.testing.assert_allclose(list(dots(ax)), np.stack([1e3 * SECONDS, VARIANCE], 1))
    assert [to_hex(line.get_color()).upper() for line in dots(ax).values()] == list(PALETTE[:6])
    ends = [[[x, a], [x, b]] for x, a, b in zip(1e3 * SECONDS, LOW, HIGH, strict=True)]
    np.testing.assert_allclose(intervals(ax), ends)
    named = {t.get_text().replace("\n", " "): t.xy for t in ax.texts}
    assert list(named) == NAMES
    np.testing.assert_allclose(list(named.values()), list(dots(ax)))
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("time per gradient [ms]", "total variance of the gradient")
    assert ax.get_title("left").startswith("dashed lines: equal variance × time; lower left is better\n")
    assert "not shown" not in ax.get_title("left")


def test_along_a_dashed_line_variance_times_time_is_equal():
    (ax,) = gradient_variance.variance_cost(NAMES, SECONDS, VARIANCE, LOW, HIGH).axes
    products = [np.multiply(*line.get_data()) for line in ax.lines if line.get_linestyle() == "--"]
    assert all(p[0] == pytest.approx(p[1]) for p in products)
    one = np.array([p[0] for p in products])
    np.testing.assert_allclose(one[1:] / one[:-1], 10)
    assert np.isclose(one, (1e3 * SECONDS * VARIANCE).min()).any()
    assert "adjacent lines differ by a factor of 10" in ax.get_title("left")


@pytest.mark.parametrize(("spread", "times"), [(1.0, 1), (0.1, 1), (0.02, 2)])
def test_names_are_inside_the_axes_and_hide_nothing(spread, times):
    value = np.tile(5 * (VARIANCE / 5) ** spread, times)
    seconds = np.tile([*SECONDS[:5].clip(0.0125, 0.0126), 0.1], times)  # five nearly coincide, one is at the edge
    figure = gradient_variance.variance_cost(times * NAMES, seconds, value, 0.9 * value, 1.1 * value)
    (ax,) = figure.axes
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in ax.texts]
    spots = ax.transData.transform([text.xy for text in ax.texts])
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert not any(box.contains(*spot) for box in boxes for spot in spots)
    assert all(ax.bbox.padded(1).contains(*corner) for box in boxes for corner in box.corners())
    # A name has a line to its point unless they are adjacent.
    near = [Bbox([spot - 13, spot + 13]).overlaps(box) for spot, box in zip(spots, boxes, strict=True)]
    assert [text.arrow_patch.get_visible() for text in ax.texts] == [not n for n in near]
    assert all(near) == (times == 1)


def test_cost_names_the_estimators_it_does_not_show():
    (ax,) = gradient_variance.variance_cost(NAMES[:4], SECONDS[:4], ODD, ODD_LOW, ODD_HIGH).axes
    assert list(dots(ax)) == [(pytest.approx(12.1), 41.2)]
    assert ax.get_title("left").endswith("\nnot shown: stl (variance 0), iwae (undefined), dreg (infinite)")
    low, high = ax.get_ylim()
    assert arrows(ax) == {("v", 1e3 * SECONDS[0], low), ("^", 1e3 * SECONDS[0], high)}


def test_cost_draws_unreliable_estimates_hollow():
    trusted = [True, False, True, True, False, True]
    (ax,) = gradient_variance.variance_cost(NAMES, SECONDS, VARIANCE, LOW, HIGH, trusted=trusted).axes
    faces = [to_hex(line.get_markerfacecolor()).upper() for line in dots(ax).values()]
    assert [face != "#FFFFFF" for face in faces] == trusted
    assert ax.get_title("left").endswith("\nhollow: unreliable interval")
    with pytest.raises(BadValue, match=r"trusted has shape \[2\]: it must be \[6\]"):
        gradient_variance.variance_cost(NAMES, SECONDS, VARIANCE, LOW, HIGH, trusted=[True, False])


@pytest.mark.parametrize(
    "call",
    [
        lambda: gradient_variance.variance_bars(NAMES[:5], VARIANCE, LOW, HIGH),
        lambda: gradient_variance.variance_bars(NAMES, VARIANCE, LOW[:5], HIGH),
        lambda: gradient_variance.variance_bars(NAMES, VARIANCE, LOW, HIGH[:, None]),
        lambda: gradient_variance.variance_bars(NAMES, VARIANCE, LOW, HIGH, trusted=[True]),
        lambda: gradient_variance.variance_bars(NAMES, -VARIANCE, LOW, HIGH),
        lambda: gradient_variance.variance_bars([], [], [], []),
        lambda: gradient_variance.variance_by_layer(NAMES, LAYERS, BY_LAYER.T),
        lambda: gradient_variance.variance_by_layer(NAMES, LAYERS, BY_LAYER[0]),
        lambda: gradient_variance.variance_by_layer(NAMES, LAYERS, -BY_LAYER),
        lambda: gradient_variance.variance_by_layer(NAMES, LAYERS, BY_LAYER, reference=6),
        lambda: gradient_variance.variance_by_layer(NAMES, LAYERS, BY_LAYER, reference=-1),
        lambda: gradient_variance.variance_by_layer(NAMES, [], np.zeros((6, 0))),
        lambda: gradient_variance.variance_cost(NAMES, SECONDS[:5], VARIANCE, LOW, HIGH),
        lambda: gradient_variance.variance_cost(NAMES, 0 * SECONDS, VARIANCE, LOW, HIGH),
        lambda: gradient_variance.variance_cost(NAMES, math.nan * SECONDS, VARIANCE, LOW, HIGH),
        lambda: gradient_variance.variance_cost(NAMES, SECONDS, -VARIANCE, LOW, HIGH),
    ],
)
def test_wrong_arguments_raise_one_line(call):
    with pytest.raises(BadValue) as caught:
        call()
    assert "\n" not in str(caught.value)
