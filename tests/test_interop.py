"""PyTorch VAEs taken over with their weights: numbers equal those of the plain module, which never changes."""

import copy
import math
import pickle
import sys
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet18

import funcvae as fv
from funcvae import tree
from funcvae.distributions import Bernoulli, Normal
from funcvae.errors import BadType, BadValue
from tests.laws import test_posts as posts

KEY = fv.random.key(3)
B = 2
SQUARED = fv.heads.normal_fixed(math.sqrt(0.5))


@pytest.fixture(autouse=True)
def seeded():
    """The initialisers of plain modules draw from the global generator."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def draws(*shape, seed=1):
    return fv.random.normal(fv.random.key(seed), shape, torch.float64)


def pixels(n, *shape):
    return fv.random.uniform(fv.random.key(2), (n, *shape), torch.float64)


class Small(nn.Module):
    """A VAE with methods, a BatchNorm layer, a parameter of its own, a buffer of both parts and a classifier."""

    def __init__(self, latent=3):
        super().__init__()
        self.fc1, self.norm = nn.Linear(12, 8), nn.BatchNorm1d(8)
        self.fc_mu, self.fc_logvar = nn.Linear(8, latent), nn.Linear(8, latent)
        self.gain = nn.Parameter(torch.tensor(1.3))
        self.fc2, self.fc3 = nn.Linear(latent, 8), nn.Linear(8, 12)
        self.classifier = nn.Sequential(nn.Linear(latent, 8), nn.Dropout(), nn.LSTM(8, 10, 2, dropout=0.5))
        self.register_buffer("shift", torch.full((12,), 0.1))

    def encode(self, x):
        h = torch.tanh(self.norm(self.fc1(x - self.shift)))
        return self.fc_mu(h), self.fc_logvar(h)

    def decode(self, z):
        return self.gain * self.fc3(torch.tanh(self.fc2(z))) + self.shift

    def loss(self, x, noise):  # noise [1, B, Z]
        mu, logvar = self.encode(x)
        logits = self.decode(mu + (logvar / 2).exp() * noise[0])
        kl = -0.5 * (1 + logvar - mu**2 - logvar.exp()).sum()
        return F.binary_cross_entropy_with_logits(logits, x, reduction="sum") + kl


def small(**changes):
    """A module whose weights differ from those of its initialisers, in float64."""
    net = Small(**changes).double()
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.copy_(p + 0.1 * draws(*p.shape, seed=10 + i))
    return net


def bits(net):
    grads = {f"grad of {name}": p.grad for name, p in net.named_parameters() if p.grad is not None}
    return tree.sha256({**net.state_dict(), **grads})


def assert_gradients_equal(net, grads, loss, scale=1.0):
    """The gradients of an estimate, times `scale`, equal those of the module's own loss by autograd."""
    net.zero_grad()
    loss.backward()
    found = {**grads["encoder"], **grads["decoder"]}
    assert found.keys() == {name for name, p in net.named_parameters() if p.grad is not None}
    for name, g in found.items():
        expected = net.get_parameter(name).grad
        atol = 1e-10 * max(1, float(expected.abs().max()))
        torch.testing.assert_close(scale * g, expected, rtol=1e-10, atol=atol)


# The numbers of the plain module


def test_gradients_buffers_and_outputs_equal_those_of_the_plain_module():
    net, x, eps = small(), pixels(5, 12), draws(1, 5, 3)
    model, params, state = fv.from_module(net, latent=3)
    out = fv.estimators.elbo()(model, params, state, x, eps, train=True)
    plain = copy.deepcopy(net).train()
    loss = plain.loss(x, eps)
    torch.testing.assert_close(-out.bound.sum(), loss)
    assert_gradients_equal(plain, out.grads, loss, scale=5)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(out.state["encoder"][f"norm.{name}"], getattr(plain.norm, name))
    net.eval()
    q, _ = model.encode(params, state, x)
    assert torch.equal(q.loc, net.encode(x)[0])
    assert torch.equal(model.decode(params, state, eps[0])[0].logits, net.decode(eps[0]))


