"""Probabilistic PCA against `torch.distributions`, numerical optimisation and the linear VAE."""

import math

import pytest
import torch
from torch.func import grad

import funcvae as fv
from funcvae import tree
from funcvae.errors import BadData, BadValue
from funcvae.evaluate import PPCA, ppca
from funcvae.evaluate.linear_gaussian import eigenvalues
from tests.support.oracles import double


def data(n=400, features=6):
    """Points [n, features] with three strong directions."""
    keys = fv.random.split(fv.random.key(0), 3)
    scale = torch.tensor([3.0, 2.0, 1.5, 0.5, 0.4, 0.3], dtype=torch.float64)[:features]
    basis, _ = torch.linalg.qr(fv.random.normal(keys[0], (features, features), torch.float64))
    x = fv.random.normal(keys[1], (n, features), torch.float64) * scale
    return x @ basis.T + fv.random.normal(keys[2], (features,), torch.float64)


def some(features=6, latent=2):
    keys = fv.random.split(fv.random.key(5), 2)
    weight = fv.random.normal(keys[0], (features, latent), torch.float64)
    return PPCA(weight, fv.random.normal(keys[1], (features,), torch.float64), torch.tensor(0.7).double())


@pytest.mark.parametrize("latent", [1, 2, 6])
def test_log_likelihood_is_that_of_the_marginal_normal(latent):
    model, x = some(latent=latent), data()
    covariance = model.weight @ model.weight.T + model.sigma2 * torch.eye(6).double()
    known = torch.distributions.MultivariateNormal(model.mean, covariance).log_prob(x)
    torch.testing.assert_close(model.log_likelihood(x), known)


def test_posterior_is_bayes_rule():
    model, x = some(), data()
    mean, covariance = model.posterior(x)
    assert mean.shape == (400, 2)
    z = mean + 0.3
    joint = torch.distributions.Normal(z @ model.weight.T + model.mean, model.sigma2.sqrt()).log_prob(x).sum(
        1
    ) + torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    posterior = torch.distributions.MultivariateNormal(torch.zeros(2).double(), covariance).log_prob(z - mean)
    torch.testing.assert_close(joint - posterior, model.log_likelihood(x))


@pytest.mark.parametrize("sigma2", [None, 0.5, 3.0])
def test_the_optimum_has_no_gradient_and_no_better_neighbour(sigma2):
    x = data()
    best = ppca(x, 3, sigma2)
    slope = grad(lambda w, mu, log_s2: PPCA(w, mu, log_s2.exp()).log_likelihood(x).mean(), argnums=(0, 1, 2))
    for name, g in zip(("weight", "mean", "sigma2"), slope(*best[:2], best.sigma2.log()), strict=True):
        if name != "sigma2" or sigma2 is None:
            assert g.abs().max() < 1e-10, name
    top = best.log_likelihood(x).mean()
    for seed in range(5):
        off = 0.05 * fv.random.normal(fv.random.key(seed), best.weight.shape, torch.float64)
        assert PPCA(best.weight + off, best.mean, best.sigma2).log_likelihood(x).mean() < top
    unscaled = PPCA(torch.linalg.qr(best.weight)[0], best.mean, best.sigma2)  # eigenvectors without their scale
    assert unscaled.log_likelihood(x).mean() < top - 0.1


def test_columns_with_eigenvalues_below_sigma2_are_zero():
    x = data()
    values = eigenvalues(x)
    for sigma2 in (0.2, 0.5, 3.0, 20.0):
        used = (ppca(x, 6, sigma2).weight.norm(dim=0) > 0).sum()
        assert used == (values > sigma2).sum()


def test_the_learned_variance_maximises_the_likelihood():
    x = data()
    best = ppca(x, 3)
    torch.testing.assert_close(best.sigma2, eigenvalues(x)[3:].mean())
    for factor in (0.9, 1.1):
        other = ppca(x, 3, float(best.sigma2) * factor)
        assert other.log_likelihood(x).mean() < best.log_likelihood(x).mean()


def flat():
    """Points of a plane in eight dimensions."""
    keys = fv.random.split(fv.random.key(1), 2)
    return fv.random.normal(keys[0], (50, 2), torch.float64) @ fv.random.normal(keys[1], (2, 8), torch.float64)


def linear_vae_at(best, learned):
    """The linear VAE with its decoder at a PPCA and its encoder at the exact posterior."""
    features, latent = best.weight.shape
    model = fv.models.linear_vae(features, latent, sigma2=None if learned else float(best.sigma2))
    params, state = model.init(fv.random.key(0))
    params = double(params)
    _, covariance = best.posterior(best.mean.unsqueeze(0))
    v = torch.linalg.inv(best.weight.T @ best.weight + best.sigma2 * torch.eye(latent).double()) @ best.weight.T
    params["encoder"] |= {"mu.weight": v, "mu.bias": -v @ best.mean, "log_sigma": covariance.diagonal().log() / 2}
    weight, bias = ("mean.weight", "mean.bias") if learned else ("weight", "bias")
    params["decoder"] |= {weight: best.weight, bias: best.mean}
    if learned:
        params["decoder"]["log_sigma"] = best.sigma2.log() / 2
    return model, params, state


