"""Statistics of importance weights, against their formulas and exact arithmetic."""

import math

import mpmath
import pytest
import torch

import funcvae as fv
from funcvae import evaluate
from funcvae.errors import BadValue

KEY = fv.random.key(0)


def test_standard_error_and_effective_sample_size_are_the_formulas():
    log_w = fv.random.normal(KEY, (50, 3), torch.float64) - 1000
    found = evaluate.likelihood(log_w)
    w = (log_w + 1000).exp()
    torch.testing.assert_close(found.log_p.value, w.mean(0).log() - 1000)
    torch.testing.assert_close(found.log_p.se, w.std(0) / math.sqrt(50) / w.mean(0))
    torch.testing.assert_close(found.ess, w.sum(0) ** 2 / (w**2).sum(0))


def test_the_standard_error_of_one_sample_is_infinite():
    found = evaluate.likelihood(torch.zeros(1, 2, dtype=torch.float64))
    assert found.log_p.se.isinf().all()
    assert found.untrusted.all()


def test_log_weights_that_are_far_apart_or_minus_infinity_are_exact():
    column = [0.0, -10_000.0, -math.inf, -3.0, -745.0]
    mpmath.mp.dps = 50
    known = float(mpmath.log(sum(mpmath.exp(v) for v in column) / len(column)))
    found = evaluate.likelihood(torch.tensor(column, dtype=torch.float64).unsqueeze(1) - 5e4)
    assert found.log_p.value.item() == pytest.approx(known - 5e4, abs=1e-9)
    assert found.log_p.se.isfinite().all()


def test_every_rung_of_the_ladder_uses_all_samples():
    log_w = fv.random.normal(KEY, (10, 4), torch.float64)
    ladder = evaluate.ladder(log_w, (10, 1, 3))
    assert list(ladder) == [1, 3, 10]
    torch.testing.assert_close(ladder[1].value, log_w.mean(0))
    three = torch.stack([fv.bounds.iwae(log_w[i : i + 3]) for i in (0, 3, 6)])
    torch.testing.assert_close(ladder[3].value, three.mean(0))
    torch.testing.assert_close(ladder[3].se, three.std(0) / math.sqrt(3))
    torch.testing.assert_close(ladder[10].value, evaluate.likelihood(log_w).log_p.value)
    torch.testing.assert_close(ladder[10].se, evaluate.likelihood(log_w).log_p.se)


@pytest.mark.parametrize(
    ("samples", "message"),
    [((), "give numbers"), ((0, 5), "in samples is 0: it must be at least 1"), ((11,), "K is 11, and there are 10")],
)
def test_wrong_numbers_of_samples_raise_an_error(samples, message):
    with pytest.raises(BadValue, match=message):
        evaluate.ladder(torch.zeros(10, 2), samples)


def test_sums_over_samples_are_in_float64_also_for_float32_log_weights():
    log_w = torch.full((1000, 2), -90.1)
    found = evaluate.likelihood(log_w)
    assert found.log_p.se.dtype == found.ess.dtype == torch.float64
    assert found.log_p.se.max() < 1e-7
    torch.testing.assert_close(found.ess, torch.full((2,), 1000.0, dtype=torch.float64))


def normal_log_weights(scale, dimensions, samples, data, seed):
    """Log-weights [samples, data] of p(z|x) = N(0, I) under q = N(0, scale² I), with log p(x) = 0: tail 1 - scale²."""
    eps = fv.random.normal(fv.random.key(seed), (samples, data, dimensions), torch.float64)
    return (-0.5 * (scale * eps) ** 2 + 0.5 * eps**2 + math.log(scale)).sum(-1)


@pytest.mark.parametrize(("scale", "dimensions"), [(0.95, 3), (0.8, 3), (0.7, 1), (0.65, 3), (0.6, 10)])
def test_intervals_of_data_that_are_not_flagged_hold_log_p(scale, dimensions):
    held, flagged = [], []
    for seed in range(2):
        found = evaluate.likelihood(normal_log_weights(scale, dimensions, 1000, 300, seed))
        held.append((found.log_p.value / found.log_p.se).abs() < 1.96)
        flagged.append(found.untrusted)
    held, flagged = torch.cat(held).double(), torch.cat(flagged)
    if scale >= 0.7:
        assert held[~flagged].mean() > 0.9 - 4 * math.sqrt(0.09 / 600)
        assert not flagged.any()
    else:
        assert flagged.all(), "no datum with a low k̂ of its own is vouched for"
        assert held.mean() < 0.87


def test_the_warning_says_if_other_data_may_have_missed_large_weights():
    scale = torch.where(torch.arange(100) < 30, 0.5, 0.9).double()[:, None]
    eps = fv.random.normal(KEY, (1000, 100, 3), torch.float64)
    found = evaluate.likelihood((-0.5 * (scale * eps) ** 2 + 0.5 * eps**2 + scale.log()).sum(-1))
    assert 20 <= int(found.untrusted.sum()) <= 40
    assert "the others may have missed their large weights" in evaluate.untrusted_message(found)
    alike = evaluate.likelihood(normal_log_weights(0.5, 3, 1000, 100, 0))
    assert "others" not in evaluate.untrusted_message(alike)
