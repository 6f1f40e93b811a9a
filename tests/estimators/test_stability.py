"""The weights against arithmetic with 200 digits, and at extreme log-weights."""

import math

import mpmath
import numpy as np
import pytest
import torch
from torch import nn

import funcvae as fv
from funcvae import tree
from funcvae.estimators import parse
from funcvae.estimators.table import others_logsumexp
from tests.support.specs import WEIGHTED, every_continuous


def others(f, k):
    return np.delete(f, k, axis=0)


CASES = {
    "ordinary": [-1.5, 0.25, -0.75, 2.0],
    "two": [-0.3, 0.4],
    "far apart": [0.0, -10_000.0, -5000.5, -3.0],
    "rounds to one": [0.0, -50.0, -60.0, -45.5],
    "impossible": [-1.0, -math.inf, 0.5, -2.0],
    "low": [-100_000.0, -100_001.5, -100_000.25],
    "equal": [-90.0] * 6,
    "many": [-100 + 0.01 * ((7 * k) % 300) for k in range(300)],
}


def exact_scores(column):
    """Score weights of rloo, vimco and ovis(½), and the leave-one-out log-sums, computed with 200 digits."""
    mpmath.mp.dps = 200
    f = [mpmath.mpf(v) for v in column]
    k, total = len(f), mpmath.fsum(mpmath.exp(v) for v in f)
    rows = []
    for i, v_i in enumerate(f):
        rest = [v for j, v in enumerate(f) if j != i]
        others, mean = mpmath.fsum(mpmath.exp(v) for v in rest), mpmath.fsum(rest) / (k - 1)
        v = mpmath.exp(v_i) / total
        c = mpmath.log(total / k) - mpmath.log((1 - mpmath.mpf(1) / k) / (others / total)) - v / 2
        c += mpmath.log(1 - mpmath.mpf(1) / k) / 2
        rows.append(
            {
                "rloo": (v_i - mean) / k,
                "vimco": mpmath.log(total) - mpmath.log(others + mpmath.exp(mean)) - v,
                "ovis:0.5": mpmath.log(total / k) - v - c,
                "others": mpmath.log(others),
            }
        )
    return {name: [float(row[name]) for row in rows] for name in rows[0]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_leave_one_out_weights_equal_exact_arithmetic(case, dtype):
    log_w = torch.tensor(CASES[case], dtype=dtype).unsqueeze(1)
    known = exact_scores(log_w.flatten().tolist())
    tolerance, floor = (1e-4, 1e-7) if dtype == torch.float32 else (1e-12, 1e-15)

    def agree(value, name):
        expected = torch.tensor(known[name], dtype=dtype).unsqueeze(1)
        largest = max((abs(v) for v in known[name] if math.isfinite(v)), default=0.0)
        torch.testing.assert_close(value, expected, rtol=0, atol=max(tolerance * largest, floor))

    agree(others_logsumexp(log_w), "others")
    for name in ("vimco", "ovis:0.5", "rloo"):
        weights = parse(name).weights(log_w)
        assert torch.equal(weights.path, torch.zeros_like(log_w))
        if name != "rloo":
            assert weights.score.isfinite().all()
            torch.testing.assert_close(weights.theta, log_w.softmax(0))
        agree(weights.score, name)


def test_the_naive_formulas_fail_at_extreme_log_weights():
    log_w = torch.tensor(CASES["rounds to one"]).unsqueeze(1)
    v = log_w.softmax(0)
    assert (1 - v).log()[0].isinf()
    impossible = torch.tensor(CASES["impossible"]).unsqueeze(1)
    assert ((impossible.sum(0) - impossible) / 3).isnan().any()


@pytest.mark.parametrize("spec", WEIGHTED)
@pytest.mark.parametrize("case", ["far apart", "rounds to one", "impossible"])
def test_float32_weights_equal_float64_weights_at_extreme_log_weights(spec, case):
    log_w = torch.tensor(CASES[case], dtype=torch.float64).unsqueeze(1)
    single, exact = parse(spec).weights(log_w.float()), parse(spec).weights(log_w)
    for name, value in single._asdict().items():
        assert not value.isnan().any() or (case == "impossible" and spec.startswith("tvo") and name == "score"), name
        if spec.split(":")[0] not in ("score", "rloo", "tvo") or case != "impossible":  # there -inf is correct
            assert value.isfinite().all()
            torch.testing.assert_close(value.double(), exact._asdict()[name], rtol=1e-4, atol=1e-6)


FURTHER = ["renyi:0.3", "renyi:2.7", "renyi:0.999", "vr_iwae_dreg:0.3", "tvo:0:0.1:0.5:1", "ovis:0.5"]


@pytest.mark.parametrize("samples", [64, 5000])
@pytest.mark.parametrize("spec", [*WEIGHTED, *FURTHER])
def test_float32_weights_and_bounds_are_accurate_for_many_samples_around_minus_3500(spec, samples):
    for seed, spread in enumerate((0.1, 1.0, 5.0, 50.0)):
        log_w = -3500 + spread * fv.random.normal(fv.random.key(seed), (samples, 32))
        log_w[3, ::2] = -math.inf if spec.split(":")[0] in ("iwae", "dreg", "ovis", "vimco") else -3500
        (single, bound), (exact, known) = map(parse(spec).parts.weigh, (log_w, log_w.double()))
        for a, b in zip(single, exact, strict=True):
            assert ((a.double() - b).abs().amax(0) <= 1e-5 * b.abs().amax(0)).all()
        assert (bound.double() - known).abs().max() < 5e-4  # half a unit in the last place is 1.2e-4


@pytest.mark.parametrize("spec", ["elbo", "beta_elbo:4"])
def test_the_float32_bound_with_an_analytic_kl_is_accurate_for_many_samples(spec):
    model = fv.vae(
        encoder=lambda: nn.Linear(1, 2),
        decoder=lambda: nn.Linear(1, 1),
        likelihood=fv.heads.normal_fixed(0.01),
        latent=1,
    )
    params, state = model.init(fv.random.key(0))
    x, eps = torch.tensor([[0.7], [1.1]]), fv.noise.iid(fv.random.key(1), 5000, (2, 1))
    single = parse(spec)(model, params, state, x, eps, train=False).bound
    exact = parse(spec)(model, *fv.tree.map(torch.Tensor.double, (params, state, x, eps)), train=False).bound
    assert exact.min() < -3500
    torch.testing.assert_close(single.double(), exact, rtol=2e-7, atol=0)


@every_continuous
def test_log_weights_ten_thousand_nats_apart_give_finite_numbers(spec):
    model = fv.vae(
        encoder=lambda: nn.Linear(1, 2),
        decoder=lambda: nn.Linear(1, 1),
        likelihood=fv.heads.normal_fixed(1e-3),
        latent=1,
    )
    params, state = model.init(fv.random.key(0))
    eps = fv.noise.iid(fv.random.key(1), 8, (3, 1))
    out = parse(spec)(model, params, state, torch.tensor([[0.0], [1.0], [-1.0]]), eps, train=False)
    assert (out.log_w.max(0).values - out.log_w.min(0).values).min() > 1e4
    assert all(bool(leaf.isfinite().all()) for leaf in [*tree.leaves(out.grads), out.bound, out.log_w])
