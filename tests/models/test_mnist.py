"""The models of digits against their descriptions."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import funcvae as fv
from funcvae import models
from funcvae.errors import BadType, BadValue
from tests.support.networks import IMAGES, KEY, described, known, layers, linear
from tests.support.oracles import double


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
    """Three batches update the statistics of the encoder as they update those of `nn.BatchNorm1d`."""
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


def test_mnist_sigma_vae_trains_if_every_sigma_is_zero():
    model = models.mnist_sigma_vae()
    params, state = model.init(KEY)
    params["encoder"]["5.bias"] = torch.full((20,), -100.0)  # the last ReLU outputs only zeros
    eps = fv.noise.iid(fv.random.key(1), 2, (3, 10))
    out = fv.estimators.elbo()(model, params, state, IMAGES, eps, train=True)
    q, _ = model.encode(params, state, IMAGES)
    assert not q.sigma.any()
    assert out.bound.isfinite().all()
    assert out.log_w.isfinite().all()
    assert all(g.isfinite().all() for g in fv.tree.leaves(out.grads))
