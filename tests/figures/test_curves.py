import io
import itertools

import numpy as np
import pytest

from funcvae import figures
from funcvae.figures import curves

RNG = np.random.default_rng(0)
STEP = np.arange(1, 1001)
BOUND = -480 - 1020 * np.exp(-STEP / 20) + 5 * RNG.normal(size=1000)
TEST_STEP, TEST_BOUND = np.arange(200, 1001, 200), np.array([-495.0, -488, -485, -484, -483])


def test_curves_show_the_later_part_and_count_the_values_outside():
    ax = figures.training_curves(STEP, BOUND, TEST_STEP, TEST_BOUND).axes[0]
    low, high = ax.get_ylim()
    assert -530 < low < BOUND[250:].min()
    assert BOUND.max() < high < -440
    assert low < TEST_BOUND.min()
    cut = np.sum(np.clip(BOUND, low, high) != BOUND)
    assert cut > 0
    assert [t.get_text() for t in ax.texts] == [f"outside the axis: {cut} of 1,000 training values"]


def test_curves_without_outliers_have_no_note():
    ax = figures.training_curves(STEP, np.linspace(-500, -480, 1000), TEST_STEP, TEST_BOUND).axes[0]
    assert ax.get_ylim()[0] < -500
    assert not ax.texts


def test_curves_include_a_test_set_far_below():
    ax = figures.training_curves(STEP, BOUND, TEST_STEP, TEST_BOUND - 200).axes[0]
    assert ax.get_ylim()[0] < TEST_BOUND.min() - 200


def test_curves_are_the_values_and_their_mean():
    figure = figures.training_curves(STEP, BOUND, TEST_STEP, TEST_BOUND, grad_norm=STEP, name="ELBO", unit="nats")
    top, bottom = figure.axes
    values, mean, test = top.lines
    assert np.array_equal(values.get_xydata(), np.stack([STEP, BOUND], 1))
    assert np.array_equal(test.get_xydata(), np.stack([TEST_STEP, TEST_BOUND], 1))
    assert mean.get_xydata()[0] == pytest.approx([STEP[:20].mean(), BOUND[:20].mean()])
    assert mean.get_xydata()[-1] == pytest.approx([STEP[-20:].mean(), BOUND[-20:].mean()])
    assert [t.get_text() for t in figure.legends[0].get_texts()] == [
        "training batch",
        "mean of 20 batches",
        "test set",
    ]
    # Steps and values share their windows, so the mean of a straight line lies on it.
    assert np.array_equal(*bottom.lines[1].get_data())
    assert (top.get_ylabel(), bottom.get_ylabel()) == ("ELBO\n[nats]", "gradient\nnorm")
    assert bottom.get_yscale() == "log"
    assert bottom.get_xlabel() == "training step"


def test_curves_leave_gaps_where_training_diverged():
    bound = np.where(STEP % 100 == 0, np.nan, BOUND)
    bound[500:502] = np.inf, -np.inf
    figure = figures.training_curves(STEP, bound, TEST_STEP, [np.nan, -490, -485, -484, -np.inf], grad_norm=bound)
    figure.savefig(io.BytesIO())
    assert np.isnan(figure.axes[0].lines[0].get_ydata()).sum() == 12


def test_simplified_long_curves_look_like_the_full_ones(monkeypatch):
    step = np.arange(1, 30_001)
    bound = -100 - 50 * np.exp(-step / 3000) + RNG.normal(size=len(step))
    bound[[9_000, 20_000]] = -106, -94  # single outliers must stay visible

    def pixels(step, bound):
        figure = figures.training_curves(step, bound, [1, 30_000], [-106.5, -93.5])
        figure.axes[0].set_ylim(-107, -93)
        figure.savefig(file := io.BytesIO(), format="rgba", dpi=150)
        return np.frombuffer(file.getvalue(), np.uint8).astype(int), figure.axes[0].lines[0]

    drawn, line = pixels(step, bound)
    assert len(line.get_xydata()) <= 2000
    assert (line.get_ydata().min(), line.get_ydata().max()) == (bound.min(), bound.max())
    monkeypatch.setattr(curves, "_FINE", len(step))
    every, line = pixels(step, bound)
    assert len(line.get_xydata()) == len(step)
    wrong, _ = pixels(step[::30], bound[::30])
    assert np.mean(np.abs(drawn - every)) < 1
    assert np.mean(np.abs(wrong - every)) > 5


