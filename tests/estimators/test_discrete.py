"""The estimators for discrete posteriors: sample by sample against formulas written out, and exact moments."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import one_hot

import funcvae as fv
from funcvae import tree
from funcvae.distributions import Bernoulli, Categorical
from funcvae.errors import BadValue
from funcvae.estimators import Points, discrete, from_points, parse
from tests.support.discrete import X, bernoulli_model, categorical_model, exact_gradient
from tests.support.enumeration import cells, log_weights, moments, product, published_model
from tests.support.oracles import assert_close, noise
from tests.support.specs import DISCRETE, of_samples

DATA = torch.tensor([[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0]], dtype=torch.float64)
seeds = pytest.mark.parametrize("seed", range(3))


# Sample by sample.


def setting(model, seed, samples=3):
    """The functions and tensors that formulas need: f(z) = log w with q's parameters constant, q, and noise."""
    trained = model()
    q, _ = trained[0].encode(*trained[1:], DATA)
    q = type(q)(q.logits.detach())
    return trained, q, noise(samples, len(DATA), trained[0].latent, seed), lambda z: log_weights(*trained, DATA, q, z)


def assert_encoder_ascends(estimator, trained, eps, along_logits):
    """The encoder's gradient is that of logits along which the bound of each datum rises by these numbers."""
    model, params, state = trained

    def rise(phi):
        return (model.encode({**params, "encoder": phi}, state, DATA)[0].logits * along_logits).sum()

    out = estimator(model, params, state, DATA, eps, train=False)
    known = tree.map(lambda g: -g / len(DATA), torch.func.grad(rise)(params["encoder"]))
    assert_close(out.grads["encoder"], known, atol=1e-12)
    return out


def assert_theta(out, trained, q, z, weight):
    """The gradient of decoder and prior is that of Σ_k weight_k log w at points z."""
    model, params, state = trained
    mean = torch.func.grad(lambda p: (weight * log_weights(model, p, state, DATA, q, z)).sum(0).mean())(params)
    for name in ("decoder", "prior"):
        assert_close(out.grads[name], tree.map(torch.neg, mean[name]), atol=1e-12)


def pair(q, eps):
    """b and b~, written out."""
    u = torch.special.ndtr(eps)
    return (u < q.logits.sigmoid()).double(), (1 - u < q.logits.sigmoid()).double()


@seeds
def test_arm_is_its_formula_for_every_u(seed):
    trained, q, eps, f = setting(bernoulli_model, seed)
    z, other = pair(q, eps)
    g = ((f(other) - f(z))[..., None] * (torch.special.ndtr(eps) - 0.5)).mean(0)
    out = assert_encoder_ascends(parse("arm"), trained, eps, g)
    both = torch.cat([z, other])
    assert_theta(out, trained, q, both, 1 / len(both))
    torch.testing.assert_close(out.bound, f(both).mean(0))
    torch.testing.assert_close(out.log_w, f(z))


def disarm_of_bernoulli(q, z, other, change):
    """½ change (-1)^b~ 1[b ≠ b~] sigmoid(|a|)."""
    return 0.5 * change[..., None] * (-1) ** other * (z != other) * q.logits.abs().sigmoid()


@seeds
def test_disarm_is_its_formula_for_every_u(seed):
    trained, q, eps, f = setting(bernoulli_model, seed)
    z, other = pair(q, eps)
    out = assert_encoder_ascends(
        parse("disarm"), trained, eps, disarm_of_bernoulli(q, z, other, f(z) - f(other)).mean(0)
    )
    both = torch.cat([z, other])
    assert_theta(out, trained, q, both, 1 / len(both))
    torch.testing.assert_close(out.bound, f(both).mean(0))


@seeds
def test_disarm_local_is_disarm_of_each_sample_with_the_others_held(seed):
    trained, q, eps, f = setting(bernoulli_model, seed)
    pairs = pair(q, eps)

    def ascent(these, those):
        """That of L(these), where each sample can take its value in those."""
        local = torch.zeros_like(q.logits)
        for k in range(len(eps)):
            changed = these.clone()
            changed[k] = those[k]
            change = f(these).logsumexp(0) - f(changed).logsumexp(0)
            local += disarm_of_bernoulli(q, these[k], those[k], change)

        def bound(logits):  # its derivative at fixed samples
            change = Bernoulli(logits).log_prob(these) - q.log_prob(these)
            return (f(these) - change.sum(-1)).logsumexp(0).sum()

        return local + torch.func.grad(bound)(q.logits)

    g = (ascent(*pairs) + ascent(*pairs[::-1])) / 2
    out = assert_encoder_ascends(parse("disarm_local"), trained, eps, g)
    weight = torch.cat([f(z).softmax(0) / 2 for z in pairs])
    assert_theta(out, trained, q, torch.cat(pairs), weight)
    torch.testing.assert_close(out.bound, sum(fv.bounds.iwae(f(z)) for z in pairs) / 2)


