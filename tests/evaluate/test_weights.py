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
