"""Intervals, ratios and flags, against closed forms and simulation."""

import math

import numpy as np
import pytest
import torch

import funcvae as fv
from funcvae import variance
from funcvae.variance import intervals


def draws(shape, seed=0):
    return fv.random.normal(fv.random.key(seed), shape, torch.float64).numpy()


def test_halls_quantiles_are_the_inverse_of_his_transformation():
    values = np.exp(draws((200,)))
    n, apart = len(values), values - values.mean()
    skew = (apart**3).mean() / (apart**2).mean() ** 1.5
    for t, z in zip(intervals.hall_quantiles(values), (-intervals.Z95, intervals.Z95), strict=True):
        h = t + skew * t**2 / (3 * n**0.5) + skew**2 * t**3 / (27 * n) + skew / (6 * n**0.5)
        assert h == pytest.approx(z, abs=1e-12)
    assert intervals.hall_quantiles(np.array([-1.0, 0.0, 1.0])) == (-intervals.Z95, intervals.Z95)


def test_the_interval_of_a_skewed_mean_covers_where_the_plain_one_does_not():
    # squares of squares of normals: mean 3; 2,000 samples of 100
    values = draws((2000, 100)) ** 4
    plain = hall = 0
    for row in values:
        found = intervals.mean_interval(row)
        hall += found.low <= 3 <= found.high
        plain += abs(found.value - 3) <= intervals.Z95 * found.se
    assert plain / 2000 < 0.88
    assert hall / 2000 > 0.91


def test_a_mean_of_normals_has_its_usual_interval():
    row = draws((10_000,))
    found = intervals.mean_interval(row)
    assert found.se == pytest.approx(row.std(ddof=1) / 100)
    assert found.low == pytest.approx(row.mean() - 1.96 * found.se, abs=0.02 * found.se)
    assert found.high == pytest.approx(row.mean() + 1.96 * found.se, abs=0.02 * found.se)


def test_equal_values_and_single_values():
    assert intervals.mean_interval(np.full(5, 2.0))[:4] == (2.0, 0.0, 2.0, 2.0)
    one = intervals.mean_interval(np.array([2.0]))
    assert (one.value, one.se) == (2.0, math.inf)
    assert not one.trusted
    assert math.isnan(one.low)


def test_the_error_of_a_ratio_is_that_of_the_jackknife():
    a, b = np.exp(draws((400,))), np.exp(draws((400,), 1) + 0.5 * draws((400,)))
    found = intervals.ratio_interval(a, b, a.mean() / b.mean())
    left = (a.sum() - a) / (b.sum() - b)
    jackknife = math.sqrt(399 * left.var())
    assert found.se == pytest.approx(jackknife, rel=0.02)
    assert math.log(found.high / found.value) == pytest.approx(intervals.Z95 * found.se / found.value)


def test_a_ratio_of_pairs_is_more_precise_than_its_parts():
    a = np.exp(draws((1000,)))
    found = intervals.ratio_interval(a, 2 * a, 0.5)
    assert found[:4] == pytest.approx((0.5, 0, 0.5, 0.5), abs=1e-12)
    apart = intervals.ratio_interval(a, 2 * np.exp(draws((1000,), 5)), 0.5)
    assert apart.se > 0.01


def test_ratios_of_zero_variances():
    nothing, something = np.zeros(10), np.ones(10)
    assert intervals.ratio_interval(nothing, something, 0.0)[:4] == (0.0, 0.0, 0.0, 0.0)
    assert math.isnan(intervals.ratio_interval(something, nothing, math.nan).low)


@pytest.mark.parametrize(
    ("kurtosis", "n", "flagged"), [(3.0, 100, False), (3.0, 80, True), (1.0, 28, True), (1.0, 29, False)]
)
def test_few_replicates_for_the_kurtosis_are_flagged(kurtosis, n, flagged):
    assert bool(intervals.unreliable_because(np.ones(n), kurtosis, 0.0)) is flagged


def test_a_heavy_tail_is_flagged_with_its_shape():
    assert intervals.unreliable_because(np.ones(1000), 3.0, 0.75) == (
        "Pareto k̂ 0.75 of the gradient's squared deviations"
    )
    assert intervals.unreliable_because(np.ones(1000), 3.0, 0.65) == ""
    assert intervals.unreliable_because(np.zeros(5), math.nan, math.nan) == "", "a variance of zero is certain"


def test_kurtosis_and_tail_are_those_of_known_distributions():
    u = draws((100_000,)) ** 2
    assert intervals.kurtosis_of(u) == pytest.approx(3, abs=0.1)
    assert intervals.tail_shape(u) < 0.3
    pareto = (1 - fv.random.uniform(fv.random.key(2), (100_000,), torch.float64).numpy()) ** -0.8
    assert intervals.tail_shape(pareto) == pytest.approx(0.8, abs=0.1)


def test_the_root_of_an_estimate_that_may_be_negative():
    assert intervals.root_interval(4.0, 0.4)[:2] == (2.0, 0.1)
    below = intervals.root_interval(-1.0, 1.0)
    assert below.value == below.low == 0
    assert below.high == pytest.approx(math.sqrt(0.96), abs=1e-3)


def test_the_square_root_of_an_estimate():
    found = variance.Measured(4.0, 0.4, 3.24, 4.84, "why").sqrt()
    assert found == (2.0, pytest.approx(0.1), pytest.approx(1.8), pytest.approx(2.2), "why")
    assert variance.Measured(0.0, 0.1, -0.2, 0.2).sqrt().low == 0