def pairs_of_classes(p):
    """Probabilities {(class, other class): p} of the antithetic pairs, by going through the cells of u of each stick.

    The sticks are the classes in the order of increasing probability.
    """
    order = np.argsort(p)
    found = {}

    def broken(position, taken, probability):
        if None not in taken or position == len(p) - 1:
            classes = tuple(order[-1] if c is None else c for c in taken)
            found[classes] = found.get(classes, 0.0) + probability
            return
        stick = p[order[position]] / p[order[position:]].sum()
        for u, weight in zip(*cells(torch.tensor([stick, 1 - stick]), 1), strict=True):
            stops = (u < stick, 1 - u < stick)
            now = tuple(order[position] if c is None and stop else c for c, stop in zip(taken, stops, strict=True))
            broken(position + 1, now, probability * weight)

    broken(0, (None, None), 1.0)
    return found


@seeds
def test_disarm_of_categorical_latents_is_rloo_with_the_importance_weight_of_the_pair(seed):
    trained, q, eps, f = setting(categorical_model, seed)
    p = q.logits.softmax(-1)  # [B, V, C]
    u = torch.special.ndtr(eps).view(len(eps), *p.shape)
    classes = torch.zeros(2, *u.shape[:-1], dtype=torch.long)
    weight = torch.zeros(u.shape[:-1], dtype=torch.float64)
    for n, b, v in np.ndindex(*weight.shape):
        order, of_pair = p[b, v].argsort(), pairs_of_classes(p[b, v].numpy())
        assert sum(of_pair.values()) == pytest.approx(1, abs=1e-12)
        for i, uniform in enumerate((u[n, b, v], 1 - u[n, b, v])):
            sticks = (p[b, v, order] / p[b, v, order].flip(0).cumsum(0).flip(0))[:-1]
            stops = [j for j, stick in enumerate(sticks) if uniform[j] < stick]
            classes[i, n, b, v] = order[stops[0] if stops else -1]
        z, other = (int(c) for c in classes[:, n, b, v])
        weight[n, b, v] = 0 if z == other else p[b, v, z] * p[b, v, other] / of_pair[z, other]
    z, other = one_hot(classes, p.shape[-1]).double()
    flat_z, flat_other = z.flatten(-2), other.flatten(-2)
    change = f(flat_z) - f(flat_other)
    g = (0.5 * change[..., None, None] * weight[..., None] * (z - other)).mean(0)
    out = assert_encoder_ascends(parse("disarm"), trained, eps, g)
    torch.testing.assert_close(out.bound, f(torch.cat([flat_z, flat_other])).mean(0))


def rebar_of_logits(a, u, f, v=None, eta=0.7, temperature=0.6):
    """REBAR's ascent in logits a [B, Z] with three evaluations, by autograd of z and z~. v is tied to u by default."""
    p = a.sigmoid()
    b = (u < p).double()
    v = torch.where(b > 0, u / p, (u - p) / (1 - p)).detach() if v is None else v

    def relaxed(a, u):
        return ((a - torch.logit(u)) / temperature).sigmoid()

    def given_b(a):
        return relaxed(a, torch.where(b > 0, a.sigmoid() * v, a.sigmoid() + (1 - a.sigmoid()) * v))

    f_given_b = f(given_b(a))
    score = (f(b) - eta * f_given_b)[..., None] * (b - p)
    path = torch.func.grad(lambda a: (f(relaxed(a, u)) - f(given_b(a))).sum())(a.expand_as(u))
    return score + eta * path


@seeds
@pytest.mark.parametrize(("eta", "temperature"), [(0.7, 0.6), (-1.0, 2.0)])
def test_rebar_is_that_with_three_evaluations_and_the_same_uniform_number(eta, temperature, seed):
    trained, q, eps, f = setting(bernoulli_model, seed)
    u = torch.special.ndtr(eps)
    g = rebar_of_logits(q.logits, u, f, eta=eta, temperature=temperature).mean(0)
    out = assert_encoder_ascends(fv.estimators.rebar(eta, temperature), trained, eps, g)
    z, _ = pair(q, eps)
    assert_theta(out, trained, q, z, 1 / len(z))
    torch.testing.assert_close(out.bound, f(z).mean(0))


