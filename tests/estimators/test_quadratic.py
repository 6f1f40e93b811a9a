"""The quadratic control variate: exact moments, the quadratic toy, and the formula datum by datum."""

import pytest
import torch
from torch import nn

import funcvae as fv
from funcvae import tree
from funcvae.errors import BadValue
from funcvae.estimators import elbo_mc, quadratic_cv
from tests.support.enumeration import bernoulli_model
from tests.support.oracles import S2, assert_close, gradient_variances, noise, tiny, toy
from tests.support.specs import X


def exact(estimator, trained, samples=1):
    return fv.variance.exact(estimator, *trained, samples=samples, nodes=40 if samples == 1 else 20)


def total(part):
    return sum(float(leaf.sum()) for leaf in tree.leaves(part))


@pytest.mark.parametrize("likelihood", ["normal", "bernoulli"])
@pytest.mark.parametrize("gamma", [-1.0, 0.0, 0.5, 1.0])
def test_the_mean_is_that_of_elbo_mc_for_every_gamma(gamma, likelihood):
    head = {"normal": fv.heads.normal_fixed(1.0), "bernoulli": fv.heads.bernoulli}[likelihood]
    *trained, x = tiny(likelihood=head)
    trained = *trained, x if likelihood == "normal" else x.abs().round()
    found, known = exact(quadratic_cv(gamma), trained), exact(elbo_mc(), trained)
    assert_close(found.mean, known.mean, atol=1e-9)
    torch.testing.assert_close(found.bound, known.bound)
    for part in ("decoder", "prior"):
        assert_close(found.variance[part], known.variance[part], atol=1e-12)


def test_the_mean_is_that_of_elbo_mc_for_dependent_latents():
    *trained, x = tiny(encoder=lambda: nn.Linear(2, 5), posterior=fv.heads.full_normal)
    found, known = (exact(estimator, (*trained, x)) for estimator in (quadratic_cv(1.0), elbo_mc()))
    assert_close(found.mean, known.mean, atol=1e-9)
    assert 20 * total(found.variance["encoder"]) < total(known.variance["encoder"])


def test_at_gamma_1_the_variance_of_the_encoder_is_much_less():
    found, known = exact(quadratic_cv(1.0), tiny()), exact(elbo_mc(), tiny())
    assert 100 * total(found.variance["encoder"]) < total(known.variance["encoder"])


@pytest.mark.parametrize("gamma", [-0.5, 0.0, 0.25, 1.0, 2.0])
@pytest.mark.parametrize("samples", [1, 2])
def test_if_log_p_is_quadratic_the_variance_is_1_minus_gamma_squared_times_that_of_elbo_mc(samples, gamma):
    """b is log p(x, z) itself, and -log q(z|x) = ½ eps² + log sigma has the derivative of log sigma for every eps."""
    found = exact(quadratic_cv(gamma), (*toy(), X), samples).variance
    for name, known in zip(("m", "log_s"), gradient_variances("elbo_mc", 0.8, S2, 1.0), strict=True):
        assert found["encoder"][name].item() == pytest.approx((1 - gamma) ** 2 * known / samples, abs=1e-8)
    assert found["prior"]["mu"].item() == pytest.approx(S2 / samples, abs=1e-8)


def by_formula(gamma, trace=0.5):
    """The estimator with the Taylor polynomial by autograd, datum by datum; `trace` is the factor of Σ_i σ_i² H_ii."""

    def estimate(model, params, state, x, eps, *, train):
        def log_joint(z, datum):
            p_x, p_z = model.decode(params, state, z[None])[0], model.prior(params, state, z[None])[0]
            return p_x.log_prob(datum).sum() + p_z.log_prob(z[None]).sum()

        q_here, _ = model.encode(params, state, x)
        slope = torch.func.grad(log_joint)
        taylor = [
            (slope(m, datum), torch.func.jacrev(slope)(m, datum), m) for m, datum in zip(q_here.loc, x, strict=True)
        ]

        def control(params):
            q, _ = model.encode(params, state, x)
            found = []
            for (g, h, center), m, sigma, e in zip(taylor, q.loc, q.sigma, eps.unbind(1), strict=True):
                b = [g @ (z - center) + 0.5 * (z - center) @ h @ (z - center) for z in m + sigma * e]
                mean = (
                    g @ (m - center) + 0.5 * (m - center) @ h @ (m - center) + trace * (sigma**2 * h.diagonal()).sum()
                )
                found.append(torch.stack(b).mean() - mean)
            return torch.stack(found).mean()

        out = elbo_mc()(model, params, state, x, eps, train=train)
        grads = tree.map(lambda g, c: g + gamma * c, out.grads, torch.func.grad(control)(params))
        return out._replace(grads=grads)

    return estimate


@pytest.mark.parametrize("seed", range(3))
def test_for_every_eps_the_estimate_is_that_of_the_formula(seed):
    model, params, state, x = tiny()
    eps = noise(3, 2, 2, seed)
    found, known = (e(model, params, state, x, eps, train=False) for e in (quadratic_cv(0.7), by_formula(0.7)))
    assert_close(tuple(found), tuple(known), atol=1e-12)


def test_without_the_trace_of_the_hessian_in_the_expectation_it_is_biased():
    known = exact(elbo_mc(), (*toy(), X)).mean
    assert_close(exact(by_formula(1.0), (*toy(), X)).mean, known, atol=1e-9)
    off = tree.map(torch.sub, exact(by_formula(1.0, trace=0.0), (*toy(), X)).mean, known)
    assert abs(off["encoder"]["log_s"]) > 0.1


def test_the_posterior_must_be_a_normal():
    with pytest.raises(
        BadValue, match=r"quadratic_cv requires a Normal or FullNormal posterior, and this is a SignedNormal"
    ):
        quadratic_cv(1.0)(*tiny(posterior=fv.heads.signed_normal), noise(2, 2, 2), train=False)
    model, params, state = bernoulli_model()
    with pytest.raises(BadValue, match="requires a posterior with reparameterised samples"):
        quadratic_cv(1.0)(model, params, state, torch.ones(1, 4).double(), noise(2, 1, 2), train=False)


def test_a_call_decodes_once_more_at_as_many_points_as_there_are_latents():
    seen = []

    class Decoder(nn.Linear):
        def forward(self, z):
            seen.append(len(z))
            return super().forward(z)

    model = fv.vae(encoder=lambda: nn.Linear(2, 6), decoder=lambda: Decoder(3, 2), latent=3)
    params, state = model.init(fv.random.key(0))
    x, eps = torch.zeros(2, 2), fv.noise.iid(fv.random.key(1), 5, (2, 3))
    model.decode(params, state, eps)  # the first call tries the network
    seen.clear()
    quadratic_cv(1.0)(model, params, state, x, eps, train=False)
    assert len(seen) == 2
