"""Each named system against its description: layers, initial values, objective, recipe."""

import math

import pytest
import torch
from oracles import assert_close, assert_zero_mean, double
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet18
from torchvision.transforms.functional import normalize

import funcvae as fv
from funcvae import data, models, pictures
from funcvae.errors import BadType, BadValue
from funcvae.models import RECIPES, Recipe
from funcvae.models.burda import burda_schedule
from funcvae.models.cifar import standardize, to_pixels
from funcvae.models.recipe import binarize, from_tanh_range, to_tanh_range

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


def test_mnist_ae_is_the_network_described_and_its_bound_a_squared_error():
    model = models.mnist_ae()
    params, state = described(model)
    enc, dec = params["encoder"], params["decoder"]
    assert layers(enc) == {"linear1": (784, 512), "linear2": (512, 2)}
    assert layers(dec) == {"linear1": (2, 512), "linear2": (512, 784)}
    x = IMAGES.double()
    q, _ = model.encode(params, state, x)
    assert isinstance(q, fv.distributions.Delta)
    known(q, loc=linear(enc, "linear2", linear(enc, "linear1", x.flatten(1)).clamp(min=0)))
    eps = fv.noise.iid(fv.random.key(1), 2, (3, 2), dtype=torch.float64)
    bound = fv.estimators.elbo().bound(model, params, state, x, eps)
    p, _ = model.decode(params, state, q.loc)
    torch.testing.assert_close(bound, -((x - p.mean) ** 2).flatten(1).sum(1) - 392 * math.log(math.pi))
    with pytest.raises(BadType, match="no density"):
        fv.estimators.elbo_mc()(model, params, state, x, eps, train=True)


def test_mnist_bn_vae_is_the_network_described():
    model = models.mnist_bn_vae()
    params, state = described(model)
    enc, dec = params["encoder"], params["decoder"]
    assert layers(enc) == {
        "encoder.0": (784, 196), "encoder.3": (196, 49), "encoder.6": (49, 28),
        "hidden2mu": (28, 28), "hidden2log_var": (28, 28),
    }  # fmt: skip
    assert layers(dec) == {"0": (28, 49), "2": (49, 196), "4": (196, 784)}
    x, state = 2 * IMAGES.double() - 1, double(state)

    h = linear(enc, "encoder.0", x.flatten(1)).clamp(min=0) / math.sqrt(
        1 + 1e-5
    )  # fresh statistics: mean 0, variance 1
    h = linear(enc, "encoder.3", h).clamp(min=0) / math.sqrt(1 + 1e-5)
    h = F.leaky_relu(linear(enc, "encoder.6", h), 0.01)
    q, _ = model.encode(params, state, x)
    known(q, loc=linear(enc, "hidden2mu", h), sigma=(linear(enc, "hidden2log_var", h) / 2).exp())
    p, _ = model.decode(params, state, q.loc)
    h = linear(dec, "2", linear(dec, "0", q.loc).clamp(min=0)).clamp(min=0)
    known(p, loc=linear(dec, "4", h).tanh().view(3, 1, 28, 28))


@pytest.mark.parametrize("alpha", [1.0, 784.0])
def test_mnist_bn_vae_weighs_the_mean_squared_error_with_alpha(alpha):
    model = models.mnist_bn_vae(alpha=alpha)
    params, state = (double(t) for t in model.init(KEY))
    x = 2 * IMAGES.double() - 1
    eps = fv.noise.iid(fv.random.key(1), 1, (3, 28), dtype=torch.float64)
    q, _ = model.encode(params, state, x)
    p, _ = model.decode(params, state, q.sample(eps[0]))
    loss = alpha * ((x - p.mean) ** 2).flatten(1).mean(1) + (0.5 * (q.sigma**2 + q.loc**2 - 1) - q.sigma.log()).sum(1)
    bound = fv.estimators.elbo().bound(model, params, state, x, eps)
    torch.testing.assert_close(-bound - 392 * math.log(784 * math.pi / alpha), loss)


@pytest.mark.parametrize("alpha", [0, -1, math.inf, math.nan])
def test_alpha_is_positive_and_finite(alpha):
    with pytest.raises(BadValue, match="alpha is"):
        models.mnist_bn_vae(alpha=alpha)