def softmax_of(q):
    """Probabilities [B, V, C] as a function of softmax logits, and the logits; of two classes for a Bernoulli."""
    logits = q.logits if isinstance(q, Categorical) else torch.stack([torch.zeros_like(q.logits), q.logits], -1)
    return logits, (lambda d: d.flatten(-2)) if isinstance(q, Categorical) else (lambda d: d[..., 1])


def straight_through_of_one_hot(theta, d):
    return d + theta.softmax(-1) - theta.softmax(-1).detach()


def reinmax_of_one_hot(theta, d):
    """Algorithm 2 of Liu et al. (2023), with temperature 1."""
    pi_0 = theta.softmax(-1)
    pi_1 = (d + pi_0) / 2
    pi_1 = ((pi_1.log() - theta).detach() + theta).softmax(-1)
    pi_2 = 2 * pi_1 - pi_0 / 2
    return pi_2 - pi_2.detach() + d


@seeds
@pytest.mark.parametrize("model", [bernoulli_model, categorical_model])
@pytest.mark.parametrize(
    ("spec", "of_one_hot"), [("straight_through", straight_through_of_one_hot), ("reinmax", reinmax_of_one_hot)]
)
def test_path_estimators_are_autograd_of_one_hot_vectors(spec, of_one_hot, model, seed):
    trained, q, eps, f = setting(model, seed)
    z = q.sample(eps)
    logits, latents_of = softmax_of(q)
    d = z.unflatten(-1, q.logits.shape[-2:]) if isinstance(q, Categorical) else torch.stack([1 - z, z], -1)
    g = torch.func.grad(lambda theta: f(latents_of(of_one_hot(theta, d))).mean(0).sum())(logits)
    out = assert_encoder_ascends(parse(spec), trained, eps, g if isinstance(q, Categorical) else g[..., 1])
    assert_theta(out, trained, q, z, 1 / len(z))


@seeds
@pytest.mark.parametrize("model", [bernoulli_model, categorical_model])
def test_local_expectation_sums_over_the_values_of_each_variable(model, seed):
    trained, q, eps, f = setting(model, seed)
    z, width = q.sample(eps), q.values().shape[1]

    def expected(logits, latents):
        """The expectation over one variable, with the others at the sample."""
        values = [
            torch.cat([z[..., : latents.start], value.expand_as(z[..., latents]), z[..., latents.stop :]], -1)
            for value in q.values()
        ]
        log_q = [type(q)(logits).log_prob(each)[..., latents].sum(-1) for each in values]
        return sum(log_p.exp() * f(each) for log_p, each in zip(log_q, values, strict=True)).mean(0).sum()

    variables = [slice(i, i + width) for i in range(0, z.shape[-1], width)]
    g = sum(torch.func.grad(expected)(q.logits, latents) for latents in variables)
    out = assert_encoder_ascends(parse("local_expectation"), trained, eps, g)
    assert_theta(out, trained, q, z, 1 / len(z))
    torch.testing.assert_close(out.bound, f(z).mean(0))


# Exact moments.


@pytest.mark.parametrize(
    ("spec", "samples", "known"),
    [("disarm", 1, 0.466391), ("arm", 1, 0.548077), ("rloo", 2, 0.585917), ("score", 2, 17.49805)],
)
def test_the_variance_of_the_encoder_equals_the_known_value(spec, samples, known):
    assert moments(parse(spec), published_model(), samples)[1]["encoder"] == pytest.approx(known, rel=2e-6)


def ascent_moments(trained, u_steps, of_u):
    """Mean [P] and total variance of the encoder's ascent from that of the logits, over a grid of noise."""
    model, params, state = trained
    points, weights = product(u_steps)
    jacobian = torch.func.jacrev(lambda phi: model.encode({**params, "encoder": phi}, state, X)[0].logits)(
        params["encoder"]
    )
    jacobian = torch.cat([leaf.flatten(2) for leaf in tree.leaves(jacobian)], -1)[0]  # [Z, P]
    g = of_u(points) @ jacobian
    mean = weights @ g
    return mean, float((weights @ (g - mean) ** 2).sum())


