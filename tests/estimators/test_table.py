"""The estimators against exact expectations, against differentiated formulas, and against each other."""

import math
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import grad

import funcvae as fv
from funcvae import tree
from funcvae.distributions import Normal
from funcvae.errors import BadValue
from funcvae.estimators import parse
from tests.support.oracles import (
    S2,
    LearnedPrior,
    assert_close,
    assert_zero_mean,
    by_hand,
    descent,
    elbo,
    gradient_means,
    gradient_variances,
    iwae_asymptote,
    iwae_bound,
    log_evidence,
    log_weight_variance,
    log_weights,
    noise,
    quadrature,
    quadrature_bound,
    tiny,
    toy,
    under_mirrored_noise,
)
from tests.support.specs import CONTINUOUS, WEIGHTED, X, every_continuous, of_samples, slow_but


def weighted(weights, bound=fv.bounds.iwae):
    """An estimator with a user's weights."""
    return fv.estimators.weighted(weights, bound=bound, claims=fv.Claims("L_K", False, False, ()))


def iwae_stl(log_w):
    v = log_w.softmax(0)
    return fv.Weights(path=v, score=torch.zeros_like(v), theta=v)


def dreg_for_the_decoder_too(log_w):
    v = log_w.softmax(0)
    return fv.Weights(path=v**2, score=torch.zeros_like(v), theta=v**2)


def iwae_of_the_loss(log_w):
    v = (-log_w).softmax(0)
    return fv.Weights(path=v, score=-v, theta=v)


# Exact expectations: the linear-Gaussian toy.


NODES = {1: 20, 2: 60, 3: 40}
E_L_K = {2: -1.5612248802, 3: -1.5439299776}
IN_M = {  # ascent: mean and variance at K = 2, mean and variance at K = 3
    "iwae": (-0.2555486157, 1.24208, -0.1586666221, 0.776755),
    "dreg": (-0.2555486157, 0.0268977, -0.1586666221, 0.00780531),
    "vimco": (-0.2555486157, 1.02237, -0.1586666221, 0.532283),
    "ovis:0": (-0.2555486157, 0.309712, -0.1586666221, 0.0423574),
    "ovis:1": (-0.5138871539, 0.654411, -0.4896666555, 0.243392),
    "iwae_stl": (-0.5138871539, 0.0776298, -0.4896666555, 0.0485472),
    "rws": (-0.2583385382, 0.698669, -0.3310000334, 0.436924),
    "renyi:0.5": (-0.4089699667, 1.21955, -0.3543288071, 0.782218),
    "vr_iwae_dreg:0.5": (-0.4089699667, 0.0442024, -0.3543288071, 0.0222009),
    "elbo_mc": (-0.6, 1.33333, -0.6, 0.888889),
    "rloo": (-0.6, 0.97, -0.6, 0.512778),
}


@cache
def toy_moments(spec, samples):
    return quadrature(parse(spec), *toy(), X, samples, NODES[samples])


@pytest.mark.parametrize("samples", [2, 3])
@pytest.mark.parametrize("spec", IN_M)
def test_mean_and_variance_on_the_toy_equal_the_known_values(spec, samples):
    mean, variance = (moment["encoder"]["m"].item() for moment in toy_moments(spec, samples))
    table_mean, table_variance = IN_M[spec][2 * samples - 4 :][:2]
    assert -mean == pytest.approx(table_mean, abs=1e-9)
    assert variance == pytest.approx(table_variance, rel=1e-5)  # all digits of the table


def softmax(f):
    w = np.exp(f - f.max(0))
    return w / w.sum(0)


def others(f, k):
    return np.delete(f, k, axis=0)


def l_k(f):
    return np.log(np.exp(f).mean(0))


def vimco_by_hand(f):
    rows = []
    for k in range(len(f)):
        replaced = f.copy()
        replaced[k] = others(f, k).mean(0)
        rows.append(l_k(f) - l_k(replaced) - softmax(f)[k])
    return 0 * f, np.stack(rows), softmax(f)


def vimco_with(replacement):
    """VIMCO with a function of the other weights as the replacement of w_k."""

    def weights(f):
        rows = []
        for k in range(len(f)):
            total = np.exp(others(f, k)).sum(0) + replacement(np.exp(others(f, k)))
            rows.append(l_k(f) - np.log(total / len(f)) - softmax(f)[k])
        return 0 * f, np.stack(rows), softmax(f)

    return weights


