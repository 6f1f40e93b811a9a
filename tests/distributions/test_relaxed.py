"""Relaxed distributions against torch.distributions, quadrature, and the discrete distributions that they tend to."""

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from scipy.special import roots_legendre
from torch import Tensor, nn
from torch import distributions as td

import funcvae as fv
from funcvae import random
from funcvae.distributions import (
    Bernoulli,
    Categorical,
    Normal,
    RelaxedBernoulli,
    RelaxedCategorical,
    is_reparameterised,
    kl,
)
from funcvae.errors import BadType

DTYPES = [torch.float32, torch.float64]
TEMPERATURES = [0.3, 0.66, 1.0, 2.0]


def number(value, dtype=torch.float64):
    return torch.tensor(value, dtype=dtype)


def logits(seed, *shape, dtype=torch.float64):
    return 1.5 * random.normal(random.key(seed), shape, torch.float64).to(dtype)


def unit_interval(nodes=400):
    """Nodes and weights on (0, 1) for integrands that are singular at its ends: z = sigmoid(t), dz = z (1 - z) dt."""
    node, weight = (torch.tensor(each) for each in roots_legendre(nodes))
    z = (36 * node).sigmoid()
    return z, 36 * weight * z * (1 - z)


# Densities.


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_log_prob_of_a_relaxed_bernoulli_is_torchs(temperature, dtype):
    a = logits(0, 50)
    z = (2 * random.normal(random.key(1), (50,), torch.float64)).sigmoid().to(dtype)
    known = td.RelaxedBernoulli(number(temperature), logits=a).log_prob(z.double())
    found = RelaxedBernoulli(a.to(dtype), number(temperature, dtype)).log_prob(z)
    torch.testing.assert_close(found, known.to(dtype), rtol=1e-5, atol=1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_log_prob_of_a_relaxed_categorical_is_torchs_summed_over_the_variables(temperature, dtype):
    a = logits(2, 20, 2, 3)
    q = RelaxedCategorical(a.to(dtype), number(temperature, dtype))
    z = q.sample(random.normal(random.key(3), (4, 20, 6), dtype))
    known = td.RelaxedOneHotCategorical(number(temperature), logits=a, validate_args=False)
    expected = known.log_prob(z.double().unflatten(-1, (2, 3))).sum(-1)
    found = q.log_prob(z)
    assert found.shape == (4, 20)
    torch.testing.assert_close(found, expected.to(dtype), rtol=1e-4, atol=1e-4 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_density_of_a_relaxed_bernoulli_integrates_to_one(temperature):
    z, weight = unit_interval()
    for a in (-2.0, 0.0, 3.0):
        density = RelaxedBernoulli(number(a), number(temperature)).log_prob(z).exp()
        assert (weight * density).sum().item() == pytest.approx(1, abs=1e-8 if temperature > 0.5 else 1e-3)


@pytest.mark.parametrize("temperature", [0.66, 1.0, 2.0])
def test_the_density_of_a_relaxed_categorical_integrates_to_one_over_its_first_elements(temperature):
    z, weight = unit_interval(300)
    first, share = torch.meshgrid(z, z, indexing="ij")  # z_2 = (1 - z_1) · share
    rest = 1 - first
    points = torch.stack([first, rest * share, rest * (1 - share)], -1)
    weights = torch.outer(weight, weight) * rest
    inside = (points > 0).all(-1)
    q = RelaxedCategorical(number([[0.5, -1.0, 0.0]]), number(temperature))
    density = q.log_prob(points[inside]).exp()
    assert (weights[inside] * density).sum().item() == pytest.approx(1, abs=1e-6)


def test_a_relaxed_categorical_of_two_classes_is_a_relaxed_bernoulli():
    a, temperature, z = logits(4, 9), number(0.7), torch.linspace(0.01, 0.99, 9).double()
    two = RelaxedCategorical(torch.stack([a, torch.zeros_like(a)], -1).unsqueeze(-2), temperature)
    expected = RelaxedBernoulli(a, temperature)
    torch.testing.assert_close(two.log_prob(torch.stack([z, 1 - z], -1)), expected.log_prob(z))
    torch.testing.assert_close(two.mean[..., 0], expected.mean)


def test_log_prob_has_the_gradients_of_finite_differences():
    a, temperature = logits(5, 2, 3).requires_grad_(), number(0.6)
    z = logits(6, 4, 2, 3).softmax(-1).flatten(-2).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, z: RelaxedCategorical(a, temperature).log_prob(z), (a, z))
    assert torch.autograd.gradcheck(lambda a, z: RelaxedBernoulli(a.flatten(), temperature).log_prob(z), (a, z))


# Samples.


def assert_distributed(samples, cdf, z=5.0):
    """The fraction of the samples below each of several points lies within z standard errors of the cdf there."""
    for point in (0.02, 0.2, 0.5, 0.8, 0.98):
        p = cdf(point)
        error = math.sqrt(p * (1 - p) / len(samples))
        assert abs((samples < point).double().mean().item() - p) < z * error


def density_below(q, point):
    """P(z < point) by quadrature of exp(log_prob)."""
    z, weight = unit_interval()
    scaled = z * point
    return (weight * point * q.log_prob(scaled).exp()).sum().item()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_samples_of_a_relaxed_bernoulli_have_its_density(temperature, dtype):
    q = RelaxedBernoulli(number([0.7], dtype), number(temperature, dtype))
    samples = q.sample(random.normal(random.key(7), (40_000, 1), dtype))
    exact = RelaxedBernoulli(number(0.7), number(temperature))
    assert_distributed(samples, lambda point: density_below(exact, point))
    with pytest.raises(AssertionError):
        assert_distributed(samples, lambda point: density_below(exact._replace(logits=number(-0.7)), point))


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_samples_of_a_relaxed_categorical_have_its_density(temperature):
    """E[h(z) p(z)/q(z)] = E_p[h(z)] for another p and bounded h, which needs both densities and the samples."""
    q = RelaxedCategorical(number([[0.4, -0.3, 0.0], [0.0, 0.5, 0.2]]), number(temperature))
    p = RelaxedCategorical(number([[0.0, 0.2, 0.1], [0.3, 0.0, 0.0]]), number(temperature))
    z, y = (d.sample(random.normal(random.key(8 + i), (40_000, 6), torch.float64)) for i, d in enumerate((q, p)))
    ratio = (p.log_prob(z) - q.log_prob(z)).exp().unsqueeze(-1)
    for h in (lambda z: z, lambda z: z[:, :3] * z[:, 3:], lambda z: (z < 0.1).double()):
        weighted, plain = h(z) * ratio, h(y)
        error = ((weighted.var(0) + plain.var(0)) / len(z)).sqrt()
        assert ((weighted.mean(0) - plain.mean(0)).abs() < 5 * error).all()


def test_gumbel_noise_shared_by_the_classes_gives_samples_without_the_density():
    q = RelaxedCategorical(number([[0.4, -0.3, 0.0]]), number(1.0))
    eps = random.normal(random.key(10), (10_000, 1), torch.float64)
    assert q.sample(eps.expand(-1, 3)).std(0).max() < 1e-12  # all equal


@pytest.mark.parametrize("dtype", DTYPES)
def test_samples_tend_to_the_discrete_ones_from_the_same_noise_as_the_temperature_tends_to_zero(dtype):
    eps = random.normal(random.key(11), (2000, 6), dtype)
    a, temperature = logits(12, 6, dtype=dtype), number(1e-4, dtype)
    soft, hard = RelaxedBernoulli(a, temperature).sample(eps), Bernoulli(a).sample(eps)
    assert ((soft - hard).abs() > 0.01).double().mean() < 1e-3
    a = a.view(2, 3)
    soft, hard = RelaxedCategorical(a, temperature).sample(eps), Categorical(a).sample(eps)
    assert ((soft - hard).abs() > 0.01).double().mean() < 1e-3
    mirrored = RelaxedBernoulli(a.flatten(), temperature).sample(-eps)
    assert ((mirrored - Bernoulli(a.flatten()).sample(eps)).abs() > 0.01).double().mean() > 0.1


@pytest.mark.parametrize("temperature", [0.1, 0.3, 0.66, 1.0, 1.5, 3.0])
def test_the_mean_is_within_the_error_in_the_docstring(temperature):
    u = (np.arange(20_000) + 0.5) / 20_000
    eps = torch.special.ndtri(torch.tensor(u)).unsqueeze(1)
    q = RelaxedBernoulli(torch.linspace(-6, 6, 49).double(), number(temperature))
    assert (q.sample(eps).mean(0) - q.mean).abs().max() < 0.011
    assert torch.equal(q.loc, q.mean)
    many = RelaxedCategorical(logits(13, 10, 1, 4), number(temperature))
    samples = many.sample(random.normal(random.key(14), (10_000, 10, 4), torch.float64))
    assert ((samples.mean(0) - many.mean).abs() < 0.02 + 5 * samples.std(0) / 100).all()
    torch.testing.assert_close(many.mean.sum(-1), torch.ones(10).double())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.01, 0.1, 0.66, 2.0, 10.0])
