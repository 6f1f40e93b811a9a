"""Each named system against its description: layers, initial values, objective, recipe."""

import math

import pytest
import torch
from oracles import assert_zero_mean, double
from torch.nn import functional as F

import funcvae as fv
from funcvae import models
from funcvae.errors import BadValue
from funcvae.models import RECIPES, Recipe
from funcvae.models.burda import burda_schedule
from funcvae.models.recipe import binarize

KEY = fv.random.key(11)
IMAGES = fv.random.uniform(fv.random.key(12), (3, 1, 28, 28))


def described(model):
    """Parameters and state, in float64 so that a forward written out agrees to rounding in any order of sums."""
    params, state = model.init(KEY)
    return double(params), state


def layers(params):
    """(in, out) of each linear layer, by name."""
    return {name.removesuffix(".weight"): tuple(p.shape[::-1]) for name, p in params.items() if p.ndim == 2}


def linear(params, name, x):
    return x @ params[f"{name}.weight"].T + params[f"{name}.bias"]


def known(distribution, **fields):
    """A distribution's fields equal these."""
    for name, value in fields.items():
        torch.testing.assert_close(getattr(distribution, name), value, msg=lambda m, n=name: f"{n}: {m}")


def test_mnist_vae_is_the_network_described():
    model = models.mnist_vae()
    params, state = described(model)
    enc, dec = params["encoder"], params["decoder"]
    assert layers(enc) == {"linear1": (784, 512), "linear2": (512, 2), "linear3": (512, 2)}
    assert layers(dec) == {"linear1": (2, 512), "linear2": (512, 784)}
    assert params["prior"] == {}
    assert state == {"encoder": {}, "decoder": {}, "prior": {}}

    q, _ = model.encode(params, state, IMAGES.double())
    h = linear(enc, "linear1", IMAGES.double().flatten(1)).clamp(min=0)
    known(q, loc=linear(enc, "linear2", h), sigma=linear(enc, "linear3", h).exp())
    p, _ = model.decode(params, state, q.loc)
    out = torch.sigmoid(linear(dec, "linear2", linear(dec, "linear1", q.loc).clamp(min=0)))
    known(p, loc=out.view(3, 1, 28, 28))
    assert ((p.sigma - math.sqrt(0.5)).abs() < 1e-15).all()


def test_mnist_vae_bound_is_squared_error_and_kl_to_a_constant():
    model = models.mnist_vae()
    params, state = model.init(KEY)
    params, x = double(params), IMAGES.double()
    eps = fv.noise.iid(fv.random.key(1), 1, (3, 2), dtype=torch.float64)
    q, _ = model.encode(params, state, x)
    p, _ = model.decode(params, state, q.sample(eps[0]))
    squared_error = ((x - p.mean) ** 2).flatten(1).sum(1)
    kl = (0.5 * (q.sigma**2 + q.loc**2 - 1) - q.sigma.log()).sum(1)
    bound = fv.estimators.elbo().bound(model, params, state, x, eps)
    torch.testing.assert_close(bound, -(squared_error + kl) - 392 * math.log(math.pi))


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


def test_burda_vae_starts_glorot_uniform_with_zero_biases():
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


def test_burda_vae_output_starts_at_the_logit_of_the_clipped_mean():
    mean = torch.linspace(0, 1, 784).view(1, 28, 28)
    params, _ = models.burda_vae(mean=mean).init(KEY)
    clipped = mean.flatten().clip(0.001, 0.999)
    torch.testing.assert_close(params["decoder"]["output.bias"], (clipped / (1 - clipped)).log())
    assert params["decoder"]["output.bias"].isfinite().all()


def test_burda_schedule_is_the_papers():
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


def test_gaussian2d_vae_is_the_network_described():
    model = models.gaussian2d_vae()
    params, state = described(model)
    assert layers(params["encoder"]) == layers(params["decoder"]) == {"shared.0": (2, 64), "param_layer": (64, 4)}
    x = fv.random.normal(fv.random.key(2), (5, 2), torch.float64)
    q, _ = model.encode(params, state, x)
    p, _ = model.decode(params, state, x)
    for part, distribution in {"encoder": q, "decoder": p}.items():
        out = linear(params[part], "param_layer", linear(params[part], "shared.0", x).tanh())
        known(distribution, loc=out[:, :2], sigma=(out[:, 2:] / 2).exp())