def ovis_by_hand(gamma):
    def weights(f):
        v, k = softmax(f), len(f)
        c = l_k(f) - np.log((1 - 1 / k) / (1 - v)) - gamma * v + (1 - gamma) * np.log(1 - 1 / k)
        return 0 * f, l_k(f) - v - c, v

    return weights


def grouped(f, m):
    return np.concatenate([softmax(group) for group in np.split(f, m)]) / m


def tvo_by_hand(*betas):
    def weights(f):
        score, theta = 0 * f, 0 * f
        for beta, after in pairwise(betas):
            w = softmax(beta * f)
            mean = (w * f).sum(0)
            score += (after - beta) * w * ((1 - beta) * (f - mean) - 1)
            theta += (after - beta) * w * (1 + beta * (f - mean))
        return 0 * f, score, theta

    return weights


def renyi_weights(f):
    return softmax(0.5 * f)


BY_HAND = {  # the table of weights in numpy: log-weights [K, G] to (path, score, theta)
    "elbo_mc": lambda f: (0 * f + 1 / len(f), 0 * f - 1 / len(f), 0 * f + 1 / len(f)),
    "stl": lambda f: (0 * f + 1 / len(f), 0 * f, 0 * f + 1 / len(f)),
    "iwae": lambda f: (softmax(f), -softmax(f), softmax(f)),
    "iwae_stl": lambda f: (softmax(f), 0 * f, softmax(f)),
    "dreg": lambda f: (softmax(f) ** 2, 0 * f, softmax(f)),
    "renyi:0.5": lambda f: (renyi_weights(f), -renyi_weights(f), renyi_weights(f)),
    "vr_iwae_dreg:0.5": lambda f: (0.5 * renyi_weights(f) + 0.5 * renyi_weights(f) ** 2, 0 * f, renyi_weights(f)),
    "score": lambda f: (0 * f, f / len(f), 0 * f + 1 / len(f)),
    "rloo": lambda f: (
        0 * f,
        np.stack([f[k] - others(f, k).mean(0) for k in range(len(f))]) / len(f),
        0 * f + 1 / len(f),
    ),
    "vimco": vimco_by_hand,
    "vimco_am": vimco_with(lambda w: w.mean(0)),
    "vimco_star": vimco_with(lambda w: 0),
    "ovis:0": ovis_by_hand(0.0),
    "ovis:1": ovis_by_hand(1.0),
    "rws": lambda f: (0 * f, softmax(f), softmax(f)),
    "rws_dreg": lambda f: (softmax(f) - softmax(f) ** 2, 0 * f, softmax(f)),
    "miwae:2": lambda f: (grouped(f, 2), -grouped(f, 2), grouped(f, 2)),
    "ciwae:0.5": lambda f: (
        0.5 / len(f) + 0.5 * softmax(f),
        -0.5 / len(f) - 0.5 * softmax(f),
        0.5 / len(f) + 0.5 * softmax(f),
    ),
    "piwae:2": lambda f: (grouped(f, 2), -grouped(f, 2), softmax(f)),
    "tvo:0:0.5:1": tvo_by_hand(0, 0.5, 1),
    "tvo:0:1": tvo_by_hand(0, 1),
}


@pytest.mark.parametrize(("spec", "samples"), [pair for pair in of_samples(2, 3, 4) if pair[0] in BY_HAND])
def test_mean_and_variance_on_the_toy_equal_those_of_the_numpy_weights(spec, samples):
    nodes = {2: 40, 3: 30, 4: 14}[samples]  # the same grid on both sides
    known = by_hand(BY_HAND[spec], samples, 0.8, S2, 1.0, 0.2, nodes=nodes)
    mean, variance = quadrature(parse(spec), *toy(0.8, S2, 0.2), X, samples, nodes)
    for part, name in (("encoder", "m"), ("encoder", "log_s"), ("prior", "mu")):
        assert -mean[part][name].item() == pytest.approx(known[name][0], abs=1e-8)
        assert variance[part][name].item() == pytest.approx(known[name][1], abs=1e-8)


def test_the_numpy_weights_cover_every_estimator():
    assert set(WEIGHTED) == set(BY_HAND)