def test_mnist_bn_vae_keeps_batch_norms_statistics_in_training_and_uses_them_in_evaluation():
    """Three batches through the encoder leave what they leave in `nn.BatchNorm1d` itself."""
    model = models.mnist_bn_vae()
    params, state = (double(t) for t in model.init(KEY))
    enc = params["encoder"]
    norms = nn.BatchNorm1d(196, momentum=0.7).double(), nn.BatchNorm1d(49, momentum=0.7).double()
    for seed in range(3):
        x = 2 * fv.random.uniform(fv.random.key(seed), (8, 1, 28, 28)).double() - 1
        q, state = model.encode(params, state, x, train=True)
        h = norms[0](linear(enc, "encoder.0", x.flatten(1)).clamp(min=0))
        h = norms[1](linear(enc, "encoder.3", h).clamp(min=0))
        torch.testing.assert_close(q.loc, linear(enc, "hidden2mu", F.leaky_relu(linear(enc, "encoder.6", h))))
    for place, norm in zip(("encoder.2", "encoder.5"), norms, strict=True):
        for name, buffer in norm.named_buffers():
            torch.testing.assert_close(state["encoder"][f"{place}.{name}"], buffer)
    for norm in norms:
        norm.eval()
    q, same = model.encode(params, state, x)
    h = norms[0](linear(enc, "encoder.0", x.flatten(1)).clamp(min=0))
    h = norms[1](linear(enc, "encoder.3", h).clamp(min=0))
    torch.testing.assert_close(q.loc, linear(enc, "hidden2mu", F.leaky_relu(linear(enc, "encoder.6", h))))
    assert all(map(torch.equal, fv.tree.leaves(same), fv.tree.leaves(state)))


@pytest.mark.parametrize(("activation", "output"), [(nn.ReLU, nn.Sigmoid), (nn.Identity, nn.Identity)])
def test_mnist_sigma_vae_is_the_network_described(activation, output):
    model = models.mnist_sigma_vae(activation=activation, output=output)
    params, state = described(model)
    enc, dec = params["encoder"], params["decoder"]
    assert layers(enc) == {"1": (784, 256), "3": (256, 64), "5": (64, 20)}
    assert layers(dec) == {"0": (10, 64), "2": (64, 256), "4": (256, 784)}
    x = IMAGES.double()
    act, out = activation(), output()
    q, _ = model.encode(params, state, x)
    h = act(linear(enc, "5", act(linear(enc, "3", act(linear(enc, "1", x.flatten(1)))))))
    known(q, loc=h[:, :10], sigma=h[:, 10:])
    p, _ = model.decode(params, state, q.loc)
    h = act(linear(dec, "2", act(linear(dec, "0", q.loc))))
    known(p, loc=out(linear(dec, "4", h)).view(3, 1, 28, 28))
    signs = set(q.sigma.sign().unique().tolist())
    assert signs == ({0.0, 1.0} if activation is nn.ReLU else {-1.0, 1.0})


def test_mnist_sigma_vae_trains_on_where_every_sigma_is_zero():
    model = models.mnist_sigma_vae()
    params, state = model.init(KEY)
    params["encoder"]["5.bias"] = torch.full((20,), -100.0)  # the last ReLU lets nothing through
    eps = fv.noise.iid(fv.random.key(1), 2, (3, 10))
    out = fv.estimators.elbo()(model, params, state, IMAGES, eps, train=True)
    q, _ = model.encode(params, state, IMAGES)
    assert not q.sigma.any()
    assert out.bound.isfinite().all()
    assert out.log_w.isfinite().all()
    assert all(g.isfinite().all() for g in fv.tree.leaves(out.grads))


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


PHOTOS = fv.random.uniform(fv.random.key(13), (3, 3, 32, 32))


@pytest.fixture(scope="module")
def photos():
    """The model of small photographs, narrow in latents, with its parameters and state."""
    model = models.cifar_resnet_vae(latent=6)
    return model, *model.init(KEY)


