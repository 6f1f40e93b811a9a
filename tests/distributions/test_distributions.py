"""Densities and KLs against torch.distributions, finite differences and Monte Carlo."""

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch import distributions as td

from funcvae import random
from funcvae.distributions import Bernoulli, Delta, Normal, SignedNormal, is_reparameterised, kl
from funcvae.errors import BadType


def normals(seed, n=50):
    loc_key, sigma_key = random.split(random.key(seed))
    loc, log_sigma = (2 * random.normal(k, (n,), torch.float64) for k in (loc_key, sigma_key))
    return Normal(loc, log_sigma.exp())


def assert_mean(samples, mean, z=5.0):
    """The samples' mean along axis 0 lies within z standard errors of the expected mean."""
    error = (samples.mean(0) - mean) / (samples.std(0) / math.sqrt(len(samples)))
    assert error.abs().max() < z


def assert_equal(a, b, tolerance=1e-12):
    assert ((a - b).abs() <= tolerance * b.abs().clamp(min=1)).all()


def test_normal_log_prob_equals_torchs():
    p, x = normals(0), 3 * random.normal(random.key(1), (50,), torch.float64)
    assert_equal(p.log_prob(x), td.Normal(*p).log_prob(x))


def test_bernoulli_log_prob_equals_torchs_for_bits_and_grey_values():
    logits = torch.linspace(-40, 40, 8001, dtype=torch.float64)
    for x in (torch.zeros_like(logits), torch.ones_like(logits)):
        assert_equal(Bernoulli(logits).log_prob(x), td.Bernoulli(logits=logits).log_prob(x))
    grey = torch.full_like(logits, 0.3)
    reference = -torch.nn.functional.binary_cross_entropy_with_logits(logits, grey, reduction="none")
    assert_equal(Bernoulli(logits).log_prob(grey), reference)


def test_bernoulli_log_prob_is_finite_and_exact_at_extreme_logits():
    logits = torch.tensor([1e4, -1e4, 1e4, -1e4])
    x = torch.tensor([1.0, 0.0, 0.0, 1.0])
    assert Bernoulli(logits).log_prob(x).tolist() == [0, 0, -1e4, -1e4]
    gradient = torch.func.grad(lambda logits: Bernoulli(logits).log_prob(x).sum())(logits)
    assert gradient.tolist() == [0, 0, -1, 1]


def test_bernoulli_log_prob_has_the_gradient_of_finite_differences():
    logits = torch.linspace(-5, 5, 21, dtype=torch.float64, requires_grad=True)
    for value in (0.0, 0.3, 1.0):
        x = torch.full((21,), value, dtype=torch.float64)
        assert torch.autograd.gradcheck(lambda logits, x=x: Bernoulli(logits).log_prob(x), logits)


def test_normal_log_prob_and_kl_have_the_gradients_of_finite_differences():
    q, p = normals(2, 5), normals(3, 5)
    inputs = [t.clone().requires_grad_() for t in (*q, *p)]
    assert torch.autograd.gradcheck(lambda a, b, c, d: kl(Normal(a, b), Normal(c, d)), inputs, rtol=1e-5)
    assert torch.autograd.gradcheck(lambda a, b, x: Normal(a, b).log_prob(x), inputs[:3], rtol=1e-5)


def test_kl_equals_torchs():
    q, p = normals(4), normals(5)
    assert_equal(kl(q, p), td.kl_divergence(td.Normal(*q), td.Normal(*p)))


def test_kl_is_zero_for_equal_distributions_and_positive_otherwise():
    q, p = normals(4), normals(5)
    assert kl(q, q).abs().max() < 1e-15
    assert (kl(q, p) > 0).all()


def test_kl_broadcasts_a_prior_of_scalars():
    q = normals(6)
    prior = Normal(torch.zeros(()), torch.ones(()))
    assert_equal(kl(q, prior), kl(q, Normal(torch.zeros(50), torch.ones(50))))


def test_kl_equals_its_monte_carlo_mean_in_standard_errors():
    q = Normal(torch.tensor([0.0, 1.0, -2.0]).double(), torch.tensor([1.0, 0.5, 2.0]).double())
    p = Normal(torch.tensor([0.5, 0.0, -2.0]).double(), torch.tensor([1.5, 1.0, 0.7]).double())
    z = q.sample(random.normal(random.key(7), (20_000, 3), torch.float64))
    samples = q.log_prob(z) - p.log_prob(z)
    assert_mean(samples, kl(q, p))
    with pytest.raises(AssertionError):
        assert_mean(samples, kl(p, q))


def test_the_kl_has_its_minimum_at_sigma_one_and_the_posts_at_root_half():
    sigma = torch.linspace(0.5, 1.5, 100_001, dtype=torch.float64)
    mu = torch.zeros_like(sigma)
    ours = kl(Normal(mu, sigma), Normal(torch.zeros(()), torch.ones(())))
    posts = sigma**2 + mu**2 - sigma.log() - 1 / 2
    assert sigma[ours.argmin()].item() == pytest.approx(1, abs=1e-5)
    assert sigma[posts.argmin()].item() == pytest.approx(1 / math.sqrt(2), abs=1e-5)