@pytest.mark.parametrize("samples", [2, 3])
def test_expected_bound_on_the_toy_equals_the_known_value(samples):
    assert iwae_bound(samples, 0.8, S2, 1.0, nodes=NODES[samples]) == pytest.approx(E_L_K[samples], abs=1e-9)
    value, _ = quadrature_bound(fv.estimators.iwae().bound, *toy(), X, samples, NODES[samples])
    assert value == pytest.approx(E_L_K[samples], abs=1e-9)


@pytest.mark.parametrize("samples", [1, 2, 3])
def test_stl_has_the_mean_of_elbo_mc(samples):
    assert_close(toy_moments("stl", samples)[0], toy_moments("elbo_mc", samples)[0], atol=1e-8)


def test_stl_equals_dreg_at_one_sample():
    for stl, dreg in zip(toy_moments("stl", 1), toy_moments("dreg", 1), strict=True):
        assert_close(stl, dreg, atol=1e-12)


@pytest.mark.parametrize("s2", [0.3, 0.5, S2, 1.2])
@pytest.mark.parametrize("delta", [0.0, -0.4, 0.3])
@pytest.mark.parametrize("spec", ["elbo_mc", "elbo", "stl"])
def test_mean_and_variance_of_one_sample_equal_the_closed_forms(spec, delta, s2):
    x, mu = 1.0, 0.2
    m = (x + mu) / 2 + delta
    mean, variance = quadrature(parse(spec), *toy(m, s2, mu), X, 1, 20)
    for name, known_mean, known_variance in zip(
        ("m", "log_s"), gradient_means(m, s2, x, mu), gradient_variances(spec, m, s2, x, mu), strict=True
    ):
        assert -mean["encoder"][name].item() == pytest.approx(known_mean, abs=1e-8)
        assert variance["encoder"][name].item() == pytest.approx(known_variance, abs=1e-8)


def test_stl_gradient_is_zero_for_every_eps_at_the_posterior():
    model, params, state = toy(m=0.5, s2=0.5)
    for seed in range(5):
        out = parse("stl")(model, params, state, X, noise(3, 1, 1, seed), train=False)
        plain = parse("elbo_mc")(model, params, state, X, noise(3, 1, 1, seed), train=False)
        for name in ("m", "log_s"):
            assert abs(out.grads["encoder"][name].item()) < 1e-14
            assert abs(plain.grads["encoder"][name].item()) > 1e-3


def test_log_weight_variance_of_the_toy_equals_its_closed_form():
    eps = noise(100_000, 1, 1)
    log_w = parse("iwae")(*toy(0.9, 0.7, 0.2), X, eps, train=False).log_w.flatten()
    assert_zero_mean((log_w - log_w.mean()) ** 2 - log_weight_variance(0.9, 0.7, 1.0, 0.2))


def test_the_bound_grows_with_k_at_the_rate_of_the_asymptote():
    values = [iwae_bound(k, 0.5, S2, 1.0, nodes=30) for k in (1, 2, 3, 4)]
    assert values == sorted(values)
    assert values[0] == pytest.approx(elbo(0.5, S2, 1.0), abs=1e-10)
    for k, value in enumerate(values, start=1):
        assert 2 * k * (log_evidence(1.0) - value) == pytest.approx(iwae_asymptote(), rel=0.6 / k)


# Claims.


def assert_claims(claims, mean, ascent, least):
    """Asserts that the mean is minus the ascent direction in unbiased parts only, and off by `least` in the others."""
    for parts, unbiased in ((("encoder",), claims.unbiased_encoder), (("decoder", "prior"), claims.unbiased_decoder)):
        off = [
            (grads[name] + ascent[part][name]).abs().max().item()
            for part in parts
            for grads in [mean[part]]
            for name in grads
        ]
        assert (max(off) < 1e-8) == unbiased, off
        assert unbiased or max(off) > least, off


@pytest.mark.parametrize(("spec", "samples"), [pair for pair in of_samples(1, 2, 3) if pair != ("iwae_stl", 1)])
def test_claims_hold_on_the_toy(spec, samples):
    estimator = parse(spec)
    _, ascent = quadrature_bound(estimator.bound, *toy(), X, samples, NODES[samples])
    assert_claims(estimator.claims, toy_moments(spec, samples)[0], ascent, least=0.01)