def test_params_have_the_modules_names_and_only_those_that_are_used():
    _, params, state = fv.from_module(small(), latent=3)
    encoder = {f"{layer}.{name}" for layer in ("fc1", "norm", "fc_mu", "fc_logvar") for name in ("weight", "bias")}
    assert params["encoder"].keys() == encoder
    assert params["decoder"].keys() == {"gain", "fc2.weight", "fc2.bias", "fc3.weight", "fc3.bias"}
    assert state["encoder"].keys() == {"shift", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    assert state["decoder"].keys() == {"shift"}


@pytest.mark.parametrize("train", [True, False])
def test_the_module_and_the_global_generator_do_not_change_and_later_changes_of_it_do_not_count(train):
    net, x, eps = small().train(train), pixels(5, 12), draws(4, 5, 3)
    net.norm.train(not train)
    net.loss(x, eps).backward()
    before, modes, generator = bits(net), [m.training for m in net.modules()], torch.default_generator.get_state()
    model, params, state = fv.from_module(net, latent=3)
    first = fv.estimators.dreg()(model, params, state, x, eps, train=True)
    fv.to_module(net, params, state)
    assert bits(net) == before
    assert [m.training for m in net.modules()] == modes
    assert torch.equal(torch.default_generator.get_state(), generator)
    with torch.no_grad():
        net.fc1.weight.zero_()
    again = model.init(KEY)
    assert tree.sha256(again) == tree.sha256((params, state))
    assert torch.equal(fv.estimators.dreg()(model, *again, x, eps, train=True).bound, first.bound)


class Dropping(Small):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def encode(self, x):
        return super().encode(self.drop(x))


def test_taking_over_a_module_with_dropout_draws_nothing_from_the_global_generator():
    net, generator = Dropping(), torch.default_generator.get_state()
    fv.from_module(net, latent=3)
    assert torch.equal(torch.default_generator.get_state(), generator)


def test_a_module_with_dropout_trains_and_returns_to_a_module():
    net, x = Dropping().double(), pixels(20, 12)
    model, params, state = fv.from_module(net, latent=3)
    assert "random_key" in state["encoder"]
    opt, estimator = fv.optim.adam(1e-2), fv.estimators.elbo()
    start = fv.train.init(model, opt, KEY)
    assert tree.sha256(start.params) == tree.sha256(params)
    generator = torch.default_generator.get_state()
    ts, history = fv.train.fit(start, model, estimator, opt, x, batch=5, epochs=30, compile=False)
    assert history.bound[-10:].mean() > history.bound[:10].mean() + 0.5
    assert not torch.equal(ts.state["encoder"]["random_key"], start.state["encoder"]["random_key"])
    assert torch.equal(torch.default_generator.get_state(), generator)
    back = fv.to_module(net, ts.params, ts.state).eval()
    Dropping().double().load_state_dict(back.state_dict(), strict=True)
    assert torch.equal(model.encode(ts.params, ts.state, x)[0].loc, back.encode(x)[0])
    assert not torch.equal(model.encode(ts.params, ts.state, x, train=True)[0].loc, back.encode(x)[0])
    again = fv.from_module(back, latent=3)
    assert tree.sha256(again.params) == tree.sha256(ts.params)


# The five posts


class PrintedEncoder(nn.Module):
    """As the first post prints it: it samples in `forward`, and keeps the KL, with its graph, as an attribute."""

    def __init__(self, latent_dims):
        super().__init__()
        self.linear1 = nn.Linear(784, 512)
        self.linear2, self.linear3 = nn.Linear(512, latent_dims), nn.Linear(512, latent_dims)
        self.N = torch.distributions.Normal(0, 1)
        self.kl = 0

    def forward(self, x):
        x = torch.flatten(x, start_dim=1)
        x = F.relu(self.linear1(x))
        mu = self.linear2(x)
        sigma = torch.exp(self.linear3(x))
        z = mu + sigma * torch.zeros_like(mu)  # the post draws from self.N
        self.kl = (sigma**2 + mu**2 - torch.log(sigma) - 1 / 2).sum()
        return z


class PrintedVAE(nn.Module):
    def __init__(self, latent_dims=2):
        super().__init__()
        self.encoder = PrintedEncoder(latent_dims)
        self.decoder = nn.Sequential(
            nn.Linear(latent_dims, 512), nn.ReLU(), nn.Linear(512, 784), nn.Sigmoid(), nn.Unflatten(1, (1, 28, 28))
        )

    def loss(self, x, noise):
        return ((x - self.decoder(self.encoder(x))) ** 2).sum() + self.encoder.kl


def mu_and_log_sigma(net, x):
    h = F.relu(net.encoder.linear1(x.flatten(1)))
    return net.encoder.linear2(h), net.encoder.linear3(h)


def test_the_first_post_as_printed_is_taken_over_after_training():
    net, x, eps = PrintedVAE().double(), pixels(4, 1, 28, 28), torch.zeros(1, 4, 2, dtype=torch.float64)
    loss = net.loss(x, eps)  # leaves a tensor with a graph in the encoder
    model, params, state = fv.from_module(
        net, encode=mu_and_log_sigma, decode="decoder", latent=2,
        posterior=fv.heads.normal_logsigma, likelihood=SQUARED,
    )  # fmt: skip
    q, _ = model.encode(params, state, x)
    bound = fv.estimators.elbo()(model, params, state, x, eps, train=True).bound.sum()
    excess = 0.5 * (q.sigma**2 + q.loc**2).sum()  # the post's KL, which is wrong, minus the KL
    torch.testing.assert_close(-bound - 4 * 392 * math.log(math.pi), loss - excess)
    assert {*params["encoder"], *params["decoder"]} == {name for name, _ in net.named_parameters()}


def hidden_to_both(net, x):
    hidden = net.encoder(x.flatten(1))
    return net.hidden2mu(hidden), net.hidden2log_var(hidden)


LOG_PI = math.log(math.pi)
POSTS = {  # latent; what a reader writes; the log-normaliser of a squared error; what the loss is divided by
    "mnist_vae": (2, {"encode": mu_and_log_sigma, "posterior": fv.heads.normal_logsigma}, 392 * LOG_PI, 1),
    "mnist_bn_vae": (28, {"encode": hidden_to_both, "decode": "decoder"}, 392 * (math.log(784) + LOG_PI), B),
    "mnist_sigma_vae": (
        10,
        {"encode": "encoder", "decode": "decoder", "posterior": fv.heads.signed_normal},
        392 * LOG_PI,
        784 * B,
    ),
    "gaussian2d_vae": (2, {"encode": "encoder", "decode": "decoder"}, 0, B),
}
LIKELIHOODS = {
    "mnist_bn_vae": fv.heads.normal_fixed(math.sqrt(392)),
    "gaussian2d_vae": fv.heads.normal_logvar,
}


@pytest.mark.parametrize("name", POSTS)
def test_bound_and_gradient_of_a_posts_module_equal_its_loss(name):
    latent, given, constant, divisor = POSTS[name]
    net, x = posts.POSTS[name]().double(), posts.data_for(fv.models.SYSTEMS[name], B)
    ours = x.flatten(1) if name in ("mnist_bn_vae", "mnist_sigma_vae") else x  # these decoders return 784 pixels
    if name == "mnist_bn_vae":  # the loss does this itself
        ours = 2 * ours - 1
    eps = draws(3 if name == "gaussian2d_vae" else 1, B, latent)
    trained = fv.from_module(net, latent=latent, likelihood=LIKELIHOODS.get(name, SQUARED), **given)
    out = fv.estimators.elbo()(*trained, ours, eps, train=True)
    loss = net.train().loss(x, eps)
    torch.testing.assert_close((-out.bound - constant).sum() / divisor, loss)
    assert_gradients_equal(net, out.grads, loss, scale=B / divisor)


# Other architectures


class ResNetVAE(nn.Module):
    """As in the second post, with torchvision's ResNet-18 and a small decoder in the place of a library's."""

    def __init__(self, latent_dim):
        super().__init__()
        self.encoder = resnet18()
        self.encoder.fc = nn.Identity()
        self.fc_mu, self.fc_var = nn.Linear(512, latent_dim), nn.Linear(512, latent_dim)
        self.decoder = nn.Sequential(nn.Linear(latent_dim, 768), nn.Unflatten(1, (3, 16, 16)), nn.BatchNorm2d(3))
        self.log_scale = nn.Parameter(torch.Tensor([0.0]))

    def loss(self, x, noise):
        mu, log_var = encoded_resnet(self, x)
        q = torch.distributions.Normal(mu, torch.exp(log_var / 2))
        z = mu + q.stddev * noise[0]
        recon = torch.distributions.Normal(self.decoder(z), torch.exp(self.log_scale)).log_prob(x).sum(dim=(1, 2, 3))
        p = torch.distributions.Normal(torch.zeros_like(mu), torch.ones_like(mu))
        kl = (q.log_prob(z) - p.log_prob(z)).sum(-1)
        return (kl - recon).mean()


def encoded_resnet(net, x):
    h = net.encoder(x)
    return net.fc_mu(h), net.fc_var(h)


def decoded_with_log_scale(net, z):
    return net.decoder(z), net.log_scale.expand(len(z), 1, 1, 1)


def test_a_torchvision_resnet_equals_the_plain_module_and_is_handed_back_after_a_step():
    net, x, eps = ResNetVAE(8).double(), pixels(4, 3, 16, 16), draws(1, 4, 8)
    trained = fv.from_module(
        net, encode=encoded_resnet, decode=decoded_with_log_scale, latent=8, likelihood=fv.heads.normal_logsigma
    )
    model, params, state = trained
    assert {f"encoder.{name}" for name, _ in net.encoder.named_buffers()} == state["encoder"].keys()
    out = fv.estimators.elbo_mc()(*trained, x, eps, train=True)
    plain = copy.deepcopy(net).train()
    loss = plain.loss(x, eps)
    torch.testing.assert_close(-out.bound.mean(), loss)
    assert_gradients_equal(plain, out.grads, loss)
    params = tree.map(lambda p, g: p - 1e-3 * g, params, out.grads)
    made = fv.to_module(net, params, out.state)
    net.load_state_dict(made.state_dict(), strict=True)
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(made.get_buffer(name), buffer)
    with torch.no_grad():
        mu, logvar = encoded_resnet(net.eval(), x)
    q, _ = model.encode(params, out.state, x)
    torch.testing.assert_close(q.loc, mu, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(q.sigma, (logvar / 2).exp(), rtol=1e-12, atol=1e-12)


class ModelOutput(OrderedDict):
    """As in Pythae: a dict whose values are attributes."""

    def __getattr__(self, name):
        return self[name]


@dataclass
class Reconstruction:
    reconstruction: Tensor
    note: str = "not a tensor"


class PythaeEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(12, 8), nn.ReLU())
        self.embedding, self.log_var = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x):
        h = self.layers(x)
        return ModelOutput(embedding=self.embedding(h), log_covariance=self.log_var(h))


