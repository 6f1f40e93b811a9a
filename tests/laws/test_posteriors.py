"""Every kind of estimator with a full covariance, a flow and two stochastic layers.

Its gradient is that of its definition, written out with autograd, and means that are equal in theory are equal by
quadrature.
"""

import math

import pytest
import torch

import funcvae as fv
from funcvae import tree
from funcvae.errors import BadType
from funcvae.estimators import parse
from tests.support.oracles import assert_close, double, noise
from tests.support.posteriors import flow_vae, full_normal_vae, two_layers_vae

X = torch.tensor([[0.4, -0.7, 1.1]], dtype=torch.float64)
K = 4
every_model = pytest.mark.parametrize("make", [full_normal_vae, flow_vae, two_layers_vae])


def made(make):
    model = make()
    params, state = model.init(fv.random.key(2))
    return model, double(params), state


def leave_one_out(c):
    """VIMCO's learning signal without the weights: L_K minus the bound with the j-th log-weight replaced by a mean."""
    baselines = []
    for j in range(K):
        others = torch.cat([c[:j], c[j + 1 :]])
        baselines.append(torch.cat([others, others.mean(0, keepdim=True)]).logsumexp(0))
    return c.logsumexp(0) - torch.stack(baselines)


OBJECTIVES = {
    "elbo_mc": lambda f, fixed, log_q: f.mean(0),
    "iwae": lambda f, fixed, log_q: f.logsumexp(0) - math.log(K),
    "stl": lambda f, fixed, log_q: fixed.mean(0),
    "dreg": lambda f, fixed, log_q: (f.detach().softmax(0) ** 2 * fixed).sum(0),
    "vimco": lambda f, fixed, log_q: ((leave_one_out(f.detach()) - f.detach().softmax(0)) * log_q).sum(0),
}
"""Each function's gradient in the encoder is the estimator's: of log w, log w with q's parameters held constant, and
log q(z|x) at fixed z."""


@every_model
@pytest.mark.parametrize("spec", OBJECTIVES)
def test_the_encoders_gradient_is_autograds_of_its_definition(make, spec):
    model, params, state = made(make)
    eps = noise(K, 1, 2)
    out = parse(spec)(model, params, state, X, eps, train=False)

    leaves = tree.map(lambda t: t.clone().requires_grad_(), params)
    q, _ = model.encode(leaves, state, X)
    z = q.sample(eps)
    log_p = model.decode(leaves, state, z)[0].log_prob(X).sum(-1)
    log_prior = model.prior(leaves, state, z)[0].log_prob(z)
    log_p = log_p + (log_prior.sum(-1) if log_prior.ndim == 3 else log_prior)
    held = tree.map(torch.Tensor.detach, q)
    value = OBJECTIVES[spec](log_p - q.log_prob(z), log_p - held.log_prob(z), q.log_prob(z.detach())).sum()
    grads = torch.autograd.grad(-value, tree.leaves(leaves["encoder"]))
    found = tree.leaves(out.grads["encoder"])
    for mine, known in zip(found, grads, strict=True):
        torch.testing.assert_close(mine, known, rtol=1e-12, atol=1e-14)
    assert all(bool(g.any()) for g in found)


def exact_mean(spec, make, samples, nodes):
    """The mean of the gradient, and its error. Small parameters make its integrand smooth enough for few nodes."""
    model, params, state = made(make)
    calm = tree.map(lambda t: 0.3 * t, params)
    found = fv.variance.exact(parse(spec), model, calm, state, X, samples=samples, nodes=nodes, tolerance=0.01)
    return found.mean, found.error.mean


@every_model
def test_dreg_and_vimco_have_the_mean_of_iwae(make):
    iwae, error = exact_mean("iwae", make, 2, 12)
    assert error < 1e-4
    for spec in ("dreg", "vimco"):
        mean, more = exact_mean(spec, make, 2, 12)
        assert_close(mean, iwae, atol=error + more)


def test_a_gradient_of_another_bound_fails_the_comparison_of_means():
    (stl, error), (iwae, more) = (exact_mean(spec, full_normal_vae, 2, 12) for spec in ("stl", "iwae"))
    with pytest.raises(AssertionError):
        assert_close(stl, iwae, atol=10 * (error + more))


@every_model
def test_estimators_with_a_closed_form_kl_have_elbo_mcs_mean_or_refuse(make):
    model, params, state = made(make)
    arguments = (model, params, state, X)
    if make is full_normal_vae:
        (mine, _), (known, _) = (exact_mean(spec, make, 1, 60) for spec in ("elbo", "elbo_mc"))
        assert_close(mine, known, atol=1e-9)
        return
    with pytest.raises(BadType, match=r"^no closed-form KL for [^\n]*: use an estimator that samples it"):
        parse("elbo")(*arguments, noise(1, 1, 2), train=False)