@pytest.mark.parametrize(
    "spec", slow_but(("elbo", "iwae", "dreg", "vimco", "rws", "piwae:2", "quadratic_cv:1"), CONTINUOUS)
)
def test_claims_hold_on_a_nonlinear_model(spec):
    mean, _ = quadrature(parse(spec), *tiny(), 2, 18)
    _, ascent = quadrature_bound(parse(spec).bound, *tiny(), 2, 18)
    assert max(g.abs().max() for part in mean.values() for g in part.values()) > 1e-3
    assert_claims(parse(spec).claims, mean, ascent, least=1e-4)


@pytest.mark.parametrize("spec", ["miwae:2", "piwae:2"])
def test_claims_hold_for_two_groups_of_two_samples(spec):
    mean, _ = quadrature(parse(spec), *toy(), X, 4, 20)
    _, ascent = quadrature_bound(fv.estimators.miwae(2).bound, *toy(), X, 4, 20)
    # The encoder's target is the mean of two L_2 for both.
    assert_close(mean["encoder"], tree.map(torch.neg, ascent["encoder"]), atol=1e-8)
    _, of_all = quadrature_bound(fv.estimators.iwae().bound, *toy(), X, 4, 20)
    known = ascent if spec == "miwae:2" else of_all
    assert_close(mean["prior"], tree.map(torch.neg, known["prior"]), atol=1e-8)
    assert abs(of_all["prior"]["mu"] - ascent["prior"]["mu"]) > 0.01


@pytest.mark.parametrize(
    ("spec", "samples"),
    [(s, n) for s, n in of_samples(1, 2, 3) if parse(s).claims.target in ("ELBO", "L_K", "ELBO with 4 KL")],
)
def test_prior_gradient_equals_the_finite_difference_of_the_target(spec, samples):
    m, mu, h = 0.8, 0.0, 1e-4
    if parse(spec).claims.target == "L_K":
        up, down = (iwae_bound(samples, m, S2, 1.0, mu + step, nodes=40) for step in (h, -h))
        known = (up - down) / (2 * h)
    else:
        known = (4 if spec == "beta_elbo:4" else 1) * (m - mu)
    mean, _ = toy_moments(spec, samples)
    assert -mean["prior"]["mu"].item() == pytest.approx(known, abs=1e-7)


def test_the_encoder_gradient_of_rws_approaches_that_of_the_inclusive_kl_with_many_samples():
    _, eps = toy(), noise(200_000, 1, 1)
    out = parse("rws")(*toy(), X, eps, train=False)
    posterior_mean, m = 0.5, 0.8
    # d/dm E_p(z|x)[log N(z; m, s²)] = (E[z] - m)/s²
    assert -out.grads["encoder"]["m"].item() == pytest.approx((posterior_mean - m) / S2, abs=0.01)


