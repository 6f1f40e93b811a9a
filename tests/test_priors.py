"""The learned mixture prior: its parameters, its density and its training."""

import pytest
import torch
from torch import nn

import funcvae as fv
from funcvae.errors import BadValue

KEY = fv.random.key(4)


def model(prior, latent=2):
    return fv.vae(encoder=lambda: nn.Linear(3, 2 * latent), decoder=lambda: nn.Linear(latent, 3), latent=latent,
                  prior=prior)  # fmt: skip


def test_a_mixture_has_learned_weights_means_and_scales_whose_means_differ():
    params, _ = model(fv.priors.mixture(5, 2)).init(KEY)
    assert {name: tuple(p.shape) for name, p in params["prior"].items()} == {
        "logits": (5,), "loc": (5, 2), "log_sigma": (5, 2),
    }  # fmt: skip
    assert not params["prior"]["logits"].any()
    assert not params["prior"]["log_sigma"].any()
    assert len(params["prior"]["loc"].unique()) == 10
    again, other = (model(fv.priors.mixture(5, 2)).init(key)[0] for key in (KEY, fv.random.key(5)))
    assert torch.equal(again["prior"]["loc"], params["prior"]["loc"])
    assert not torch.equal(other["prior"]["loc"], params["prior"]["loc"])


def test_the_mixture_is_that_of_its_parameters():
    vae = model(fv.priors.mixture(5, 2))
    params, state = vae.init(KEY)
    prior = {name: p + 0.3 for name, p in params["prior"].items()}
    z = fv.random.normal(KEY, (4, 3, 2))
    p, _ = vae.prior({**params, "prior": prior}, state, z)
    known = fv.distributions.Mixture(prior["logits"], prior["loc"], prior["log_sigma"].exp())
    torch.testing.assert_close(p.log_prob(z), known.log_prob(z))


def test_a_mixture_is_trained():
    vae = model(fv.priors.mixture(3, 2))
    params, state = vae.init(KEY)
    out = fv.estimators.iwae()(vae, params, state, torch.ones(2, 3), fv.noise.iid(KEY, 4, (2, 2)), train=True)
    assert all(g.any() for g in out.grads["prior"].values())


@pytest.mark.parametrize(("arguments", "message"), [((0, 2), "components is 0"), ((2, 0), "latent is 0")])
def test_wrong_sizes_of_a_mixture_raise_an_error(arguments, message):
    with pytest.raises(BadValue, match=message):
        fv.priors.mixture(*arguments)


def test_a_mixture_of_another_latent_than_the_models_raises_an_error():
    vae = model(fv.priors.mixture(2, 1))
    with pytest.raises(BadValue, match="the mixture has latent 1: the model has latent 2"):
        vae.prior(*vae.init(KEY), torch.zeros(4, 2))
