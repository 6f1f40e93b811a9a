"""The models of Burda et al. (2016) against their descriptions."""

import math

import pytest
import torch

import funcvae as fv
from funcvae import models
from funcvae.distributions import Normal
from funcvae.errors import BadValue
from funcvae.models import SYSTEMS
from funcvae.models.burda import burda_schedule
from tests.support.networks import IMAGES, KEY, described, known, layers, linear
from tests.support.oracles import assert_zero_mean


def test_burda_vae_is_the_network_described():
    model = models.burda_vae()
    params, state = described(model)
    enc, dec = params["encoder"], params["decoder"]
    assert layers(enc) == {
        "hidden.0": (784, 200), "hidden.2": (200, 200), "mu": (200, 50), "log_sigma": (200, 50),
    }  # fmt: skip
    assert layers(dec) == {"hidden.0": (50, 200), "hidden.2": (200, 200), "output": (200, 784)}

    q, _ = model.encode(params, state, IMAGES.double())
    h = linear(enc, "hidden.2", linear(enc, "hidden.0", IMAGES.double().flatten(1)).tanh()).tanh()
    known(q, loc=linear(enc, "mu", h), sigma=linear(enc, "log_sigma", h).exp())
    p, _ = model.decode(params, state, q.loc)
    h = linear(dec, "hidden.2", linear(dec, "hidden.0", q.loc).tanh()).tanh()
    known(p, logits=linear(dec, "output", h).view(3, 1, 28, 28))
    assert isinstance(p, fv.distributions.Bernoulli)


def test_burda2_vae_is_the_network_described():
    model = models.burda2_vae()
    params, state = described(model)
    enc, dec, prior = params["encoder"], params["decoder"], params["prior"]
    assert layers(enc) == {
        "first.hidden.0": (784, 200), "first.hidden.2": (200, 200),
        "first.mu": (200, 100), "first.log_sigma": (200, 100),
        "second.hidden.0": (100, 100), "second.hidden.2": (100, 100),
        "second.mu": (100, 50), "second.log_sigma": (100, 50),
    }  # fmt: skip
    assert layers(prior) == {
        "first.hidden.0": (50, 100), "first.hidden.2": (100, 100),
        "first.mu": (100, 100), "first.log_sigma": (100, 100),
    }  # fmt: skip
    assert layers(dec) == {"hidden.0": (100, 200), "hidden.2": (200, 200), "output": (200, 784)}

    def normal(params, name, h):
        for layer in ("hidden.0", "hidden.2"):
            h = linear(params, f"{name}.{layer}", h).tanh()
        return Normal(linear(params, f"{name}.mu", h), linear(params, f"{name}.log_sigma", h).exp())

    x, eps = IMAGES.double(), fv.random.normal(KEY, (5, 3, 150), torch.float64)
    q, _ = model.encode(params, state, x)
    first = normal(enc, "first", x.flatten(1))
    h1 = first.sample(eps[..., :100])
    second = normal(enc, "second", h1)
    h2 = second.sample(eps[..., 100:])
    z = torch.cat([h1, h2], -1)
    torch.testing.assert_close(q.sample(eps), z)
    torch.testing.assert_close(q.log_prob(z), first.log_prob(h1).sum(-1) + second.log_prob(h2).sum(-1))

    p_z, _ = model.prior(params, state, z)
    standard = Normal(torch.zeros(50).double(), torch.ones(50).double())
    below = normal(prior, "first", h2)
    torch.testing.assert_close(p_z.log_prob(z), standard.log_prob(h2).sum(-1) + below.log_prob(h1).sum(-1))
    drawn = normal(prior, "first", eps[..., 100:]).sample(eps[..., :100])
    torch.testing.assert_close(p_z.sample(eps), torch.cat([drawn, eps[..., 100:]], -1))

    p, _ = model.decode(params, state, z)
    h = linear(dec, "hidden.2", linear(dec, "hidden.0", h1).tanh()).tanh()
    known(p, logits=linear(dec, "output", h).view(5, 3, 1, 28, 28))


def test_burda2_vae_with_other_sizes_and_its_error():
    assert models.burda2_vae(3, 2).latent == 5
    for sizes in ({"first": 0}, {"second": 0}):
        with pytest.raises(BadValue, match="is 0"):
            models.burda2_vae(**sizes)


@pytest.mark.parametrize("make", [models.burda_vae, models.burda2_vae])
def test_burda_vae_has_glorot_uniform_weights_and_zero_biases(make):
    params, _ = make().init(KEY)
    for part in params:
        for name, p in params[part].items():
            if p.ndim == 2:
                limit = math.sqrt(6 / sum(p.shape))
                assert p.abs().max() <= limit
                assert_zero_mean(p.flatten())
                assert_zero_mean(p.flatten().double() ** 2 - limit**2 / 3)
            else:
                assert not p.any(), name


@pytest.mark.parametrize("make", [models.burda_vae, models.burda2_vae])
def test_burda_vae_output_bias_is_the_logit_of_the_clipped_mean(make):
    mean = torch.linspace(0, 1, 784).view(1, 28, 28)
    params, _ = make(mean=mean).init(KEY)
    clipped = mean.flatten().clip(0.001, 0.999)
    torch.testing.assert_close(params["decoder"]["output.bias"], (clipped / (1 - clipped)).log())
    assert params["decoder"]["output.bias"].isfinite().all()


def test_burda_schedule_matches_the_paper():
    steps_per_epoch = 7
    lr = burda_schedule(steps_per_epoch)
    rates = [rate for i in range(1, 9) for rate in [1e-4 * round(10 ** (1 - (i - 1) / 7), 1)] * 3 ** (i - 1)]
    assert len(rates) == 3280
    assert rates[0] == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(1e-4)
    for epoch in [0, 1, 3, 4, 12, 13, 39, 40, 120, 121, 363, 364, 1092, 1093, 3279]:
        for step in (epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch - 1):
            assert float(lr(torch.tensor(step))) == pytest.approx(rates[epoch], rel=1e-12), f"epoch {epoch}"
    assert float(lr(torch.tensor(3280 * steps_per_epoch))) == pytest.approx(1e-4)


@pytest.mark.parametrize("name", ["burda_vae", "burda2_vae"])
def test_burda_recipe_sets_the_output_bias_from_the_training_mean(name):
    model = SYSTEMS[name].build(IMAGES)
    params, _ = model.init(KEY)
    torch.testing.assert_close(params["decoder"]["output.bias"].sigmoid(), IMAGES.mean(0).flatten())


@pytest.mark.parametrize("name", ["burda_vae", "burda2_vae"])
def test_burda_recipe_has_the_papers_adam_and_batches(name):
    recipe = SYSTEMS[name].recipe
    assert (recipe.eps, recipe.batch, recipe.epochs, recipe.data) == (1e-4, 20, 3280, "mnist")
    params, grads = {"w": torch.zeros(1)}, {"w": torch.full((1,), 1e-4)}
    opt = recipe.optimizer(10)
    moved, _ = opt.update(grads, opt.init(params), params)
    torch.testing.assert_close(moved["w"], torch.tensor([-0.5e-3]))  # eps equal to the gradient halves the step


def test_burdas_schedule_compiles_as_part_of_a_step():
    lr = burda_schedule(3000)
    compiled = torch.compile(lr, fullgraph=True, dynamic=False)
    for step in (0, 2999, 3000, 3000 * 364, 3000 * 5000):
        assert compiled(torch.tensor(step)) == lr(torch.tensor(step))