class PythaeDecoder(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layers, self.kind = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 12), nn.Sigmoid()), kind

    def forward(self, z):
        return self.kind(reconstruction=self.layers(z))


class PythaeVAE(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.encoder, self.decoder = PythaeEncoder(), PythaeDecoder(kind)

    def loss(self, x, noise):
        out = self.encoder(x)
        z = out.embedding + torch.exp(0.5 * out.log_covariance) * noise[0]
        recon = self.decoder(z)
        recon = recon["reconstruction"] if isinstance(recon, dict) else recon.reconstruction
        kl = -0.5 * (1 + out.log_covariance - out.embedding**2 - out.log_covariance.exp()).sum()
        return 0.5 * ((recon - x) ** 2).sum() + kl


def of_embedding(out):
    return Normal(out["embedding"], (0.5 * out.log_covariance).exp())


def of_reconstruction(out):
    assert out.reconstruction is out["reconstruction"]
    return Normal(out.reconstruction, torch.ones_like(out.reconstruction))


@pytest.mark.parametrize("kind", [dict, ModelOutput, Reconstruction, SimpleNamespace])
def test_encoder_and_decoder_may_return_dicts_and_objects(kind):
    net, x = PythaeVAE(kind).double(), pixels(5, 12)
    trained = fv.from_module(
        net, encode="encoder", decode="decoder", latent=3, posterior=of_embedding, likelihood=of_reconstruction
    )
    out = fv.estimators.elbo()(*trained, x, eps := draws(1, 5, 3), train=True)
    loss = net.loss(x, eps)
    torch.testing.assert_close(-out.bound.sum() - 30 * math.log(2 * math.pi), loss)
    assert_gradients_equal(net, out.grads, loss, scale=5)
    several = fv.estimators.iwae()(*trained, x, draws(4, 5, 3), train=True)
    assert several.log_w.shape == (4, 5)


def test_torchs_distributions_may_be_the_outputs():
    net, x = small().double(), pixels(5, 12)
    plain = fv.from_module(net, latent=3)
    wrapped = fv.from_module(
        net, latent=3,
        encode=lambda net, x: torch.distributions.Normal(net.encode(x)[0], (net.encode(x)[1] / 2).exp()),
        decode=lambda net, z: torch.distributions.Bernoulli(logits=net.decode(z)),
        posterior=lambda q: Normal(q.loc, q.scale), likelihood=lambda p: Bernoulli(p.logits),
    )  # fmt: skip
    bounds = [fv.estimators.iwae()(*t, x, draws(4, 5, 3), train=False).bound for t in (plain, wrapped)]
    torch.testing.assert_close(*bounds)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(12, 6), nn.Linear(3, 12))
        self.lstm = nn.LSTM(1, 4, batch_first=True)

    def decode(self, z):
        return self.lstm(self.layers[1:](z).unsqueeze(-1))[0].sum(-1)