def test_extreme_logits_and_noise_have_finite_values_and_gradients(temperature, dtype):
    a = torch.tensor([-1e4, -100, -20, -1, 0, 1, 20, 100, 1e4], dtype=dtype)
    eps = torch.linspace(-8, 8, 65, dtype=dtype).unsqueeze(1).expand(-1, 9)
    heat = number(temperature, dtype)

    def values(a, z, make):
        return make(a).log_prob(z)

    def of_samples(a, eps, make):
        q = make(a)
        return q.log_prob(q.sample(eps)).sum() + q.mean.sum()

    for make, noise in (
        (lambda a: RelaxedBernoulli(a, heat), eps),
        (lambda a: RelaxedCategorical(torch.stack([a, -a, 0 * a], -1), heat), torch.cat([eps, -eps, eps.flip(1)], 1)),
    ):
        z = make(a).sample(noise)
        assert ((z > 0) & (z < 1)).all()
        assert values(a, z, make).isfinite().all()
        slopes = torch.func.grad(lambda a, z, make=make: values(a, z, make).sum(), (0, 1))(a, z)
        total = torch.func.grad(of_samples)(a, noise, make)
        assert all(slope.isfinite().all() for slope in (*slopes, total))


def test_in_float32_samples_near_one_are_clipped_and_do_not_have_the_density_as_the_module_says():
    a, heat = number(0.0), number(0.1)
    z = RelaxedBernoulli(a, heat).sample(random.normal(random.key(15), (10_000, 1), torch.float64))
    assert (z.float() == 1).double().mean() > 0.1
    q = RelaxedBernoulli(a.float(), heat.float())
    eps = random.normal(random.key(15), (10_000, 1), torch.float64)
    wrong = (q.log_prob(q.sample(eps.float())).double() - RelaxedBernoulli(a, heat).log_prob(z)).abs() > 0.1
    assert (wrong == (z.logit() > 16.6)).double().mean() > 0.97
    at = RelaxedBernoulli(a.float(), number(1.0, torch.float32)).sample(eps.float()).logit() < 16.6
    assert at.all()


