"""Intervals, ratios and flags, against closed forms and simulation."""

import math

import numpy as np
import pytest
import torch

import funcvae as fv
from funcvae import variance
from funcvae.variance import intervals, online_moments, snr
from funcvae.variance.problem import gradients
from tests.support.oracles import toy


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
    found = intervals.ratio_interval(a[:, None], b[:, None], a.mean() / b.mean())
    left = (a.sum() - a) / (b.sum() - b)
    jackknife = math.sqrt(399 * left.var())
    assert found.se == pytest.approx(jackknife, rel=0.02)


def test_the_interval_of_an_inverse_ratio_is_the_inverse_interval():
    a, b = np.exp(draws((400, 2))), np.exp(2 * draws((400, 2), 1))
    found, inverse = intervals.ratio_interval(a, b, 0.7), intervals.ratio_interval(b, a, 1 / 0.7)
    assert (1 / inverse.high, 1 / inverse.low) == pytest.approx((found.low, found.high))
    assert found.se / found.value == pytest.approx(inverse.se / inverse.value)


def test_a_ratio_of_pairs_is_more_precise_than_its_parts():
    a = np.exp(draws((1000, 1)))
    found = intervals.ratio_interval(a, 2 * a, 0.5)
    assert found[:4] == pytest.approx((0.5, 0, 0.5, 0.5), abs=1e-12)
    apart = intervals.ratio_interval(a, 2 * np.exp(draws((1000, 1), 5)), 0.5)
    assert apart.se > 0.01


def test_two_pairs_whose_difference_has_no_skewness_have_a_ratio():
    for a, b in np.exp(draws((300, 2, 2, 1))):
        found, inverse = intervals.ratio_interval(a, b, 2.0), intervals.ratio_interval(b, a, 0.5)
        assert found.low < 2 < found.high
        assert inverse.low < 0.5 < inverse.high


def test_ratios_of_zero_variances():
    nothing, something = np.zeros((10, 1)), np.ones((10, 1))
    assert intervals.ratio_interval(nothing, something, 0.0)[:4] == (0.0, 0.0, 0.0, 0.0)
    assert math.isnan(intervals.ratio_interval(something, nothing, math.nan).low)


@pytest.mark.parametrize(("n", "flagged"), [(0, True), (28, True), (29, False)])
def test_few_replicates_are_flagged(n, flagged):
    assert bool(intervals.unreliable_because(np.ones(n), 0.0)) is flagged


def test_a_tail_without_a_mean_is_flagged_with_its_shape():
    assert intervals.unreliable_because(np.ones(1000), 1.05) == (
        "Pareto k̂ 1.05 of the gradient's squared deviations: their mean may be infinite"
    )
    assert intervals.unreliable_because(np.ones(1000), 0.95) == ""
    assert intervals.unreliable_because(np.zeros(5), math.nan) == "", "a variance of zero is certain"


# The tail.


def student(nu, shape, seed=0):
    normal = draws((nu + 1, *shape), seed)
    return normal[0] / np.sqrt((normal[1:] ** 2).mean(0))


def test_the_excess_restores_the_mean_of_a_pareto_tail():
    # the quantiles of u^-k: the part of the tail beyond the largest is missing from their mean
    k, n, m = 0.6, 100_000, 949
    values = ((np.arange(n) + 0.5) / n) ** -k
    cut = values[m]
    missing = m / n * (k * cut / (1 - k) - (values[:m] - cut).mean())
    assert missing > 0.005
    assert intervals.tail_excess(values[:, None], 0.5) == pytest.approx(missing, rel=0.3)
    assert intervals.tail_excess(values[:, None]) > 2 * missing
    assert intervals.tail_excess(7 * values[::-1, None]) == pytest.approx(7 * intervals.tail_excess(values[:, None]))


def test_no_tail_has_no_excess():
    assert intervals.tail_excess(np.zeros((100, 2))) == intervals.tail_excess(np.ones((100, 2))) == 0
    assert intervals.tail_excess(np.zeros((0, 2))) == intervals.tail_excess(draws((20, 1)) ** 2) == 0, "too few"


def test_a_term_with_a_heavy_tail_widens_the_interval_of_a_sum_that_hides_it():
    heavy, light = student(3, (1000, 1)) ** 2, 9 * draws((1000, 1), 1) ** 2
    both = np.concatenate([light, heavy], 1)
    assert intervals.tail_excess(both) == intervals.tail_excess(heavy)
    assert intervals.tail_excess(both) > 3 * intervals.tail_excess(both.sum(1, keepdims=True))


def test_the_tail_of_a_ratio_cancels_as_much_as_the_pairs_do():
    common, own = student(3, (1000, 1)) ** 2, draws((1000, 2), 1) ** 2
    close = intervals.ratio_interval(common, common + 0.01 * own[:, :1], 1.0)
    apart = intervals.ratio_interval(common, own[:, 1:], 1.0)
    assert close.high - close.low < 0.05
    assert apart.high > 1 + 0.5 * intervals.tail_excess(common) / common.mean()


