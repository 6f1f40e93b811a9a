"""Conditional models, and data that are a dict of tensors."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Independent, Normal
from torch.nn import functional as F

import funcvae as fv
from funcvae.errors import BadData, BadType, BadValue
from funcvae.train import replay
from tests.support.compiling import use_aot_eager

X, Y, Z, B, N = 6, 3, 2, 5, 4


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(X + Y, 2 * Z)

    def forward(self, data):
        return self.layer(torch.cat([data["x"], F.one_hot(data["y"], Y).to(data["x"])], 1)).chunk(2, -1)


class Conditional(nn.Module):
    """A decoder of (z, c) or a prior, by the number of outputs."""

    def __init__(self, outputs, inputs=Z):
        super().__init__()
        self.layer, self.inputs = nn.Linear(inputs + Y, outputs), inputs

    def forward(self, z, c):
        return self.layer(torch.cat([z[..., : self.inputs], F.one_hot(c, Y).to(z)], 1))


class ConditionalPrior(nn.Module):
    def __init__(self):
        super().__init__()
        self.mean = nn.Embedding(Y, Z)

    def forward(self, z, c):
        mean = self.mean(c)
        return fv.distributions.Normal(mean, torch.ones_like(mean))


def modelled(data):
    return data["x"]


def label(data):
    return data["y"]


def conditional(prior=fv.priors.standard_normal, decoder=lambda: Conditional(X)):
    return fv.vae(encoder=Encoder, decoder=decoder, prior=prior, latent=Z, modelled=modelled, condition=label)


def some_data(n=B, seed=0, dtype=torch.float32):
    x_key, y_key = fv.random.split(fv.random.key(seed))
    x = fv.random.bernoulli(x_key, 0.5, (n, X)).to(dtype)
    return {"x": x, "y": (fv.random.uniform(y_key, (n,)) * Y).long()}


DATA, EPS = some_data(), fv.random.normal(fv.random.key(3), (N, B, Z))


def log_w_of_torch(params, data, eps):
    """log p(x|z, c) + log p(z|c) - log q(z|x, c), sample by sample, by torch.distributions."""
    one_hot = F.one_hot(data["y"], Y).to(eps)
    loc, logvar = F.linear(torch.cat([data["x"], one_hot], 1), *params["encoder"].values()).chunk(2, -1)
    q = Independent(Normal(loc, (logvar / 2).exp()), 1)
    mean = params["prior"]["mean.weight"][data["y"]] if params["prior"] else torch.zeros_like(loc)
    p = Independent(Normal(mean, torch.ones_like(mean)), 1)
    rows = []
    for e in eps:
        z = loc + (logvar / 2).exp() * e
        logits = F.linear(torch.cat([z, one_hot], 1), *params["decoder"].values())
        rows.append(Independent(Bernoulli(logits=logits), 1).log_prob(data["x"]) + p.log_prob(z) - q.log_prob(z))
    return torch.stack(rows)


@pytest.mark.parametrize("prior", [fv.priors.standard_normal, ConditionalPrior], ids=["standard", "conditional"])
def test_log_weights_and_gradients_equal_those_of_torch_distributions(prior):
    model = conditional(prior)
    params, state = fv.tree.map(torch.Tensor.double, model.init(fv.random.key(1)))
    data, eps = some_data(dtype=torch.float64), EPS.double()
    out = fv.estimators.iwae()(model, params, state, data, eps, train=True)
    wanted = log_w_of_torch(params, data, eps)
    torch.testing.assert_close(out.log_w, wanted, rtol=1e-12, atol=1e-12)

    def loss(params):
        return -fv.bounds.iwae(log_w_of_torch(params, data, eps)).mean()

    grads = torch.func.grad(loss)(params)
    for got, want in fv.tree.rows(out.grads, grads):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)

    # A condition of other rows is a wrong variant, and gives other numbers.
    shuffled = log_w_of_torch(params, {**data, "y": data["y"].roll(1)}, eps)
    assert not torch.allclose(out.log_w, shuffled)


@pytest.mark.parametrize("prior", [fv.priors.standard_normal, ConditionalPrior], ids=["standard", "conditional"])
def test_the_closed_form_kl_sees_the_condition(prior):
    model = conditional(prior)
    params, state = model.init(fv.random.key(1))
    many = fv.noise.mirrored(fv.random.key(5), 20_000, (B, Z))
    closed = fv.estimators.elbo().bound(model, params, state, DATA, many)
    sampled = fv.estimators.elbo_mc()(model, params, state, DATA, many, train=False)
    error = sampled.log_w.std(0) / len(many) ** 0.5
    assert ((closed - sampled.bound).abs() < 4 * error).all()


class Looping(Conditional):
    """A decoder that `vmap` cannot batch."""

    def forward(self, z, c):
        if float(z.detach().sum()) > 1e9:
            return super().forward(z, c) * 0
        return super().forward(z, c)


class InOneCall(Conditional):
    """A decoder that `vmap` cannot batch, because of a boolean mask."""

    def forward(self, z, c):
        out = super().forward(z, c)
        out[out > 1e9] = 0
        return out


@pytest.mark.parametrize("decoder", [Looping, InOneCall])
def test_decoders_that_vmap_cannot_batch_get_the_condition_too(decoder):
    model, plain = conditional(decoder=lambda: decoder(X)), conditional()
    params, state = plain.init(fv.random.key(1))
    with pytest.warns(fv.batching.Unbatched):
        got = fv.estimators.iwae()(model, params, state, DATA, EPS, train=True)
    want = fv.estimators.iwae()(plain, params, state, DATA, EPS, train=True)
    torch.testing.assert_close(got.log_w, want.log_w)


@pytest.mark.parametrize(
    "options",
    [
        {}, {"chunk": 3}, {"shards": 3}, {"shards": 2, "split": fv.distributed.by_samples},
        pytest.param({"compile": True}, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_training_splits_a_dict_like_a_tensor(options):
    """Training on a dict equals training on one tensor that holds the same numbers."""

    def unpacked(data):
        return {"x": data[:, :X], "y": data[:, X].long()}

    class Packed(Encoder):
        def forward(self, data):
            return super().forward(unpacked(data))

    packed = fv.vae(
        encoder=Packed, decoder=lambda: Conditional(X), latent=Z,
        modelled=lambda data: unpacked(data)["x"], condition=lambda data: unpacked(data)["y"],
    )  # fmt: skip
    data, test = some_data(23, 1), some_data(7, 2)
    runs = []
    for model, pack in [(conditional(), lambda d: d), (packed, lambda d: torch.cat([d["x"], d["y"][:, None]], 1))]:
        opt = fv.optim.adam(1e-2)
        ts = fv.train.init(model, opt, fv.random.key(0))
        arguments = {"batch": 5, "samples": 4, "compile": False, **options}
        runs.append(
            fv.train.fit(ts, model, fv.estimators.iwae(), opt, pack(data), test=pack(test), epochs=2, **arguments)
        )
        if options.get("compile"):
            continue
        step = replay(ts, 3, model, fv.estimators.iwae(), opt, pack(data), **arguments)
        assert float(step.metrics.loss) == runs[-1][1].loss[3]
    (first, history), (second, other) = runs
    equal = torch.allclose if options.get("compile") else torch.equal
    assert all(equal(a, b) for a, b in fv.tree.rows(first.params, second.params))
    if not options.get("compile"):
        assert (history.test_bound == other.test_bound).all()


def test_compiled_training_takes_a_dict(monkeypatch):
    use_aot_eager(monkeypatch)
    model, opt, data = conditional(), fv.optim.adam(1e-2), some_data(10, 1)
    ts = fv.train.init(model, opt, fv.random.key(0))
    runs = [
        fv.train.fit(ts, model, fv.estimators.iwae(), opt, data, test=data, batch=5, samples=4, compile=compiled)
        for compiled in (True, False)
    ]
    (first, history), (second, other) = runs
    assert all(torch.allclose(a, b) for a, b in fv.tree.rows(first.params, second.params))
    np.testing.assert_allclose(history.test_bound, other.test_bound, rtol=1e-5)


def test_evaluation_and_the_lab_take_dicts():
    model = conditional(ConditionalPrior)
    params, state = model.init(fv.random.key(1))
    params["encoder"]["layer.bias"][Z:] += 1  # a q that is wider than the posterior
    trained, key = (model, params, state), fv.random.key(7)
    found = fv.evaluate.log_likelihood(*trained, DATA, key, samples=200)
    # The marginal likelihood by quadrature over z in the plane.
    nodes = torch.linspace(-6, 6, 121, dtype=torch.float64)
    grid = torch.cartesian_prod(nodes, nodes)
    params = fv.tree.map(torch.Tensor.double, trained[1])
    for i in range(B):
        c = DATA["y"][i].expand(len(grid))
        mean = params["prior"]["mean.weight"][c]
        one_hot = F.one_hot(c, Y).double()
        logits = F.linear(torch.cat([grid + mean, one_hot], 1), *params["decoder"].values())
        log_p = Independent(Bernoulli(logits=logits), 1).log_prob(DATA["x"][i].double())
        log_p = log_p + Independent(Normal(torch.zeros(2).double(), 1.0), 1).log_prob(grid)
        exact = log_p.logsumexp(0) + 2 * torch.log(nodes[1] - nodes[0])
        assert abs(found.log_p.value[i] - exact) < 4 * found.log_p.se[i]
    assert fv.evaluate.squared_error(*trained, DATA).shape == (B,)
    assert fv.evaluate.reconstruction_error(*trained, DATA, key).value.shape == (B,)
    assert fv.evaluate.kl_per_dimension(*trained, DATA).shape == (Z,)
    assert fv.evaluate.active_units(*trained, DATA).variance.shape == (Z,)
    arms = {"iwae": fv.estimators.iwae(), "dreg": fv.estimators.dreg()}
    compared = fv.variance.compare(arms, *trained, DATA, key, samples=2, replicates=50, timings=0)
    assert compared.batch == B
    moments = fv.variance.moments(arms["iwae"], *trained, DATA, key, samples=1, replicates=4000)
    small = fv.variance.exact(arms["iwae"], *trained, DATA, samples=1)
    for got, want, se in fv.tree.rows(moments.variance, small.variance, moments.variance_se):
        assert ((got - want).abs() < 5 * se + 1e-6).all()
    fv.variance.sources(arms["iwae"], *trained, some_data(20), key, samples=1, batch=4, batches=4, replicates=4)


def test_wrong_data_and_conditions_are_errors_of_one_line():
    model = conditional()
    trained = (model, *model.init(fv.random.key(1)))
    est = fv.estimators.iwae()
    with pytest.raises(BadValue, match="the parts of x differ in length: 'x' has 5, 'y' has 4; they must have one"):
        est(*trained, {**DATA, "y": DATA["y"][:4]}, EPS, train=True)
    with pytest.raises(BadValue, match="the condition has 4 items: z has a batch of 5"):
        model.decode(*trained[1:], EPS, condition=DATA["y"][:4])
    with pytest.raises(BadValue, match="the model is conditional: give condition="):
        model.decode(*trained[1:], EPS)
    with pytest.raises(BadValue, match=r"z has shape \[2\]: it must be"):
        model.decode(*trained[1:], EPS[0, 0], condition=DATA["y"])
    with pytest.raises(BadType, match="they must be tensors, or dicts with the same parts"):
        fv.figures.decoding.pair({"x": DATA["x"][0]}, "x")
    plain = fv.vae(encoder=lambda: nn.Linear(X, 2 * Z), decoder=lambda: nn.Linear(Z, X), latent=Z)
    with pytest.raises(BadValue, match="the model takes no condition"):
        plain.decode(*plain.init(fv.random.key(0)), EPS, condition=DATA["y"])
    whole = fv.vae(encoder=Encoder, decoder=lambda: nn.Linear(Z, X), latent=Z)
    with pytest.raises(BadType, match="the data are a dict: give vae the function modelled"):
        fv.evaluate.log_likelihood(whole, *whole.init(fv.random.key(0)), DATA, fv.random.key(0))
    with pytest.raises(BadValue, match=r"modelled or condition cannot take the data, a dict of .*: KeyError"):
        fv.evaluate.log_likelihood(*trained, {"x": DATA["x"]}, fv.random.key(0))
    short = fv.vae(
        encoder=Encoder, decoder=lambda: Conditional(X), latent=Z, modelled=modelled, condition=lambda d: d["y"][:1]
    )
    with pytest.raises(BadValue, match="condition returned 1 items for 2 data: it must keep their number"):
        fv.evaluate.log_likelihood(short, *trained[1:], DATA, fv.random.key(0))
    bad = {**DATA, "x": DATA["x"].index_fill(0, torch.tensor([2]), torch.nan)}
    with pytest.raises(BadData, match=r"data\['x'\] has NaN or infinite values, first in item 2"):
        fv.evaluate.log_likelihood(*trained, bad, fv.random.key(0))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_conditional_fit_on_cuda_equals_that_on_the_cpu():
    model, opt, data, losses = conditional(ConditionalPrior), fv.optim.adam(1e-2), some_data(23), []
    for device in ("cpu", "cuda"):
        ts = fv.train.init(model, opt, fv.random.key(0, device=device))
        arguments = {"test": data, "batch": 5, "samples": 4, "epochs": 2, "compile": False}
        ts, history = fv.train.fit(ts, model, fv.estimators.iwae(), opt, data, **arguments)
        assert ts.step.device.type == device
        losses.append(torch.tensor([*history.loss, *history.test_bound]))
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("condition returned 1 items for 5 data: it must keep their number", {"condition": lambda d: d["y"][:1]}),
        ("the result of condition is None: it must be a tensor", {"condition": lambda d: None}),
        ("modelled returned 2 items for 5 data", {"modelled": lambda d: d["x"][:2]}),
        ("the modelled part of the data is of type dict", {"modelled": lambda d: d}),
        ("the decoder cannot take .* takes 2 positional arguments but 3", {"decoder": lambda: nn.Linear(Z, X)}),
    ],
)  # fmt: skip
def test_an_estimator_checks_what_the_functions_of_the_datum_return(message, change):
    parts = {"encoder": Encoder, "decoder": lambda: Conditional(X), "latent": Z}
    model = fv.vae(**{**parts, "modelled": modelled, "condition": label, **change})
    with pytest.raises((BadType, BadValue), match=message):
        fv.estimators.iwae()(model, *model.init(fv.random.key(1)), DATA, EPS, train=True)


def test_an_encoder_that_lacks_a_part_of_the_data_is_named():
    model = fv.vae(encoder=Encoder, decoder=lambda: nn.Linear(Z, X), latent=Z, modelled=modelled)
    with pytest.raises(
        BadData, match=r"the encoder cannot take a torch.float32 tensor \[2, 6\] on cpu: KeyError\('y'\)"
    ):
        fv.model.check_data(model, *model.init(fv.random.key(1)), {"x": DATA["x"]})
