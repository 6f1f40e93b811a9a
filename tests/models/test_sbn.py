"""The sigmoid belief nets against their description."""

import math

import pytest
import torch

import funcvae as fv
from funcvae import models
from funcvae.errors import BadValue
from funcvae.models import SYSTEMS
from tests.support.networks import IMAGES, KEY, described, known, layers, linear
from tests.support.oracles import assert_zero_mean

MEAN = torch.linspace(0, 1, 784).view(1, 28, 28)


def leaky(x):
    return torch.where(x > 0, x, 0.3 * x)


def test_sbn_vae_is_the_linear_network_described():
    model = models.sbn_vae(mean=MEAN)
    params, state = described(model)
    enc, dec = params["encoder"], params["decoder"]
    assert layers(enc) == {"layers.0": (784, 200)}
    assert layers(dec) == {"layers.0": (200, 784)}

    q, _ = model.encode(params, state, IMAGES.double())
    known(q, logits=linear(enc, "layers.0", (IMAGES - MEAN).double().flatten(1)))
    z = q.sample(fv.random.normal(KEY, (3, 200), torch.float64))
    assert set(z.unique().tolist()) == {0, 1}
    p, _ = model.decode(params, state, z)
    known(p, logits=linear(dec, "layers.0", 2 * z - 1).view(3, 1, 28, 28))
    prior, _ = model.prior(params, state, z)
    known(prior, logits=torch.zeros(200, dtype=torch.float64))
    assert params["prior"].keys() == {"logits"}  # it is learned
    assert {type(q), type(p), type(prior)} == {fv.distributions.Bernoulli}


def test_the_nonlinear_networks_have_two_leaky_layers_and_the_decoder_reverses_their_sizes():
    assert layers(models.sbn_vae(hidden=(200, 200)).init(KEY)[0]["decoder"]) == {
        "layers.0": (200, 200), "layers.2": (200, 200), "layers.4": (200, 784),
    }  # fmt: skip
    model = models.sbn_vae(latent=5, hidden=[7, 6])
    params, state = described(model)
    enc, dec = params["encoder"], params["decoder"]
    assert layers(enc) == {"layers.0": (784, 7), "layers.2": (7, 6), "layers.4": (6, 5)}
    assert layers(dec) == {"layers.0": (5, 6), "layers.2": (6, 7), "layers.4": (7, 784)}

    q, _ = model.encode(params, state, IMAGES.double())
    h = leaky(linear(enc, "layers.2", leaky(linear(enc, "layers.0", IMAGES.double().flatten(1) - 0.5))))
    known(q, logits=linear(enc, "layers.4", h))
    z = torch.eye(5, dtype=torch.float64)[:3]
    p, _ = model.decode(params, state, z)
    h = leaky(linear(dec, "layers.2", leaky(linear(dec, "layers.0", 2 * z - 1))))
    known(p, logits=linear(dec, "layers.4", h).view(3, 1, 28, 28))


def test_sbn_vae_has_glorot_uniform_weights_and_zero_biases():
    params, _ = models.sbn_vae(hidden=(200, 200)).init(KEY)
    for part in ("encoder", "decoder"):
        for name, p in params[part].items():
            if p.ndim == 2:
                limit = math.sqrt(6 / sum(p.shape))
                assert p.abs().max() <= limit
                assert_zero_mean(p.flatten())
                assert_zero_mean(p.flatten().double() ** 2 - limit**2 / 3)
            else:
                assert not p.any(), name


def test_the_mean_image_centres_the_input_and_sets_the_output_bias():
    params, state = models.sbn_vae(mean=MEAN.double()).init(KEY)
    clipped = MEAN.flatten().clip(0.001, 0.999)
    torch.testing.assert_close(params["decoder"]["layers.0.bias"], (clipped / (1 - clipped)).log())
    assert torch.equal(state["encoder"]["mean"], MEAN.flatten())


def test_the_mean_image_is_a_constant():
    model = models.sbn_vae(latent=3, mean=MEAN)
    params, state = model.init(KEY)
    assert model.frozen == {"encoder/mean"}
    x, eps = IMAGES.round(), fv.noise.iid(KEY, 2, (3, 3))
    out = fv.estimators.disarm()(model, params, state, x, eps, train=True)
    assert torch.equal(out.state["encoder"]["mean"], state["encoder"]["mean"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mean": torch.ones(10)}, r"mean has shape \[10\]: it must be \[1, 28, 28\]"),
        ({"hidden": (200, 0)}, "hidden is tuple .200, 0.: it must be numbers of at least 1"),
    ],
)
def test_wrong_sizes_are_refused(wrong, message):
    with pytest.raises(BadValue, match=message):
        models.sbn_vae(**wrong)


@pytest.mark.parametrize(("name", "layers_of_weights"), [("sbn_vae", 1), ("sbn_nonlinear_vae", 3)])
def test_the_recipes_have_the_papers_settings(name, layers_of_weights):
    system, recipe = SYSTEMS[name], SYSTEMS[name].recipe
    assert (recipe.estimator, recipe.samples, recipe.batch, recipe.data) == ("disarm", 1, 50, "mnist")
    assert 0 <= recipe.epochs * 60_000 // recipe.batch - 10**6 < 1200  # 1e6 steps, to an epoch
    params, state = system.build(IMAGES).init(KEY)
    torch.testing.assert_close(state["encoder"]["mean"], IMAGES.mean(0).flatten())
    assert len(layers(params["encoder"])) == len(layers(params["decoder"])) == layers_of_weights
    opt = recipe.optimizer(1200)
    moved, _ = opt.update({"w": torch.ones(1)}, opt.init({"w": torch.zeros(1)}), {"w": torch.zeros(1)})
    torch.testing.assert_close(moved["w"], torch.tensor([-1e-4]))


def test_a_few_steps_of_disarm_raise_the_bound():
    recipe, train = SYSTEMS["sbn_vae"].recipe, (IMAGES[:1] * torch.linspace(0, 1, 28)).round().expand(50, 1, 28, 28)
    model, opt = models.sbn_vae(latent=20), recipe.optimizer(1, lr=1e-2)
    ts = fv.train.init(model, opt, KEY)
    _, history = fv.train.fit(ts, model, fv.estimators.disarm(), opt, train, epochs=20, batch=50, compile=False)
    assert history.bound[-1] > history.bound[0] + 100