@pytest.mark.filterwarnings("ignore:vmap cannot batch the decoder")
def test_a_recurrent_decoder_and_slices_of_layers():
    net, eps = Recurrent().double(), draws(2, 5, 3)
    trained = fv.from_module(net, encode=lambda net, x: net.layers[:1](x), latent=3)
    assert trained.params["encoder"].keys() == {"layers.0.weight", "layers.0.bias"}
    p, _ = trained.model.decode(trained.params, trained.state, eps)
    torch.testing.assert_close(p.logits, torch.stack([net.decode(z) for z in eps]))


def test_an_unused_recurrent_layer_survives_copies():
    net = Recurrent().double()
    trained = fv.from_module(net, encode="layers.0", decode="layers.1", latent=3)
    assert trained.params["decoder"].keys() == {"layers.1.weight", "layers.1.bias"}
    assert bits(fv.to_module(net, trained.params, trained.state)) == bits(net)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize(
    "normed", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm]
)
def test_normalised_weights_are_taken_over_after_a_backward_pass(normed):
    net, x = small(), pixels(5, 12)
    net.fc1 = normed(net.fc1)
    net.loss(x, draws(1, 5, 3)).backward()
    model, params, state = fv.from_module(net, latent=3)
    q, _ = model.encode(params, state, x)
    assert torch.equal(q.loc, net.eval().encode(x)[0])
    net.load_state_dict(fv.to_module(net, params, state).state_dict(), strict=True)


