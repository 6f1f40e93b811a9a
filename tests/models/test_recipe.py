"""Recipes: data, optimizer and scale of every named system."""

import math

import pytest
import torch
from torch.nn import functional as F

import funcvae as fv
from funcvae import models
from funcvae.errors import BadValue
from funcvae.model import from_bytes
from funcvae.models import SYSTEMS, System
from funcvae.models.recipe import binarize, from_tanh_range, to_tanh_range
from tests.support.networks import KEY
from tests.support.oracles import assert_zero_mean

FROM_PAPERS = ("burda_vae", "burda2_vae", "sbn_vae", "sbn_nonlinear_vae")
NAMED = {name: models.sbn_vae if name == "sbn_nonlinear_vae" else getattr(models, name) for name in SYSTEMS}


@pytest.mark.parametrize("factory", [factory for name, factory in NAMED.items() if name != "burda2_vae"])
def test_a_latent_space_has_at_least_one_dimension(factory):
    assert factory(latent=1).latent == 1
    with pytest.raises(BadValue, match="latent is 0"):
        factory(latent=0)


def test_binarize_draws_zeros_and_ones_with_the_greys_as_means():
    grey = fv.random.uniform(fv.random.key(3), (4,))
    draws = torch.vmap(lambda key: binarize(key, grey))(fv.random.split(fv.random.key(4), 4000))
    assert draws.dtype == grey.dtype
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    assert_zero_mean(draws - grey)
    edges = torch.tensor([0.0, 1.0]).expand(1000, 2)
    assert torch.equal(binarize(KEY, edges), edges)


def test_the_tanh_range_and_back():
    x = torch.tensor([0.0, 0.5, 1.0])
    assert to_tanh_range(KEY, x).tolist() == [-1, 0, 1]
    assert torch.equal(from_tanh_range(to_tanh_range(KEY, x)), x)


@pytest.mark.parametrize("system", SYSTEMS.values(), ids=SYSTEMS)
def test_bytes_are_observed_as_their_floats(system: System):
    recipe = system.recipe
    x = torch.arange(256, dtype=torch.uint8).repeat(24).reshape(2, 3, 32, 32)
    floats = x.float() / 255  # of every byte
    assert torch.equal(recipe.observe(KEY, x), recipe.observe(KEY, floats))
    assert torch.equal(from_bytes(x), floats)
    assert torch.equal((x.double() / 255).float(), floats)  # what CUDA computes


def test_recipes_have_the_names_of_their_models():
    assert set(SYSTEMS) == {
        "gaussian2d_vae", "mnist_ae", "mnist_vae", "mnist_bn_vae", "mnist_sigma_vae", "cifar_resnet_vae", "burda_vae",
        "burda2_vae", "sbn_vae", "sbn_nonlinear_vae",
    }  # fmt: skip
    for name, system in SYSTEMS.items():
        assert system.name == name
        assert callable(NAMED[name])
        assert name in models.__all__ or name == "sbn_nonlinear_vae"


@pytest.mark.parametrize("system", SYSTEMS.values(), ids=SYSTEMS)
def test_a_recipe_makes_a_step(system: System):
    recipe = system.recipe
    x = fv.random.uniform(KEY, (4, *(size or 32 for size in recipe.shape)))
    model = system.build(x)
    opt = recipe.optimizer(steps_per_epoch=10)
    ts = fv.train.init(model, opt, fv.random.key(0))
    estimator = fv.estimators.parse(recipe.estimator)
    step = fv.train.make_step(model, estimator, opt.update, samples=recipe.samples, observe=recipe.observe)
    after, metrics = step(ts, fv.random.split(fv.random.key(1)), x)
    assert metrics.bound.isfinite()
    first = 1e-4 if system.name in ("cifar_resnet_vae", "sbn_vae", "sbn_nonlinear_vae") else 1e-3
    moved = max(
        (new - old).abs().max().item()
        for part in ("encoder", "decoder")
        for new, old in zip(after.params[part].values(), ts.params[part].values(), strict=True)
    )
    assert moved == pytest.approx(first, rel=1e-2)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("system", SYSTEMS.values(), ids=SYSTEMS)