def test_gaussian2d_vae_takes_its_sizes():
    model = models.gaussian2d_vae(latent=3, hidden=5)
    params, _ = model.init(KEY)
    assert model.latent == 3
    assert layers(params["encoder"]) == {"shared.0": (2, 5), "param_layer": (5, 6)}
    assert layers(params["decoder"]) == {"shared.0": (3, 5), "param_layer": (5, 4)}


@pytest.mark.parametrize("factory", [models.mnist_vae, models.burda_vae, models.gaussian2d_vae])
def test_a_latent_space_has_a_dimension(factory):
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


def test_recipes_bear_the_names_of_their_models():
    assert set(RECIPES) == {"gaussian2d_vae", "mnist_vae", "burda_vae"}
    for name, recipe in RECIPES.items():
        assert recipe.name == name
        assert callable(getattr(models, name))
        assert name in models.__all__


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_recipe_makes_a_step(recipe: Recipe):
    data = fv.random.normal(KEY, (4, 2)) if recipe.data == "gaussian2d" else fv.random.uniform(KEY, (4, 1, 28, 28))
    model = recipe.model(data)
    opt = recipe.optimizer(steps_per_epoch=10)
    ts = fv.train.init(model, opt, fv.random.key(0))
    estimator = fv.estimators.parse(recipe.estimator)
    step = fv.train.make_step(model, estimator, opt.update, samples=recipe.samples, observe=recipe.observe)
    after, metrics = step(ts, fv.random.split(fv.random.key(1)), data)
    assert metrics.bound.isfinite()
    first = float(RECIPES["burda_vae"].lr(10)(ts.step)) if recipe.name == "burda_vae" else 1e-3
    moved = max(
        (new - old).abs().max().item()
        for part in ("encoder", "decoder")
        for new, old in zip(after.params[part].values(), ts.params[part].values(), strict=True)
    )
    assert moved == pytest.approx(first, rel=1e-2)


def test_burda_recipe_starts_the_output_at_its_training_mean():
    model = RECIPES["burda_vae"].model(IMAGES)
    params, _ = model.init(KEY)
    torch.testing.assert_close(params["decoder"]["output.bias"].sigmoid(), IMAGES.mean(0).flatten())


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_recipes_learning_rate_gives_way_to_ones_own(recipe):
    params, grads = {"w": torch.zeros(3)}, {"w": torch.full((3,), 1e6)}
    opt = recipe.optimizer(10, lr=0.25)
    moved, _ = opt.update(grads, opt.init(params), params)
    torch.testing.assert_close(moved["w"], torch.full((3,), -0.25))


def test_burda_recipe_has_the_papers_adam_and_batches():
    recipe = RECIPES["burda_vae"]
    assert (recipe.eps, recipe.batch, recipe.epochs, recipe.data) == (1e-4, 20, 3280, "mnist")
    params, grads = {"w": torch.zeros(1)}, {"w": torch.full((1,), 1e-4)}
    opt = recipe.optimizer(10)
    moved, _ = opt.update(grads, opt.init(params), params)
    torch.testing.assert_close(moved["w"], torch.tensor([-0.5e-3]))  # eps as large as the gradient halves the step


def test_squared_error_is_a_normal_of_fixed_sigma():
    x, out = torch.linspace(0, 1, 5), torch.linspace(-1, 1, 5)
    for sigma in (0.5, math.sqrt(0.5), 2.0):
        constant = 0.5 * math.log(2 * math.pi) + math.log(sigma)
        log_prob = fv.heads.normal_fixed(sigma)(out).log_prob(x)
        torch.testing.assert_close(-log_prob, F.mse_loss(out, x, reduction="none") / (2 * sigma**2) + constant)


def test_burdas_schedule_compiles_as_part_of_a_step():
    lr = burda_schedule(3000)
    compiled = torch.compile(lr, fullgraph=True, dynamic=False)
    for step in (0, 2999, 3000, 3000 * 364, 3000 * 5000):
        assert compiled(torch.tensor(step)) == lr(torch.tensor(step))
