"""Bernoulli and categorical posteriors against torch.distributions, frequencies, and known values."""

import math

import pytest
import torch
from torch import distributions as td

from funcvae import random
from funcvae.distributions import Bernoulli, Categorical, Normal, is_reparameterised, kl
from funcvae.distributions.discrete import gumbel, minus_log_u, uniform
from funcvae.errors import BadType, BadValue

DTYPES = [torch.float32, torch.float64]
EXTREME = (-1e4, -100.0, -20.0, -1.0, 0.0, 1.0, 20.0, 100.0, 1e4)


def logits(seed, *shape, dtype=torch.float64):
    return 2 * random.normal(random.key(seed), shape, torch.float64).to(dtype)


def one_hot(*classes, of):
    return torch.eye(of, dtype=torch.float64)[list(classes)].flatten()


def assert_frequencies(samples, probabilities, z=5.0):
    """The mean of the indicators along axis 0 lies within z standard errors of their probabilities."""
    error = (probabilities * (1 - probabilities) / len(samples)).sqrt()
    assert (((samples.mean(0) - probabilities) / error).abs() < z).all()


# Noise.


@pytest.mark.parametrize("dtype", DTYPES)
def test_uniform_numbers_are_accurate_near_zero_where_torchs_ndtr_is_not(dtype):
    known = {-1.0: 1.586552539314570514e-1, -5.0: 2.866515718791939e-7, -8.0: 6.220960574271785e-16}
    eps, phi = (torch.tensor(list(each), dtype=torch.float64) for each in (known, known.values()))
    relative = uniform(eps.to(dtype)) / phi - 1
    assert relative.abs().max() < (3e-6 if dtype == torch.float32 else 1e-14)
    assert (torch.special.ndtr(eps.to(dtype)) / phi - 1).abs().max() > 0.01


@pytest.mark.parametrize("dtype", DTYPES)
def test_minus_log_u_and_gumbel_noise_are_accurate_in_both_tails(dtype):
    eps = torch.linspace(-8, 8, 33, dtype=torch.float64)
    known = -torch.special.log_ndtr(eps)
    tolerance = 3e-6 if dtype == torch.float32 else 1e-13
    assert (minus_log_u(eps.to(dtype)) / known - 1).abs().max() < tolerance
    assert (gumbel(eps.to(dtype)) + known.log()).abs().max() < 10 * tolerance


def test_gumbel_noise_has_the_mean_and_the_variance_of_the_gumbel_distribution():
    g = gumbel(random.normal(random.key(1), (100_000,), torch.float64))
    assert abs(g.mean() - 0.5772156649) < 5 * math.sqrt(math.pi**2 / 6 / len(g))
    square = (g - 0.5772156649) ** 2
    assert abs(square.mean() - math.pi**2 / 6) < 5 * square.std() / math.sqrt(len(g))


# Densities and means.


@pytest.mark.parametrize("dtype", DTYPES)
def test_log_prob_and_mean_of_a_bernoulli_are_torchs(dtype):
    a = logits(2, 50, dtype=dtype)
    known = td.Bernoulli(logits=a)
    for x in (torch.zeros_like(a), torch.ones_like(a)):
        torch.testing.assert_close(Bernoulli(a).log_prob(x), known.log_prob(x))
    torch.testing.assert_close(Bernoulli(a).mean, known.mean)
    assert Bernoulli(a).loc.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
def test_log_prob_and_mean_of_a_categorical_are_torchs(dtype):
    a = logits(3, 5, 4, 3, dtype=dtype)  # four variables of three classes
    q, known = Categorical(a), td.OneHotCategorical(logits=a)
    z = q.sample(random.normal(random.key(4), (7, 5, 12), dtype))
    assert z.dtype == dtype
    each = q.log_prob(z)
    assert each.shape == z.shape
    torch.testing.assert_close(each.unflatten(-1, (4, 3)).sum(-1), known.log_prob(z.unflatten(-1, (4, 3))))
    torch.testing.assert_close(q.mean, known.mean.flatten(-2))
    assert torch.equal(q.loc, q.mean)


def test_categorical_log_prob_has_the_gradient_of_finite_differences():
    z = one_hot(2, 0, of=3)
    assert torch.autograd.gradcheck(lambda a: Categorical(a).log_prob(z), logits(5, 2, 3).requires_grad_())


@pytest.mark.parametrize("q", [Bernoulli(logits(6, 4)), Categorical(logits(7, 2, 3))])
def test_the_probabilities_of_the_values_add_up_to_one(q):
    values = q.values()
    variables = q.mean.shape[-1] // values.shape[1]
    log_q = torch.stack([q.log_prob(value.repeat(variables)) for value in values])
    log_q = log_q.unflatten(-1, (variables, -1)).sum(-1)
    torch.testing.assert_close(log_q.exp().sum(0), torch.ones(variables).double())


