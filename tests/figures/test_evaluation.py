import math

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from funcvae import figures
from funcvae.errors import BadValue
from funcvae.figures._style import DARK, LIGHT

K, BOUND, SE = [1, 10, 5000], [-99.5, -96.3, -94.3], [0.1, 0.05, math.nan]


def test_the_bounds_are_drawn_with_two_standard_errors():
    (ax,) = figures.bound_ladder(K, BOUND, SE, title="mine").axes
    (container,) = ax.containers
    line, _, (bars,) = container
    np.testing.assert_allclose(line.get_xydata(), np.stack([K, BOUND], 1))
    heights = [np.ptp(segment[:, 1]) for segment in bars.get_segments()]
    assert heights == pytest.approx([0.4, 0.2, 0.0])
    assert ax.get_xscale() == "log"
    assert [t.get_text() for t in ax.get_xticklabels()] == ["1", "10", "5,000"]
    assert {"−99.50\n±0.1", "−96.30\n±0.05", "−94.30"} <= {t.get_text() for t in ax.texts}
    assert (ax.figure.get_suptitle(), ax.get_ylabel()) == ("mine", "L_K [nats per example]")


def test_similar_bounds_are_labelled_with_enough_digits():
    (ax,) = figures.bound_ladder([1, 10], [-2.7263, -2.7259], [0, 0]).axes
    assert {"−2.72630\n±0", "−2.72590\n±0"} <= {t.get_text() for t in ax.texts}
    figures.bound_ladder([1, 10], [-2.0, -2.0], [0, 0])


def test_latents_are_sorted_by_kl_and_coloured_by_activity():
    (ax,) = figures.latent_use([0.1, 2.0, 0.0, 1.0], [False, True, False, True]).axes
    bars = sorted(ax.patches, key=lambda bar: bar.get_x())
    assert [bar.get_height() for bar in bars] == [2.0, 1.0, 0.1, 0.0]
    assert [bar.get_facecolor()[:3] for bar in bars] == [to_rgb(DARK)] * 2 + [to_rgb(LIGHT)] * 2
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["active", "inactive"]


def test_the_title_counts_the_active_latents():
    (ax,) = figures.latent_use(np.ones(50), [True] * 50, threshold=0.02, title="mine").axes
    assert ax.figure.get_suptitle() == "mine\n50 of 50 active (Var[E z|x] > 0.02)"
    assert ax.get_legend() is None
    assert ax.get_xticks()[0] == 1
    assert ax.get_xticks()[-1] == 50


@pytest.mark.parametrize(
    "call",
    [
        lambda: figures.bound_ladder(K, BOUND[:2], SE),
        lambda: figures.bound_ladder(K, BOUND, SE[:2]),
        lambda: figures.bound_ladder(K, [1, math.inf, 2], SE),
        lambda: figures.latent_use([1.0, 2.0], [True]),
        lambda: figures.latent_use([[1.0]], [True]),
    ],
)
def test_arrays_with_wrong_shapes_are_refused(call):
    with pytest.raises(BadValue):
        call()
