"""The Pareto diagnostic against ArviZ, and on samples from known tails."""

import math
import warnings

import numpy as np
import pytest
import torch

from funcvae import random
from funcvae.evaluate import psis


def pareto_log_weights(shape, samples, data, seed=0):
    """Log-weights [samples, data] of a Pareto distribution with tail shape k: w = u^-k."""
    return -shape * random.uniform(random.key(seed), (samples, data), torch.float64, minval=1e-300).log()


@pytest.mark.parametrize("samples", [40, 100, 1000, 5000])
def test_k_hat_equals_arviz(samples):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # arviz warns of its next version at import
        arviz = pytest.importorskip("arviz", reason="needs arviz")
    spread = torch.tensor([0.1, 1.0, 5.0, 300.0, 5000.0], dtype=torch.float64)
    log_w = spread * random.normal(random.key(samples), (samples, 5), torch.float64) - 1000
    known = [float(arviz.psislw(column.copy())[1]) for column in log_w.T.numpy()]
    np.testing.assert_allclose(psis.k_hat(log_w), known, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.8, 1.2])
def test_k_hat_finds_the_shape_of_a_pareto_tail(shape):
    found = psis.k_hat(pareto_log_weights(shape, 10_000, 40))
    error = found.std() / math.sqrt(len(found))
    assert abs(found.mean() - shape) < 4 * error + 0.02  # the weak prior shrinks it towards ½


def test_k_hat_does_not_depend_on_a_constant():
    log_w = random.normal(random.key(1), (500, 3), torch.float64)
    np.testing.assert_allclose(psis.k_hat(log_w), psis.k_hat(log_w - 1e5), rtol=1e-5)


def test_k_hat_of_too_few_weights_is_infinite():
    assert np.isinf(psis.k_hat(torch.zeros(1, 2))).all()
    assert np.isinf(psis.k_hat(random.normal(random.key(0), (10, 2), torch.float64))).all()


def test_k_hat_of_equal_weights_is_minus_infinity_and_of_one_weight_infinity():
    log_w = 1e-5 * random.normal(random.key(0), (100, 3)) - 90
    log_w[:, 1] = -90
    log_w[1:, 2] = -math.inf
    assert psis.k_hat(log_w).tolist() == [-math.inf, -math.inf, math.inf]


@pytest.mark.parametrize(("samples", "limit"), [(1, -math.inf), (10, 0.0), (100, 0.5), (1000, 0.5), (5000, 0.5)])
def test_the_threshold_is_that_of_the_variance(samples, limit):
    assert psis.threshold(samples) == pytest.approx(limit)


def test_pareto_fits_are_centred_on_the_shape_and_scale_of_the_sample():
    uniform = random.uniform(random.key(5), (20_000,), torch.float64).numpy()
    x = np.sort(3 * ((1 - uniform) ** -0.4 - 1) / 0.4)  # shape 0.4, scale 3
    b, k, weight = psis.pareto_fits(x)
    shape = np.average(k, weights=weight)
    assert weight.max() == 1
    assert shape == pytest.approx(0.4, abs=4 * 1.4 / 20_000**0.5)
    assert np.average(-k / b, weights=weight) == pytest.approx(3, rel=0.05)


def test_pooling_removes_errors_and_keeps_differences():
    same = torch.from_numpy(psis.k_hat(pareto_log_weights(0.4, 1000, 200)))
    assert float(psis.pooled(same, 1000).std()) < 0.3 * float(same.std())
    apart = torch.cat([same, torch.from_numpy(psis.k_hat(pareto_log_weights(1.2, 1000, 200, seed=1)))])
    below = psis.pooled(apart, 1000) < 0.8
    assert below[:200].double().mean() > 0.95
    assert below[200:].double().mean() < 0.1


def test_pooling_keeps_values_that_are_not_finite_and_single_ones():
    k_hat = torch.tensor([0.3, math.inf, 0.5, -math.inf])
    assert psis.pooled(k_hat, 1000).tolist()[1::2] == [math.inf, -math.inf]
    assert psis.pooled(k_hat[:2], 1000).tolist() == k_hat[:2].tolist()