# Frozen parameters, ties and buffers


def test_frozen_parameters_are_in_the_state_and_survive_training():
    net, x = small(), pixels(8, 12)
    net.fc1.weight.requires_grad_(False)
    model, _, state = fv.from_module(net, latent=3)
    assert "fc1.weight" in state["encoder"]
    assert "encoder/fc1.weight" in model.frozen
    ts = fv.train.init(model, fv.optim.adam(0.1), KEY)
    ts, _ = fv.train.fit(ts, model, fv.estimators.elbo(), fv.optim.adam(0.1), x, epochs=2, batch=4, compile=False)
    made = fv.to_module(net, ts.params, ts.state)
    assert torch.equal(made.fc1.weight, net.fc1.weight)
    assert not made.fc1.weight.requires_grad
    assert not torch.equal(made.fc1.bias, net.fc1.bias)


class Tied(nn.Module):
    """A weight that is used twice in the decoder."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(12, 24)
        self.first, self.second, self.last = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 12)
        self.second.weight = self.first.weight

    def encode(self, x):
        return self.encoder(x)

    def decode(self, z):
        return self.last(torch.tanh(self.second(torch.tanh(self.first(z)))))

    def loss(self, x, noise):
        mu, logvar = self.encode(x).chunk(2, -1)
        q = torch.distributions.Normal(mu, (logvar / 2).exp())
        z = mu + q.stddev * noise[0]
        prior = torch.distributions.Normal(torch.zeros_like(z), torch.ones_like(z))
        kl = (q.log_prob(z) - prior.log_prob(z)).sum()
        return F.binary_cross_entropy_with_logits(self.decode(z), x, reduction="sum") + kl


def test_weights_tied_within_a_network_are_one_parameter():
    net, x, eps = Tied().double(), pixels(5, 12), draws(1, 5, 12)
    trained = fv.from_module(net, latent=12)
    assert "first.weight" in trained.params["decoder"]
    assert "second.weight" not in trained.params["decoder"]
    out = fv.estimators.elbo_mc()(*trained, x, eps, train=True)
    loss = net.loss(x, eps)
    torch.testing.assert_close(-out.bound.sum(), loss)
    assert_gradients_equal(net, out.grads, loss, scale=5)
    untied = copy.deepcopy(net)
    untied.second.weight = nn.Parameter(untied.second.weight.detach().clone())
    wrong = fv.estimators.elbo_mc()(*fv.from_module(untied, latent=12), x, eps, train=True).grads
    del wrong["decoder"]["second.weight"]
    with pytest.raises(AssertionError):  # the comparison sees a tie that is ignored
        assert_gradients_equal(net, wrong, net.loss(x, eps), scale=5)
    doubled = tree.map(lambda p: 2 * p, trained.params)
    made = fv.to_module(net, doubled, trained.state)
    assert made.second.weight is made.first.weight
    assert torch.equal(made.second.weight, 2 * net.first.weight)
    net.load_state_dict(made.state_dict(), strict=True)


def decoded_by_the_encoders_weight(net, z):
    return z @ net.fc1.weight[:3] + net.fc3.bias


class SharedNorm(Small):
    def __init__(self):
        super().__init__()
        self.shared = nn.BatchNorm1d(3, affine=False)

    def encode(self, x):
        mu, logvar = super().encode(x)
        return self.shared(mu), logvar

    def decode(self, z):
        return super().decode(self.shared(z))


def test_what_both_networks_use_is_refused_unless_it_is_constant():
    with pytest.raises(
        BadValue, match=r"both use the parameter 'fc1\.weight', but each parameter must belong to"
    ) as found:
        fv.from_module(small(), decode=decoded_by_the_encoders_weight, latent=3)
    assert "\n" not in str(found.value)
    with pytest.raises(BadValue, match=r"both use the buffer 'shared\.\w+' and change it"):
        fv.from_module(SharedNorm(), latent=3)
    net = small()
    net.fc1.weight.requires_grad_(False)
    _, params, state = fv.from_module(net, decode=decoded_by_the_encoders_weight, latent=3)
    assert torch.equal(state["encoder"]["fc1.weight"], state["decoder"]["fc1.weight"])
    assert params["decoder"].keys() == {"fc3.bias"}


class Counting(Small):
    """Buffers that `forward` assigns and that are not saved."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def encode(self, x):
        self.calls = self.calls + 1
        return super().encode(x)