def test_long_curves_have_their_mean_and_their_gaps():
    step, bound = np.arange(30_000.0), np.arange(30_000.0)
    bound[6_000:9_000] = np.nan
    faint, mean = figures.training_curves(step, bound, [], []).axes[0].lines
    x, y = faint.get_data()
    assert set(np.isnan(y) ^ ((x >= 6_000) & (x < 9_000))) == {False}
    x, y = mean.get_data()
    # The mean has a window of 600 steps, so its gap is wider by that.
    assert np.array_equal(np.isnan(y), (x > 6_000 - 300) & (x < 9_000 + 299))
    assert np.array_equal(x[~np.isnan(y)], y[~np.isnan(y)])
    assert (x[0], x[-1]) == (299.5, 29_699.5)


def test_terms_have_panels_and_epochs_an_axis():
    terms = {"reconstruction": BOUND + 20, "KL": np.full(1000, 20.0)}
    figure = figures.training_curves(STEP, BOUND, TEST_STEP, TEST_BOUND, terms=terms, steps_per_epoch=200)
    assert [ax.get_ylabel().split("\n")[0] for ax in figure.axes] == ["bound", "reconstruction", "KL"]
    assert np.array_equal(figure.axes[1].lines[0].get_ydata(), terms["reconstruction"])
    assert all(len(ax.lines) == 2 for ax in figure.axes[1:])  # the test set has only a bound
    figure.draw_without_rendering()
    (above,) = figure.axes[0].child_axes
    assert above.get_xlabel() == "epoch"
    assert above.get_xlim() == pytest.approx(np.array(figure.axes[0].get_xlim()) / 200)
    assert not figures.training_curves(STEP, BOUND, [], []).axes[0].child_axes


@pytest.mark.parametrize("steps", [1, 3, 10, 25, 1000, 100_000])
def test_ticks_of_steps_and_epochs_are_whole_numbers_apart(steps):
    step = np.unique(np.linspace(1, steps, 100).round())
    figure = figures.training_curves(step, step, [], [], steps_per_epoch=max(1, steps / 7.5))
    figure.canvas.draw()
    (ax,) = figure.axes
    for axis in (ax.xaxis, ax.child_axes[0].xaxis):
        low, high = axis.get_view_interval()
        shown = [label for label in axis.get_ticklabels() if low <= label.get_position()[0] <= high]
        assert all(label.get_text().replace(",", "").replace("−", "").isdigit() for label in shown)
        boxes = [label.get_window_extent() for label in shown]
        assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))


def test_a_long_test_line_has_few_markers_and_all_values():
    step = np.arange(1, 3281.0)
    line = figures.training_curves(step, -1 / step, step, -2 / step).axes[0].lines[2]
    assert np.array_equal(line.get_ydata(), -2 / step)
    first, every = line.get_markevery()
    assert 15 <= len(step[first::every]) <= 20
    assert step[first::every][-1] == 3280


def test_runs_of_one_length_share_a_panel_and_others_have_two():
    runs = [("a", STEP, BOUND), ("b", STEP[::2], BOUND[::2] - 1)]
    (one,) = figures.run_curves(runs).axes
    assert not one.child_axes
    (one,) = figures.run_curves(runs, steps_per_epoch=[10, 10]).axes
    assert one.child_axes[0].get_xlabel() == "epoch"
    by_step, by_epoch = figures.run_curves(runs, steps_per_epoch=[10, 20]).axes
    assert [ax.get_xlabel() for ax in (by_step, by_epoch)] == ["training step", "epoch"]
    for line, (_, step, bound), size in zip(by_epoch.lines, runs, (10, 20), strict=True):
        assert np.array_equal(line.get_xydata(), np.stack([step / size, bound], 1))
    last = [t.get_text() for t in by_step.figure.legends[0].get_texts()]
    assert last == [f"a: −{-BOUND[-1]:.5g}", f"b: −{1 - BOUND[-2]:.5g}"]