@pytest.mark.parametrize("learned", [True, False])
def test_the_linear_vae_at_the_optimum_has_the_exact_posterior_and_no_gradient(learned):
    x = data()
    best = ppca(x, 3, None if learned else 0.5)
    model, params, state = linear_vae_at(best, learned)
    eps = fv.noise.iid(fv.random.key(1), 2, (len(x), 3), dtype=torch.float64)
    out = fv.estimators.stl()(model, params, state, x, eps, train=False)
    torch.testing.assert_close(out.log_w, best.log_likelihood(x).expand_as(out.log_w))  # for every eps
    assert max(g.abs().max() for g in out.grads["encoder"].values()) < 1e-12

    value = fv.evaluate.log_likelihood(model, params, state, x, fv.random.key(2), samples=30, chunk=10)
    torch.testing.assert_close(value.log_p.value, best.log_likelihood(x), rtol=0, atol=1e-10)


def test_the_gap_of_the_linear_vaes_elbo_is_the_posteriors_correlation():
    x, rotation = data(), torch.linalg.qr(fv.random.normal(fv.random.key(3), (3, 3), torch.float64))[0]
    best = ppca(x, 3)
    turned = best._replace(weight=best.weight @ rotation)
    torch.testing.assert_close(turned.log_likelihood(x), best.log_likelihood(x))
    model, params, state = linear_vae_at(turned, learned=True)
    _, covariance = turned.posterior(x)
    params["encoder"]["log_sigma"] = -torch.linalg.inv(covariance).diagonal().log() / 2  # the best factorised one
    gap = 0.5 * (torch.linalg.inv(covariance).diagonal().log().sum() + torch.logdet(covariance))
    assert gap > 0.01
    log_w = fv.evaluate.log_weights(model, params, state, x, fv.random.key(0), samples=2000, chunk=500)
    elbo = fv.evaluate.Estimated(log_w.mean(0), log_w.std(0) / math.sqrt(2000))
    assert abs(elbo.mean - float(best.log_likelihood(x).mean() - gap)) < 4 * elbo.mean_se


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ppca(data(), 0), BadValue, "latent is 0: it must be at least 1"),
        (lambda: ppca(data(), 6), BadValue, "latent is 6: .* between 1 and 5"),
        (lambda: ppca(data(), 7, 1.0), BadValue, "between 1 and 6"),
        (lambda: ppca(data(), 2, 0.0), BadValue, "sigma2 is 0.0: it must be positive"),
        (lambda: ppca(torch.zeros(5), 1), BadData, r"x is a torch.float32 tensor \[5\]"),
        (lambda: ppca(torch.ones(5, 3, dtype=torch.int64), 1), BadData, "must be torch.float32 or torch.float64"),
        (lambda: ppca(flat(), 2), BadValue, "the data lie in a plane of 2 dimensions"),
        (lambda: ppca(flat().float(), 2), BadValue, "the data lie in a plane of 2 dimensions"),
        (lambda: fv.models.linear_vae(5, 2, sigma2=-1.0), BadValue, "sigma2 is -1.0: it must be positive"),
        (lambda: fv.models.linear_vae(5, 2, sigma2=0.0), BadValue, "sigma2 is 0.0: it must be positive"),
        (lambda: ppca(torch.zeros(1, 3), 1), BadData, "n >= 2"),
        (lambda: ppca(torch.ones(4, 3).double(), 1), BadValue, "the data lie in a plane of 1 dimensions"),
        (lambda: ppca(torch.tensor([[0.0, 1.0], [0.0, math.nan]]), 1), BadData, "first in item 1"),
    ],
)
def test_wrong_arguments_raise_an_error_that_names_them(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_the_linear_vae_learns_its_variance_unless_sigma2_is_given():
    learned, fixed = fv.models.linear_vae(5, 2), fv.models.linear_vae(5, 2, sigma2=0.25)
    names = [sorted(tree.named_leaves(model.init(fv.random.key(0))[0])) for model in (learned, fixed)]
    assert "decoder/log_sigma" in names[0]
    assert "decoder/log_sigma" not in names[1]
    params, state = fixed.init(fv.random.key(0))
    p, _ = fixed.decode(params, state, torch.zeros(1, 3, 2))
    assert p.sigma.item() == pytest.approx(0.5)