def test_a_buffer_that_is_assigned_is_carried():
    net, x = Counting().double(), pixels(5, 12)
    model, params, state = fv.from_module(net, latent=3)
    _, state = model.encode(params, state, x, train=True)
    _, state = model.encode(params, state, x, train=True)
    assert float(state["encoder"]["calls"]) == 2
    assert float(fv.to_module(net, params, state).calls) == 2
    assert float(net.calls) == 0


class Looking(Small):
    """Looks at the shape, dtype and device of parameters of the other network."""

    def decode(self, z):
        like = self.fc1.weight
        assert like.shape[1] == 12 == self.fc1.in_features
        return super().decode(z.to(like.device, like.dtype))


def test_looking_at_a_parameter_is_no_use_of_it():
    _, params, _ = fv.from_module(Looking(), latent=3)
    assert "fc1.weight" not in params["decoder"]


# With the rest of the library


def forward(model, params, state, x, eps):
    q, state = model.unchecked().encode(params, state, x, True)
    p, state = model.unchecked().decode(params, state, q.sample(eps)[0], True)
    return p, state


def test_the_compiled_model_equals_the_eager_one():
    trained = fv.from_module(
        small(), decode=lambda net, z: {"logits": net.decode(z)}, latent=3, likelihood=lambda out: Bernoulli(out.logits)
    )
    x, eps = pixels(5, 12), draws(1, 5, 3)
    eager = forward(*trained, x, eps)
    compiled = torch.compile(partial(forward, trained.model), fullgraph=True, backend="aot_eager")
    for a, b in zip(tree.leaves(eager), tree.leaves(compiled(*trained[1:], x, eps)), strict=True):
        torch.testing.assert_close(a, b)


def test_training_measuring_and_evaluating_then_handing_back():
    net, x = small().float(), pixels(16, 12).float().round()
    model, params, _ = fv.from_module(net, latent=3)
    opt = fv.optim.adam(3e-2)
    ts = fv.train.init(model, opt, KEY)
    assert tree.sha256(ts.params) == tree.sha256(params)
    ts, history = fv.train.fit(ts, model, fv.estimators.dreg(), opt, x, epochs=20, batch=16, samples=3, compile=False)
    assert history.loss[-1] < history.loss[0]
    arms = {"iwae": fv.estimators.iwae(), "dreg": fv.estimators.dreg()}
    found = fv.variance.compare(arms, model, ts.params, ts.state, x[:4], KEY, samples=3, replicates=64)
    assert found.row("dreg").ratio["encoder"].high < 1
    log_p = fv.evaluate.log_likelihood(model, ts.params, ts.state, x, KEY, samples=50)
    made = fv.to_module(net, ts.params, ts.state)
    net.load_state_dict(made.state_dict(), strict=True)
    again = fv.from_module(net, latent=3)
    assert tree.sha256(again[1:]) == tree.sha256((ts.params, ts.state))
    torch.testing.assert_close(fv.evaluate.log_likelihood(*again, x, KEY, samples=50), log_p)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_the_model_pickles_and_copies(how):
    trained = fv.from_module(small(), latent=3)
    again = how(trained)
    assert tree.sha256(again.model.init(KEY)) == tree.sha256(trained[1:])
    x, eps = pixels(5, 12), draws(4, 5, 3)
    assert torch.equal(*(fv.estimators.iwae()(*t, x, eps, train=True).bound for t in (trained, again)))


def test_a_learned_prior_is_drawn_from_the_key_and_stays_apart():
    net = small().float()
    model, params, state = fv.from_module(net, latent=3, prior=fv.priors.mixture(components=2, latent=3))
    assert tree.sha256(model.init(fv.random.key(0))) == tree.sha256((params, state))
    assert tree.sha256(model.init(KEY)[0]["prior"]) != tree.sha256(params["prior"])
    assert bits(fv.to_module(net, params, state)) == bits(net)


def test_to_module_keeps_what_the_model_does_not_have():
    net = small().float().eval()
    net.norm.train()
    net.fc2.bias.requires_grad_(False)
    _, params, state = fv.from_module(net, latent=3)
    made = fv.to_module(net, tree.map(lambda p: (p + 1).double(), params), state)
    assert {p.dtype for p in made.parameters()} == {torch.float32}
    assert torch.equal(made.fc1.weight, net.fc1.weight + 1)
    assert torch.equal(made.classifier[0].weight, net.classifier[0].weight)
    assert [m.training for m in made.modules()] == [m.training for m in net.modules()]
    assert [p.requires_grad for p in made.parameters()] == [p.requires_grad for p in net.parameters()]


def test_the_key_of_random_layers_has_no_place_in_the_module():
    net = small()
    _, params, state = fv.from_module(net, latent=3)
    state["encoder"]["random_key"] = KEY
    assert bits(fv.to_module(net, params, state)) == bits(net)