def test_rebar_is_unbiased_with_another_uniform_number_too_and_has_its_known_variance():
    trained = published_model()
    model, params, state = trained
    q = Bernoulli(model.encode(params, state, X)[0].logits.detach())
    steps = [cells(p[None], 12) for p in q.logits.sigmoid()[0]] + [cells(torch.zeros(0), 12)] * 2

    def of_u(points):  # [G, 4]: u and v of two latents
        u, v = points.unsqueeze(1).chunk(2, -1)
        return rebar_of_logits(q.logits, u, lambda z: log_weights(*trained, X, q, z), v)[:, 0]

    mean, variance = ascent_moments(trained, steps, of_u)
    _, exact = exact_gradient(*trained, X, "ELBO", 1)
    torch.testing.assert_close(
        -mean, torch.cat([g.flatten() for g in tree.leaves(exact["encoder"])]), atol=1e-6, rtol=0
    )
    assert variance == pytest.approx(2.07, abs=0.01)
    assert moments(parse("rebar:0.7:0.6"), trained, nodes=24)[1]["encoder"] == pytest.approx(2.11, abs=0.01)


TRAINED = {"Bernoulli": bernoulli_model, "categorical": lambda: categorical_model(1, 3)}
BERNOULLI_ONLY = [spec for spec in DISCRETE if parse(spec).claims.note == "Bernoulli"]
CASES = [(spec, n, kind) for spec, n in of_samples(1, 2, 3, specs=DISCRETE) for kind in TRAINED]


TVO = {"tvo:0:0.5:1": fv.bounds.tvo((0, 0.5, 1)), "tvo:0:1": fv.bounds.elbo}


def off(estimator, trained, samples=1, nodes=1):
    """The largest error of the mean gradient in each network."""
    mean, _ = moments(estimator, trained, samples, nodes)
    target = TVO.get(estimator.name, estimator.claims.target)
    _, exact = exact_gradient(*trained, X, target, samples)
    return {
        name: max(float((g - mean[name][leaf]).abs().max()) for leaf, g in exact[name].items())
        for name in mean
        if exact[name]
    }


@pytest.mark.parametrize(
    ("spec", "samples", "kind"), [(s, n, k) for s, n, k in CASES if k == "Bernoulli" or s not in BERNOULLI_ONLY]
)
def test_claims_hold_for_discrete_posteriors(spec, samples, kind):
    estimator = parse(spec)
    smooth = spec.startswith("rebar")  # a function of u, which is integrated
    trained = bernoulli_model(1) if smooth and samples > 1 else TRAINED[kind]()
    error = off(estimator, trained, samples, {1: 24, 2: 20, 3: 12}[samples] if smooth else 1)
    assert max(error["decoder"], error["prior"]) < 1e-12
    if estimator.claims.unbiased_encoder:
        assert error["encoder"] < (1e-6 if smooth else 1e-12)
    else:
        assert error["encoder"] > 1e-3


def test_the_claims_name_every_posterior_that_an_estimator_refuses():
    for spec in DISCRETE:
        if spec in BERNOULLI_ONLY:
            with pytest.raises(BadValue, match=r"requires a Bernoulli posterior, and this is a Categorical: use rloo"):
                parse(spec)(*categorical_model(), X, noise(2, 1, 6), train=False)
        else:
            parse(spec)(*categorical_model(), X, noise(2, 1, 6), train=False)


@pytest.mark.parametrize("seed", range(5))
def test_the_variance_of_disarm_is_at_most_that_of_arm(seed):
    model, _, state = bernoulli_model(3)
    init = model.init(fv.random.key(seed))[0]
    trained = model, tree.map(lambda t: (1 + 2 * seed) * t.double(), init), state
    disarm, arm = (moments(parse(spec), trained)[1] for spec in ("disarm", "arm"))
    assert disarm["encoder"] <= arm["encoder"]
    assert disarm["decoder"] == pytest.approx(arm["decoder"])


@pytest.mark.parametrize("model", [bernoulli_model, categorical_model])
def test_disarm_local_of_one_sample_has_the_mean_of_disarm(model):
    local, disarm = (moments(parse(spec), model(), nodes=1)[0] for spec in ("disarm_local", "disarm"))
    assert_close(local, disarm, atol=1e-12)


def of_two_classes(model):
    """A Bernoulli model with categorical latents of two classes, whose logits are 0 and those of the Bernoullis."""

    def classes(p):
        return Categorical(torch.stack([torch.zeros_like(p.logits), p.logits], -1))

    def encode(params, state, x, train=False):
        q, state = model.encode(params, state, x, train)
        return classes(q), state

    def decode(params, state, z, train=False):
        return model.decode(params, state, z[..., 1::2], train)

    def prior(params, state, z, train=False):
        p, state = model.prior(params, state, z[..., 1::2], train)
        return classes(p), state

    return model._replace(encode=encode, decode=decode, prior=prior, latent=2 * model.latent)