def test_tvo_approaches_its_target_with_many_samples():
    betas = (0.0, 0.3, 0.6, 1.0)
    eps = noise(400_000, 1, 1)
    out = fv.estimators.tvo(betas)(*toy(), X, eps, train=False)

    # E_β[log w] of the toy in closed form, for π_β = N(μ_β, 1/λ_β) ∝ p(x, z)^β q(z)^(1-β), differentiated in m and mu.
    def target(m, mu):
        total = 0.0
        for beta, after in pairwise(betas):
            precision = 2 * beta + (1 - beta) / S2
            mean, variance = (beta * (1.0 + mu) + (1 - beta) * m / S2) / precision, 1 / precision
            squares = ((1 - mean) ** 2 + variance, (mean - mu) ** 2 + variance, (mean - m) ** 2 + variance)
            log_w = -0.5 * squares[0] - 0.5 * squares[1] + 0.5 * squares[2] / S2
            total += (after - beta) * (log_w + 0.5 * math.log(S2) - 0.5 * math.log(2 * math.pi))
        return total

    m, mu = torch.tensor(0.8, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
    in_m, in_mu = grad(target, argnums=(0, 1))(m, mu)
    assert out.bound.item() == pytest.approx(target(m, mu).item(), abs=0.005)
    assert -out.grads["encoder"]["m"].item() == pytest.approx(in_m.item(), abs=0.02)
    assert -out.grads["prior"]["mu"].item() == pytest.approx(in_mu.item(), abs=0.02)


# Noise schemes.


@every_continuous
def test_under_mirrored_noise_the_claims_hold_or_are_an_error(spec):
    estimator = parse(spec)
    call, bound = under_mirrored_noise(estimator)
    mean, _ = quadrature(call, *toy(), X, 1, 60)
    _, ascent = quadrature_bound(bound, *toy(), X, 1, 60)
    if estimator.claims.noise == "independent":
        with pytest.raises(BadValue, match=rf"{estimator.name} requires independent samples; mirrored noise"):
            estimator.claims_under(fv.noise.mirrored)
        assert abs(mean["encoder"]["m"] + ascent["encoder"]["m"]) > 0.01  # so the error is correct
        return
    assert_claims(estimator.claims_under(fv.noise.mirrored), mean, ascent, least=0.01)
    if estimator.claims.noise == "normal":
        assert estimator.claims_under(fv.noise.mirrored) == estimator.claims
        _, independent = quadrature_bound(estimator.bound, *toy(), X, 2, 60)
        assert_close(ascent, independent, atol=1e-8)


def test_mirrored_noise_changes_the_iwae_bound_and_biases_rloo():
    call, bound = under_mirrored_noise(parse("iwae"))
    value, _ = quadrature_bound(bound, *toy(), X, 1, 60)
    assert abs(value - E_L_K[2]) > 0.01
    call, _ = under_mirrored_noise(parse("rloo"))
    mean, _ = quadrature(call, *toy(), X, 1, 60)
    assert -mean["encoder"]["m"].item() == pytest.approx(-1.2, abs=1e-9)


@pytest.mark.parametrize("scheme", [fv.noise.moment_matched, fv.noise.sobol])
@pytest.mark.parametrize("spec", ["elbo", "elbo_mc", "stl", "score"])
def test_estimators_that_need_only_normal_samples_are_unbiased_under_every_scheme(spec, scheme):
    model, params, state = toy()

    def one(key):
        grads = parse(spec)(model, params, state, X, scheme(key, 4, (1, 1), dtype=torch.float64), train=False).grads
        return torch.stack([grads["encoder"]["m"], grads["encoder"]["log_s"], grads["prior"]["mu"]]).flatten()

    grads = torch.vmap(one)(fv.random.split(fv.random.key(4), 4000))
    off = grads - torch.tensor([0.6, 2 * S2 - 1, -0.8], dtype=torch.float64)
    noisy = off.std(0) > 1e-12  # antithetic noise makes some gradients exact
    assert_zero_mean(off[:, noisy])
    assert off[:, ~noisy].abs().max() < 1e-12 if (~noisy).any() else True


@pytest.mark.parametrize("spec", [s for s in CONTINUOUS if parse(s).claims.noise == "any"])
def test_unbiased_parts_under_any_noise_equal_the_derivative_of_the_bound_for_every_eps(spec):
    estimator = parse(spec)
    model, params, state, x = tiny()
    eps = fv.noise.sobol(fv.random.key(2), 4, (2, 2), dtype=torch.float64)
    out = estimator(model, params, state, x, eps, train=False)
    exact = descent(lambda p: estimator.bound(model, p, state, x, eps), params)
    claims = estimator.claims_under(fv.noise.sobol)
    assert claims.target == f"{estimator.claims.target} under sobol noise"
    for part, unbiased in (("encoder", claims.unbiased_encoder), ("decoder", claims.unbiased_decoder)):
        off = max((out.grads[part][name] - exact[part][name]).abs().max().item() for name in exact[part])
        assert (off < 1e-12) == unbiased


@every_continuous
def test_independent_noise_does_not_change_the_claims(spec):
    estimator = parse(spec)

    @fv.noise.independent
    def mine(key, n, shape, *, dtype=torch.float32):
        return fv.noise.iid(key, n, shape, dtype=dtype)

    assert estimator.claims_under(fv.noise.iid) == estimator.claims_under(mine) == estimator.claims


# Differentiated formulas, for every eps.


@pytest.mark.parametrize("likelihood", ["normal", "bernoulli"])
@pytest.mark.parametrize("samples", [1, 2, 5])
@pytest.mark.parametrize("seed", range(3))
def test_iwae_and_elbo_mc_are_the_gradients_of_their_bounds(seed, samples, likelihood):
    head = {"normal": fv.heads.normal_fixed(0.5), "bernoulli": fv.heads.bernoulli}[likelihood]
    model, params, state, x = tiny(likelihood=head)
    x = x if likelihood == "normal" else x.abs().round()
    eps = noise(samples, 2, 2, seed)
    for name, bound in {"iwae": lambda f: f.exp().mean(0).log(), "elbo_mc": lambda f: f.mean(0)}.items():
        out = parse(name)(model, params, state, x, eps, train=False)
        exact = descent(lambda p, bound=bound: bound(log_weights(model, p, state, x, eps)), params)
        assert_close(out.grads, exact, atol=1e-12)
        torch.testing.assert_close(out.log_w, log_weights(model, params, state, x, eps), atol=1e-12, rtol=0)


@pytest.mark.parametrize("spec", BY_HAND)
@pytest.mark.parametrize("seed", range(3))
def test_gradient_is_the_weighted_sum_of_its_terms_on_a_nonlinear_model(seed, spec):
    """Weights are from numpy, densities from torch.distributions. So the mean and variance over eps are right too."""
    model, params, state, x = tiny()
    eps = noise(4, 2, 2, seed)
    log_w = log_weights(model, params, state, x, eps)
    path, score, theta = (torch.from_numpy(np.array(w)) for w in BY_HAND[spec](log_w.numpy()))
    q_here, _ = model.encode(params, state, x)

    def log_normal(p, z):
        return torch.distributions.Normal(*p, validate_args=False).log_prob(z).sum(-1)

    def log_joint(p, z):
        return log_normal(model.decode(p, state, z)[0], x) + log_normal(model.prior(p, state, z)[0], z)

    def terms(p):
        q, _ = model.encode(p, state, x)
        z, z_here = q.loc + q.sigma * eps, q_here.loc + q_here.sigma * eps
        encoder = path * (log_joint(params, z) - log_normal(q_here, z)) + score * log_normal(q, z_here)
        return (encoder + theta * log_joint(p, z_here)).sum(0)

    out = parse(spec)(model, params, state, x, eps, train=False)
    assert_close(out.grads, descent(terms, params), atol=1e-12)


@pytest.mark.parametrize(("spec", "samples"), of_samples(1, 2))
def test_a_prior_may_return_a_distribution_of_the_shape_of_z(spec, samples):
    class Expanded(LearnedPrior):
        def forward(self, z):
            return Normal(self.mu.expand_as(z), torch.ones_like(z))

    model, params, state, x = tiny()
    expanded = fv.vae(
        encoder=lambda: nn.Sequential(nn.Linear(2, 4), nn.Tanh()),
        decoder=lambda: nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)),
        likelihood=fv.heads.normal_fixed(1.0),
        prior=lambda: Expanded(0.3, 2),
        latent=2,
    )
    eps = noise(samples, 2, 2)
    short = parse(spec)(model, params, state, x, eps, train=False)
    full = parse(spec)(expanded, params, state, x, eps, train=False)
    torch.testing.assert_close(full.bound, short.bound)
    assert_close(full.grads, short.grads, atol=1e-12)


