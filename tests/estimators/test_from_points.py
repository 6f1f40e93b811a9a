"""Users' estimators that choose their points, see them, or have a term in closed form, against sums over all values."""

import itertools

import pytest
import torch
from torch import nn

import funcvae as fv
from funcvae import estimators, tree
from funcvae.distributions import kl
from funcvae.errors import BadType, BadValue
from tests.support.discrete import X, bernoulli_model, categorical_model, exact_gradient, joint_values
from tests.support.oracles import assert_close, noise

CLAIMS = fv.Claims("ELBO", True, True, (), posterior="any")


def leave_one_out(f, seen):
    """The score-function gradient with the mean of the other samples as the baseline."""
    each = torch.full_like(f, 1 / len(f))
    return fv.Weights(path=torch.zeros_like(f), score=(f - estimators.others_mean(f)) * each, theta=each)


def with_own_sample(f, seen):
    return leave_one_out(f, seen)._replace(score=(f - f.mean(0)) / len(f))


def minus_kl(q, p):
    return -kl(q, p).sum(-1)


def made(weights=leave_one_out, points=lambda q, eps: q.sample(eps), **rest):
    rest = {"bound": fv.bounds.elbo, "claims": CLAIMS, "closed": minus_kl, "pulls": estimators.log_p_x} | rest
    return estimators.from_points(points, weights, **rest)


def enumerated(estimator, model, params, state, samples=2):
    """The mean of gradient and bound over all values of the samples: eps = -8 makes a Bernoulli latent 1, and 8 makes
    it 0, so each value is drawn and is weighed with its probability. The estimator must not use eps."""
    q, _ = model.encode(params, state, X)
    z = joint_values(q, model.latent)
    p = q.log_prob(z).sum((1, 2)).exp()
    mean, total = tree.zeros_like(params), 0.0
    for drawn in itertools.product(range(len(z)), repeat=samples):
        eps = 8 * (1 - 2 * z[list(drawn)])
        out = estimator(model, params, state, X, eps, train=False)
        weight = p[list(drawn)].prod()
        mean = tree.map(lambda m, g, weight=weight: m + weight * g, mean, out.grads)
        total = total + weight * out.bound
    return mean, total


def test_leave_one_out_with_the_kl_in_closed_form_is_unbiased():
    model, params, state = bernoulli_model()
    bound, gradient = exact_gradient(model, params, state, X, "ELBO", 2)
    mean, value = enumerated(made(), model, params, state)
    assert_close(mean, gradient, atol=1e-12)
    torch.testing.assert_close(value, bound.expand(1))


@pytest.mark.parametrize(
    "wrong",
    [
        made(with_own_sample),
        made(closed=None),
        made(pulls=estimators.log_w),
        made(closed=lambda q, p: kl(q, p).sum(-1)),
    ],
    ids=["a baseline with its own sample", "no KL", "the KL twice", "the KL with the wrong sign"],
)
def test_a_wrong_variant_is_biased(wrong):
    model, params, state = bernoulli_model()
    _, gradient = exact_gradient(model, params, state, X, "ELBO", 2)
    mean, _ = enumerated(wrong, model, params, state)
    assert tree.norm(tree.map(torch.sub, mean, gradient)) > 1e-3


@pytest.mark.parametrize("make", [bernoulli_model, categorical_model])
def test_the_exact_judge_agrees_and_the_gradient_of_the_prior_has_no_variance(make):
    model, params, state = make()
    bound, gradient = exact_gradient(model, params, state, X, "ELBO", 2)
    found, plain = (fv.variance.exact(e, model, params, state, X, samples=2) for e in (made(), estimators.rloo()))
    assert_close(found.mean, gradient, atol=1e-12)
    torch.testing.assert_close(found.bound, bound.expand(1))
    assert found.variance["prior"]["logits"].abs().max() < 1e-14
    assert plain.variance["prior"]["logits"].min() > 1e-3


def pairs(q, eps):
    return torch.stack([q.sample(eps), q.sample(-eps)], 1).flatten(0, 1)


def my_disarm(f, seen):
    """DisARM for Bernoulli latents, with weights for each latent."""
    (f_b, f_other), (b, other) = ((t[0::2], t[1::2]) for t in (f, seen.z))
    c = torch.where(b != other, seen.q.logits.abs().sigmoid(), 0)
    score = 0.5 * (f_b - f_other).unsqueeze(-1) * c / len(seen.eps)
    score = torch.stack([score, -score], 1).flatten(0, 1)
    return fv.Weights(torch.zeros_like(f), score, torch.full_like(f, 1 / len(f)))


def test_a_users_disarm_is_that_of_the_library():
    model, params, state = bernoulli_model()
    mine = made(my_disarm, estimators.Points(pairs, draws=2), closed=None, pulls=estimators.log_w)
    eps = noise(5, 1, 2)
    ours, known = (e(model, params, state, X, eps, train=True) for e in (mine, estimators.disarm()))
    assert_close(ours.grads, known.grads, atol=1e-14)
    torch.testing.assert_close(ours.bound, known.bound)
    torch.testing.assert_close(mine.bound(model, params, state, X, eps), known.bound)
    assert torch.equal(ours.log_w, known.log_w)


