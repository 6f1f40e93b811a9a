import math

import numpy as np
import pytest

from funcvae.errors import BadValue
from funcvae.figures import log_weights
from tests.support.axes import assert_draws_well

LOG_W = np.random.default_rng(0).normal(size=(1000, 2)) * [0.5, 3] - 100
ESS, K_HAT = [800.0, 3.0], [0.1, math.inf]


def test_draws_without_a_warning_and_clips_no_text():
    assert_draws_well(lambda: log_weights(LOG_W, ESS, K_HAT), (LOG_W, ESS, K_HAT))
    assert_draws_well(lambda: log_weights([[-3.0]], [1], [math.inf], title="mine"), ())


def test_histograms_show_the_shares_of_samples_and_of_the_sum_of_weights():
    figure = log_weights(LOG_W, ESS, K_HAT, names=["typical", "worst"])
    for ax, column in zip(figure.axes, LOG_W.T, strict=True):
        of_samples, of_sum = (patch.get_data() for patch in ax.patches)
        centred = column - np.log(np.exp(column).mean())
        shown = (centred >= of_samples.edges[0]).mean()
        assert of_samples.values.sum() == pytest.approx(shown)
        assert of_sum.values.sum() == pytest.approx(1, abs=1e-6)
        half = of_sum.edges[:-1] >= 0
        assert of_sum.values[half].sum() == pytest.approx(
            np.exp(centred)[centred >= of_sum.edges[:-1][half][0]].sum() / 1000
        )
    first, second = (ax.get_title() for ax in figure.axes)
    assert first == "typical\nESS 800.0 of 1,000, k̂ = 0.10"
    assert second == "worst\nESS 3.0 of 1,000, k̂ = ∞\n0.5% of the samples are farther left"


def test_weights_of_zero_are_left_out_and_counted():
    figure = log_weights([[0.0], [-math.inf], [0.0], [0.0]], [3], [0.2])
    assert "25.0% of the samples are farther left" in figure.axes[0].get_title()


@pytest.mark.parametrize(
    "call",
    [
        lambda: log_weights(LOG_W[:, 0], [1], [1]),
        lambda: log_weights(LOG_W, [1], K_HAT),
        lambda: log_weights(LOG_W, ESS, K_HAT, names=["a"]),
        lambda: log_weights([[math.nan]], [1], [1]),
        lambda: log_weights([[math.inf]], [1], [1]),
        lambda: log_weights([[-math.inf]], [1], [1]),
    ],
)
def test_wrong_arguments_raise_one_line(call):
    with pytest.raises(BadValue) as caught:
        call()
    assert "\n" not in str(caught.value)