class DropsInMethod(Small):
    """Calls dropout in a method, not in a layer."""

    def decode(self, z):
        return F.dropout(super().decode(z), 0.5, self.training)


def test_methods_that_call_dropout_draw_from_a_key():
    net, generator = DropsInMethod().double(), torch.default_generator.get_state()
    model, params, state = fv.from_module(net, latent=3)
    assert torch.equal(torch.default_generator.get_state(), generator)
    assert [name for name, part in state.items() if "random_key" in part] == ["decoder"]
    x, eps, iwae = pixels(5, 12), draws(4, 5, 3), fv.estimators.iwae()
    out = iwae(model, params, state, x, eps, train=True)
    torch.testing.assert_close(fv.estimators.in_chunks(iwae, 3)(model, params, state, x, eps, train=True), out)
    kept = model.decode(params, state, eps, train=True)[0].logits != 0
    assert abs(kept.double().mean() - 0.5) < 4 * 0.5 / kept.numel() ** 0.5


# Errors


class Undecided(Small):
    """Uses other parameters for other data."""

    def encode(self, x):
        mu, logvar = super().encode(x)
        return (mu, logvar) if x.max() <= 1 else (self.fc2(mu)[:, :3], logvar)


def test_parameters_that_depend_on_the_data_are_an_error_when_they_are_met():
    model, params, state = fv.from_module(Undecided().double(), latent=3)
    with pytest.raises(BadValue, match=r"encode or decode uses 'fc2.weight' for these data, but not for"):
        model.encode(params, state, 5 * pixels(5, 12))