# Identities.


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("many", "one"), [("iwae", "elbo_mc"), ("dreg", "stl")])
def test_at_one_sample_iwae_equals_elbo_mc_and_dreg_equals_stl(many, one, seed):
    eps = noise(1, 2, 2, seed)
    model, params, state, x = tiny()
    many, one = (parse(name)(model, params, state, x, eps, train=False) for name in (many, one))
    assert_close(many.grads, one.grads, atol=1e-14)
    torch.testing.assert_close(many.bound, one.bound)


def encoder_of(spec, eps):
    model, params, state, x = tiny()
    return parse(spec)(model, params, state, x, eps, train=False).grads["encoder"]


@pytest.mark.parametrize("seed", range(3))
def test_iwae_stl_is_iwae_plus_rws_for_every_eps(seed):
    eps = noise(5, 2, 2, seed)
    total = tree.map(torch.add, encoder_of("iwae", eps), encoder_of("rws", eps))
    assert_close(encoder_of("iwae_stl", eps), total, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("general", "special"),
    [
        ("vr_iwae_dreg:0", "dreg"),
        ("renyi:0", "iwae"),
        ("renyi:0.99999999", "elbo_mc"),
        ("vr_iwae_dreg:0.99999999", "stl"),
        ("miwae:1", "iwae"),
        ("miwae:4", "elbo_mc"),
        ("piwae:1", "iwae"),
        ("ciwae:0", "iwae"),
        ("ciwae:1", "elbo_mc"),
    ],
)
def test_general_estimators_equal_their_special_cases_for_every_eps(general, special, seed):
    model, params, state, x = tiny()
    a, b = (parse(s)(model, params, state, x, noise(4, 2, 2, seed), train=False) for s in (general, special))
    atol = 1e-6 if "0.99999999" in general else 1e-12  # a limit
    assert_close(a.grads, b.grads, atol=atol)
    torch.testing.assert_close(a.bound, b.bound, atol=atol, rtol=0)


