"""Active units and the KL per dimension against known encoders."""

import math

import pytest
import torch
from torch import nn

import funcvae as fv
from funcvae import evaluate, tree
from funcvae.errors import BadData, BadType
from tests.support.oracles import toy
from tests.support.posteriors import flow_vae, full_normal_vae, two_layers_vae

X = torch.tensor([[1.0]], dtype=torch.float64)
KEY = fv.random.key(0)


class Fixed(nn.Module):
    """An encoder with means x_0/2 and 3, and sigma 1/2 and 1."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        mu = torch.stack([0.5 * x[:, 0], torch.full_like(x[:, 0], 3.0)], 1)
        return mu, torch.tensor([0.5, 1.0], dtype=x.dtype).log().expand_as(mu)


def half_used():
    model = fv.vae(
        encoder=Fixed,
        decoder=lambda: nn.Linear(2, 3),
        posterior=fv.heads.normal_logsigma,
        likelihood=fv.heads.normal_fixed(1.0),
        latent=2,
    )
    params, state = model.init(KEY)
    return model, tree.map(torch.Tensor.double, params), state


@pytest.mark.parametrize("batch", [3, 500])
def test_active_units_are_those_whose_mean_varies(batch):
    x = fv.random.normal(KEY, (50, 3), torch.float64)
    found = evaluate.active_units(*half_used(), x, batch=batch)
    torch.testing.assert_close(found.variance, torch.stack([x[:, 0].var() / 4, torch.zeros(()).double()]))
    assert found.active.tolist() == [True, False]
    assert (found.number, found.threshold) == (1, 0.01)


@pytest.mark.parametrize("batch", [3, 500])
def test_kl_per_dimension_is_that_of_torch_distributions(batch):
    x = fv.random.normal(KEY, (50, 3), torch.float64)
    found = evaluate.kl_per_dimension(*half_used(), x, batch=batch)
    normal = torch.distributions.Normal
    known = [
        torch.distributions.kl_divergence(normal(mu, sigma), normal(0.0, 1.0)).mean()
        for mu, sigma in ((0.5 * x[:, 0], 0.5), (torch.full((50,), 3.0).double(), 1.0))
    ]
    torch.testing.assert_close(found, torch.stack(known))


def test_active_units_need_two_data():
    with pytest.raises(BadData, match="at least two"):
        evaluate.active_units(*toy(), X)
    assert evaluate.likelihood(torch.zeros(3, 1)).log_p.sampling_se == math.inf


def test_the_kl_of_a_full_normal_is_split_by_the_chain_rule_and_sums_to_torchs():
    model = full_normal_vae()
    params, state = model.init(KEY)
    x = fv.random.normal(KEY, (5, 3), torch.float64)
    params = tree.map(torch.Tensor.double, params)
    found = evaluate.kl_per_dimension(model, params, state, x, batch=2)
    q, _ = model.encode(params, state, x)
    known = torch.distributions.MultivariateNormal(q.loc, scale_tril=q.scale_tril)
    standard = torch.distributions.MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
    torch.testing.assert_close(found.sum(), torch.distributions.kl_divergence(known, standard).mean())


def test_flows_and_two_layers_have_active_units_and_no_closed_form_kl():
    for make in (flow_vae, two_layers_vae):
        model = make()
        params, state = model.init(KEY)
        x = fv.random.normal(KEY, (5, 3))
        assert evaluate.active_units(model, params, state, x, threshold=0.0).number == 2
        with pytest.raises(BadType, match="no closed-form KL"):
            evaluate.kl_per_dimension(model, params, state, x)


class Probabilities(nn.Module):
    """An encoder whose logits are the data, and a constant for each."""

    def forward(self, x):
        return torch.cat([x, 0 * x + 0.5], 1)


def discrete(posterior, prior):
    model = fv.vae(
        encoder=Probabilities,
        decoder=lambda: nn.Linear(6, 3),
        latent=6,
        likelihood=fv.heads.normal_fixed(1.0),
        posterior=posterior,
        prior=prior,
    )
    params, state = model.init(KEY)
    return model, tree.map(torch.Tensor.double, params), state


@pytest.mark.parametrize("batch", [3, 500])
def test_a_bernoulli_latent_is_active_if_its_probability_varies_and_its_kl_is_torchs(batch):
    x = 3 * fv.random.normal(KEY, (50, 3), torch.float64)
    trained = discrete(fv.heads.bernoulli, fv.priors.bernoulli)
    units = evaluate.active_units(*trained, x, batch=batch)
    torch.testing.assert_close(units.variance, torch.cat([x.sigmoid().var(0), torch.zeros(3).double()]))
    assert units.active.tolist() == [True] * 3 + [False] * 3
    q = torch.distributions.Bernoulli(logits=torch.cat([x, torch.full_like(x, 0.5)], 1))
    known = torch.distributions.kl_divergence(q, torch.distributions.Bernoulli(torch.tensor(0.5).double())).mean(0)
    torch.testing.assert_close(evaluate.kl_per_dimension(*trained, x, batch=batch), known)


def test_the_kl_of_a_categorical_variable_is_shared_by_its_latents():
    x = 3 * fv.random.normal(KEY, (50, 3), torch.float64)
    trained = discrete(fv.heads.categorical(3), fv.priors.categorical(3))
    found = evaluate.kl_per_dimension(*trained, x)
    assert found.shape == (6,)
    assert (found > -1e-15).all()
    q = torch.distributions.Categorical(logits=torch.stack([x, torch.full_like(x, 0.5)], 1))
    known = torch.distributions.kl_divergence(q, torch.distributions.Categorical(torch.ones(3).double())).mean(0)
    torch.testing.assert_close(found.view(2, 3).sum(1), known)
    assert evaluate.active_units(*trained, x).active.tolist() == [True] * 3 + [False] * 3


def test_a_relaxed_posterior_has_active_units_and_no_kl_in_closed_form():
    x = 3 * fv.random.normal(KEY, (50, 3), torch.float64)
    trained = discrete(fv.heads.concrete(0.5), fv.priors.concrete(0.5))
    assert evaluate.active_units(*trained, x).number == 3
    with pytest.raises(BadType, match=r"no closed-form KL for RelaxedBernoulli and RelaxedBernoulli"):
        evaluate.kl_per_dimension(*trained, x)