def test_values_are_those_of_one_variable():
    assert Bernoulli(torch.zeros(4)).values().tolist() == [[0], [1]]
    assert Categorical(torch.zeros(2, 3)).values().tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


@pytest.mark.parametrize("q", [Bernoulli(logits(8, 6)), Categorical(logits(9, 2, 3))])
def test_of_mean_has_this_mean(q):
    torch.testing.assert_close(q.of_mean(q.mean).mean, q.mean)
    torch.testing.assert_close(q.of_mean(0.9 * q.mean + 0.1 * q.mean).mean, q.mean)


# Samples.


@pytest.mark.parametrize("dtype", DTYPES)
def test_bernoulli_samples_have_its_probabilities_and_are_one_where_u_is_below_them(dtype):
    q = Bernoulli(torch.tensor([-6.0, -2.0, 0.0, 1.0, 6.0], dtype=dtype))
    eps = random.normal(random.key(10), (40_000, 5), dtype)
    z = q.sample(eps)
    assert z.unique().tolist() == [0, 1]
    assert_frequencies(z.double(), q.mean.double())
    assert torch.equal(q.sample(eps.sort(0).values), z.sort(0, descending=True).values)
    if dtype == torch.float64:
        assert torch.equal(z, (torch.special.ndtr(eps) < q.mean).double())