@pytest.mark.parametrize("seed", range(3))
def test_vimco_star_is_ovis_0(seed):
    log_w = 3 * fv.random.normal(fv.random.key(seed), (5, 4), torch.float64)
    for a, b in zip(parse("vimco_star").weights(log_w), parse("ovis:0").weights(log_w), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("samples", [1, 2, 3])
def test_rws_dreg_has_the_mean_of_rws_with_less_variance(samples):
    (mean, variance), (known, of_rws) = (toy_moments(spec, samples) for spec in ("rws_dreg", "rws"))
    assert_close(mean["encoder"], known["encoder"], atol=1e-8)
    assert samples == 1 or 15 * variance["encoder"]["m"] < of_rws["encoder"]["m"]


def test_rws_dreg_has_50_times_less_variance_near_the_optimum():
    moments = [quadrature(parse(spec), *toy(0.6, 0.6), 1.2 * X, 3, 40) for spec in ("rws_dreg", "rws")]
    assert_close(moments[0][0]["encoder"], moments[1][0]["encoder"], atol=1e-8)
    low, high = (sum(v.item() for v in variance["encoder"].values()) for _, variance in moments)
    assert 40 * low < high < 70 * low


def test_rws_dreg_with_the_sign_of_dreg_has_another_mean():
    def wrong(log_w):
        v = log_w.softmax(0)
        return fv.Weights(path=v**2 - v, score=torch.zeros_like(v), theta=v)

    mean, _ = quadrature(weighted(wrong), *toy(), X, 2, 60)
    assert abs(mean["encoder"]["m"] - toy_moments("rws", 2)[0]["encoder"]["m"]) > 0.1


@pytest.mark.parametrize("samples", [2, 3])
def test_iwae_stl_has_the_mean_of_ovis_1(samples):
    assert_close(toy_moments("iwae_stl", samples)[0], toy_moments("ovis:1", samples)[0], atol=1e-8)


def test_ciwae_is_a_combination_of_elbo_mc_and_iwae_for_every_eps():
    model, params, state, x = tiny()
    mixed, elbo_mc, iwae = (
        parse(s)(model, params, state, x, noise(4, 2, 2), train=False).grads for s in ("ciwae:0.3", "elbo_mc", "iwae")
    )
    assert_close(mixed, tree.map(lambda a, b: 0.3 * a + 0.7 * b, elbo_mc, iwae), atol=1e-12)


@pytest.mark.parametrize(("twice", "once"), [("dreg", "iwae"), ("stl", "elbo_mc")])
def test_dreg_and_stl_change_only_the_encoder_gradient(twice, once):
    model, params, state, x = tiny()
    for seed in range(3):
        a, b = (parse(name)(model, params, state, x, noise(4, 2, 2, seed), train=False) for name in (twice, once))
        for part in ("decoder", "prior"):
            assert_close(a.grads[part], b.grads[part], atol=1e-14)
        assert not torch.allclose(a.grads["encoder"]["0.weight"], b.grads["encoder"]["0.weight"])


# Expectations in standard errors, on a model of realistic size.


def encoder_projections(estimator, replicates=200, samples=4):
    """Encoder gradients [R, 5] along five fixed directions, on the same noise for every estimator."""
    model = fv.models.burda_vae()
    init_key, x_key, noise_key, direction_key = fv.random.split(fv.random.key(7), 4)
    params, state = model.init(init_key)
    x = fv.random.bernoulli(x_key, 0.3, (2, 1, 28, 28)).float()
    one_sigma = {name: torch.full_like(p, name == "log_sigma.bias") for name, p in params["encoder"].items()}
    directions = [one_sigma] + [
        {name: fv.random.normal(key, p.shape) for name, p in params["encoder"].items()}
        for key in fv.random.split(direction_key, 4)
    ]

    def project(eps):
        grads = estimator(model, params, state, x, eps, train=False).grads["encoder"]
        return torch.stack([sum((grads[name] * d[name]).sum() for name in d) for d in directions])

    eps = fv.noise.iid(noise_key, replicates, (samples, 2, model.latent))
    return torch.vmap(project, chunk_size=10)(eps)


@cache
def projections_of(spec):
    return encoder_projections(parse(spec))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("dreg", "iwae"),
        ("stl", "elbo_mc"),
        ("elbo", "elbo_mc"),
        ("rloo", "elbo_mc"),
        ("score", "elbo_mc"),
        ("vimco", "iwae"),
        ("ovis:0", "iwae"),
        ("vr_iwae_dreg:0.5", "renyi:0.5"),
    ],
)
def test_estimators_of_the_same_gradient_have_the_same_mean(a, b):
    assert_zero_mean(projections_of(a) - projections_of(b))


