import math

import numpy as np

from funcvae.figures import of_results


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
