import itertools
import math

import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from funcvae.errors import BadValue
from funcvae.figures import PALETTE, Ratios, gradient_variance
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

GROUPS = ["ELBO"] * 2 + ["L_K"] * 4
NOISE = ["iid"] * 5 + ["moment_matched"]
RATIO = VARIANCE / VARIANCE[[0, 0, 2, 2, 2, 2]]
LAYER_RATIO = BY_LAYER / BY_LAYER[[0, 0, 2, 2, 2, 2]]
ENCODER = Ratios(RATIO, 0.8 * RATIO, 1.25 * RATIO, VARIANCE, [1, 0, 1, 0, 1, 1])
ODD_RATIOS = Ratios([1, 0, math.nan, math.inf], ODD_LOW, ODD_HIGH, ODD, [0, 1, 0, 0])


def ratios(networks, names=NAMES, groups=GROUPS, **options):
    return gradient_variance.variance_ratios(names, groups, networks, **options)


FIGURES = {
    "ratios": lambda: ratios({"encoder": ENCODER, "decoder": ENCODER}, noise=NOISE),
    "ratios, three networks": lambda: ratios(dict.fromkeys(["encoder", "decoder", "prior"], ENCODER)),
    "ratios, odd values": lambda: ratios({"encoder": ODD_RATIOS}, NAMES[:4], GROUPS[:4]),
    "ratios, one": lambda: ratios({"encoder": Ratios([1], [1], [1], [3], [1])}, ["a"], ["b"]),
    "layers": lambda: gradient_variance.variance_by_layer(NAMES, GROUPS, LAYERS, LAYER_RATIO),
    "layers, one": lambda: gradient_variance.variance_by_layer(["a"], ["b"], ["c"], [[3.0]]),
    "layers, odd values": lambda: gradient_variance.variance_by_layer(list("abcd"), list("aabb"), ["e"], ODD[:, None]),
    "layers, many": lambda: gradient_variance.variance_by_layer(NAMES, GROUPS, 8 * LAYERS, np.tile(LAYER_RATIO, 8)),
    "cost": lambda: gradient_variance.variance_cost(NAMES, SECONDS, VARIANCE, LOW, HIGH),
    "cost, all options": lambda: gradient_variance.variance_cost(
        NAMES,
        SECONDS,
        VARIANCE,
        LOW,
        HIGH,
        slower=1.2 * SECONDS,
        trusted=[1, 0, 1, 0, 1, 1],
        noise=NOISE,
        groups=GROUPS,
    ),
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


def test_ratios_are_sorted_within_their_group_and_written_with_the_variance():
    figure = ratios({"encoder": ENCODER, "decoder": ENCODER._replace(ratio=np.ones(6))}, noise=NOISE, title="mine")
    left, right = figure.axes
    rows = {t.get_text(): y for t, y in zip(left.get_yticklabels(), left.get_yticks(), strict=True)}
    assert sorted(rows, key=rows.get) == ["stl", "elbo_mc", NAMES[5], "dreg", "iwae", "rloo"]
    assert left.get_ylim()[0] > left.get_ylim()[1]  # the first is on top
    assert dict(dots(left).keys()) == {RATIO[e]: rows[NAMES[e]] for e in (2, 1, 3, 4, 5)}
    ends = [[[a, rows[n]], [b, rows[n]]] for a, b, n in zip(ENCODER.low, ENCODER.high, NAMES, strict=True)]
    np.testing.assert_allclose(intervals(left), ends)
    assert any(line.get_xdata() == [1, 1] for line in left.lines)
    headings = [text.get_text() for text in left.texts if text.get_weight() == "bold"]
    assert headings == ["ELBO", "L_K"]
    assert {"0.293", "12.1", "4,340", "81,200"} <= set(written(left))
    assert (figure.get_suptitle(), left.get_title(), right.get_title()) == ("mine", "encoder", "decoder")
    assert {x for x, _ in dots(right)} == {1.0}


def test_colours_tell_estimators_and_markers_tell_noise():
    figure = ratios({"encoder": ENCODER._replace(ratio=range(1, 7))}, ["a", "b", "a, sobol", "b, sobol", "c", "d"],
                    noise=["iid", "iid", "sobol", "sobol", "iid", "iid"])  # fmt: skip
    lines = [line for _, line in sorted(dots(figure.axes[0]).items())]
    assert [line.get_marker() for line in lines] == list("oossoo")
    colours = [to_hex(line.get_color()).upper() for line in lines]
    assert colours == [PALETTE[k] for k in (0, 1, 0, 1, 2, 3)]
    faces = [to_hex(line.get_markerfacecolor()).upper() for line in lines]
    assert [face != "#FFFFFF" for face in faces] == [True, False, True, False, True, True]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["iid noise", "sobol noise"]
    assert figure.legends[0].get_title().get_text().endswith("hollow: unreliable interval")


def test_ratios_that_a_log_axis_cannot_show_are_written():
    (ax,) = ratios({"encoder": ODD_RATIOS}, NAMES[:4], GROUPS[:4]).axes
    assert [x for x, _ in dots(ax)] == [1.0]
    assert written(ax)[1:5] == ["1.00", "0", "undefined", "infinite"]
    left, right = ax.get_xlim()
    assert {(a[0], a[1]) for a in arrows(ax)} == {("<", left), (">", right)}


def test_an_interval_extends_the_axis_by_at_most_a_decade():
    of = Ratios([1, 2, 3], [0.2, 0.05, 2], [2, 50, 4], [1, 2, 3], [1, 1, 1])
    (ax,) = ratios({"encoder": of}, list("abc"), ["all"] * 3).axes
    left, right = ax.get_xlim()
    assert 0.1 < left < 0.2
    assert 4 < right < 5
    assert {a[0] for a in arrows(ax)} == {"<", ">"}


def cells(ax):
    """{(x, y): (colour, text)} of a table's cells by their lower corner."""
    texts = {tuple(np.subtract(t.get_position(), 0.5).round(6)): t for t in ax.texts if len(t.get_position()) == 2}
    return {tuple(np.round(p.get_xy(), 6)): (p.get_facecolor(), texts[tuple(np.round(p.get_xy(), 6))])
            for p in ax.patches}  # fmt: skip


def test_colours_of_layers_are_the_same_in_every_figure_and_networks_are_apart():
    layers = ["encoder/a", "encoder/b", "decoder/a"]
    value = [[1, 1, 1], [0.5, 20, 0.04], [1, 1, 1], [10, 0.1, 1.04]]
    figure = gradient_variance.variance_by_layer(["r", "a, b", "s", "d"], ["one", "one", "two", "two"], layers, value)
    ax, bar = figure.axes
    found = cells(ax)
    xs, ys = (sorted({place[axis] for place in found}) for axis in (0, 1))
    assert xs == pytest.approx([0, 1, 2.3, 3.3])
    assert ys == pytest.approx([0, 1, 2.3])
    shown = [[found[x, y][1].get_text() for y in ys] for x in xs]
    assert shown == [["1.0"] * 3, ["÷2.0", "×20", "÷25"], ["1.0"] * 3, ["×10", "÷10", "1.0"]]
    bold = [found[x, y][1].get_weight() == 700 for x in xs for y in ys]
    assert [k for k, b in enumerate(bold) if b] == [4, 5]
    assert found[xs[1], ys[1]][0] == found[xs[3], ys[0]][0], "colours end at ×10"
    other = gradient_variance.variance_by_layer(["r"], ["g"], ["encoder/a"], [[0.5]]).axes[0]
    assert cells(other)[0, 0][0] == found[xs[1], ys[0]][0]
    assert [t.get_text() for t in bar.get_yticklabels()] == ["÷10", "÷5", "÷2", "1", "×2", "×5", "×10"]
    assert bar.get_ylim() == pytest.approx((0.1, 10))
    assert figure.legends[0].get_title().get_text() == "bold: beyond the colours"
    assert [t.get_text() for t in ax.texts if t.get_weight() == "bold"] == ["one", "two"]


def test_columns_of_a_group_are_adjacent():
    ax = gradient_variance.variance_by_layer(list("abc"), ["g", "h", "g"], ["e/x"], [[1], [2], [3]]).axes[0]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["a", "c", "b"]
    assert [t.get_text() for _, (_, t) in sorted(cells(ax).items())] == ["1.0", "×3.0", "×2.0"]


def test_cells_without_a_colour_are_grey_and_explained():
    figure = gradient_variance.variance_by_layer(list("abcd"), ["g"] * 4, ["e"], ODD[:, None])
    found = [found for _, found in sorted(cells(figure.axes[0]).items())]
    assert [text.get_text() for _, text in found] == ["×41", "0", "–", "∞"]
    assert [to_hex(colour) == "#d9d9d9" for colour, _ in found] == [False, True, True, True]
    note = figure.legends[0].get_title().get_text().replace("\n", " ")
    assert note == "bold: beyond the colours; grey: 0 (zero to rounding), – (undefined) or ∞ (infinite)"


def test_numbers_have_enough_contrast_with_their_cells():
    value = np.geomspace(0.01, 100, 50)[None]
    ax = gradient_variance.variance_by_layer(["a"], ["g"], [str(k) for k in range(50)], value).axes[0]

    def luminance(colour):
        rgb = np.array(to_rgb(colour))
        return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]

    for colour, text in cells(ax).values():
        low, high = sorted(luminance(c) for c in (text.get_color(), colour))
        assert (high + 0.05) / (low + 0.05) > 4.5  # the contrast that the WCAG requires of text