def test_a_biased_estimator_fails_the_test_in_standard_errors():
    a, b = (encoder_projections(estimator, replicates=800) for estimator in (weighted(iwae_stl), parse("iwae")))
    with pytest.raises(AssertionError, match="standard errors"):
        assert_zero_mean(a - b)


# Known mistakes, written as users' weights: each fails a test that the correct form passes.


def softmax_not_detached(log_w):
    """The derivative of sum_k v_k log w_k, with v differentiated as well."""
    v = log_w.softmax(0)
    w = v * (1 + log_w - (v * log_w).sum(0))
    return fv.Weights(path=w, score=-w, theta=w)


def own_sample_in_the_baseline(log_w):
    """rloo with the mean of all samples as its baseline."""
    mean = torch.full_like(log_w, 1 / len(log_w))
    return fv.Weights(torch.zeros_like(log_w), (log_w - log_w.mean(0)) * mean, mean)


def vimco_with_the_bound_as_its_baseline(log_w):
    v = log_w.softmax(0)
    return fv.Weights(torch.zeros_like(v), -v, v)


def score_without_its_derivative(log_w):
    """vimco without -v, the derivative of L_K in log q."""
    v = log_w.softmax(0)
    total = log_w.exp().sum(0)
    others = total - log_w.exp()
    without = (others + (log_w.sum(0) - log_w).div(len(log_w) - 1).exp()).log()
    return fv.Weights(torch.zeros_like(v), total.log() - without, v)


def dreg_of_another_power(log_w):
    """vr_iwae_dreg(½) with the weights of dreg."""
    u = (0.5 * log_w).softmax(0)
    return fv.Weights(u**2, torch.zeros_like(u), u)


@pytest.mark.parametrize(
    ("wrong", "target", "part"),
    [
        (dreg_for_the_decoder_too, "iwae", "prior"),
        (iwae_of_the_loss, "iwae", "prior"),
        (iwae_of_the_loss, "iwae", "encoder"),
        (softmax_not_detached, "iwae", "encoder"),
        (softmax_not_detached, "iwae", "prior"),
        (iwae_stl, "iwae", "encoder"),
        (own_sample_in_the_baseline, "elbo_mc", "encoder"),
        (vimco_with_the_bound_as_its_baseline, "iwae", "encoder"),
        (score_without_its_derivative, "iwae", "encoder"),
        (dreg_of_another_power, "renyi:0.5", "encoder"),
    ],
)
def test_known_mistakes_fail_where_the_correct_form_passes(wrong, target, part):
    mean, _ = quadrature(weighted(wrong), *toy(), X, 2, 60)
    _, ascent = quadrature_bound(parse(target).bound, *toy(), X, 2, 60)
    for name, slope in ascent[part].items():
        assert abs(-mean[part][name].item() - slope.item()) > 0.01
        assert -toy_moments(target, 2)[0][part][name].item() == pytest.approx(slope.item(), abs=1e-8)


def test_a_toy_of_a_wrong_variance_does_not_have_the_known_values():
    mean, variance = quadrature(parse("iwae"), *toy(s2=S2**2), X, 2, 60)
    assert abs(-mean["encoder"]["m"].item() - IN_M["iwae"][0]) > 0.01
    assert abs(variance["encoder"]["m"].item() - IN_M["iwae"][1]) > 0.1
    assert gradient_variances("elbo_mc", 0.8, S2**2, 1.0) != pytest.approx(gradient_variances("elbo_mc", 0.8, S2, 1.0))


def test_the_weighted_mean_of_log_weights_is_not_the_bound():
    log_w = torch.tensor([[0.0], [-3.0]])
    wrong = (log_w.softmax(0) * log_w).sum(0)
    assert not torch.allclose(wrong, fv.bounds.iwae(log_w), atol=0.1)