BOUND = small()
DECODED, SHAPE = (
    "likelihood cannot take the output of decode",
    "encode cannot take data of the shape that the likelihood",
)
WRONG = {
    "unknown method or submodule for encode 'encod': did you mean 'encode'?": {"encode": "encod"},
    "unknown method or submodule for decode 'forwards': did you mean 'forward'?": {"decode": "fc2.forwards"},
    "gain of net is a torch.float32 tensor []: it must be a function": {"encode": "gain"},
    "encode is bound to one module: give its name, such as encode='encode'": {"encode": BOUND.encode},
    "decode is bound to one module: give its name": {"decode": BOUND.fc2},
    "encode is 3: it must be a function": {"encode": 3},
    "encode uses no parameter or buffer": {"encode": lambda net, x: x[:, :6]},
    f"{SHAPE} describes (a torch.float32 tensor [2, 12]): TypeError: ": {"encode": lambda net: net},
    f"{SHAPE} describes (a torch.float32 tensor [2, 12]): RuntimeError: ": {"encode": lambda net, x: net.fc2(x)},
    "the network's output has a last axis of odd length 5": {"encode": lambda net, x: net.fc1(x)[:, :5]},
    "the network's output is of type dict": {"encode": lambda net, x: {"mu": net.fc1(x)}},
    "the network's output is '": {"encode": lambda net, x: str(net.fc1(x).shape)},
    "posterior cannot take the output of encode for data (a torch.float32 tensor [2, 12]): TypeError": {
        "posterior": lambda out: out["mu"]
    },
    "the posterior head returned": {"posterior": lambda out: out[0]},
    f"{DECODED} (a torch.float32 tensor [2, 12]): AttributeError": {"likelihood": lambda out: Bernoulli(out.logits)},
    f"{DECODED} (of type dict): AttributeError: no 'logit', only logits": {
        "decode": lambda net, z: {"logits": net.decode(z)},
        "likelihood": lambda out: Bernoulli(out.logit),
    },
    "the first parameter of the likelihood is 1: it must be a tensor": {"likelihood": lambda out: 1},
    "the first parameter of the likelihood is of type Bernoulli": {
        "likelihood": lambda out: torch.distributions.Bernoulli(logits=out)
    },
    "each tensor that decode returns must start with the axis B": {
        "decode": lambda net, z: (net.decode(z), net.gain.reshape(1)),
        "likelihood": fv.heads.normal_logsigma,
    },
    "decode returned 1.2": {"decode": lambda net, z: net.gain.item()},
    "decode returned None: it must return tensors": {"decode": lambda net, z: print(end="")},
    "encode draws random numbers in evaluation mode: it must return the parameters of a distribution": {
        "encode": lambda net, x: torch.randn_like(net.encode(x)[0])
    },
    "decode cannot take latents with latent=4 (a torch.float32 tensor [2, 4]): RuntimeError": {"latent": 4},
    "the posterior over z has shape [2, 3]: latent is 2": {
        "latent": 2,
        "decode": lambda net, z: net.fc3(z.repeat(1, 4)),
    },
    "latent is 0": {"latent": 0},
    "so their latents take different values": {
        "encode": lambda net, x: net.encode(x)[0],
        "posterior": fv.heads.bernoulli,
    },
    "net is the class Small: it must be a module": {"net": Small},
    "net is the function <lambda>: it must be a module": {"net": lambda: Small()},
    "net is 3: it must be a Module": {"net": 3},
    "0.weight of net has no shape before a forward pass": {"net": nn.Sequential(nn.LazyLinear(3))},
    "on another device than meta": {"net": Small().to("meta")},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_one_line(message):
    with pytest.raises((BadType, BadValue)) as found:
        fv.from_module(**{"net": Small(), "latent": 3, **WRONG[message]})
    assert message in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is")
def test_a_scripted_module_is_an_error():
    net = nn.Sequential(torch.jit.script(nn.Linear(3, 3)))
    with pytest.raises(BadType, match="net has a ScriptModule"):
        fv.from_module(net, latent=3)


def test_a_module_that_cannot_be_copied_is_an_error():
    net = Small()
    net.lock = (x for x in ())
    with pytest.raises(BadValue, match="net cannot be copied: cannot pickle 'generator' object"):
        fv.from_module(net, latent=3)


def test_params_of_another_module_are_an_error():
    net = small()
    _, params, state = fv.from_module(net, latent=3)
    other = fv.from_module(small(latent=4), latent=4)
    with pytest.raises(BadValue, match=r"fc_mu.weight of params has shape \[4, 8\]: in net it is \[3, 8\]"):
        fv.to_module(net, other.params, state)
    with pytest.raises(BadValue, match=r"net has no 'x', which params\['encoder'\] has"):
        fv.to_module(net, {**params, "encoder": {"x": KEY}}, state)
    with pytest.raises(BadValue, match="state lacks 'encoder'"):
        fv.to_module(net, params, {})
    with pytest.raises(BadType, match=r"params\['decoder'\] is 3: it must be a dict"):
        fv.to_module(net, {**params, "decoder": 3}, state)


def test_a_lambda_is_named_when_a_model_is_pickled(monkeypatch):
    for name in [name for name in sys.modules if name.endswith("cloudpickle")]:  # which pickles lambdas
        monkeypatch.delitem(sys.modules, name)
    model = fv.from_module(small(), encode=lambda net, x: net.encode(x), latent=3).model
    with pytest.raises(BadType, match="<lambda> cannot be pickled: define it by def"):
        pickle.dumps(model)


class Sigmoid(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(120, 6), nn.Sequential(nn.Linear(3, 120), nn.Sigmoid())

    def encode(self, x):
        return self.encoder(x).chunk(2, -1)

    def decode(self, z):
        return self.decoder(z)


def test_probabilities_in_place_of_logits_are_a_warning():
    with pytest.warns(UserWarning, match="give likelihood=heads.bernoulli_probs"):
        fv.from_module(Sigmoid(), latent=3)
    fv.from_module(Sigmoid(), latent=3, likelihood=fv.heads.bernoulli_probs)


def test_logits_in_place_of_probabilities_are_an_error():
    net = Sigmoid()
    net.decoder = net.decoder[0]
    message = "decode returns numbers from -.* to .*for logits, give likelihood=heads.bernoulli"
    with pytest.raises(BadValue, match=message):
        fv.from_module(net, latent=3, likelihood=fv.heads.bernoulli_probs)


def test_a_standard_deviation_in_place_of_its_logarithm_is_a_warning():
    net = Sigmoid()
    net.encoder = nn.Linear(120, 16)
    net.decoder = nn.Sequential(nn.Linear(8, 120), nn.Sigmoid())
    options = {"latent": 8, "likelihood": fv.heads.bernoulli_probs}

    def with_scale(net, x):
        loc, out = net.encode(x)
        return loc, nn.functional.softplus(out)

    with pytest.warns(UserWarning, match="the second output of encode is positive everywhere"):
        fv.from_module(net, encode=with_scale, **options)
    fv.from_module(net, encode=with_scale, posterior=lambda out: fv.distributions.Normal(*out), **options)
    fv.from_module(net, **options)


def test_small_logits_are_not_taken_for_probabilities():
    net = Sigmoid()
    net.decoder = nn.Sequential(nn.Linear(3, 120))
    with torch.no_grad():
        net.decoder[0].weight.mul_(0.1)
        net.decoder[0].bias.fill_(0.5)
    trained = fv.from_module(net, latent=3)  # logits from 0.3 to 0.7 for latents of usual size
    p, _ = trained.model.decode(trained.params, trained.state, torch.ones(1, 3))
    assert 0 < p.logits.min() < p.logits.max() < 1
    net.decoder = nn.Sequential(net.decoder[0], nn.Sigmoid())
    fv.from_module(net, latent=3, likelihood=fv.heads.bernoulli_probs)  # whose logits are from 0.3 to 0.7, too
