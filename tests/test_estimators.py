"""The estimators against exact expectations, against differentiated formulas, and against each other."""

import math
from functools import cache

import pytest
import torch
from oracles import (
    S2,
    LearnedPrior,
    assert_close,
    assert_zero_mean,
    descent,
    double,
    elbo,
    gradient_means,
    gradient_variances,
    iwae_asymptote,
    iwae_bound,
    log_evidence,
    log_weight_variance,
    log_weights,
    quadrature,
    quadrature_bound,
    toy,
)
from torch import nn
from torch.func import grad

import funcvae as fv
from funcvae import tree
from funcvae.distributions import Normal, kl
from funcvae.errors import BadType, BadValue
from funcvae.estimators import parse

X = torch.tensor([[1.0]], dtype=torch.float64)
SPECS = ["elbo", "beta_elbo:2", "elbo_mc", "stl", "iwae", "dreg"]
WEIGHTED = ["elbo_mc", "stl", "iwae", "dreg"]
every_estimator = pytest.mark.parametrize("spec", SPECS)
every_weighted = pytest.mark.parametrize("spec", WEIGHTED)


def tiny(encoder=lambda: nn.Sequential(nn.Linear(2, 4), nn.Tanh()), **kwargs):
    """A nonlinear model of points in the plane with two latents and a learned prior, in float64."""
    model = fv.vae(
        encoder=encoder,
        decoder=lambda: nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)),
        prior=lambda: LearnedPrior(0.3, 2),
        latent=2,
        **{"likelihood": fv.heads.normal_fixed(1.0), **kwargs},
    )
    params, state = model.init(fv.random.key(1))
    x = torch.tensor([[0.5, -0.3], [-0.2, 0.8]], dtype=torch.float64)
    return model, double(params), state, x


def noise(n, b, z, seed=0):
    return fv.noise.iid(fv.random.key(seed), n, (b, z), dtype=torch.float64)


def weighted(weights, bound=fv.bounds.iwae):
    """An estimator as a user would write one."""
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
IN_M = {  # ascent: mean, variance, and the unit of the variance's last printed digit
    ("iwae", 2): (-0.2555486157, 1.24208, 1e-5),
    ("iwae", 3): (-0.1586666221, 0.776755, 1e-6),
    ("dreg", 2): (-0.2555486157, 0.0268977, 1e-7),
    ("dreg", 3): (-0.1586666221, 0.00780531, 1e-8),
    ("elbo_mc", 2): (-0.6, 4 / 3, 1e-8),
    ("elbo_mc", 3): (-0.6, 8 / 9, 1e-8),
}


@cache
def toy_moments(spec, samples):
    return quadrature(parse(spec), *toy(), X, samples, NODES[samples])


@pytest.mark.parametrize(("spec", "samples"), IN_M)
def test_mean_and_variance_on_the_toy_equal_the_table(spec, samples):
    mean, variance = (moment["encoder"]["m"].item() for moment in toy_moments(spec, samples))
    table_mean, table_variance, digit = IN_M[spec, samples]
    assert -mean == pytest.approx(table_mean, abs=1e-8)
    assert variance == pytest.approx(table_variance, abs=digit)


@pytest.mark.parametrize("samples", [2, 3])
def test_expected_bound_on_the_toy_equals_the_table(samples):
    assert iwae_bound(samples, 0.8, S2, 1.0, nodes=NODES[samples]) == pytest.approx(E_L_K[samples], abs=1e-9)
    value, _ = quadrature_bound(fv.estimators.iwae().bound, *toy(), X, samples, NODES[samples])
    assert value == pytest.approx(E_L_K[samples], abs=1e-9)


@pytest.mark.parametrize("samples", [1, 2, 3])
def test_stl_has_the_mean_of_elbo_mc(samples):
    assert_close(toy_moments("stl", samples)[0], toy_moments("elbo_mc", samples)[0], atol=1e-8)


def test_stl_and_dreg_are_one_at_one_sample():
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


def test_the_analytic_kl_can_raise_the_variance():
    assert gradient_variances("elbo", 3.0, 0.5, 9.0)[1] > gradient_variances("elbo_mc", 3.0, 0.5, 9.0)[1]
    _, analytic = quadrature(parse("elbo"), *toy(3.0, 0.5), 9 * X, 1, 20)
    _, sampled = quadrature(parse("elbo_mc"), *toy(3.0, 0.5), 9 * X, 1, 20)
    assert analytic["encoder"]["log_s"] > sampled["encoder"]["log_s"]