def limit(of, standard_errors=2):
    """The least coverage of this many intervals that agrees with 92%."""
    return 0.92 - standard_errors * math.sqrt(0.92 * 0.08 / max(of, 1))


def variance_of(terms):
    """The interval for the mean of the sum over the terms [n, L]."""
    u = terms.sum(1)
    flag = intervals.unreliable_because(u, intervals.tail_shape(u))
    return intervals.mean_interval(u, None, flag, intervals.tail_excess(terms))


@pytest.mark.parametrize("keys", [150, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("nu", "replicates"), [(3, 300), (3, 1000), (4, 1000), (8, 1000)])
def test_92_in_100_intervals_without_a_flag_contain_the_variance_of_students_t(nu, replicates, keys):
    found = [variance_of(row[:, None] ** 2) for row in student(nu, (keys, replicates))]
    holds = [each.low <= nu / (nu - 2) <= each.high for each in found if each.trusted]
    assert np.mean(holds) >= limit(len(holds), 3 if keys < 2000 else 2)
    assert len(holds) > keys / 2


SPECS = ("elbo_mc", "iwae", "dreg", "rloo", "vimco", "ovis:0", "score")


def toy_series(s2, keys, specs, replicates=1000):
    """The series of the estimators' encoder gradients on the toy, K = 2, for each key."""
    arms, x = tuple(map(fv.estimators.parse, specs)), torch.tensor([[1.2]], dtype=torch.float64)
    model, params, state = toy(0.6, s2)
    gradient = gradients(arms, model, ("encoder/m", "encoder/log_s"), False)
    for key in range(keys // 20):
        eps = fv.random.normal(fv.random.key(key), (20 * replicates, 2, 1, 1), torch.float64)
        columns = [torch.stack(leaves).split(replicates, 1) for leaves in gradient(params, state, x, eps)[0]]
        for each in zip(*columns, strict=True):
            empty = [online_moments.empty_sums([leaf[0] for leaf in leaves], order=1) for leaves in each]
            done = [online_moments.add_chunk_(sums, 0, leaves) for sums, leaves in zip(empty, each, strict=True)]
            yield [snr.series_of(*sums) for sums in done]


@pytest.mark.parametrize(
    ("s2", "keys", "specs"),
    [
        (0.28, 40, ("elbo_mc", "iwae", "vimco", "ovis:0")),
        *(pytest.param(s2, 2000, SPECS, marks=pytest.mark.slow) for s2 in (0.15, 0.22, 0.28, 0.35, 0.45)),
    ],
)
def test_92_in_100_intervals_on_the_toy_contain_the_exact_variance_ratio_and_snr(s2, keys, specs):
    """The tail of the weights has the shape 1 - 2 s²: they have a variance for s² > ¼ only. Of `vimco` and `ovis`, the
    gradients that make the variance are rare."""
    model, x = toy(0.6, s2), torch.tensor([[1.2]], dtype=torch.float64)
    of = [variance.exact(fv.estimators.parse(spec), *model, x, samples=2, nodes=90) for spec in specs]
    known = np.array([sum(float(leaf) for leaf in each.variance["encoder"].values()) for each in of])
    square = np.array([sum(float(leaf) ** 2 for leaf in each.mean["encoder"].values()) for each in of])
    trusted, holds, ratio_holds, snr_holds = [], [], [], []
    for series in toy_series(s2, keys, specs):
        groups = [snr.group_estimates(each, [0, 1], 2) for each in series]
        found = [each.variance for each in groups]
        terms = [snr.scaled_squares(each, [0, 1]) for each in series]
        ratios = [
            intervals.ratio_interval(each, terms[0], its.value / found[0].value)
            for each, its in zip(terms, found, strict=True)
        ]
        trusted.append([each.trusted for each in found])
        holds.append(hold(found, known))
        ratio_holds.append(hold(ratios, known / known[0]))
        snr_holds.append(hold([each.snr for each in groups], np.sqrt(square / known)))
    deviations = 3 if keys < 2000 else 2
    columns = (np.array(rows).T for rows in (trusted, holds, ratio_holds, snr_holds))
    for spec, firm, held, of_ratio, of_snr in zip(specs, *columns, strict=True):
        print(
            f"{s2} {spec}: {held.mean():.3f}, {of_ratio.mean():.3f}, {of_snr.mean():.3f}; flagged {1 - firm.mean():.3f}"
        )
        assert held[firm].mean() >= limit(firm.sum(), deviations), spec
        assert of_ratio.mean() >= limit(keys, deviations), spec
        assert of_snr.mean() >= limit(keys, deviations) - 0.03, spec
        assert firm.mean() >= 0.5 - deviations * 0.5 / keys**0.5, spec


def hold(found, known):
    return [each.low <= value <= each.high for each, value in zip(found, known, strict=True)]


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