@pytest.mark.parametrize("eps", [-5.42, 5.42, -8.0, 8.0])
def test_a_bernoulli_value_of_negligible_probability_is_not_drawn_where_u_or_the_mean_rounds_to_one(eps):
    """At eps = 5.42, the mirror image of the least float32 draw, u rounds to 1."""
    q = Bernoulli(torch.tensor([40.0, 100.0, 1e4, -40.0, -100.0, -1e4]))
    assert q.sample(torch.full((6,), eps)).tolist() == [1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_categorical_samples_have_its_probabilities_and_its_variables_are_independent(dtype):
    q = Categorical(torch.tensor([[-3.0, 0.0, 1.0], [0.5, 2.0, 0.0]], dtype=dtype))
    z = q.sample(random.normal(random.key(11), (40_000, 6), dtype)).double()
    assert (z.unflatten(-1, (2, 3)).sum(-1) == 1).all()
    p = q.mean.double()
    assert_frequencies(z, p)
    pairs = z[:, :3, None] * z[:, None, 3:]
    assert_frequencies(pairs, p[:3, None] * p[3:])


def test_gumbel_noise_shared_by_the_classes_of_a_variable_has_other_frequencies():
    q = Categorical(torch.tensor([[0.0, 0.5, 1.0]]).double())
    eps = random.normal(random.key(12), (10_000, 3), torch.float64)
    assert_frequencies(q.sample(eps), q.mean)
    with pytest.raises(AssertionError):
        assert_frequencies(q.sample(eps[:, :1].expand(-1, 3)), q.mean)


def test_of_equal_scores_the_first_class_is_taken():
    q = Categorical(torch.zeros(2, 3))
    assert q.sample(torch.zeros(1, 6)).tolist() == [[1, 0, 0, 1, 0, 0]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_logits_and_noise_have_finite_values_and_gradients(dtype):
    a = torch.tensor(EXTREME, dtype=dtype)
    eps = torch.linspace(-8, 8, 65, dtype=dtype).unsqueeze(1).expand(-1, len(a))
    for q, noise in ((Bernoulli(a), eps), (Categorical(torch.stack([a, a.flip(0)], -1)), torch.cat([eps, -eps], 1))):
        z, zero = q.sample(noise), type(q)(torch.zeros_like(q.logits))

        def total(a, q=q, z=z, zero=zero):
            q = type(q)(a)
            return q.log_prob(z).sum() + kl(q, zero).sum() + kl(zero, q).sum() + q.mean.sum()

        gradient, value = torch.func.grad_and_value(total)(q.logits)
        assert value.isfinite()
        assert gradient.isfinite().all()
        assert q.log_prob(z).min() > -60  # no sample of negligible probability


# The KL.


@pytest.mark.parametrize("dtype", DTYPES)
def test_kl_of_bernoullis_is_torchs(dtype):
    a, c = logits(13, 50, dtype=dtype), logits(14, 50, dtype=dtype)
    known = td.kl_divergence(td.Bernoulli(logits=a.double()), td.Bernoulli(logits=c.double()))
    torch.testing.assert_close(kl(Bernoulli(a), Bernoulli(c)), known.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_kl_of_categoricals_is_torchs_and_the_terms_of_its_classes_are_not_negative(dtype):
    a, c = logits(15, 5, 4, 3, dtype=dtype), logits(16, 4, 3, dtype=dtype)
    known = td.kl_divergence(td.OneHotCategorical(logits=a.double()), td.OneHotCategorical(logits=c.double()))
    found = kl(Categorical(a), Categorical(c))
    assert found.shape == (5, 12)
    assert (found > -1e-7).all()
    torch.testing.assert_close(found.unflatten(-1, (4, 3)).sum(-1), known.to(dtype))


def test_kl_of_two_classes_is_that_of_a_bernoulli():
    a, c = logits(17, 20), logits(18, 20)
    of_two = [Categorical(torch.stack([torch.zeros_like(t), t], -1)) for t in (a, c)]
    torch.testing.assert_close(kl(*of_two).unflatten(-1, (20, 2)).sum(-1), kl(Bernoulli(a), Bernoulli(c)))


def test_kl_has_the_gradients_of_finite_differences():
    for kind, shape in ((Bernoulli, (6,)), (Categorical, (2, 3))):
        inputs = [logits(seed, *shape).requires_grad_() for seed in (19, 20)]
        assert torch.autograd.gradcheck(lambda a, c, kind=kind: kl(kind(a), kind(c)), inputs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_kl_is_exact_at_extreme_logits(dtype):
    """At a = 1e4, sigmoid(a) (a - c) + softplus(c) - softplus(a) cancels: in float32 it is off by 2e-4."""
    softplus, tolerance = 0.3132616875182229, 1e-6 if dtype == torch.float32 else 1e-15  # log(1 + exp(-1))
    a = torch.tensor([1e4, 1e4, -1e4, 1e4, -1e4, 100.0, 0.0], dtype=dtype)
    c = torch.tensor([1e4, 9999, 1e4, -1e4, 1, 1, 1e4], dtype=dtype)
    known = torch.tensor([0, 0, 1e4, 1e4, 1 + softplus, softplus, 5e3 - math.log(2)], dtype=dtype)
    found = kl(Bernoulli(a), Bernoulli(c))
    assert ((found - known).abs() <= tolerance * known.clamp(min=1)).all()
    two = [Categorical(torch.stack([t, torch.zeros_like(t)], -1)) for t in (a, c)]
    assert ((kl(*two).unflatten(-1, (-1, 2)).sum(-1) - known).abs() <= tolerance * known.clamp(min=1)).all()
    slope = torch.func.grad(lambda a: kl(Bernoulli(a), Bernoulli(torch.ones_like(a))).sum())(a)
    assert slope.tolist() == pytest.approx([0, 0, 0, 0, 0, 0, -0.25])  # p (1 - p) (a - c)


def test_categoricals_of_other_classes_have_no_kl():
    q = Categorical(torch.zeros(5, 2, 3))
    with pytest.raises(BadValue, match=r"q and p have \[2, 3\] and \[3, 2\] variables and classes"):
        kl(q, Categorical(torch.zeros(3, 2)))


@pytest.mark.parametrize(
    "pair",
    [
        (Bernoulli(torch.zeros(2)), Normal(torch.zeros(2), torch.ones(2))),
        (Categorical(torch.zeros(1, 2)), Bernoulli(torch.zeros(2))),
        (Normal(torch.zeros(2), torch.ones(2)), Categorical(torch.zeros(1, 2))),
    ],
)
def test_pairs_without_closed_form_raise_an_error_that_names_an_estimator_that_fits(pair):
    q, p = pair
    such = "elbo_mc" if isinstance(q, Normal) else "rloo or disarm"
    message = f"no closed-form KL for {type(q).__name__} and {type(p).__name__}: .* such as {such}$"
    with pytest.raises(BadType, match=message):
        kl(q, p)


# Transforms.


@pytest.mark.parametrize("make", [Bernoulli, lambda a: Categorical(a.unflatten(-1, (2, 2)))])
def test_functions_of_discrete_distributions_work_under_vmap_and_in_a_compiled_graph(make):
    a, eps = logits(21, 3, 4, dtype=torch.float32), random.normal(random.key(22), (5, 3, 4))

    def all_of(a, eps):
        q = make(a)
        z = q.sample(eps)
        return z, q.log_prob(z), q.mean, q.values(), kl(q, make(torch.zeros_like(a)))

    expected = all_of(a, eps)
    mapped = torch.vmap(all_of, (None, 0))(a, eps)
    assert torch.equal(mapped[0], expected[0])
    torch.testing.assert_close(mapped[1], expected[1])
    compiled = torch.compile(all_of, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(a, eps), expected)
    assert all(t.is_meta for t in all_of(a.to("meta"), eps.to("meta")))


def test_discrete_samples_do_not_have_the_derivatives_of_their_values():
    assert not is_reparameterised(Bernoulli(torch.zeros(2, 3)))
    assert not is_reparameterised(Categorical(torch.zeros(2, 1, 3)))
