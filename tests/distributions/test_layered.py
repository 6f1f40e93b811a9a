"""Two stochastic layers and coupling flows against densities written out, quadrature, and autograd's Jacobian."""

import pytest
import torch
from torch import distributions as td
from torch import nn

from funcvae import random
from funcvae.distributions import CouplingFlow, Normal, TopDown, TwoLayers, layers_of
from tests.support.oracles import assert_zero_mean
from tests.support.posteriors import weights


def normal(seed, *shape):
    loc, log_sigma = random.normal(random.key(seed), (2, *shape), torch.float64)
    return Normal(loc, (log_sigma / 2).exp())


def two_layers(*batch):
    return TwoLayers(normal(0, *batch, 3), weights(1, 3, 4, 4))  # z_1 of three numbers, z_2 of two


def top_down():
    return TopDown(normal(2, 2), weights(3, 2, 4, 6))  # z_1 of three numbers, z_2 of two


def flow(latent, couplings, *batch):
    sizes = [((latent + i % 2) // 2, latent - (latent + i % 2) // 2) for i in range(couplings)]
    return CouplingFlow(normal(4, *batch, latent), tuple(weights(5 + i, a, 3, 2 * b) for i, (a, b) in enumerate(sizes)))


DISTRIBUTIONS = [two_layers(4), top_down(), flow(3, 0, 4), flow(3, 1, 4), flow(4, 2, 4), flow(5, 3, 4)]
every_distribution = pytest.mark.parametrize(
    "q", DISTRIBUTIONS, ids=["two layers", "top down", "no coupling", "one", "two", "three"]
)


def latent(q):
    return q.mean.shape[-1]


def tanh_network(layers, h):
    """The network as a module."""
    net = []
    for weight, bias in layers:
        linear = nn.Linear(weight.shape[1], len(weight)).double()
        linear.load_state_dict({"weight": weight, "bias": bias})
        net += [linear, nn.Tanh()]
    return nn.Sequential(*net[:-1])(h).detach()


def test_two_layers_is_the_product_of_its_conditionals():
    q, z = two_layers(4), random.normal(random.key(9), (6, 4, 5), torch.float64)
    m, log_s = tanh_network(q.layers, z[..., :3]).chunk(2, -1)
    known = td.Normal(*q.first).log_prob(z[..., :3]).sum(-1) + td.Normal(m, log_s.exp()).log_prob(z[..., 3:]).sum(-1)
    torch.testing.assert_close(q.log_prob(z), known, rtol=1e-12, atol=1e-12)


def test_top_down_is_the_product_of_its_conditionals():
    p, z = top_down(), random.normal(random.key(9), (6, 4, 5), torch.float64)
    m, log_s = tanh_network(p.layers, z[..., 3:]).chunk(2, -1)
    known = td.Normal(*p.top).log_prob(z[..., 3:]).sum(-1) + td.Normal(m, log_s.exp()).log_prob(z[..., :3]).sum(-1)
    torch.testing.assert_close(p.log_prob(z), known, rtol=1e-12, atol=1e-12)
    assert torch.equal(p.sample(z)[..., 3:], p.top.sample(z[..., 3:]))


@every_distribution
def test_the_density_is_that_of_the_samples_by_autograds_jacobian(q):
    """log q(z(eps)) = log N(eps; 0, I) - log |det ∂z/∂eps|, for one datum."""
    eps = random.normal(random.key(10), (4, latent(q)), torch.float64)
    jacobian = torch.func.jacrev(lambda eps: q.sample(eps))(eps)
    log_q = q.log_prob(q.sample(eps))
    for b in range(4):
        change = torch.linalg.slogdet(jacobian[b, :, b]).logabsdet
        known = td.Normal(0, 1).log_prob(eps[b]).sum() - change
        torch.testing.assert_close(log_q[b], known, rtol=1e-10, atol=1e-10)


def test_a_density_that_inverts_the_couplings_in_the_wrong_order_fails_the_jacobian():
    class Wrong(CouplingFlow):
        def log_prob(self, z):
            return CouplingFlow(self.base, self.couplings[::-1]).log_prob(z)

    with pytest.raises(AssertionError):
        test_the_density_is_that_of_the_samples_by_autograds_jacobian(Wrong(*flow(4, 2, 4)))


def test_the_density_of_a_flow_integrates_to_one():
    axis = torch.linspace(-30, 30, 2001, dtype=torch.float64)
    log_q = flow(2, 2).log_prob(torch.cartesian_prod(axis, axis))
    assert (log_q.exp().sum() * 0.03**2 - 1).abs() < 1e-6


def test_a_flow_without_couplings_is_its_base_and_its_loc_is_the_image_of_the_bases_mean():
    plain, q = flow(3, 0, 4), flow(5, 3, 4)
    z = random.normal(random.key(11), (6, 4, 3), torch.float64)
    torch.testing.assert_close(plain.log_prob(z), plain.base.log_prob(z).sum(-1))
    assert torch.equal(plain.sample(z), plain.base.sample(z))
    assert torch.equal(q.loc, q.sample(torch.zeros(4, 5).double()))
    assert torch.equal(two_layers(4).loc, two_layers(4).sample(torch.zeros(4, 5).double()))


def test_each_coupling_leaves_one_half_unchanged():
    q = flow(5, 2, 4)
    once, twice = q._replace(couplings=q.couplings[:1]), q
    eps = random.normal(random.key(12), (6, 4, 5), torch.float64)
    y = q.base.sample(eps)
    assert torch.equal(once.sample(eps)[..., :2], y[..., :2])
    assert torch.equal(twice.sample(eps)[..., 2:], once.sample(eps)[..., 2:])
    assert not (twice.sample(eps)[..., :2] == y[..., :2]).any()


@every_distribution
def test_the_mean_is_estimated_to_a_fraction_of_the_spread_and_is_the_same_in_each_call(q):
    eps = random.normal(random.key(13), (20_000, 4, latent(q)), torch.float64)
    z = q.sample(eps)
    assert ((q.mean - z.mean(0)).abs() < 5 * z.std(0) / 8).all()
    assert torch.equal(q.mean, q.mean)


def test_a_latent_that_does_not_depend_on_the_data_has_the_same_mean_for_all():
    q = two_layers(4)
    same = q._replace(first=Normal(*(t[:1].expand(4, 3) for t in q.first)))
    assert (same.mean.var(0) < 1e-30).all()
    assert (q.mean.var(0) > 1e-3).all()


@every_distribution
def test_samples_and_densities_have_the_gradients_of_finite_differences(q):
    z = random.normal(random.key(14), (4, latent(q)), torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(q.log_prob, z)
    assert torch.autograd.gradcheck(q.sample, z)


@every_distribution
def test_vmap_equals_a_loop(q):
    z = random.normal(random.key(15), (6, 4, latent(q)), torch.float64)
    mapped = torch.vmap(lambda z: (q.log_prob(z), q.sample(z)))(z)
    torch.testing.assert_close(mapped, (q.log_prob(z), q.sample(z)))
    assert q.log_prob(z).shape == (6, 4)


def test_samples_of_two_layers_have_the_correlation_of_its_network():
    linear = ((torch.tensor([[2.0], [0.0]]).double(), torch.tensor([1.0, -1.0]).double()),)  # m = 2 z_1 + 1, s = 1/e
    q = TwoLayers(Normal(torch.zeros(1).double(), torch.ones(1).double()), linear)
    z = q.sample(random.normal(random.key(16), (20_000, 2), torch.float64))
    assert_zero_mean(z[:, 0] * (z[:, 1] - 1) - 2)
    assert_zero_mean((z[:, 1] - 1 - 2 * z[:, 0]) ** 2 - torch.tensor(-2.0).exp())


def test_layers_of_lists_the_linear_layers_of_a_module_in_order():
    net = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Tanh(), nn.Linear(3, 4)))
    first, second = layers_of(net)
    assert first == (net[0].weight, net[0].bias)
    assert second == (net[1][1].weight, net[1][1].bias)
    assert len(layers_of(nn.Linear(2, 3))) == 1