@seeds
def test_disarm_of_two_classes_is_that_of_bernoulli_latents(seed):
    (model, params, state), q, eps, _ = setting(bernoulli_model, seed)
    known = parse("disarm")(model, params, state, DATA, eps, train=False)
    # The first stick is the less probable class, so u stands for 1 - u where that is class 0.
    first = torch.where(q.logits > 0, -eps, eps)
    eps = torch.stack([first, torch.zeros_like(first)], -1).flatten(-2)
    out = parse("disarm")(of_two_classes(model), params, state, DATA, eps, train=False)
    assert_close(out.grads, known.grads, atol=1e-12)
    torch.testing.assert_close(out.bound, known.bound)


class Linear(NamedTuple):
    """A likelihood whose logarithm is linear in its parameter, so the ELBO is linear in z if the decoder is."""

    loc: torch.Tensor
    mean = property(lambda self: self.loc)

    def log_prob(self, x):
        return x * self.loc

    def sample(self, eps):
        return self.loc + eps


HEADS = {  # of a posterior and a prior
    "Bernoulli": (fv.heads.bernoulli, fv.priors.bernoulli),
    "categorical": (fv.heads.categorical(4), fv.priors.categorical(4)),
}


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize(("likelihood", "biased"), [(Linear, ()), (fv.heads.normal_fixed(1.0), ("straight_through",))])
def test_straight_through_is_unbiased_for_a_linear_function_and_reinmax_for_a_quadratic_one(kind, likelihood, biased):
    posterior, prior = HEADS[kind]
    model = fv.vae(
        encoder=lambda: nn.Linear(4, 4), decoder=lambda: nn.Linear(4, 4), latent=4,
        posterior=posterior, prior=prior, likelihood=likelihood,
    )  # fmt: skip
    params, state = model.init(fv.random.key(1))
    trained = model, tree.map(lambda t: 2 * t.double(), params), state
    for spec in ("straight_through", "reinmax"):
        error = off(parse(spec), trained)["encoder"]
        assert error > 1e-3 if spec in biased else error < 1e-12


# Known mistakes.


def antithetic(weights, like):
    """An estimator of antithetic pairs with the bound and claims of another."""
    bound = {"ELBO": fv.bounds.elbo, "L_K": fv.bounds.iwae}[parse(like).claims.target]
    return from_points(discrete.ANTITHETIC, weights, bound=bound, claims=parse(like).claims)


def pair_with_the_wrong_sign(f, seen):
    right = parse("disarm").parts.weigh(f, seen)[0]
    return right._replace(score=-right.score)


def pair_without_its_weight(f, seen):
    """As if the two draws were independent."""
    (f_z, f_other), mean = discrete._pairs(f), torch.full_like(f, 1 / len(f))
    score = discrete._joined(f_z - f_other, f_other - f_z) / len(f)
    return fv.Weights(torch.zeros_like(f), score, mean)


def local_without_the_derivative_of_the_bound(f, seen):
    right = parse("disarm_local").parts.weigh(f, seen)[0]
    return right._replace(score=right.score + right.theta.unsqueeze(-1))


@pytest.mark.parametrize(
    ("wrong", "like", "samples"),
    [
        (pair_with_the_wrong_sign, "disarm", 1),
        (pair_without_its_weight, "disarm", 1),
        (local_without_the_derivative_of_the_bound, "disarm_local", 2),
    ],
)
def test_known_mistakes_with_pairs_are_biased(wrong, like, samples):
    trained = published_model()
    assert off(parse(like), trained, samples)["encoder"] < 1e-12
    assert off(antithetic(wrong, like), trained, samples)["encoder"] > 0.01


def test_a_baseline_with_its_own_sample_in_it_is_biased():
    def own_sample(log_w):
        mean = torch.full_like(log_w, 1 / len(log_w))
        return fv.Weights(torch.zeros_like(log_w), (log_w - log_w.mean(0)) * mean, mean)

    wrong = fv.estimators.weighted(own_sample, bound=fv.bounds.elbo, claims=parse("rloo").claims)
    assert off(wrong, published_model(), 2)["encoder"] > 0.01


@pytest.mark.parametrize("spec", ["elbo_mc", "stl", "iwae", "dreg", "rws_dreg"])
def test_estimators_with_a_path_are_biased_if_points_do_not_have_derivatives(spec):
    assert parse(spec).claims.posterior == "reparameterised"
    assert off(parse(spec), bernoulli_model(), 2)["encoder"] > 0.01


