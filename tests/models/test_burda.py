"""The model of Burda et al. (2016) against its description."""

import math

import pytest
import torch

import funcvae as fv
from funcvae import models
from funcvae.models import RECIPES
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


def test_burda_vae_has_glorot_uniform_weights_and_zero_biases():
    params, _ = models.burda_vae().init(KEY)
    for part in ("encoder", "decoder"):
        for name, p in params[part].items():
            if p.ndim == 2:
                limit = math.sqrt(6 / sum(p.shape))
                assert p.abs().max() <= limit
                assert_zero_mean(p.flatten())
                assert_zero_mean(p.flatten().double() ** 2 - limit**2 / 3)
            else:
                assert not p.any(), name


def test_burda_vae_output_bias_is_the_logit_of_the_clipped_mean():
    mean = torch.linspace(0, 1, 784).view(1, 28, 28)
    params, _ = models.burda_vae(mean=mean).init(KEY)
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


def test_burda_recipe_sets_the_output_bias_from_the_training_mean():
    model = RECIPES["burda_vae"].model(IMAGES)
    params, _ = model.init(KEY)
    torch.testing.assert_close(params["decoder"]["output.bias"].sigmoid(), IMAGES.mean(0).flatten())


def test_burda_recipe_has_the_papers_adam_and_batches():
    recipe = RECIPES["burda_vae"]
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
