"""VAEs: shapes, the sample axis against a loop, state, and sums of log-densities."""

import math

import pytest
import torch
from torch import nn

from funcvae import heads, random, tree
from funcvae.distributions import Bernoulli, Delta, Normal
from funcvae.errors import BadType, BadValue
from funcvae.model import log_p_x_given_z, log_prob, vae

KEY = random.key(0)
N, B, Z, D = 3, 5, 2, 6


def encoder():
    return nn.Sequential(nn.Flatten(), nn.Linear(D, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2 * Z))


def decoder():
    return nn.Sequential(nn.Linear(Z, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, D), nn.Unflatten(-1, (1, 2, 3)))


class LearnedPrior(nn.Module):
    """N(loc, sigma²) with learned loc and sigma."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.randn(Z))
        self.log_sigma = nn.Parameter(torch.zeros(Z))

    def forward(self, z):
        return Normal(self.loc.expand_as(z), self.log_sigma.exp().expand_as(z))


def make(**other):
    model = vae(**{"encoder": encoder, "decoder": decoder, "latent": Z, **other})
    params, state = model.init(KEY)
    x = random.uniform(random.key(1), (B, 1, 2, 3))
    z = 2 * random.normal(random.key(2), (N, B, Z)) + 1
    return model, params, state, x, z


def assert_trees_close(a, b, tolerance=1e-6):
    assert tree.structure(a) == tree.structure(b)
    for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


by_train = pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])


# The networks


def test_params_and_state_have_a_branch_for_each_network():
    _, params, state, _, _ = make()
    assert list(params) == list(state) == ["encoder", "decoder", "prior"]
    assert list(params["decoder"]) == ["0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"]
    assert list(state["decoder"]) == ["1.running_mean", "1.running_var", "1.num_batches_tracked"]
    assert params["prior"] == state["prior"] == {}


def test_init_uses_a_different_key_for_each_network():
    model = vae(encoder=lambda: nn.Linear(4, 4), decoder=lambda: nn.Linear(4, 4), latent=2)
    params, _ = model.init(KEY)
    assert not torch.equal(params["encoder"]["weight"], params["decoder"]["weight"])
    assert_trees_close(model.init(KEY)[0], params, tolerance=0)
    assert not torch.equal(model.init(random.key(1))[0]["encoder"]["weight"], params["encoder"]["weight"])


@by_train
def test_shapes_of_encode_decode_and_prior(train):
    model, params, state, x, z = make()
    q, new = model.encode(params, state, x, train=train)
    assert q.loc.shape == q.sigma.shape == (B, Z)
    assert tree.structure(new) == tree.structure(state)
    for leading, latents in (((N, B), z), ((1, B), z[:1]), ((B,), z[0])):
        p, new = model.decode(params, state, latents, train=train)
        assert p.logits.shape == (*leading, 1, 2, 3)
        assert tree.structure(new) == tree.structure(state)
        prior, _ = model.prior(params, state, latents, train=train)
        assert prior.log_prob(latents).shape == latents.shape


def test_the_standard_prior_is_standard_normal():
    model, params, state, _, z = make()
    p, _ = model.prior(params, state, z, train=False)
    assert (p.loc, p.sigma) == (0, 1)
    assert_trees_close(log_prob(p, z), -0.5 * (z**2).sum(-1) - Z / 2 * math.log(2 * math.pi))


@by_train
@pytest.mark.parametrize("n", [1, N])
def test_decoding_samples_equals_a_loop_over_them(n, train):
    model, params, state, _, z = make()
    p, new = model.decode(params, state, z[:n], train=train)
    loop = [model.decode(params, state, z_n, train=train) for z_n in z[:n]]
    assert_trees_close(p.logits, torch.stack([p.logits for p, _ in loop]))
    for name, v in new["decoder"].items():
        values = torch.stack([new["decoder"][name] for _, new in loop])
        want = values.mean(0) if v.is_floating_point() else values[0]
        torch.testing.assert_close(v, want)
        assert v.dtype == state["decoder"][name].dtype
    assert new["decoder"]["1.num_batches_tracked"] == (1 if train else 0)


def test_in_training_the_batch_of_each_sample_is_normalised_separately():
    model, params, state, _, z = make()
    apart, _ = model.decode(params, state, z, train=True)
    together, _ = model.decode(params, state, z.flatten(0, 1), train=True)
    assert (apart.logits.flatten(0, 1) - together.logits).abs().max() > 1e-3


def test_each_call_changes_the_state_of_one_network_and_does_not_modify_its_arguments():
    model, params, state, x, z = make()
    before = tree.map(torch.clone, (params, state, x, z))
    _, encoded = model.encode(params, state, x, train=True)
    _, decoded = model.decode(params, state, z, train=True)
    assert_trees_close((params, state, x, z), before, tolerance=0)
    assert_trees_close(encoded["decoder"], state["decoder"], tolerance=0)
    assert_trees_close(decoded["encoder"], state["encoder"], tolerance=0)
    assert not torch.equal(encoded["encoder"]["2.running_mean"], state["encoder"]["2.running_mean"])
    assert not torch.equal(decoded["decoder"]["1.running_mean"], state["decoder"]["1.running_mean"])


def test_evaluation_mode_is_the_default():
    model, params, state, x, z = make()
    for call, argument in ((model.encode, x), (model.decode, z), (model.prior, z)):
        assert_trees_close(call(params, state, argument), call(params, state, argument, train=False), tolerance=0)
        assert_trees_close(call(params, state, argument)[1], state, tolerance=0)


def test_a_learned_prior_has_parameters_and_a_gradient():
    model, params, state, _, z = make(prior=LearnedPrior)
    assert list(params["prior"]) == ["loc", "log_sigma"]
    grads = torch.func.grad(lambda params: log_prob(model.prior(params, state, z)[0], z).sum())(params)
    loc = params["prior"]["loc"]
    assert_trees_close(grads["prior"]["loc"], (z - loc).sum((0, 1)), 1e-5)
    assert_trees_close(grads["prior"]["log_sigma"], ((z - loc) ** 2 - 1).sum((0, 1)), 1e-5)
    assert all(g.count_nonzero() == 0 for g in tree.leaves(grads["decoder"]))


def test_heads_choose_the_distributions_and_a_network_may_return_a_tuple():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc, self.log_sigma = nn.Linear(D, Z), nn.Linear(D, Z)

        def forward(self, x):
            x = x.flatten(1)
            return self.loc(x), self.log_sigma(x)

    model, params, state, x, z = make(encoder=Pair, posterior=heads.normal_logsigma, likelihood=heads.normal_fixed(0.5))
    q, _ = model.encode(params, state, x)
    assert isinstance(q, Normal)
    assert q.sigma.shape == (B, Z)
    p, _ = model.decode(params, state, z)
    assert isinstance(p, Normal)
    assert (p.sigma == 0.5).all()
    assert log_p_x_given_z(p, x).shape == (N, B)


def test_a_decoder_may_return_a_tuple_over_samples():
    class Pair(nn.Module):
        def forward(self, z):
            return z, 2 * z

    model, params, state, _, z = make(decoder=Pair, likelihood=heads.normal_logvar)
    for latents in (z, z[:1], z[0]):
        p, _ = model.decode(params, state, latents)
        assert torch.equal(p.loc, latents)
        assert torch.equal(p.sigma, latents.exp())


def test_a_delta_posterior_makes_a_plain_autoencoder():
    model, params, state, x, _ = make(
        encoder=lambda: nn.Sequential(nn.Flatten(), nn.Linear(D, Z)), posterior=heads.delta
    )
    q, _ = model.encode(params, state, x)
    assert isinstance(q, Delta)
    assert q.sample(torch.randn(N, B, Z)).shape == (N, B, Z)


def test_float64_parameters_and_data_give_float64_results():
    model = vae(encoder=lambda: encoder().double(), decoder=lambda: decoder().double(), latent=Z)
    params, state = model.init(KEY)
    x = random.uniform(KEY, (B, 1, 2, 3), torch.float64)
    q, new = model.encode(params, state, x, train=True)
    p, newer = model.decode(params, new, q.sample(random.normal(KEY, (N, B, Z), torch.float64)), train=True)
    prior, _ = model.prior(params, newer, q.loc)
    floats = [t for t in tree.leaves((params, newer, q, p, prior, log_p_x_given_z(p, x))) if t.is_floating_point()]
    assert all(t.dtype == torch.float64 for t in floats)


# Densities


def test_log_likelihood_sums_over_the_axes_of_a_datum():
    p = Bernoulli(random.normal(KEY, (N, B, 1, 2, 3)))
    x = random.bernoulli(KEY, 0.5, (B, 1, 2, 3)).float()
    want = torch.stack([torch.stack([p.log_prob(x)[n, b].sum() for b in range(B)]) for n in range(N)])
    assert_trees_close(log_p_x_given_z(p, x), want, 1e-5)


@pytest.mark.parametrize("shape", [(B, 6), (B, 1, 2, 1), (B, 2, 3), (B,)])
def test_data_of_another_shape_than_the_decoder_output_is_an_error_and_not_broadcast(shape):
    with pytest.raises(BadValue, match=r"\[1, 2, 3\]"):
        log_p_x_given_z(Bernoulli(torch.zeros(N, B, 1, 2, 3)), torch.zeros(shape))


def test_a_batch_of_another_size_than_the_latents_is_an_error_and_not_broadcast():
    with pytest.raises((BadValue, RuntimeError)):
        log_p_x_given_z(Bernoulli(torch.zeros(N, 1, D)), torch.zeros(B, D))


def test_log_prob_sums_over_all_axes_after_the_first_two():
    t = torch.arange(24.0).reshape(2, 3, 4)
    p = Normal(torch.zeros(()), torch.ones(()))
    assert torch.equal(log_prob(p, t), p.log_prob(t).sum(2))
    assert torch.equal(log_prob(p, t[0]), p.log_prob(t[0]))  # nothing left to sum


# Errors


@pytest.mark.parametrize("latent", [0, -1])
def test_fewer_than_one_latent_dimension_is_an_error(latent):
    with pytest.raises(BadValue, match="latent"):
        vae(encoder=encoder, decoder=decoder, latent=latent)


@pytest.mark.parametrize("network", ["encoder", "decoder", "prior"])
def test_a_network_in_place_of_its_factory_is_an_error(network):
    with pytest.raises(BadType, match="factory"):
        make(**{network: nn.Linear(2, 2)})