def test_a_table_grows_with_its_layers():
    heights = [FIGURES[name]().get_size_inches()[1] for name in ("layers", "layers, many")]
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
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("time per gradient [ms]", "total variance of the gradient [nats²]")
    assert ax.get_title("left").startswith("dashed lines: equal variance × time, 10 times")
    assert "not shown" not in ax.get_title("left")


def test_along_a_dashed_line_variance_times_time_is_equal():
    (ax,) = gradient_variance.variance_cost(NAMES, SECONDS, VARIANCE, LOW, HIGH).axes
    products = [np.multiply(*line.get_data()) for line in ax.lines if line.get_linestyle() == "--"]
    assert all(p[0] == pytest.approx(p[1]) for p in products)
    one = np.array([p[0] for p in products])
    np.testing.assert_allclose(one[1:] / one[:-1], 10)
    assert np.isclose(one, (1e3 * SECONDS * VARIANCE).min()).any()
    assert "10 times as much at the next" in ax.get_title("left")


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
    assert ax.get_title("left").endswith("95% intervals (hollow: unreliable interval)")
    with pytest.raises(BadValue, match=r"trusted has shape \[2\]: it must be \[6\]"):
        gradient_variance.variance_cost(NAMES, SECONDS, VARIANCE, LOW, HIGH, trusted=[True, False])


