"""The engine of the estimators: users' weights, reported bounds, the cost of a call, and errors."""

from functools import partial

import pytest
import torch
from torch import nn

import funcvae as fv
from funcvae import tree
from funcvae.errors import BadType, BadValue
from funcvae.estimators import parse
from tests.support.oracles import assert_close, double, noise, quadrature, tiny, toy
from tests.support.specs import WEIGHTED, X, every_continuous, of_samples

every_weighted = pytest.mark.parametrize("spec", WEIGHTED)


def weighted(weights, bound=fv.bounds.iwae, **kwargs):
    """An estimator with a user's weights."""
    return fv.estimators.weighted(weights, bound=bound, claims=fv.Claims("L_K", False, False, ()), **kwargs)


TARGETS = {  # the values of `bound`, in logarithms and exponentials, by the target or the name of an estimator
    "ELBO": lambda f: f.mean(0),
    "L_K": lambda f: f.exp().mean(0).log(),
    "Rényi(0.5)": lambda f: 2 * (0.5 * f).exp().mean(0).log(),
    "mean of 2 bounds L_(K/2)": lambda f: (f[:2].exp().mean(0).log() + f[2:].exp().mean(0).log()) / 2,
    "0.5 ELBO + 0.5 L_K": lambda f: 0.5 * f.mean(0) + 0.5 * f.exp().mean(0).log(),
    "tvo:0:0.5:1": lambda f: 0.5 * f.mean(0) + 0.5 * ((0.5 * f).exp() * f).sum(0) / (0.5 * f).exp().sum(0),
    "tvo:0:1": lambda f: f.mean(0),
}


# Users' weights.


def test_dreg_weights_of_a_user_equal_dreg():
    def mine(log_w):
        v = log_w.softmax(0)
        return fv.Weights(path=v**2, score=torch.zeros_like(v), theta=v)

    estimator = weighted(mine)
    assert estimator.name == "mine"
    model, params, state, x = tiny()
    eps = noise(4, 2, 2)
    out, dreg = (e(model, params, state, x, eps, train=False) for e in (estimator, parse("dreg")))
    assert_close(out.grads, dreg.grads, atol=0)


def test_score_weights_of_a_user_have_the_mean_of_elbo_mc():
    def score(log_w):
        return fv.Weights(torch.zeros_like(log_w), log_w / len(log_w), torch.full_like(log_w, 1 / len(log_w)))

    mean, _ = quadrature(weighted(score, fv.bounds.elbo), *toy(), X, 2, 20)
    assert_close(mean, quadrature(parse("elbo_mc"), *toy(), X, 2, 20)[0], atol=1e-8)


# Bounds.


@every_continuous
def test_reported_bound_equals_its_formula(spec):
    model, params, state, x = tiny()
    eps = noise(4, 2, 2)
    estimator = parse(spec)
    out = estimator(model, params, state, x, eps, train=False)
    torch.testing.assert_close(estimator.bound(model, params, state, x, eps), out.bound, rtol=0, atol=1e-14)
    if spec in WEIGHTED:
        target = TARGETS.get(spec) or TARGETS[estimator.claims.target]
        torch.testing.assert_close(out.bound, target(out.log_w), rtol=0, atol=1e-12)


# Cost.


class Counted(torch.autograd.Function):
    """The identity; counts its backward passes."""

    generate_vmap_rule = True
    backwards = 0

    @staticmethod
    def forward(z):
        return z.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, g):
        Counted.backwards += 1
        return g


class CountingDecoder(nn.Linear):
    forwards = 0

    def forward(self, z):
        CountingDecoder.forwards += 1
        return Counted.apply(super().forward(z))


@pytest.mark.parametrize(("spec", "samples"), of_samples(1, 4, specs=[*WEIGHTED, "elbo", "beta_elbo:4"]))
def test_a_call_runs_the_decoder_once_and_its_backward_pass_once_or_twice_for_piwae(spec, samples):
    model = fv.vae(encoder=lambda: nn.Linear(2, 4), decoder=lambda: CountingDecoder(2, 2), latent=2)
    params, state = model.init(fv.random.key(0))
    x, eps = torch.tensor([[0.0, 1.0], [1.0, 1.0]], dtype=torch.float64), noise(samples, 2, 2)
    model.decode(double(params), state, eps)  # the first call tries the network
    CountingDecoder.forwards = Counted.backwards = 0
    parse(spec)(model, double(params), state, x, eps, train=True)
    assert (CountingDecoder.forwards, Counted.backwards) == (1, 2 if spec == "piwae:2" else 1)