def test_cifar_resnet_vae_encodes_as_torchvisions_resnet18_in_its_small_form(photos):
    model, params, state = photos
    net = resnet18()
    net.conv1, net.maxpool, net.fc = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity(), nn.Identity()
    enc, buffers = params["encoder"], state["encoder"]
    heads = {name: enc[name] for name in enc if name.startswith("fc_")}
    with torch.no_grad():
        for p, value in zip(net.parameters(), [enc[n] for n in enc if n not in heads], strict=True):
            p.copy_(value)
    for train in (True, False):
        net.train(train)
        net.load_state_dict(dict(zip([n for n, _ in net.named_buffers()], buffers.values(), strict=True)), strict=False)
        with torch.no_grad():
            h = net(PHOTOS)
        q, new = model.encode(params, state, PHOTOS, train=train)
        assert h.shape == (3, 512)
        loc = h @ heads["fc_mu.weight"].T + heads["fc_mu.bias"]
        logvar = h @ heads["fc_var.weight"].T + heads["fc_var.bias"]
        torch.testing.assert_close(q.loc, loc, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(q.sigma, (logvar / 2).exp(), rtol=1e-4, atol=1e-5)
        assert_close(list(new["encoder"].values()), [b.detach() for b in net.buffers()], rtol=1e-4, atol=1e-5)


def test_cifar_resnet_vae_decodes_through_the_sizes_described(photos):
    _, params, _ = photos
    dec = {name.removeprefix("decoder."): tuple(p.shape) for name, p in params["decoder"].items()}
    assert dec["log_scale"] == (1,)
    assert dec["0.weight"] == (512 * 4 * 4, 6)
    stages = {"2": (512, 256), "4": (256, 128), "6": (128, 64), "8": (64, 64)}
    for stage, (inputs, outputs) in stages.items():
        assert dec[f"{stage}.0.conv1.weight"] == (outputs, inputs, 3, 3)
        for conv in ("0.conv2", "1.conv1", "1.conv2"):
            assert dec[f"{stage}.{conv}.weight"] == (outputs, outputs, 3, 3)
        assert (f"{stage}.0.downsample.0.weight" in dec) == (inputs != outputs)
    assert dec["10.weight"] == (3, 64, 3, 3)
    assert "10.bias" not in dec


@pytest.mark.parametrize(("height", "width"), [(64, 64), (16, 24)])
def test_cifar_resnet_vae_takes_other_heights_and_widths(height, width):
    model = models.cifar_resnet_vae(latent=4, height=height, width=width)
    params, state = model.init(KEY)
    x = fv.random.uniform(fv.random.key(2), (2, 3, height, width))
    eps = fv.noise.iid(fv.random.key(3), 1, (2, 4))
    out = fv.estimators.elbo_mc()(model, params, state, x, eps, train=True)
    assert out.bound.isfinite().all()
    assert all(g.isfinite().all() for g in fv.tree.leaves(out.grads))
    q, _ = model.encode(params, state, x)
    assert model.decode(params, state, q.loc)[0].mean.shape == x.shape


def test_cifar_resnet_vae_bound_has_the_learned_scale(photos):
    model, params, state = photos
    params = {**params, "decoder": {**params["decoder"], "log_scale": torch.tensor([-0.7])}}
    eps = fv.noise.iid(fv.random.key(3), 2, (3, 6))
    bound = fv.estimators.elbo_mc().bound(model, params, state, PHOTOS, eps)
    q, _ = model.encode(params, state, PHOTOS)
    z = q.sample(eps)
    p, _ = model.decode(params, state, z)
    normal = torch.distributions.Normal
    recon = normal(p.mean, math.exp(-0.7)).log_prob(PHOTOS).sum((2, 3, 4))
    kl = (normal(q.loc, q.sigma).log_prob(z) - normal(0.0, 1.0).log_prob(z)).sum(2)
    torch.testing.assert_close(bound, (recon - kl).mean(0), rtol=1e-5, atol=1e-2)


def test_cifar_resnet_vae_normalises_each_samples_batch_by_itself(photos):
    """Under N = 2 the decoder sees two batches of three, and its running statistics move by their mean."""
    model, params, state = photos
    eps = fv.noise.iid(fv.random.key(4), 2, (3, 6))
    q, _ = model.encode(params, state, PHOTOS)
    z = q.sample(eps)
    p, new = model.decode(params, state, z, train=True)
    alone = [model.decode(params, state, z_n, train=True) for z_n in z]
    torch.testing.assert_close(p.mean, torch.stack([p_n.mean for p_n, _ in alone]), rtol=1e-4, atol=1e-5)
    for name, value in new["decoder"].items():
        one, two = (state_n["decoder"][name] for _, state_n in alone)
        if value.is_floating_point():
            torch.testing.assert_close(value, (one + two) / 2, rtol=1e-4, atol=1e-5)
        else:
            assert value == one == 1
    together, _ = model.decode(params, state, z.flatten(0, 1), train=True)
    assert (together.mean.unflatten(0, (2, 3)) - p.mean).abs().max() > 1e-3


def compiled_step_agrees(backend):
    recipe = RECIPES["cifar_resnet_vae"]
    model, opt = models.cifar_resnet_vae(latent=6), recipe.optimizer(1)
    ts, keys = fv.train.init(model, opt, KEY), fv.random.split(fv.random.key(1))
    step = torch.no_grad()(fv.train.make_step(model, fv.estimators.elbo_mc(), opt.update, samples=2))
    torch._dynamo.reset()
    try:
        compiled = torch.compile(step, fullgraph=True, dynamic=False, backend=backend)(ts, keys, PHOTOS)
    finally:
        torch._dynamo.reset()
    eager = step(ts, keys, PHOTOS)
    torch.testing.assert_close(torch.stack(compiled[1]), torch.stack(eager[1]), rtol=1e-4, atol=0)
    assert_close(compiled[0].state, eager[0].state, rtol=1e-4, atol=1e-5)


def test_cifar_resnet_vae_steps_as_one_graph():
    compiled_step_agrees("aot_eager")


@pytest.mark.slow
def test_cifar_resnet_vae_steps_compiled():
    compiled_step_agrees("inductor")


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


def test_gaussian2d_vae_learns_the_true_mean_and_covariance_within_five_percent():
    """By its recipe, from samples with the decoder's noise; without it they are too narrow."""
    recipe, dataset = RECIPES["gaussian2d_vae"], data.load("gaussian2d")
    model, opt = recipe.model(dataset.train), recipe.optimizer(10)
    ts = fv.train.init(model, opt, fv.random.key(0))
    ts, _ = fv.train.fit(
        ts,
        model,
        fv.estimators.parse(recipe.estimator),
        opt,
        dataset.train,
        epochs=recipe.epochs,
        batch=recipe.batch,
        samples=recipe.samples,
        compile=False,
    )
    mean, cov = torch.tensor(data.GAUSSIAN2D_MEAN), torch.tensor(data.GAUSSIAN2D_COV)
    x = pictures.samples(model, ts.params, ts.state, fv.random.key(1), 100_000)
    assert ((x.mean(0) - mean).abs() < 0.05 * mean).all()
    assert ((x.T.cov() - cov).abs() < 0.05 * cov).all()
    means = pictures.samples(model, ts.params, ts.state, fv.random.key(1), 100_000, drawn=False)
    assert ((means.mean(0) - mean).abs() < 0.05 * mean).all()
    assert (means.T.cov().diag() < 0.95 * cov.diag()).all()


def test_gaussian2d_vae_takes_its_sizes():
    model = models.gaussian2d_vae(latent=3, hidden=5)
    params, _ = model.init(KEY)
    assert model.latent == 3
    assert layers(params["encoder"]) == {"shared.0": (2, 5), "param_layer": (5, 6)}
    assert layers(params["decoder"]) == {"shared.0": (3, 5), "param_layer": (5, 4)}


@pytest.mark.parametrize("factory", [getattr(models, name) for name in RECIPES])
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


def test_the_tanh_range_and_back():
    x = torch.tensor([0.0, 0.5, 1.0])
    assert to_tanh_range(KEY, x).tolist() == [-1, 0, 1]
    assert torch.equal(from_tanh_range(to_tanh_range(KEY, x)), x)


def test_photographs_are_standardized_and_back():
    x = fv.random.uniform(KEY, (3, 3, 5, 7))
    seen = standardize(KEY, x)
    torch.testing.assert_close(seen, normalize(x, (0.4914, 0.4824, 0.4467), (0.2471, 0.2435, 0.2616)))
    torch.testing.assert_close(to_pixels(seen), x)


def test_recipes_bear_the_names_of_their_models():
    assert set(RECIPES) == {
        "gaussian2d_vae", "mnist_ae", "mnist_vae", "mnist_bn_vae", "mnist_sigma_vae", "cifar_resnet_vae", "burda_vae",
    }  # fmt: skip
    for name, recipe in RECIPES.items():
        assert recipe.name == name
        assert callable(getattr(models, name))
        assert name in models.__all__


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_recipe_makes_a_step(recipe: Recipe):
    x = fv.random.uniform(KEY, (4, *(size or 32 for size in recipe.shape)))
    model = recipe.model(x)
    opt = recipe.optimizer(steps_per_epoch=10)
    ts = fv.train.init(model, opt, fv.random.key(0))
    estimator = fv.estimators.parse(recipe.estimator)
    step = fv.train.make_step(model, estimator, opt.update, samples=recipe.samples, observe=recipe.observe)
    after, metrics = step(ts, fv.random.split(fv.random.key(1)), x)
    assert metrics.bound.isfinite()
    first = {"cifar_resnet_vae": 1e-4}.get(recipe.name, 1e-3)
    moved = max(
        (new - old).abs().max().item()
        for part in ("encoder", "decoder")
        for new, old in zip(after.params[part].values(), ts.params[part].values(), strict=True)
    )
    assert moved == pytest.approx(first, rel=1e-2)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_recipes_step_on_cuda_follows_the_one_on_the_cpu(recipe: Recipe):
    x = fv.random.uniform(KEY, (4, *(size or 32 for size in recipe.shape)))
    model, opt, bounds = recipe.model(x), recipe.optimizer(10), []
    estimator = fv.estimators.parse(recipe.estimator)
    step = fv.train.make_step(model, estimator, opt.update, samples=2, observe=recipe.observe, scale=recipe.scale)
    for device in ("cpu", "cuda"):
        ts = fv.train.init(model, opt, fv.random.key(0, device=device))
        for key in fv.random.split(fv.random.key(1, device=device), 2):
            ts, metrics = step(ts, fv.random.split(key), x.to(device))
        bounds.append(float(metrics.bound))
    assert bounds[1] == pytest.approx(bounds[0], rel=1e-2)


def test_burda_recipe_starts_the_output_at_its_training_mean():
    model = RECIPES["burda_vae"].model(IMAGES)
    params, _ = model.init(KEY)
    torch.testing.assert_close(params["decoder"]["output.bias"].sigmoid(), IMAGES.mean(0).flatten())


def test_recipes_train_as_their_sources_do():
    """(data, batch, epochs, samples, estimator, learning rate); where a post does not say, ours."""
    trained_with = {
        name: (r.data, r.batch, r.epochs, r.samples, r.estimator, float(r.lr(1)(0) if callable(r.lr(1)) else r.lr(1)))
        for name, r in RECIPES.items()
        if name != "burda_vae"
    }
    assert trained_with == {
        "gaussian2d_vae": ("gaussian2d", 1000, 200, 4, "elbo", 1e-3),
        "mnist_ae": ("mnist", 128, 20, 1, "elbo", 1e-3),
        "mnist_vae": ("mnist", 128, 20, 1, "elbo", 1e-3),
        "mnist_bn_vae": ("mnist", 128, 20, 1, "elbo", 1e-3),
        "mnist_sigma_vae": ("mnist", 32, 50, 1, "elbo", 1e-3),
        "cifar_resnet_vae": ("cifar10", 32, 30, 1, "elbo_mc", 1e-4),
    }


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "burda_vae"])
def test_layers_start_as_torchs_own_do(name):
    """Weights and biases uniform on ±1/√(fan-in), as in the posts, which set none; BatchNorm at 1 and 0."""
    recipe = RECIPES[name]
    params, _ = recipe.model(torch.zeros(1, *(size or 32 for size in recipe.shape))).init(KEY)
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