def test_stl_gradient_is_zero_for_every_eps_at_the_posterior():
    model, params, state = toy(m=0.5, s2=0.5)
    for seed in range(5):
        out = parse("stl")(model, params, state, X, noise(3, 1, 1, seed), train=False)
        plain = parse("elbo_mc")(model, params, state, X, noise(3, 1, 1, seed), train=False)
        for name in ("m", "log_s"):
            assert abs(out.grads["encoder"][name].item()) < 1e-14
            assert abs(plain.grads["encoder"][name].item()) > 1e-3


def test_elbo_of_the_toy_equals_its_closed_form():
    value, _ = quadrature_bound(parse("elbo").bound, *toy(0.9, 0.7, 0.2), X, 1, 20)
    assert value == pytest.approx(elbo(0.9, 0.7, 1.0, 0.2), abs=1e-12)


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


@pytest.mark.parametrize("samples", [1, 2, 3])
@every_estimator
def test_prior_gradient_is_unbiased(spec, samples):
    m, mu, h = 0.8, 0.0, 1e-4
    if "elbo" in spec or spec == "stl":
        known = (2 if spec == "beta_elbo:2" else 1) * (m - mu)
    else:
        up, down = (iwae_bound(samples, m, S2, 1.0, mu + step, nodes=40) for step in (h, -h))
        known = (up - down) / (2 * h)
    mean, _ = toy_moments(spec, samples)
    assert -mean["prior"]["mu"].item() == pytest.approx(known, abs=1e-7)


# What each estimator claims.


@pytest.mark.parametrize("samples", [1, 2, 3])
@every_estimator
def test_claims_hold_on_the_toy(spec, samples):
    estimator = parse(spec)
    assert estimator.claims.unbiased_encoder
    assert estimator.claims.unbiased_decoder
    _, ascent = quadrature_bound(estimator.bound, *toy(), X, samples, NODES[samples])
    assert_close(toy_moments(spec, samples)[0], tree.map(torch.neg, ascent), atol=1e-8)


@every_estimator
def test_claims_hold_on_a_nonlinear_model(spec):
    nodes = 20 if spec == "dreg" else 10  # dreg's gradient is that of its bound in the mean alone
    mean, _ = quadrature(parse(spec), *tiny(), 2, nodes)
    _, ascent = quadrature_bound(parse(spec).bound, *tiny(), 2, nodes)
    for part, grads in mean.items():
        assert max(g.abs().max() for g in grads.values()) > 1e-3
        assert_close(grads, tree.map(torch.neg, ascent[part]), atol=1e-8)


# Formulas differentiated as they stand, for every eps.


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


@pytest.mark.parametrize("samples", [1, 2])
@every_estimator
def test_a_prior_may_spell_out_its_distribution_for_every_z(spec, samples):
    class Spelled(LearnedPrior):
        def forward(self, z):
            return Normal(self.mu.expand_as(z), torch.ones_like(z))

    model, params, state, x = tiny()
    spelled = fv.vae(
        encoder=lambda: nn.Sequential(nn.Linear(2, 4), nn.Tanh()),
        decoder=lambda: nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)),
        likelihood=fv.heads.normal_fixed(1.0),
        prior=lambda: Spelled(0.3, 2),
        latent=2,
    )
    eps = noise(samples, 2, 2)
    short = parse(spec)(model, params, state, x, eps, train=False)
    full = parse(spec)(spelled, params, state, x, eps, train=False)
    torch.testing.assert_close(full.bound, short.bound)
    assert_close(full.grads, short.grads, atol=1e-12)


# Identities.


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("many", "one"), [("iwae", "elbo_mc"), ("dreg", "stl")])
def test_at_one_sample_the_estimators_of_l_k_are_those_of_the_elbo(many, one, seed):
    eps = noise(1, 2, 2, seed)
    model, params, state, x = tiny()
    many, one = (parse(name)(model, params, state, x, eps, train=False) for name in (many, one))
    assert_close(many.grads, one.grads, atol=1e-14)
    torch.testing.assert_close(many.bound, one.bound)


@pytest.mark.parametrize(("twice", "once"), [("dreg", "iwae"), ("stl", "elbo_mc")])
def test_decoder_and_prior_gradient_do_not_depend_on_the_encoder_term(twice, once):
    model, params, state, x = tiny()
    for seed in range(3):
        a, b = (parse(name)(model, params, state, x, noise(4, 2, 2, seed), train=False) for name in (twice, once))
        for part in ("decoder", "prior"):
            assert_close(a.grads[part], b.grads[part], atol=1e-14)
        assert not torch.allclose(a.grads["encoder"]["0.weight"], b.grads["encoder"]["0.weight"])