# Errors.


@pytest.mark.parametrize("shape", [(2, 2), (4, 3, 2), (4, 2, 3), (0, 2, 2), (1, 4, 2, 2)])
@every_continuous
def test_noise_of_a_wrong_shape_is_an_error(spec, shape):
    model, params, state, x = tiny()
    for call in (lambda *a: parse(spec)(*a, train=False), parse(spec).bound):
        with pytest.raises(BadValue, match=r"eps has shape .* it must be \[N, 2, 2\], with N >= 1"):
            call(model, params, state, x, torch.zeros(shape, dtype=torch.float64))


@every_continuous
def test_a_posterior_of_another_width_than_latent_is_an_error(spec):
    model = fv.vae(
        encoder=lambda: nn.Linear(2, 2), decoder=lambda: nn.Linear(2, 2), latent=2
    )  # one mu, one log-variance
    params, state = model.init(fv.random.key(0))
    with pytest.raises(BadValue, match="latent"):
        parse(spec)(model, params, state, torch.zeros(3, 2), torch.zeros(1, 3, 2), train=False)


def autoencoder():
    return tiny(encoder=lambda: nn.Linear(2, 2), posterior=fv.heads.delta, likelihood=fv.heads.normal_fixed(0.5**0.5))


@every_weighted
def test_weighted_estimators_need_a_posterior_with_a_density(spec):
    model, params, state, x = autoencoder()
    with pytest.raises(BadType, match=r"Delta posterior has no density.*such as elbo"):
        parse(spec)(model, params, state, x, noise(2, 2, 2), train=False)


@pytest.mark.parametrize("spec", ["rloo", "vimco", "ovis:0.5"])
def test_estimators_that_compare_the_samples_need_at_least_two(spec):
    model, params, state, x = tiny()
    with pytest.raises(BadValue, match=rf"{spec.split(':')[0]} compares the samples"):
        parse(spec)(model, params, state, x, noise(1, 2, 2), train=False)


@pytest.mark.parametrize("spec", ["miwae:3", "piwae:3"])
def test_groups_that_do_not_divide_the_samples_are_an_error(spec):
    model, params, state, x = tiny()
    with pytest.raises(BadValue, match="4 samples cannot be divided into 3 equal groups"):
        parse(spec)(model, params, state, x, noise(4, 2, 2), train=False)
    with pytest.raises(BadValue, match="4 samples cannot be divided into 3 equal groups"):
        fv.bounds.miwae(3)(torch.zeros(4, 2))


def test_weights_of_a_wrong_shape_are_an_error():
    model, params, state, x = tiny()
    wrong = weighted(lambda f: fv.Weights(f, f, f.sum(0)), name="wrong")
    with pytest.raises(BadValue, match=r"the weights have shapes .*each must be \[4, 2\]"):
        wrong(model, params, state, x, noise(4, 2, 2), train=False)


def test_weights_with_zero_theta_and_nonzero_path_need_two_pulls():
    def encoder_only(log_w):
        mean = torch.full_like(log_w, 1 / len(log_w))
        return fv.Weights(path=mean, score=-mean, theta=torch.zeros_like(mean))

    model, params, state, x = tiny()
    eps = noise(4, 2, 2)
    whole = parse("elbo_mc")(model, params, state, x, eps, train=False)
    one, two = (weighted(encoder_only, two_pulls=t)(model, params, state, x, eps, train=False) for t in (False, True))
    assert_close(two.grads["encoder"], whole.grads["encoder"], atol=1e-14)
    assert not torch.allclose(one.grads["encoder"]["0.weight"], whole.grads["encoder"]["0.weight"])
    assert all(bool((leaf == 0).all()) for leaf in tree.leaves(two.grads["decoder"]))


def test_noise_of_another_dtype_than_the_parameters_is_an_error():
    model, params, state, x = tiny()
    with pytest.raises(BadValue, match=r"eps is torch\.float32 and the parameters are torch\.float64"):
        parse("iwae")(model, params, state, x, noise(4, 2, 2).float(), train=False)


def test_a_bound_without_one_number_for_each_datum_is_an_error():
    model, params, state, x = tiny()
    wrong = weighted(parse("iwae").weights, bound=lambda f: f.mean())
    for call in (partial(wrong, train=False), wrong.bound):
        with pytest.raises(BadValue, match=r"the bound has shape \[\]: it must be \[B\], here \[2\]"):
            call(model, params, state, x, noise(4, 2, 2))
