"""The normal with a full covariance against torch.distributions."""

import pytest
import torch
from torch import distributions as td

from funcvae import random
from funcvae.distributions import FullNormal
from tests.support.oracles import assert_zero_mean


def full_normal(seed, *shape):
    """A random FullNormal with loc of this shape."""
    loc_key, scale_key = random.split(random.key(seed))
    loc = random.normal(loc_key, shape, torch.float64)
    scale = random.normal(scale_key, (*shape, shape[-1]), torch.float64)
    return FullNormal(loc, scale.tril(-1) + scale.diagonal(dim1=-2, dim2=-1).exp().diag_embed())


@pytest.mark.parametrize(("batch", "leading"), [((4,), (5, 4)), ((4,), (4,)), ((), (5, 4)), ((), ()), ((1,), (5, 4))])
def test_full_normal_log_prob_and_sample_equal_torchs(batch, leading):
    p = full_normal(0, *batch, 3)
    known = td.MultivariateNormal(p.loc, scale_tril=p.scale_tril)
    z, eps = random.normal(random.key(1), (2, *leading, 3), torch.float64)
    torch.testing.assert_close(p.log_prob(z), known.log_prob(z), rtol=1e-12, atol=1e-12)
    assert p.log_prob(z).shape == leading
    drawn = p.loc + torch.einsum("...ij,...j->...i", p.scale_tril, eps)
    torch.testing.assert_close(p.sample(eps), drawn, rtol=1e-12, atol=1e-12)


def test_full_normal_samples_have_its_covariance():
    p = full_normal(2, 3)
    off = p.sample(random.normal(random.key(3), (20_000, 3), torch.float64)) - p.mean
    products = torch.einsum("ni,nj->nij", off, off)
    assert_zero_mean(products - p.scale_tril @ p.scale_tril.T)
    with pytest.raises(AssertionError, match="standard errors from zero"):
        assert_zero_mean(products - p.scale_tril.T @ p.scale_tril)


def test_a_diagonal_factor_is_that_of_independent_normals():
    p = full_normal(4, 2, 3)
    diagonal = p.scale_tril.diagonal(dim1=-2, dim2=-1)
    z = random.normal(random.key(5), (5, 2, 3), torch.float64)
    alone = td.Normal(p.loc, diagonal).log_prob(z).sum(-1)
    torch.testing.assert_close(FullNormal(p.loc, diagonal.diag_embed()).log_prob(z), alone)


def test_full_normal_has_the_gradients_of_finite_differences():
    p, z = full_normal(6, 2, 3), random.normal(random.key(7), (4, 2, 3), torch.float64)
    inputs = [t.requires_grad_() for t in (*p, z)]
    assert torch.autograd.gradcheck(lambda loc, scale, z: FullNormal(loc, scale.tril()).log_prob(z), inputs)
    assert torch.autograd.gradcheck(lambda loc, scale, z: FullNormal(loc, scale.tril()).sample(z), inputs)


def test_full_normal_under_vmap_equals_a_loop():
    p, z = full_normal(8, 5, 2, 3), random.normal(random.key(9), (5, 4, 2, 3), torch.float64)
    mapped = torch.vmap(lambda p, z: (p.log_prob(z), p.sample(z)))(p, z)
    for i in range(5):
        one = FullNormal(p.loc[i], p.scale_tril[i])
        torch.testing.assert_close(tuple(t[i] for t in mapped), (one.log_prob(z[i]), one.sample(z[i])))