# What a bound with a relaxed posterior takes.


class Evidence(NamedTuple):
    """E exp(log w) of a model with one latent, and its p(x), by quadrature."""

    mean: float
    known: float


def evidence(log_q, prior, likelihood, q):
    z, weight = unit_interval()
    density = q.log_prob(z).exp()
    w = (likelihood(z) + prior.log_prob(z) - log_q(z)).exp()
    known = (weight * (likelihood(z) + prior.log_prob(z)).exp()).sum()
    return Evidence((weight * density * w).sum().item(), known.item())


def test_the_weights_have_the_mean_p_of_x_with_the_density_and_not_with_the_discrete_log_prob():
    """The same holds for the bound: log of the mean weight exceeds log p(x) with the Bernoulli's log_prob."""
    q = RelaxedBernoulli(number(0.8), number(0.66))
    prior = RelaxedBernoulli(number(0.0), number(0.66))

    def likelihood(z):
        return Normal(2 * z - 0.5, number(0.7)).log_prob(number(0.3))

    right = evidence(q.log_prob, prior, likelihood, q)
    assert right.mean == pytest.approx(right.known, abs=1e-8)
    for log_q in (Bernoulli(q.logits).log_prob, RelaxedBernoulli(q.logits, number(1.0)).log_prob):
        wrong = evidence(log_q, prior, likelihood, q)
        assert abs(math.log(wrong.mean / wrong.known)) > 0.1


def test_the_sampled_kl_of_relaxed_bernoullis_is_not_that_of_the_discrete_ones():
    q, p = (RelaxedBernoulli(number(a), number(0.66)) for a in (1.5, 0.0))
    z, weight = unit_interval()
    exact = (weight * q.log_prob(z).exp() * (q.log_prob(z) - p.log_prob(z))).sum()
    samples = q.sample(random.normal(random.key(16), (40_000,), torch.float64))
    each = q.log_prob(samples) - p.log_prob(samples)
    assert abs(each.mean() - exact) < 5 * each.std() / 200
    discrete = kl(Bernoulli(q.logits), Bernoulli(p.logits))
    assert abs(discrete - exact) > 0.05
    other = RelaxedBernoulli(number(0.0), number(2.0))  # the temperatures matter, too
    assert abs((weight * q.log_prob(z).exp() * (q.log_prob(z) - other.log_prob(z))).sum() - exact) > 0.05


