"""The KL of normals with a full covariance against torch.distributions."""

import pytest
import torch
from torch import distributions as td

from funcvae import random
from funcvae.distributions import Bernoulli, FullNormal, Mixture, Normal, kl
from funcvae.errors import BadType
from tests.distributions.test_normal import full_normal


def diagonal(seed, *shape):
    loc, log_sigma = random.normal(random.key(seed), (2, *shape), torch.float64)
    return Normal(loc, log_sigma.exp())


def standard(_):
    return Normal(torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64))


def block(p, size):
    """The distribution of the first coordinates, of torch."""
    if isinstance(p, FullNormal):
        return td.MultivariateNormal(p.loc[..., :size], scale_tril=p.scale_tril[..., :size, :size])
    loc, sigma = (t.expand(4, 3)[..., :size] for t in p)
    return td.MultivariateNormal(loc, scale_tril=sigma.diag_embed())


FULL, DIAGONAL = lambda seed: full_normal(seed, 4, 3), lambda seed: diagonal(seed, 4, 3)
PRIOR_FULL, PRIOR_DIAGONAL = lambda seed: full_normal(seed, 3), lambda seed: diagonal(seed, 3)


@pytest.mark.parametrize(
    ("make_q", "make_p"),
    [(FULL, FULL), (FULL, DIAGONAL), (FULL, standard), (DIAGONAL, FULL), (FULL, PRIOR_FULL), (FULL, PRIOR_DIAGONAL),
     (DIAGONAL, PRIOR_FULL)],
)  # fmt: skip
def test_the_kl_of_full_normals_equals_torchs_and_its_elements_are_those_of_the_chain_rule(make_q, make_p):
    q, p = make_q(0), make_p(1)
    each = kl(q, p)
    assert each.shape == (4, 3)
    assert (each > 0).all()
    for size in (1, 2, 3):  # the KL of the first coordinates is the sum of their elements
        known = td.kl_divergence(block(q, size), block(p, size))
        torch.testing.assert_close(each[:, :size].sum(-1), known, rtol=1e-12, atol=1e-12)


def test_the_kl_of_a_diagonal_full_normal_is_that_of_independent_normals():
    q, p = diagonal(2, 4, 3), diagonal(3, 3)
    full = FullNormal(q.loc, q.sigma.diag_embed())
    torch.testing.assert_close(kl(full, p), kl(q, p), rtol=1e-12, atol=1e-12)
    assert kl(full, full).abs().max() < 1e-15


def test_the_kl_has_the_gradients_of_finite_differences():
    q, p = full_normal(4, 2, 3), full_normal(5, 3)
    inputs = [t.requires_grad_() for t in (*q, *p)]
    assert torch.autograd.gradcheck(
        lambda a, b, c, d: kl(FullNormal(a, b.tril()), FullNormal(c, d.tril())), inputs, rtol=1e-5
    )


def test_a_pair_without_closed_form_is_an_error_of_one_line():
    one = torch.ones(2, 3)
    for q, p in ((full_normal(6, 3), Mixture(one[0, :2], one, one)), (full_normal(7, 3), Bernoulli(one))):
        with pytest.raises(BadType, match=rf"^no closed-form KL for FullNormal and {type(p).__name__}: .*elbo_mc$"):
            kl(q, p)