# Expectations in standard errors, at the size of a real system.


def encoder_projections(estimators, replicates=200, samples=4):
    """Encoder gradients [R, 5] of each estimator on the same noise, along five fixed directions."""
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
        rows = []
        for estimator in estimators:
            grads = estimator(model, params, state, x, eps, train=False).grads["encoder"]
            rows.append(torch.stack([sum((grads[name] * d[name]).sum() for name in d) for d in directions]))
        return torch.stack(rows)

    eps = fv.noise.iid(noise_key, replicates, (samples, 2, model.latent))
    return torch.vmap(project, chunk_size=10)(eps).unbind(1)


@pytest.mark.parametrize(("a", "b"), [("dreg", "iwae"), ("stl", "elbo_mc"), ("elbo", "elbo_mc")])
def test_estimators_of_one_target_agree_in_the_mean(a, b):
    a, b = encoder_projections([parse(a), parse(b)])
    assert_zero_mean(a - b)


def test_a_biased_estimator_is_seen_in_standard_errors():
    a, b = encoder_projections([weighted(iwae_stl), parse("iwae")], replicates=800)
    with pytest.raises(AssertionError, match="standard errors"):
        assert_zero_mean(a - b)


# Known mistakes, through the users' door.


def test_iwae_stl_is_biased_as_known():
    mean, variance = quadrature(weighted(iwae_stl), *toy(), X, 2, 60)
    assert -mean["encoder"]["m"].item() == pytest.approx(-0.5138871539, abs=1e-8)
    assert variance["encoder"]["m"].item() == pytest.approx(0.0776298, abs=1e-7)
    assert -mean["prior"]["mu"].item() == pytest.approx(-toy_moments("iwae", 2)[0]["prior"]["mu"].item(), abs=1e-12)


@pytest.mark.parametrize(
    ("wrong", "part"),
    [(dreg_for_the_decoder_too, "prior"), (iwae_of_the_loss, "prior"), (iwae_of_the_loss, "encoder")],
)
def test_known_mistakes_do_not_pass_for_l_k(wrong, part):
    mean, _ = quadrature(weighted(wrong), *toy(), X, 2, 60)
    _, ascent = quadrature_bound(fv.estimators.iwae().bound, *toy(), X, 2, 60)
    for name, slope in ascent[part].items():
        assert abs(-mean[part][name].item() - slope.item()) > 0.01


def test_the_weighted_mean_of_log_weights_is_not_the_bound():
    log_w = torch.tensor([[0.0], [-3.0]])
    wrong = (log_w.softmax(0) * log_w).sum(0)
    assert not torch.allclose(wrong, fv.bounds.iwae(log_w), atol=0.1)


def test_a_users_weights_make_the_estimator_they_describe():
    def mine(log_w):
        v = log_w.softmax(0)
        return fv.Weights(path=v**2, score=torch.zeros_like(v), theta=v)

    estimator = weighted(mine)
    assert estimator.name == "mine"
    model, params, state, x = tiny()
    eps = noise(4, 2, 2)
    out, dreg = (e(model, params, state, x, eps, train=False) for e in (estimator, parse("dreg")))
    assert_close(out.grads, dreg.grads, atol=0)


def test_a_users_score_weights_make_the_score_function_estimator():
    def score(log_w):
        return fv.Weights(torch.zeros_like(log_w), log_w / len(log_w), torch.full_like(log_w, 1 / len(log_w)))

    mean, _ = quadrature(weighted(score, fv.bounds.elbo), *toy(), X, 2, 20)
    assert_close(mean, toy_moments("elbo_mc", 2)[0], atol=1e-8)


# Bounds and the surrogate.


@every_estimator
def test_reported_bound_is_the_target(spec):
    model, params, state, x = tiny()
    eps = noise(4, 2, 2)
    estimator = parse(spec)
    out = estimator(model, params, state, x, eps, train=False)
    torch.testing.assert_close(estimator.bound(model, params, state, x, eps), out.bound, rtol=0, atol=1e-14)
    if spec in WEIGHTED:
        target = fv.bounds.iwae if spec in ("iwae", "dreg") else fv.bounds.elbo
        torch.testing.assert_close(out.bound, target(out.log_w), rtol=0, atol=0)