@pytest.mark.parametrize(
    ("q", "p"),
    [
        (RelaxedBernoulli(torch.zeros(2), torch.ones(())), Bernoulli(torch.zeros(2))),
        (RelaxedCategorical(torch.zeros(1, 2), torch.ones(())), Categorical(torch.zeros(1, 2))),
    ],
)
def test_a_relaxed_posterior_and_a_discrete_prior_have_no_kl_and_the_error_names_the_prior(q, p):
    with pytest.raises(
        BadType, match=f"a {type(q).__name__} posterior needs a prior with a density: use priors.concrete"
    ):
        kl(q, p)
    with pytest.raises(BadType, match=r"no closed-form KL .* elbo_mc"):
        kl(q, q)


@pytest.mark.parametrize("classes", [None, 2])
def test_importance_sampling_with_a_relaxed_posterior_finds_p_of_x(classes):
    latent = 2
    model = fv.vae(
        encoder=lambda: nn.Linear(3, latent),
        decoder=lambda: nn.Linear(latent, 3),
        latent=latent,
        posterior=fv.heads.concrete(0.7, classes),
        prior=fv.priors.concrete(0.7, classes),
    )
    params, state = fv.tree.map(lambda t: t.double(), model.init(random.key(17)))
    x = number([[1.0, 0.0, 1.0]])
    z, weight = unit_interval(120)
    if classes:
        points, weights = torch.stack([z, 1 - z], -1), weight
    else:
        points, weights = torch.cartesian_prod(z, z), torch.outer(weight, weight).flatten()
    log_p_z = model.prior(params, state, points)[0].log_prob(points)
    log_p_z = log_p_z if classes else log_p_z.sum(-1)
    log_p_x_z = model.decode(params, state, points)[0].log_prob(x).sum(-1)
    known = (weights * (log_p_z + log_p_x_z).exp()).sum().log().item()
    found = fv.evaluate.log_likelihood(model, params, state, x, random.key(18), samples=5000)
    assert abs(found.log_p.mean - known) < 5 * found.log_p.se


# Transforms.


@pytest.mark.parametrize(
    "make",
    [
        lambda a, t: RelaxedBernoulli(a, t),
        lambda a, t: RelaxedCategorical(a.unflatten(-1, (2, 2)), t),
    ],
    ids=["RelaxedBernoulli", "RelaxedCategorical"],
)
def test_functions_of_relaxed_distributions_work_under_vmap_and_in_a_compiled_graph(make):
    a, heat = logits(19, 3, 4, dtype=torch.float32), torch.tensor(0.7)
    eps = random.normal(random.key(20), (5, 3, 4))

    def gradient(a, eps):
        def total(a):
            q = make(a, heat.to(a.device))
            z = q.sample(eps)
            return q.log_prob(z).sum() + (z * q.mean).sum(), z

        return torch.func.grad(total, has_aux=True)(a)

    expected = gradient(a, eps)
    mapped = torch.vmap(gradient, (None, 0))(a, eps)
    torch.testing.assert_close((mapped[0].sum(0), mapped[1]), expected)
    compiled = torch.compile(gradient, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(a, eps[0]), gradient(a, eps[0]))
    assert all(t.is_meta for t in gradient(a.to("meta"), eps.to("meta")))


class Undeclared(NamedTuple):
    """A RelaxedBernoulli that does not say whether it is reparameterised."""

    logits: Tensor

    @property
    def loc(self):
        return self.logits.sigmoid()

    def sample(self, eps):
        return RelaxedBernoulli(self.logits, self.logits.new_tensor(0.5)).sample(eps)


def test_relaxed_samples_have_the_derivatives_of_their_values():
    assert is_reparameterised(RelaxedBernoulli(torch.zeros(2, 3), torch.ones(())))
    assert is_reparameterised(RelaxedCategorical(torch.zeros(2, 1, 3), torch.ones(())))
    assert is_reparameterised(Undeclared(logits(21, 2, 3, dtype=torch.float32)))