def test_times_have_bars_and_their_axis_spans_a_factor_of_two():
    times = np.array([0.0101, 0.0102, 0.0103, 0.0101, 0.0102, 0.0103])
    figure = gradient_variance.variance_cost(
        NAMES, times, VARIANCE, LOW, HIGH, slower=1.1 * times, noise=NOISE, groups=GROUPS
    )
    (ax,) = figure.axes
    assert ax.get_xlim()[1] / ax.get_xlim()[0] > 1.99
    across = [segment for segment in intervals(ax) if segment[0, 1] == segment[1, 1]]
    np.testing.assert_allclose(across, [[[1e3 * a, y], [1.1e3 * a, y]] for a, y in zip(times, VARIANCE, strict=True)])
    assert [line.get_marker() for line in dots(ax).values()] == ["o"] * 5 + ["s"]
    note = figure.legends[0].get_title().get_text()
    assert note.startswith("ELBO: elbo_mc; stl\nL_K: iwae; dreg; rloo;")


@pytest.mark.parametrize(
    "call",
    [
        lambda: ratios({}),
        lambda: ratios({"encoder": ENCODER}, NAMES[:5], GROUPS[:5]),
        lambda: ratios({"encoder": ENCODER}, groups=GROUPS[:5]),
        lambda: ratios({"encoder": ENCODER._replace(low=LOW[:5])}),
        lambda: ratios({"encoder": ENCODER._replace(variance=-VARIANCE)}),
        lambda: ratios({"encoder": ENCODER._replace(trusted=[True])}),
        lambda: ratios({"encoder": ENCODER}, noise=NOISE[:2]),
        lambda: gradient_variance.variance_by_layer(NAMES, GROUPS, LAYERS, BY_LAYER.T),
        lambda: gradient_variance.variance_by_layer(NAMES, GROUPS, LAYERS, BY_LAYER[0]),
        lambda: gradient_variance.variance_by_layer(NAMES, GROUPS, LAYERS, -BY_LAYER),
        lambda: gradient_variance.variance_by_layer(NAMES, GROUPS[:2], LAYERS, BY_LAYER),
        lambda: gradient_variance.variance_by_layer(NAMES, GROUPS, [], np.zeros((6, 0))),
        lambda: gradient_variance.variance_cost(NAMES, SECONDS[:5], VARIANCE, LOW, HIGH),
        lambda: gradient_variance.variance_cost(NAMES, 0 * SECONDS, VARIANCE, LOW, HIGH),
        lambda: gradient_variance.variance_cost(NAMES, math.nan * SECONDS, VARIANCE, LOW, HIGH),
        lambda: gradient_variance.variance_cost(NAMES, SECONDS, -VARIANCE, LOW, HIGH),
        lambda: gradient_variance.variance_cost(NAMES, SECONDS, VARIANCE, LOW, HIGH, slower=0 * SECONDS),
        lambda: gradient_variance.variance_cost(NAMES, SECONDS, VARIANCE, LOW, HIGH, groups=["a"]),
    ],
)
def test_wrong_arguments_raise_one_line(call):
    with pytest.raises(BadValue) as caught:
        call()
    assert "\n" not in str(caught.value)
