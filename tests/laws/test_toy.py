"""The linear-Gaussian toy of Rainforth et al. (2018) at its published size, D = 20, and how gradients scale with K."""

import math

import numpy as np
import pytest
import torch

import funcvae as fv
from tests.support.oracles import elbo, iwae_asymptote, log_evidence, toy

D = 20


def near_the_optimum(m_key: fv.random.Key, x: torch.Tensor):
    """The toy with m at the exact posterior's mean, x/2, plus a perturbation of standard deviation 0.01."""
    model, params, state = toy(latent=D)
    params["encoder"]["m"] = x / 2 + 0.01 * fv.random.normal(m_key, (D,), torch.float64)
    return model, params, state


def gradients(estimator, model, params, state, x, key, samples, replicates):
    """Gradients in m and in the prior's mean, [R, D] each, with independent noise."""

    def one(key):
        eps = fv.noise.iid(key, samples, (len(x), D), dtype=torch.float64)
        grads = estimator(model, params, state, x, eps, train=False).grads
        return grads["encoder"]["m"], grads["prior"]["mu"]

    with torch.no_grad():
        return torch.vmap(one, chunk_size=10)(fv.random.split(key, replicates))


@pytest.mark.parametrize(
    ("points", "replicates", "ks", "tolerance"),
    [(16, 100, (30, 100, 300), 0.06), pytest.param(64, 200, (30, 100, 300, 1000), 0.03, marks=pytest.mark.slow)],
)
def test_gradients_scale_with_k_as_published(points, replicates, ks, tolerance):
    x_key, m_key, noise_key = fv.random.split(fv.random.key(3), 3)
    x = fv.random.normal(x_key, (D,), torch.float64)
    args = (*near_the_optimum(m_key, x), x.expand(points, D), noise_key)

    def rms(t):
        return t.square().mean().sqrt().item()

    rows = []
    for k in ks:
        dreg_m, _ = gradients(fv.estimators.dreg(), *args, k, replicates)
        iwae_m, iwae_mu = gradients(fv.estimators.iwae(), *args, k, replicates)
        mean = rms(dreg_m.mean(0))  # the mean of both; an empirical mean of iwae's gradient would be mostly noise
        rows.append([mean / rms(iwae_m.std(0)), mean / rms(dreg_m.std(0)), rms(iwae_mu.std(0))])
    slopes = np.polyfit(np.log(ks), np.log(rows), 1)[0]
    assert slopes == pytest.approx([-0.5, 0.5, -0.5], abs=tolerance)


def test_the_signal_to_noise_ratio_of_vimco_star_rises_with_k_and_those_of_vimco_and_vimco_am_fall():
    x_key, m_key, noise_key = fv.random.split(fv.random.key(3), 3)
    x = fv.random.normal(x_key, (D,), torch.float64)
    args = (*near_the_optimum(m_key, x), x.expand(4, D), noise_key)
    ks, rows = [30, 100, 300], []
    for k in ks:
        signal = gradients(fv.estimators.dreg(), *args, k, 100)[0].mean(0).norm()  # the mean of all
        stds = [
            gradients(factory(), *args, k, 100)[0].std(0).norm()
            for factory in (fv.estimators.vimco_star, fv.estimators.vimco, fv.estimators.vimco_am)
        ]
        rows.append([float(signal / std) for std in stds])
    slopes = np.polyfit(np.log(ks), np.log(rows), 1)[0]
    assert slopes == pytest.approx([0.5, -0.5, -0.5], abs=0.12)


def test_the_gap_at_twenty_dimensions_equals_the_published_value():
    x = 1.0
    assert D * (log_evidence(x) - elbo(x / 2, 2 / 3, x)) == pytest.approx(0.456513, abs=5e-7)
    assert iwae_asymptote(D) == pytest.approx(0.9067, abs=5e-5)
    assert D * (log_evidence(x) - elbo(x / 2, (2 / 3) ** 2, x)) != pytest.approx(
        0.456513, rel=0.1
    )  # the mistake of s for s²


def test_the_estimated_elbo_has_the_published_gap():
    x = torch.ones(1, D, dtype=torch.float64)
    model, params, state = toy(m=0.5, latent=D)
    eps = fv.noise.iid(fv.random.key(1), 20_000, (1, D), dtype=torch.float64)
    log_w = fv.estimators.elbo_mc()(model, params, state, x, eps, train=False).log_w[:, 0]
    gap = D * log_evidence(1.0) - log_w
    assert abs(gap.mean() - 0.456513) < 4 * gap.std() / math.sqrt(len(gap))
    assert gap.var().item() == pytest.approx(D * 2 * (1 / 2 - 2 / 3) ** 2, rel=0.05)  # Var log w, delta = 0


def test_with_mirrored_pairs_elbo_mc_has_no_variance_in_the_mean():
    model, params, state = toy()
    x = torch.ones(1, 1, dtype=torch.float64)
    grads = []
    for seed in range(5):
        eps = fv.noise.iid(fv.random.key(seed), 1, (1, 1), dtype=torch.float64)
        out = fv.estimators.elbo_mc()(model, params, state, x, torch.cat([eps, -eps]), train=False)
        grads.append(out.grads["encoder"]["m"].item())
    assert grads == pytest.approx([grads[0]] * 5, abs=1e-12)
    assert grads[0] == pytest.approx(2 * (0.8 - 0.5), abs=1e-12)