def test_a_relaxed_point_without_derivatives_biases_rebar():
    points = Points(lambda q, eps: discrete._relaxed_pair(0.6, q, eps).detach(), breaks=discrete._steps_of_one)

    def weights(f, seen):
        return parse("rebar:0.7:0.6").parts.weigh(f, seen)[0]

    wrong = from_points(points, weights, bound=fv.bounds.elbo, claims=parse("rebar:0.7:0.6").claims, two_pulls=True)
    assert off(wrong, published_model(), nodes=24)["encoder"] > 0.01


def test_sticks_in_the_order_of_decreasing_probability_are_biased(monkeypatch):
    """There, both u and 1 - u take the first class, and some pairs of different classes have probability zero."""

    def decreasing(q):
        logits, order = q.logits.sort(-1, descending=True)
        rest = logits.flip(-1).logcumsumexp(-1).flip(-1)
        return order, logits[..., :-1] - rest[..., 1:]

    trained = categorical_model(1, 3)
    assert off(parse("disarm"), trained)["encoder"] < 1e-12
    monkeypatch.setattr(discrete, "_sticks", decreasing)
    assert not off(parse("disarm"), trained)["encoder"] < 0.01


# Extreme numbers.


class Extreme(nn.Module):
    """Logits that do not depend on x: 0, ±5, ±50 and ±10^4."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.0, 0.5, -50.0, -1e4, 5.0, 50.0, 1e4, -5.0]))

    def forward(self, x):
        return self.logits.expand(len(x), -1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("spec", "kind"), [(s, k) for s in DISCRETE for k in HEADS if k == "Bernoulli" or s not in BERNOULLI_ONLY]
)
def test_extreme_logits_and_log_weights_thousands_of_nats_apart_give_finite_numbers(spec, kind, dtype):
    posterior, prior = HEADS[kind]
    model = fv.vae(
        encoder=Extreme, decoder=lambda: nn.Linear(8, 1), likelihood=fv.heads.normal_fixed(1e-3), latent=8,
        posterior=posterior, prior=prior,
    )  # fmt: skip
    params, state = model.init(fv.random.key(0))
    eps = fv.noise.iid(fv.random.key(1), 8, (3, 8))
    params, x, eps = tree.map(lambda t: t.to(dtype), (params, torch.tensor([[0.0], [1.0], [-1.0]]), eps))
    out = parse(spec)(model, params, state, x, eps, train=False)
    assert (out.log_w.max(0).values - out.log_w.min(0).values).min() > 1e3
    assert all(bool(leaf.isfinite().all()) for leaf in [*tree.leaves(out.grads), out.bound, out.log_w])


@pytest.mark.parametrize("spec", ["arm", "disarm", "rebar:0.7:0.6"])
def test_gradients_are_finite_in_float32_for_every_logit(spec):
    model = fv.vae(
        encoder=lambda: nn.Linear(1, 1),
        decoder=lambda: nn.Linear(1, 1),
        posterior=fv.heads.bernoulli,
        prior=fv.priors.bernoulli,
        likelihood=fv.heads.normal_fixed(1.0),
        latent=1,
    )
    params, state = model.init(fv.random.key(0))
    params["decoder"]["weight"] = torch.tensor([[200.0]])  # log-weights 20,000 nats apart
    eps = torch.tensor([-8.0, -5.0, -0.3, 0.3, 5.0, 8.0]).view(6, 1, 1)

    def gradient(logit):
        encoder = {**params["encoder"], "bias": logit}
        return parse(spec)(model, {**params, "encoder": encoder}, state, torch.zeros(1, 1), eps, train=False).grads

    logits = torch.arange(-110.0, 111.0).unsqueeze(1)
    for leaf in tree.leaves(torch.vmap(gradient)(logits)):
        finite = leaf.flatten(1).isfinite().all(1)
        assert finite.all(), logits[~finite]


def test_a_step_of_local_expectation_with_a_normal_posterior_is_an_error_of_one_line():
    model = fv.models.gaussian2d_vae(hidden=4)
    opt = fv.optim.adam()
    step = fv.train.make_step(model, fv.estimators.local_expectation(), opt.update)
    with pytest.raises(BadValue, match="requires a posterior with finitely many values, not a Normal"):
        step(fv.train.init(model, opt, fv.random.key(0)), fv.random.split(fv.random.key(1)), torch.ones(3, 2))
