import math

import numpy as np
import pytest

from funcvae import train
from funcvae.figures import of_results


def history(steps, epochs, kl=1.0):
    bound = -1 / np.arange(1.0, steps + 1)
    test = bound[steps // epochs - 1 :: steps // epochs] - 1 if epochs else np.zeros(0)
    return train.History(-bound, bound, 1 + bound, bound + kl, np.full(steps, kl), test)


def test_training_has_the_terms_of_the_bound():
    figure = of_results.training(history(40, 4), name="ELBO")
    labels = [ax.get_ylabel().split("\n")[0] for ax in figure.axes]
    assert labels == ["ELBO", "reconstruction", "KL", "gradient"]
    assert figure.axes[0].lines[-1].get_xdata().tolist() == [10, 20, 30, 40]


def test_training_of_an_autoencoder_has_no_kl():
    labels = [ax.get_ylabel().split("\n")[0] for ax in of_results.training(history(40, 4, kl=0.0)).axes]
    assert labels == ["bound", "reconstruction", "gradient"]


def test_training_that_stopped_within_an_epoch_has_its_test_bound_at_the_epochs_end():
    stopped = history(40, 4)._replace(test_bound=np.array([-2.0, -1.5, -1.2]))
    ax = of_results.training(stopped, steps_per_epoch=12).axes[0]
    assert ax.lines[-1].get_xdata().tolist() == [12, 24, 36]


@pytest.mark.parametrize("test", [True, False])
def test_several_runs_are_compared_on_the_test_set_if_all_have_one(test):
    a, b = history(40, 4), history(80, 4 if test else 0)
    figure = of_results.several_runs([("a", a), ("b", b)], name="ELBO")
    first, second = figure.axes[0].lines
    if test:
        assert [ax.get_xlabel() for ax in figure.axes] == ["training step", "epoch"]
        assert np.array_equal(second.get_xydata(), np.stack([[20, 40, 60, 80], b.test_bound], 1))
        assert figure.axes[1].lines[1].get_xdata().tolist() == [1, 2, 3, 4]
    else:
        assert [ax.get_ylabel() for ax in figure.axes] == ["training ELBO [nats per example]"]
        assert np.array_equal(first.get_ydata(), a.bound)
        # Each value is the mean over the steps since the one before.
        x, y = second.get_data()
        assert (len(x), x[-1]) == (50, 80)
        assert np.sum(y * np.diff([0, *x])) == pytest.approx(b.bound.sum())


def test_test_bounds_of_a_run_that_stopped_within_an_epoch_are_at_the_ends_of_its_epochs():
    stopped = history(25, 2)._replace(steps_per_epoch=10)
    both = of_results.several_runs([("stopped", stopped), ("whole", history(40, 4)._replace(steps_per_epoch=10))])
    one = of_results.training(stopped)
    for line in (both.axes[0].lines[0], next(line for line in one.axes[0].lines if line.get_label() == "test set")):
        assert line.get_xdata().tolist() == [10, 20]


def test_runs_without_test_bounds_have_epochs_if_their_length_is_known():
    runs = [(name, history(size * 4, 0)._replace(steps_per_epoch=size)) for name, size in (("a", 10), ("b", 20))]
    figure = of_results.several_runs(runs)
    assert [ax.get_xlabel() for ax in figure.axes] == ["training step", "epoch"]
    assert {line.get_xdata()[-1] for line in figure.axes[1].lines} == {4}


def test_rows_of_metrics_become_courses_of_variance():
    rows = [
        {"step": 0, "epoch": 0, "bound": -1.0},
        {"step": 20, "variance/renyi:0.5/encoder": 4.0, "variance_se/renyi:0.5/encoder": 0.5},
        {"step": 10, "variance/renyi:0.5/encoder": 2.0, "variance_se/renyi:0.5/encoder": 0.1,
         "snr/renyi:0.5/encoder": 0.3},
    ]  # fmt: skip
    figure = of_results.variance_along_training(rows, name="mine")
    variance, snr = (ax.lines[0].get_xydata() for ax in figure.axes)
    np.testing.assert_array_equal(variance, [[10, 2], [20, 4]])
    np.testing.assert_array_equal(snr, [[10, 0.3], [20, math.nan]])
    (band,) = figure.axes[0].collections
    assert {1.804, 2.196} <= set(band.get_paths()[0].vertices[:, 1].round(3))
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["renyi:0.5"]
    assert figure.get_suptitle().startswith("mine: ")


def test_without_measurements_there_is_no_figure():
    assert of_results.variance_along_training([{"step": 0, "bound": -1.0}]) is None
    assert of_results.variance_along_training([]) is None
