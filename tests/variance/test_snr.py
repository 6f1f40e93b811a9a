"""Groups of parameters, and the directional ratio. The tests of `moments` and `compare` test variances and ratios."""

import math

import numpy as np
import pytest
from scipy import special

import funcvae as fv
from funcvae.errors import BadValue
from funcvae.variance import online_moments, snr

NAMES = ["encoder/0.weight", "encoder/0.bias", "decoder/weight", "decoder/bias", "prior/empty"]
SIZES = [6, 2, 8, 4, 0]


def test_groups_are_all_the_networks_each_parameter_and_patterns():
    groups = snr.parameter_groups(NAMES, SIZES, ("*.bias", "*/bias", "decoder"))
    assert groups == {
        "all": [0, 1, 2, 3],
        "encoder": [0, 1],
        "decoder": [2, 3],
        "encoder/0.weight": [0],
        "encoder/0.bias": [1],
        "decoder/weight": [2],
        "decoder/bias": [3],
        "*.bias": [1],
        "*/bias": [3],
    }


@pytest.mark.parametrize(
    ("pattern", "hint"), [("encodr", "did you mean 'encoder'"), ("prior", "unknown group"), ("*.w", "choose from")]
)
def test_a_group_that_matches_nothing_raises_an_error(pattern, hint):
    with pytest.raises(BadValue, match=hint) as error:
        snr.parameter_groups(NAMES, SIZES, (pattern,))
    assert str(error.value).startswith(f"unknown group of parameters {pattern!r}: ")


def normal_gradients(parameters, mean, replicates, keys):
    """Estimates of the DSNR of g ~ N(mean e_1, I), one for each key, and the exact DSNR E|N(mean, 1)| E[1/chi]."""
    folded = math.sqrt(2 / math.pi) * math.exp(-(mean**2) / 2) + mean * math.erf(mean / math.sqrt(2))
    inverse = math.exp(special.gammaln(parameters / 2 - 1) - special.gammaln((parameters - 1) / 2)) / math.sqrt(2)
    found = []
    for key in range(keys):
        g = fv.random.normal(fv.random.key(key), (replicates, parameters))
        g[:, 0] += mean
        sums, square, along = online_moments.add_chunk_(online_moments.empty_sums([g[0]], 1), 0, [g])
        found.append(snr.group_estimates(snr.series_of(sums, square, along), [0], parameters).dsnr)
    return found, folded * inverse


def covered(found, known):
    """The share of intervals that contain the known value."""
    return np.mean([m.low <= known <= m.high for m in found])


@pytest.mark.parametrize(
    ("parameters", "mean", "replicates", "keys"),
    [
        (1000, 3.0, 1000, 25),
        (100, 3.0, 200, 150),
        (5, 3.0, 500, 150),
        pytest.param(1000, 3.0, 1000, 500, marks=pytest.mark.slow),
    ],
)
def test_the_directional_ratio_allows_for_the_noise_of_the_direction(parameters, mean, replicates, keys):
    found, known = normal_gradients(parameters, mean, replicates, keys)
    firm = [m for m in found if m.trusted]
    print(f"{parameters}: {covered(firm, known):.3f} of {len(firm)} without a flag, of {keys}")
    assert len(firm) > 0.9 * keys
    assert covered(firm, known) > 0.93 - 4 * math.sqrt(0.93 * 0.07 / keys)
    assert np.mean([m.value for m in found]) == pytest.approx(known, rel=0.02)


@pytest.mark.parametrize(("parameters", "mean", "replicates"), [(100, 1.0, 200), (1000, 1.0, 300), (3000, 2.0, 100)])
def test_a_direction_that_is_mostly_noise_is_flagged(parameters, mean, replicates):
    found, _ = normal_gradients(parameters, mean, replicates, 20)
    assert not any(m.trusted for m in found)


@pytest.mark.parametrize(("parameters", "flag"), [(3, "fewer than five"), (4, "fewer than five"), (5, "")])
def test_few_parameters_are_flagged(parameters, flag):
    (found,), _ = normal_gradients(parameters, 5.0, 200, 1)
    assert flag in found.flag
    assert found.trusted is (not flag)
    assert math.isinf(normal_gradients(2, 5.0, 50, 1)[0][0].value)
