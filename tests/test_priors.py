"""Discrete, relaxed and mixture priors: their values, parameters, training and errors."""

import pytest
import torch
from torch import nn

import funcvae as fv
from funcvae import priors, tree
from funcvae.errors import BadType, BadValue
from tests.support.posteriors import PRIORS

KEY = fv.random.key(0)
X = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
every_prior = pytest.mark.parametrize("name", PRIORS)


def made(prior, posterior=fv.heads.bernoulli, latent=6):
    model = fv.vae(
        encoder=lambda: nn.Linear(3, latent), decoder=lambda: nn.Linear(latent, 3), latent=latent,
        posterior=posterior, prior=prior,
    )  # fmt: skip
    return model, *model.init(KEY)


@every_prior
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_prior_is_uniform_at_first_and_has_the_dtype_of_z(name, dtype):
    prior, posterior, kind, shape = PRIORS[name]
    model, params, state = made(prior, posterior)
    params = tree.map(lambda t: t.to(dtype), params)
    for z in (torch.full((2, 6), 0.4, dtype=dtype), torch.full((5, 2, 6), 0.4, dtype=dtype)):
        p, _ = model.prior(params, state, z)
        assert isinstance(p, kind)
        assert torch.equal(p.logits, torch.zeros(shape, dtype=dtype))
        assert fv.model.log_prob(p, z.expand(5, 2, 6)).shape == (5, 2)


@every_prior
def test_only_learned_priors_have_parameters_and_every_estimator_trains_them(name):
    prior, posterior, _, shape = PRIORS[name]
    model, params, state = made(prior, posterior)
    names = {"logits"} if name.startswith("learned") else set()
    assert params["prior"].keys() == names
    assert all(p.shape == shape for p in params["prior"].values())
    estimator = fv.estimators.rloo() if "concrete" not in name else fv.estimators.dreg()
    out = estimator(model, params, state, X, fv.noise.iid(KEY, 4, (2, 6)), train=True)
    assert out.bound.isfinite().all()
    assert all(g.any() for g in out.grads["prior"].values())
    assert out.grads["prior"].keys() == names


def test_the_gradient_of_a_learned_prior_is_that_of_log_p_z():
    model, params, state = made(priors.learned_bernoulli(6))
    params["prior"]["logits"] = torch.linspace(-1, 1, 6)
    eps = fv.noise.iid(KEY, 4, (2, 6))
    out = fv.estimators.rloo()(model, params, state, X, eps, train=True)
    z = model.encode(params, state, X)[0].sample(eps)
    torch.testing.assert_close(-out.grads["prior"]["logits"], (z - params["prior"]["logits"].sigmoid()).mean((0, 1)))


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (priors.learned_bernoulli(3), r"the prior has logits \[3\] for 3 latents, and z has 6"),
        (priors.learned_bernoulli(1), r"the prior has logits \[1\] for 1 latents, and z has 6"),
        (priors.learned_categorical(3, 3), r"the prior has logits \[3, 3\] for 9 latents, and z has 6"),
        (priors.learned_categorical(6, 2), r"the prior has logits \[2, 6\] for 12 latents, and z has 6"),
        (priors.categorical(4), "6 logits cannot be divided into variables of 4 classes: use a multiple of 4"),
        (priors.concrete(0.5, 4), "6 logits cannot be divided into variables of 4 classes: use a multiple of 4"),
        (priors.concrete(1e-40), r"temperature is 1e-40: it is out of the range of torch\.float32"),
    ],
)
def test_a_prior_that_does_not_fit_the_latents_is_an_error(prior, message):
    model, params, state = made(prior)
    with pytest.raises(BadValue, match=message):
        model.prior(params, state, torch.zeros(2, 6))
    with pytest.raises(BadValue, match=message):
        fv.estimators.rloo()(model, params, state, X, fv.noise.iid(KEY, 2, (2, 6)), train=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: priors.learned_bernoulli(0), "latent is 0"),
        (lambda: priors.categorical(1), "classes is 1: it must be at least 2"),
        (lambda: priors.learned_categorical(1, 2), "classes is 1"),
        (lambda: priors.learned_categorical(2, 0), "variables is 0"),
        (lambda: priors.concrete(0.0), "temperature is 0"),
        (lambda: priors.concrete(-1.0), "temperature is -1"),
        (lambda: priors.concrete(float("nan")), "temperature is nan"),
        (lambda: priors.concrete(0.5, 1), "classes is 1"),
    ],
)
def test_wrong_sizes_and_temperatures_are_an_error_of_one_line(make, message):
    with pytest.raises(BadValue, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_a_prior_is_given_as_a_factory():
    with pytest.raises(BadType, match="takes a factory"):
        made(priors.bernoulli())


# The mixture.


def normal_model(prior, latent=2):
    return fv.vae(encoder=lambda: nn.Linear(3, 2 * latent), decoder=lambda: nn.Linear(latent, 3), latent=latent,
                  prior=prior)  # fmt: skip


def test_a_mixture_has_learned_weights_means_and_scales_whose_means_differ():
    params, _ = normal_model(fv.priors.mixture(5, 2)).init(KEY)
    assert {name: tuple(p.shape) for name, p in params["prior"].items()} == {
        "logits": (5,), "loc": (5, 2), "log_sigma": (5, 2),
    }  # fmt: skip
    assert not params["prior"]["logits"].any()
    assert not params["prior"]["log_sigma"].any()
    assert len(params["prior"]["loc"].unique()) == 10
    again, other = (normal_model(fv.priors.mixture(5, 2)).init(key)[0] for key in (KEY, fv.random.key(5)))
    assert torch.equal(again["prior"]["loc"], params["prior"]["loc"])
    assert not torch.equal(other["prior"]["loc"], params["prior"]["loc"])


def test_the_mixture_is_that_of_its_parameters():
    vae = normal_model(fv.priors.mixture(5, 2))
    params, state = vae.init(KEY)
    prior = {name: p + 0.3 for name, p in params["prior"].items()}
    z = fv.random.normal(KEY, (4, 3, 2))
    p, _ = vae.prior({**params, "prior": prior}, state, z)
    known = fv.distributions.Mixture(prior["logits"], prior["loc"], prior["log_sigma"].exp())
    torch.testing.assert_close(p.log_prob(z), known.log_prob(z))


def test_a_mixture_is_trained():
    vae = normal_model(fv.priors.mixture(3, 2))
    params, state = vae.init(KEY)
    out = fv.estimators.iwae()(vae, params, state, torch.ones(2, 3), fv.noise.iid(KEY, 4, (2, 2)), train=True)
    assert all(g.any() for g in out.grads["prior"].values())


@pytest.mark.parametrize(("arguments", "message"), [((0, 2), "components is 0"), ((2, 0), "latent is 0")])
def test_wrong_sizes_of_a_mixture_raise_an_error(arguments, message):
    with pytest.raises(BadValue, match=message):
        fv.priors.mixture(*arguments)


def test_a_mixture_of_another_latent_than_the_models_raises_an_error():
    vae = normal_model(fv.priors.mixture(2, 1))
    with pytest.raises(BadValue, match="the mixture has latent 1: the model has latent 2"):
        vae.prior(*vae.init(KEY), torch.zeros(4, 2))
