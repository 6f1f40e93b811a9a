"""The residual network for photographs against its description."""

import math

import pytest
import torch
from torch import nn
from torchvision.models import resnet18
from torchvision.transforms.functional import normalize

import funcvae as fv
from funcvae import models
from funcvae.models import SYSTEMS
from funcvae.models.cifar import standardize, to_pixels
from tests.support.networks import KEY
from tests.support.oracles import assert_close

PHOTOS = fv.random.uniform(fv.random.key(13), (3, 3, 32, 32))


@pytest.fixture(scope="module")
def photos():
    """The model of small photographs with few latents, its parameters and its state."""
    model = models.cifar_resnet_vae(latent=6)
    return model, *model.init(KEY)


def test_cifar_resnet_vae_encodes_like_torchvisions_resnet18_for_small_images(photos):
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


def test_cifar_resnet_vae_decoder_has_the_sizes_described(photos):
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


@pytest.mark.parametrize(("height", "width"), [(16, 24), pytest.param(64, 64, marks=pytest.mark.slow)])
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


def test_cifar_resnet_vae_normalises_the_batch_of_each_sample_separately(photos):
    """With N = 2 the decoder sees two batches of three, and its running statistics are averaged over them.

    In float64, because float32 differs by more than the tolerance on some processors.
    """
    model, *trees = photos
    params, state = fv.tree.map(lambda x: x.double() if x.is_floating_point() else x, trees)
    eps = fv.noise.iid(fv.random.key(4), 2, (3, 6)).double()
    q, _ = model.encode(params, state, PHOTOS.double())
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


@pytest.mark.slow
def test_cifar_resnet_vae_steps_as_one_graph():
    recipe = SYSTEMS["cifar_resnet_vae"].recipe
    model, opt = models.cifar_resnet_vae(latent=6), recipe.optimizer(1)
    ts, keys = fv.train.init(model, opt, KEY), fv.random.split(fv.random.key(1))
    step = torch.no_grad()(fv.train.make_step(model, fv.estimators.elbo_mc(), opt.update, samples=2))
    torch._dynamo.reset()
    try:
        compiled = torch.compile(step, fullgraph=True, dynamic=False)(ts, keys, PHOTOS)
    finally:
        torch._dynamo.reset()
    eager = step(ts, keys, PHOTOS)
    torch.testing.assert_close(torch.stack(compiled[1]), torch.stack(eager[1]), rtol=1e-4, atol=0)
    assert_close(compiled[0].state, eager[0].state, rtol=1e-4, atol=1e-5)


def test_photographs_are_standardized_and_back():
    x = fv.random.uniform(KEY, (3, 3, 5, 7))
    seen = standardize(KEY, x)
    torch.testing.assert_close(seen, normalize(x, (0.4914, 0.4824, 0.4467), (0.2471, 0.2435, 0.2616)))
    torch.testing.assert_close(to_pixels(seen), x)