def test_a_recipes_step_on_cuda_matches_the_cpu(system: System):
    recipe = system.recipe
    x = fv.random.uniform(KEY, (4, *(size or 32 for size in recipe.shape)))
    model, opt, bounds = system.build(x), recipe.optimizer(10), []
    estimator = fv.estimators.parse(recipe.estimator)
    step = fv.train.make_step(model, estimator, opt.update, samples=2, observe=recipe.observe, scale=recipe.scale)
    for device in ("cpu", "cuda"):
        ts = fv.train.init(model, opt, fv.random.key(0, device=device))
        for key in fv.random.split(fv.random.key(1, device=device), 2):
            ts, metrics = step(ts, fv.random.split(key), x.to(device))
        bounds.append(float(metrics.bound))
    assert bounds[1] == pytest.approx(bounds[0], rel=1e-2)


def test_recipes_match_their_sources():
    """(data, batch, epochs, samples, estimator, learning rate); values that a post does not state are our own."""
    trained_with = {
        name: (r.data, r.batch, r.epochs, r.samples, r.estimator, float(r.lr(1)(0) if callable(r.lr(1)) else r.lr(1)))
        for name, r in ((name, system.recipe) for name, system in SYSTEMS.items())
        if name not in FROM_PAPERS
    }
    assert trained_with == {
        "gaussian2d_vae": ("gaussian2d", 1000, 200, 4, "elbo", 1e-3),
        "mnist_ae": ("mnist", 128, 20, 1, "elbo", 1e-3),
        "mnist_vae": ("mnist", 128, 20, 1, "elbo", 1e-3),
        "mnist_bn_vae": ("mnist", 128, 20, 1, "elbo", 1e-3),
        "mnist_sigma_vae": ("mnist", 32, 50, 1, "elbo", 1e-3),
        "cifar_resnet_vae": ("cifar10", 32, 30, 1, "elbo_mc", 1e-4),
    }


@pytest.mark.parametrize("name", [name for name in SYSTEMS if name not in FROM_PAPERS])
def test_layers_have_torchs_default_initialization(name):
    """Weights and biases are uniform on ±1/√(fan-in), since the posts set none; BatchNorm has 1 and 0."""
    system = SYSTEMS[name]
    params, _ = system.build(torch.zeros(1, *(size or 32 for size in system.recipe.shape))).init(KEY)
    for part in ("encoder", "decoder"):
        for path, p in params[part].items():
            if p.ndim > 1:
                limit = 1 / math.sqrt(p[0].numel())
                bias = params[part].get(path.removesuffix("weight") + "bias", torch.zeros(1))
                assert limit * 0.9 < p.abs().max() <= limit, path
                assert bias.abs().max() <= limit, path
                assert_zero_mean(p.flatten().double() ** 2 - limit**2 / 3)
    ones = [p for n, p in params["encoder"].items() if n.endswith("bn1.weight")]
    assert all(torch.equal(p, torch.ones_like(p)) for p in ones)
    if name == "cifar_resnet_vae":
        assert params["decoder"]["log_scale"].tolist() == [0]
        assert len(ones) == 8


@pytest.mark.parametrize("system", SYSTEMS.values(), ids=SYSTEMS)
def test_a_given_learning_rate_replaces_the_recipes(system):
    params, grads = {"w": torch.zeros(3)}, {"w": torch.full((3,), 1e6)}
    opt = system.recipe.optimizer(10, lr=0.25)
    moved, _ = opt.update(grads, opt.init(params), params)
    torch.testing.assert_close(moved["w"], torch.full((3,), -0.25))


def test_squared_error_is_a_normal_of_fixed_sigma():
    x, out = torch.linspace(0, 1, 5), torch.linspace(-1, 1, 5)
    for sigma in (0.5, math.sqrt(0.5), 2.0):
        constant = 0.5 * math.log(2 * math.pi) + math.log(sigma)
        log_prob = fv.heads.normal_fixed(sigma)(out).log_prob(x)
        torch.testing.assert_close(-log_prob, F.mse_loss(out, x, reduction="none") / (2 * sigma**2) + constant)