def test_a_users_disarm_with_the_kl_in_closed_form_is_unbiased():
    model, params, state = bernoulli_model()
    bound, gradient = exact_gradient(model, params, state, X, "ELBO", 1)
    mine = made(my_disarm, estimators.Points(pairs, draws=2, breaks=lambda q: torch.stack([q.mean, 1 - q.mean])))
    found = fv.variance.exact(mine, model, params, state, X, samples=1)
    assert_close(found.mean, gradient, atol=1e-10)
    torch.testing.assert_close(found.bound, bound.expand(1))


def test_weights_see_the_posterior_the_points_and_the_noise():
    model, params, state = bernoulli_model()
    eps, shapes = noise(3, 1, 2), []

    def look(f, seen):
        shapes.append((f.shape, seen.z.shape, seen.eps.shape, type(seen.q).__name__))
        return leave_one_out(f, seen)

    made(look, pairs)(model, params, state, X, eps, train=True)
    assert shapes == [((6, 1), (6, 1, 2), (3, 1, 2), "Bernoulli")]


def test_a_closed_form_works_under_vmap_in_chunks_and_with_other_estimators():
    model, params, state = bernoulli_model()
    eps = noise(8, 1, 2).unflatten(0, (2, 4))
    estimator = made()

    def gradient(eps):
        return estimator(model, params, state, X, eps, train=True).grads

    singly = [gradient(e) for e in eps]
    assert_close(torch.vmap(gradient)(eps), tree.map(lambda *g: torch.stack(g), *singly), atol=1e-14)
    chunked = estimators.in_chunks(estimator, 3)(model, params, state, X, eps[0], train=True)
    assert_close(chunked.grads, singly[0], atol=1e-14)
    bounds = [each.bound(model, params, state, X, eps[0]) for each in (estimator, estimators.in_chunks(estimator, 3))]
    assert_close(*bounds, atol=1e-14)
    assert_close(chunked.bound, bounds[0], atol=1e-14)
    both = estimators.together([estimator, estimators.rloo()], model, params, state, X, eps[0], train=True)
    rloo = estimators.rloo()(model, params, state, X, eps[0], train=True)
    for found, known in zip(both, (singly[0], rloo.grads), strict=True):
        assert_close(found.grads, known, atol=1e-14)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"points": lambda q, eps: None}, BadType, "the result of points is None"),
        ({"points": lambda q, eps: q.sample(eps)[0]}, BadValue, r"have shape \[1, 2\]: it must be \[m·4, 1, 2\]"),
        ({"points": lambda q, eps: q.sample(eps)[:3]}, BadValue, "with m at least"),
        ({"points": estimators.Points(lambda q, eps: q.sample(eps), draws=2)}, BadValue, "with m at least"),
        ({"pulls": lambda terms: 3}, BadType, "the result of pulls is 3"),
        ({"pulls": lambda terms: terms.log_p_x[0]}, BadValue, r"the result of pulls has shape \[1\]"),
        ({"closed": lambda q, p: None}, BadType, "the closed form is None"),
        ({"closed": lambda q, p: q.loc}, BadValue, r"the closed form has shape \[1, 2\]: it must be \[B\], here \[1\]"),
        ({"weights": lambda f, seen: (f, f)}, BadType, "the weights are tuple"),
        ({"weights": lambda f, seen: fv.Weights(f, f, seen.z)}, BadValue, r"each must be \[4, 1\] or \[4, 1, 2\]"),
    ],
)  # fmt: skip
def test_functions_with_wrong_results_raise_an_error_of_one_line(wrong, error, message):
    model, params, state = bernoulli_model()
    with pytest.raises(error, match=message) as raised:
        made(**wrong)(model, params, state, X, noise(4, 1, 2), train=True)
    assert "\n" not in str(raised.value)
    if "weights" not in wrong:
        with pytest.raises(error, match=message):
            made(**wrong).bound(model, params, state, X, noise(4, 1, 2))


def test_weights_for_each_latent_require_an_elementwise_log_prob():
    class Summed(fv.distributions.Normal):
        def log_prob(self, z):
            return super().log_prob(z).sum(-1)

    model = fv.vae(
        encoder=lambda: nn.Linear(4, 4), decoder=lambda: nn.Linear(2, 4), latent=2,
        posterior=lambda out: Summed(*fv.heads.normal_logvar(out)),
    )  # fmt: skip
    params, state = model.init(fv.random.key(0))
    each = made(lambda f, seen: leave_one_out(f, seen)._replace(score=torch.zeros_like(seen.z)), closed=None)
    with pytest.raises(BadValue, match="log_prob of the Summed posterior sums over the latents"):
        each(model, params, state, X.float(), noise(4, 1, 2).float(), train=True)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"sample": 3}, BadType, "sample is 3"),
        ({"sample": lambda q, eps: q.sample(eps), "draws": 0}, BadValue, "draws is 0"),
        ({"sample": lambda q, eps: q.sample(eps), "draws": "a"}, BadType, "draws is 'a'"),
    ],
)
def test_points_of_wrong_fields_are_an_error(fields, error, message):
    with pytest.raises(error, match=message):
        estimators.Points(**fields)
