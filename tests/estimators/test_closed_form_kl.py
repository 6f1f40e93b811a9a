"""The estimators with a closed-form KL against the differentiated formula."""

import math

import pytest
import torch
from torch import nn
from torch.func import grad

import funcvae as fv
from funcvae.distributions import kl
from funcvae.errors import BadType, BadValue
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


# Free bits.


def with_free_bits(model, params, state, x, eps, least):
    """The objective as it is written, and the mean KL of each latent."""
    q, p_z = model.encode(params, state, x)[0], model.prior(params, state, x)[0]
    p_x = model.decode(params, state, q.loc + q.sigma * eps)[0]
    log_p_x = (-0.5 * (x - p_x.loc) ** 2 - 0.5 * math.log(2 * math.pi)).sum(-1).mean()
    mean_kl = torch.distributions.kl_divergence(
        torch.distributions.Normal(q.loc, q.sigma), torch.distributions.Normal(p_z.loc, p_z.sigma)
    ).mean(0)  # fmt: skip
    return log_p_x - mean_kl.clamp(min=least).sum(), mean_kl


def between():
    """A floor between the mean KLs of the two latents."""
    model, params, state, x = tiny()
    _, (one, two) = with_free_bits(model, params, state, x, noise(1, 2, 2), 0)
    return float(one + two) / 2


@pytest.mark.parametrize("least", [0.0, between(), torch.tensor(between()), 100.0], ids=["0", "one", "tensor", "both"])
def test_free_bits_is_the_gradient_of_the_objective_as_it_is_written(least):
    model, params, state, x = tiny()
    eps = noise(3, 2, 2)
    out = fv.estimators.free_bits(least)(model, params, state, x, eps, train=False)
    value, _ = with_free_bits(model, params, state, x, eps, float(least))
    known = grad(lambda params: -with_free_bits(model, params, state, x, eps, float(least))[0])(params)
    assert_close(out.grads, known, atol=1e-12)
    torch.testing.assert_close(out.bound.mean(), value, atol=1e-12, rtol=0)
    elbo = parse("elbo")(model, params, state, x, eps, train=False)
    if float(least) == 0:
        assert_close(out, elbo, atol=0)
    else:
        assert (out.bound.mean() - elbo.bound.mean()).abs() > 1e-3


def test_under_free_bits_each_shard_of_rows_has_a_mean_of_its_own_and_samples_share_it():
    model, params, state, x = tiny()
    _, mean_kl = with_free_bits(model, params, state, x, noise(1, 2, 2), 0)
    estimator, opt = fv.estimators.free_bits(0.99 * float(mean_kl.max())), fv.optim.sgd(1.0)
    ts = fv.train.TrainState(torch.tensor(0), fv.random.key(0), params, state, opt.init(params))
    options = {"batch": 2, "samples": 4, "shards": 2, "compile": False}
    replayed = {
        split: fv.train.replay(ts, 0, model, estimator, opt, x, split=split, **options)
        for split in (fv.distributed.by_rows, fv.distributed.by_samples)
    }
    for split, found in replayed.items():
        rows = [range(2)] if split is fv.distributed.by_samples else [[0], [1]]
        parts = [estimator(model, params, state, found.x[r], found.eps[:, r], train=True) for r in map(list, rows)]
        assert_close(found.bound, torch.cat([part.bound for part in parts]), atol=1e-12)
        assert_close(found.grads, fv.tree.map(lambda *g: sum(g) / len(g), *[part.grads for part in parts]), atol=1e-12)
    by_rows, by_samples = replayed.values()
    assert by_rows.bound.mean() < by_samples.bound.mean() - 1e-6, "a mean of maxima is at least the maximum of means"


@pytest.mark.parametrize("factory", [fv.estimators.beta_elbo, fv.estimators.free_bits])
def test_a_tensor_in_place_of_the_number_gives_the_same_estimate(factory):
    model, params, state, x = tiny()
    eps = noise(3, 2, 2)
    one, two = (factory(value)(model, params, state, x, eps, train=True) for value in (0.25, torch.tensor(0.25)))
    assert_close(one, two, atol=1e-15)
    assert factory(torch.tensor(0.25)).name == f"{factory.__name__}:scheduled"
    for wrong in (-1, math.nan, torch.ones(2), torch.tensor(-1), "a", None):
        with pytest.raises((BadType, BadValue)):
            factory(wrong)