def test_normal_samples_have_its_mean_and_variance():
    p = Normal(torch.tensor([-1.0, 3.0]).double(), torch.tensor([0.1, 4.0]).double())
    x = p.sample(random.normal(random.key(8), (20_000, 2), torch.float64))
    assert_mean(x, p.mean)
    assert_mean((x - p.loc) ** 2, p.sigma**2)


def test_bernoulli_samples_have_its_mean_and_its_dtype():
    p = Bernoulli(torch.tensor([-2.0, 0.0, 1.0]).double())
    x = p.sample(random.normal(random.key(9), (20_000, 3), torch.float64))
    assert x.dtype == torch.float64
    assert x.unique().tolist() == [0, 1]
    assert_mean(x, p.mean)
    assert_equal(p.mean, p.logits.sigmoid())


def test_delta_has_no_density_and_a_kl_of_zero():
    q = Delta(torch.tensor([1.0, -2.0]))
    assert q.mean is q.loc
    assert q.sample(torch.randn(3, 2)).tolist() == [[1, -2]] * 3
    assert kl(q, Normal(torch.zeros(()), torch.ones(()))).tolist() == [0, 0]
    with pytest.raises(BadType, match="no density"):
        q.log_prob(torch.zeros(2))


def test_kl_of_a_pair_without_closed_form_is_an_error_that_names_both():
    with pytest.raises(BadType, match=r"Bernoulli and Normal.*rloo or disarm"):
        kl(Bernoulli(torch.zeros(2)), Normal(torch.zeros(2), torch.ones(2)))


SIGMAS = torch.tensor([-2.0, -1.0, -1e-3, 0.0, 1e-3, 0.5, 1.0, 3.0], dtype=torch.float64)
STANDARD = Normal(torch.zeros(()).double(), torch.ones(()).double())


def test_kl_and_log_prob_of_a_signed_normal_are_the_posts_formulas():
    q, x = SignedNormal(torch.linspace(-2, 2, 8).double(), SIGMAS), torch.linspace(1, -1, 8).double()
    printed = 0.5 * (q.loc**2 + q.sigma**2 - torch.log(1e-8 + q.sigma**2) - 1)
    assert_equal(kl(q, STANDARD), printed)
    assert_equal(q.log_prob(x), td.Normal(q.loc, (q.sigma**2 + 1e-8).sqrt()).log_prob(x))
    assert torch.equal(q.sample(x), q.loc + q.sigma * x)
    shifted, scaled = Normal(torch.tensor(0.5).double(), torch.tensor(2.0).double()), q._replace(loc=(q.loc - 0.5) / 2)
    away = kl(q, shifted) - kl(scaled._replace(sigma=q.sigma / 2), STANDARD)
    assert away[SIGMAS.abs() > 0.1].abs().max() < 1e-7  # where the 1e-8 is negligible


def test_a_signed_normal_is_finite_and_flat_at_sigma_zero():
    for dtype in (torch.float32, torch.float64):
        zero = torch.zeros(3, dtype=dtype)

        def total(sigma, zero=zero):
            q = SignedNormal(zero, sigma)
            return (kl(q, Normal(zero, zero + 1)) + q.log_prob(q.sample(zero + 1))).sum()

        gradient, value = torch.func.grad_and_value(total)(zero)
        assert value.isfinite()
        assert gradient.tolist() == [0, 0, 0]
        assert kl(SignedNormal(zero, zero), Normal(zero, zero + 1))[0].item() == pytest.approx(
            0.5 * (8 * math.log(10) - 1)
        )


def test_a_signed_normal_has_the_gradients_of_finite_differences():
    inputs = [t.double().requires_grad_() for t in (torch.tensor([0.3, -1.0]), torch.tensor([-0.7, 1.2]))]
    assert torch.autograd.gradcheck(lambda loc, sigma: kl(SignedNormal(loc, sigma), STANDARD), inputs)
    assert torch.autograd.gradcheck(lambda loc, sigma: SignedNormal(loc, sigma).log_prob(STANDARD.sigma), inputs)


def test_log_prob_of_a_signed_normal_is_not_the_density_of_its_samples():
    """Therefore no estimator is unbiased for it: at sigma = 1e-4 the two variances differ by a factor of two."""
    q = SignedNormal(torch.zeros(1).double(), torch.full((1,), 1e-4).double())
    eps = random.normal(random.key(10), (20_000, 1), torch.float64)
    z = q.sample(eps)
    assert_mean(z**2, q.sigma**2)
    with pytest.raises(AssertionError):
        assert_mean(z**2, q.variance)
    with pytest.raises(AssertionError):
        assert_mean(q.log_prob(z) - STANDARD.log_prob(z), kl(q, STANDARD))


