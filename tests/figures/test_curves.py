import io

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
    assert [t.get_text() for t in top.get_legend().get_texts()] == [
        "training batch",
        "mean of 20 batches",
        "test set",
    ]
    # Steps and values share their windows, so the mean of a straight line lies on it.
    assert np.array_equal(*bottom.lines[1].get_data())
    assert (top.get_ylabel(), bottom.get_ylabel()) == ("ELBO [nats]", "gradient norm")
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
