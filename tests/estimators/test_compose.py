"""Several estimators in one forward pass, and the surrogate loss."""

import pytest
import torch
from torch import nn
from torch.func import grad

import funcvae as fv
from funcvae import tree
from funcvae.errors import BadValue
from funcvae.estimators import parse, together
from tests.support.oracles import assert_close, double, noise, tiny
from tests.support.specs import CONTINUOUS, every_continuous

# Several estimators in one forward pass.


@pytest.mark.parametrize("train", [True, False])
def test_estimators_together_equal_each_estimator_alone(train):
    model, params, state, x = tiny(encoder=lambda: nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Tanh()))
    state, eps = double(state), noise(4, 2, 2)
    estimators = [parse(spec) for spec in (*CONTINUOUS, "iwae")]
    found = together(estimators, model, params, state, x, eps, train=train)
    for estimator, out in zip(estimators, found, strict=True):
        alone = estimator(model, params, state, x, eps, train=train)
        assert_close(tuple(out), tuple(alone), atol=1e-12, rtol=1e-12)


def test_estimators_together_decode_once():
    calls = []

    class Decoder(nn.Linear):
        def forward(self, z):
            calls.append(len(z))
            return super().forward(z)

    model = fv.vae(
        encoder=lambda: nn.Linear(2, 4), decoder=lambda: Decoder(2, 2), likelihood=fv.heads.normal_fixed(1.0), latent=2
    )
    params, state = model.init(fv.random.key(0))
    x, eps = torch.zeros(2, 2), torch.zeros(1, 2, 2)
    model.decode(params, state, eps)  # the first call tries the network
    calls.clear()
    together([parse(s) for s in ("iwae", "dreg", "stl")], model, params, state, x, eps, train=False)
    assert len(calls) == 1
    together([parse(s) for s in ("iwae", "elbo", "piwae:1")], model, params, state, x, eps, train=False)
    assert len(calls) == 4, "estimators that need more decode separately"


def test_estimators_together_check_the_noise():
    with pytest.raises(BadValue, match="eps has shape"):
        together([parse("iwae")], *tiny(), torch.zeros(2, 3, 2, dtype=torch.float64), train=False)


@every_continuous
def test_surrogate_has_the_estimators_gradient_and_value(spec):
    model, params, state, x = tiny()
    eps = noise(4, 2, 2)
    out = parse(spec)(model, params, state, x, eps, train=False)
    loss = fv.surrogate(parse(spec))

    assert_close(grad(lambda p: loss(model, p, state, x, eps, train=False))(params), out.grads, atol=1e-14)

    leaves = tree.map(lambda p: p.clone().requires_grad_(), params)
    value = loss(model, leaves, state, x, eps, train=False)
    value.backward()
    assert_close(tree.map(lambda p: p.grad, leaves), out.grads, atol=1e-14)
    assert value.item() == pytest.approx(-out.bound.mean().item(), abs=1e-14)
