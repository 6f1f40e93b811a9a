"""The estimators with a closed-form KL against the differentiated formula."""

import math

import pytest
import torch
from torch import nn
from torch.func import grad

import funcvae as fv
from funcvae.distributions import kl
from funcvae.errors import BadType
from funcvae.estimators import parse
from tests.support.oracles import (
    assert_close,
    descent,
    elbo,
    gradient_variances,
    log_weights,
    noise,
    quadrature,
    quadrature_bound,
    tiny,
    toy,
)
from tests.support.specs import X


def test_the_analytic_kl_can_raise_the_variance():
    assert gradient_variances("elbo", 3.0, 0.5, 9.0)[1] > gradient_variances("elbo_mc", 3.0, 0.5, 9.0)[1]
    _, analytic = quadrature(parse("elbo"), *toy(3.0, 0.5), 9 * X, 1, 20)
    _, sampled = quadrature(parse("elbo_mc"), *toy(3.0, 0.5), 9 * X, 1, 20)
    assert analytic["encoder"]["log_s"] > sampled["encoder"]["log_s"]


def test_elbo_of_the_toy_equals_its_closed_form():
    value, _ = quadrature_bound(parse("elbo").bound, *toy(0.9, 0.7, 0.2), X, 1, 20)
    assert value == pytest.approx(elbo(0.9, 0.7, 1.0, 0.2), abs=1e-12)


@pytest.mark.parametrize("beta", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("seed", range(3))
def test_elbo_is_the_gradient_of_the_analytic_bound(seed, beta):
    model, params, state, x = tiny()
    eps = noise(3, 2, 2, seed)

    def analytic(params):
        q, p_z = model.encode(params, state, x)[0], model.prior(params, state, x)[0]
        p_x = model.decode(params, state, q.loc + q.sigma * eps)[0]
        log_p_x = (-0.5 * (x - p_x.loc) ** 2 - 0.5 * math.log(2 * math.pi)).sum(-1).mean(0)
        variance, mean = q.sigma**2 / p_z.sigma**2, (q.loc - p_z.loc) / p_z.sigma
        return log_p_x - beta * 0.5 * (variance + mean**2 - 1 - variance.log()).sum(-1)

    for estimator in [fv.estimators.beta_elbo(beta)] + [fv.estimators.elbo()] * (beta == 1):
        out = estimator(model, params, state, x, eps, train=False)
        assert_close(out.grads, descent(analytic, params), atol=1e-12)
        torch.testing.assert_close(out.bound, analytic(params), atol=1e-12, rtol=0)
        torch.testing.assert_close(out.log_w, log_weights(model, params, state, x, eps), atol=1e-12, rtol=0)


def autoencoder():
    return tiny(encoder=lambda: nn.Linear(2, 2), posterior=fv.heads.delta, likelihood=fv.heads.normal_fixed(0.5**0.5))


@pytest.mark.parametrize("spec", ["elbo", "beta_elbo:2"])
def test_with_a_delta_posterior_elbo_is_the_squared_error(spec):
    model, params, state, x = autoencoder()
    out = parse(spec)(model, params, state, x, noise(2, 2, 2), train=False)

    def squared_error(params):
        enc, dec = params["encoder"], params["decoder"]
        h = torch.tanh((x @ enc["weight"].T + enc["bias"]) @ dec["0.weight"].T + dec["0.bias"])
        return ((x - h @ dec["2.weight"].T - dec["2.bias"]) ** 2).sum(-1)

    assert_close(out.grads, grad(lambda p: squared_error(p).mean())(params), atol=1e-14)
    torch.testing.assert_close(-out.bound, squared_error(params) + math.log(math.pi))
    assert out.log_w.shape == (2, 2)


def test_without_a_closed_form_kl_the_error_of_elbo_names_another_estimator():
    prior = fv.priors.mixture(components=3, latent=2)
    model = fv.vae(encoder=lambda: nn.Linear(2, 4), decoder=lambda: nn.Linear(2, 2), prior=prior, latent=2)
    with pytest.raises(BadType, match="elbo_mc"):
        parse("elbo")(model, *model.init(fv.random.key(0)), torch.zeros(2, 2), torch.zeros(1, 2, 2), train=False)
    with pytest.raises(BadType):
        kl(fv.distributions.Bernoulli(torch.zeros(2)), fv.distributions.Normal(torch.zeros(2), torch.ones(2)))