@every_estimator
def test_surrogate_has_the_estimators_gradient_and_value(spec):
    model, params, state, x = tiny()
    eps = noise(3, 2, 2)
    out = parse(spec)(model, params, state, x, eps, train=False)
    loss = fv.surrogate(parse(spec))

    assert_close(grad(lambda p: loss(model, p, state, x, eps, train=False))(params), out.grads, atol=1e-14)

    leaves = tree.map(lambda p: p.clone().requires_grad_(), params)
    value = loss(model, leaves, state, x, eps, train=False)
    value.backward()
    assert_close(tree.map(lambda p: p.grad, leaves), out.grads, atol=1e-14)
    assert value.item() == pytest.approx(-out.bound.mean().item(), abs=1e-14)


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


@every_estimator
@pytest.mark.parametrize("samples", [1, 4])
def test_a_call_decodes_once_and_pulls_back_through_the_decoder_once(spec, samples):
    model = fv.vae(encoder=lambda: nn.Linear(2, 4), decoder=lambda: CountingDecoder(2, 2), latent=2)
    params, state = model.init(fv.random.key(0))
    CountingDecoder.forwards = Counted.backwards = 0
    parse(spec)(
        model,
        double(params),
        state,
        torch.tensor([[0.0, 1.0], [1.0, 1.0]], dtype=torch.float64),
        noise(samples, 2, 2),
        train=True,
    )
    assert (CountingDecoder.forwards, Counted.backwards) == (1, 1)


# Errors.


@pytest.mark.parametrize("shape", [(2, 2), (4, 3, 2), (4, 2, 3), (0, 2, 2), (1, 4, 2, 2)])
@every_estimator
def test_noise_of_a_wrong_shape_is_refused(spec, shape):
    model, params, state, x = tiny()
    for call in (lambda *a: parse(spec)(*a, train=False), parse(spec).bound):
        with pytest.raises(BadValue, match=r"eps has shape .* it must be \[N, 2, 2\], with N >= 1"):
            call(model, params, state, x, torch.zeros(shape, dtype=torch.float64))


@every_estimator
def test_a_posterior_that_is_not_latent_wide_is_refused(spec):
    model = fv.vae(
        encoder=lambda: nn.Linear(2, 2), decoder=lambda: nn.Linear(2, 2), latent=2
    )  # one mu, one log-variance
    params, state = model.init(fv.random.key(0))
    with pytest.raises(BadValue, match="latent"):
        parse(spec)(model, params, state, torch.zeros(3, 2), torch.zeros(1, 3, 2), train=False)


def autoencoder():
    return tiny(encoder=lambda: nn.Linear(2, 2), posterior=fv.heads.delta, likelihood=fv.heads.normal_fixed(0.5**0.5))


@every_weighted
def test_a_posterior_without_a_density_is_refused_where_one_is_needed(spec):
    model, params, state, x = autoencoder()
    with pytest.raises(BadType, match=r"Delta posterior has no density.*such as elbo"):
        parse(spec)(model, params, state, x, noise(2, 2, 2), train=False)


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


def test_without_a_closed_form_elbo_names_another_estimator():
    class Odd(nn.Module):
        def forward(self, z):
            return fv.distributions.Bernoulli(torch.zeros_like(z))

    model = fv.vae(encoder=lambda: nn.Linear(2, 4), decoder=lambda: nn.Linear(2, 2), prior=Odd, latent=2)
    with pytest.raises(BadType, match="elbo_mc"):
        parse("elbo")(model, *model.init(fv.random.key(0)), torch.zeros(2, 2), torch.zeros(1, 2, 2), train=False)
    with pytest.raises(BadType):
        kl(fv.distributions.Bernoulli(torch.zeros(2)), fv.distributions.Bernoulli(torch.zeros(2)))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("iwea", "unknown estimator 'iwea': did you mean 'iwae'"),
        ("zzzz", "choose from: beta_elbo, dreg, elbo, elbo_mc, iwae, stl"),
        ("beta_elbo", "write beta_elbo:BETA"),
        ("beta_elbo:", "'' is not a number"),
        ("beta_elbo:x", "'x' is not a number"),
        ("beta_elbo:-1", "beta is -1.0: the KL's weight is not negative"),
        ("beta_elbo:nan", "beta is nan"),
        ("iwae:2", "write iwae$"),
        ("iwae:", "write iwae$"),
        ("", "unknown estimator ''"),
    ],
)
def test_a_string_that_names_no_estimator_is_explained(spec, message):
    with pytest.raises(BadValue, match=message):
        parse(spec)


@every_estimator
def test_an_estimators_name_parses_back_to_it(spec):
    estimator = parse(spec)
    assert estimator.name == spec
    assert parse(estimator.name).claims == estimator.claims


# Stability.


@every_estimator
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