@pytest.mark.parametrize(
    "make",
    [Bernoulli, Delta, lambda t: Normal(t, t.exp()), lambda t: SignedNormal(t, t)],
    ids=["Bernoulli", "Delta", "Normal", "SignedNormal"],
)
def test_distributions_pass_through_vmap(make):
    t = torch.linspace(-1, 1, 6).reshape(3, 2)
    p = torch.vmap(make)(t)
    assert type(p) is type(make(t))
    assert torch.equal(p.mean, make(t).mean)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # from torch's forward mode
def test_second_derivatives_of_bernoulli_in_forward_and_reverse_mode():
    x, a = torch.tensor([1.0, 0.0, 0.3]), torch.tensor([0.4, 0.0, -2.0], dtype=torch.float64)
    x = x.double()
    p = a.sigmoid()

    def total(a):
        return Bernoulli(a).log_prob(x).sum()

    torch.testing.assert_close(torch.func.hessian(total)(a), torch.diag(-p * (1 - p)))
    torch.testing.assert_close(torch.func.jacrev(torch.func.jacrev(total))(a), torch.diag(-p * (1 - p)))
    torch.testing.assert_close(torch.func.jacfwd(lambda x: Bernoulli(a).log_prob(x))(x), torch.diag(a))


def posterior(sample):
    """A posterior with two fields that does not say whether `sample(loc, scale, eps)` is reparameterised."""

    class Posterior(NamedTuple):
        loc: Tensor
        scale: Tensor

        def sample(self, eps):
            return sample(self.loc, self.scale, eps)

    loc = 2 * random.normal(random.key(1), (2, 3)) * torch.tensor([1.0, 1e-3, 0.0])  # large, small and zero
    return Posterior(loc, random.normal(random.key(2), (2, 3)).exp() * torch.tensor([0.01, 1.0, 10.0]))


@torch.no_grad()
def without_gradient(loc, scale, eps):
    return loc + scale * eps


@pytest.mark.parametrize(
    "sample",
    [
        lambda loc, scale, eps: loc + scale * eps,
        lambda loc, scale, eps: loc + scale.exp() * eps,
        lambda loc, scale, eps: loc + 0 * scale * eps,
        lambda loc, scale, eps: (loc + scale * eps).sigmoid(),
        lambda loc, scale, eps: (loc + scale * eps).relu(),
        lambda loc, scale, eps: (loc + scale * eps).clamp(0, 1),
        lambda loc, scale, eps: ((loc + scale * eps) / 0.05).sigmoid(),  # a relaxation at a low temperature
        lambda loc, scale, eps: loc - scale.sqrt() * torch.special.ndtr(eps).log(),
        lambda loc, scale, eps: eps.mul_(scale).add_(loc),
        lambda loc, scale, eps: torch.einsum("bij,nbj->nbi", torch.diag_embed(scale) + loc[..., None], eps),
    ],
)
def test_samples_with_the_derivatives_of_their_values_are_reparameterised(sample):
    assert is_reparameterised(posterior(sample))


@pytest.mark.parametrize(
    "sample",
    [
        lambda loc, scale, eps: (torch.special.ndtr(eps) < loc.sigmoid()).to(loc.dtype),
        lambda loc, scale, eps: (loc + scale * eps > 0).to(loc.dtype),
        lambda loc, scale, eps: (loc + scale * eps).round(),
        lambda loc, scale, eps: (loc + scale * eps).sign(),
        lambda loc, scale, eps: loc.detach() + scale * eps,
        lambda loc, scale, eps: loc + scale.detach() * eps,
        lambda loc, scale, eps: (h := loc + scale * eps).round().detach() + h - h.detach(),  # straight through
        lambda loc, scale, eps: torch.where(eps < loc, loc, scale),  # a mixture: steps in its weights
        without_gradient,
    ],
)
def test_samples_without_the_derivatives_of_their_values_are_not_reparameterised(sample):
    assert not is_reparameterised(posterior(sample))


@torch.inference_mode()
def test_samples_are_compared_with_their_derivatives_in_inference_mode():
    assert is_reparameterised(posterior(lambda loc, scale, eps: loc + scale * eps))


def test_a_distribution_may_say_whether_it_is_reparameterised():
    one = torch.ones(2, 3)
    assert all(map(is_reparameterised, (Normal(one, one), SignedNormal(one, one), Delta(one))))
    assert not is_reparameterised(Bernoulli(one))


def test_samples_that_cannot_be_compared_are_an_error_that_asks_for_the_attribute():
    with pytest.raises(BadType, match="set its attribute reparameterised to True or False"):
        is_reparameterised(posterior(lambda loc, scale, eps: nn.functional.linear(eps, loc.float())))


def test_the_comparison_does_not_change_the_posterior():
    q = posterior(lambda loc, scale, eps: loc + scale * eps)
    before = [field.clone() for field in q]
    is_reparameterised(q)
    assert all(map(torch.equal, q, before))
