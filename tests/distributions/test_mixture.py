"""Mixtures of normals against torch.distributions and in standard errors."""

import math

import pytest
import torch
from torch import distributions as td

from funcvae import random
from funcvae.distributions import Mixture, Normal, is_reparameterised
from tests.support.oracles import assert_zero_mean


def mixture(dtype=torch.float64):
    loc, log_sigma = random.normal(random.key(0), (2, 3, 2), dtype)
    return Mixture(torch.tensor([0.5, -1.0, 1.0], dtype=dtype), 2 * loc, (log_sigma / 2).exp())


def torchs(p):
    components = td.Independent(td.Normal(p.loc, p.sigma), 1)
    return td.MixtureSameFamily(td.Categorical(logits=p.logits), components)


@pytest.mark.parametrize("leading", [(), (4,), (5, 4)])
def test_mixture_log_prob_and_mean_equal_torchs(leading):
    p, z = mixture(), 2 * random.normal(random.key(1), (*leading, 2), torch.float64)
    torch.testing.assert_close(p.log_prob(z), torchs(p).log_prob(z), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(p.mean, torchs(p).mean)


def test_mixture_log_prob_is_finite_far_from_all_components():
    log_p = mixture(torch.float32).log_prob(torch.tensor([[1e3, -1e3], [0.0, 1e4]]))
    assert log_p.isfinite().all()
    assert (log_p < -1e4).all()


def test_one_component_is_a_normal():
    p = mixture()
    one, normal = Mixture(p.logits[:1], p.loc[:1], p.sigma[:1]), Normal(p.loc[0], p.sigma[0])
    eps = random.normal(random.key(2), (50, 2), torch.float64)
    torch.testing.assert_close(one.sample(eps), normal.sample(eps), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(one.log_prob(eps), normal.log_prob(eps).sum(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mixture_samples_have_its_moments_and_its_density(dtype):
    p = mixture(dtype)
    z = p.sample(random.normal(random.key(3), (20_000, 2), dtype))
    assert (z.dtype, z.isfinite().all()) == (dtype, True)
    assert_zero_mean(z - p.mean)
    second = p.logits.softmax(0) @ (p.loc**2 + p.sigma**2)
    assert_zero_mean(z**2 - second)
    for t in random.normal(random.key(4), (5, 2), dtype):  # the characteristic function, of all dimensions together
        each = ((p.loc @ t).cos() * (-0.5 * (p.sigma * t).square().sum(-1)).exp()) @ p.logits.softmax(0)
        assert_zero_mean((z @ t).cos() - each)


def test_a_second_use_of_the_first_noise_fails_the_density():
    """If eps_1 itself were the noise within a component, it would depend on the component."""

    class Reused(Mixture):
        def sample(self, eps):
            u, ends = torch.special.ndtr(eps[..., :1]), self.logits.softmax(-1).cumsum(-1)
            c = (u > ends[..., :-1]).sum(-1)
            return self.loc[c] + self.sigma[c] * eps

    p = mixture()
    z = Reused(*p).sample(random.normal(random.key(3), (20_000, 2), torch.float64))
    with pytest.raises(AssertionError, match="standard errors from zero"):
        assert_zero_mean(z**2 - p.logits.softmax(0) @ (p.loc**2 + p.sigma**2))


def test_the_ends_of_the_noise_give_finite_samples():
    for dtype in (torch.float32, torch.float64):
        z = mixture(dtype).sample(
            torch.tensor([[-math.inf, 0.0], [40.0, 0.0], [-40.0, 1.0], [math.inf, 0.0]]).to(dtype)
        )
        assert z.isfinite().all()


def test_a_mixture_is_not_reparameterised_which_the_comparison_also_finds():
    class Silent(Mixture):
        @property
        def reparameterised(self):
            raise AttributeError

    p = mixture()
    assert not is_reparameterised(p)
    assert not is_reparameterised(Silent(*p))


def test_mixture_under_vmap_equals_a_loop():
    p, z = mixture(), random.normal(random.key(5), (6, 4, 2), torch.float64)
    mapped = torch.vmap(lambda z: (p.log_prob(z), p.sample(z)))(z)
    torch.testing.assert_close(mapped, (p.log_prob(z), p.sample(z)))
