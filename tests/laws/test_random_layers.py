"""Random layers in a VAE: what draws anew, what shares its draws, and that bits repeat."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import funcvae as fv
from funcvae import random, tree
from funcvae.batching import Unbatched
from funcvae.distributed import by_rows, by_samples
from funcvae.distributed.collectives import SINGLE
from funcvae.distributed.sharding import Batch, GradientSettings
from funcvae.errors import BadValue

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop", "ignore::funcvae.evaluate.Untrusted")

KEY = random.key(0)
X = random.bernoulli(KEY, 0.4, (8, 6)).float()


class Noisy(nn.Module):
    """Dropout and noise."""

    def __init__(self, wide=5):
        super().__init__()
        self.a, self.b = nn.Linear(2, wide), nn.Linear(wide, 6)

    def forward(self, z):
        h = F.dropout(self.a(z).tanh(), 0.3, self.training)
        return self.b(h + 0.1 * torch.randn_like(h) if self.training else h)


class Recurrent(nn.Module):
    """Predicts pixels one after another from the latent."""

    def __init__(self, cell=nn.GRU, dropout=0.2):
        super().__init__()
        self.cell, self.out = cell(2, 4, 2, dropout=dropout, batch_first=True), nn.Linear(4, 1)

    def forward(self, z):
        return self.out(self.cell(z.unsqueeze(1).repeat(1, 6, 1))[0]).squeeze(-1)


class Attending(nn.Module):
    """Attention between the pixels."""

    def __init__(self):
        super().__init__()
        self.places, self.out = nn.Parameter(torch.randn(6, 4)), nn.Linear(4, 1)
        self.inner, self.layer = nn.Linear(2, 4), nn.TransformerEncoderLayer(4, 2, 8, dropout=0.2, batch_first=True)

    def forward(self, z):
        return self.out(self.layer(self.inner(z).unsqueeze(1) + self.places)).squeeze(-1)


def encoder():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 4))


def normalized():
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 4))


def made(decoder=Noisy):
    model = fv.vae(encoder=normalized, decoder=decoder, latent=2)
    return model, *tree.map(lambda t: t.double() if t.is_floating_point() else t, model.init(KEY))


X64 = X.double()
EPS = fv.noise.iid(KEY, 5, (8, 2), dtype=torch.float64)


def assert_close(a, b, tolerance=1e-10):
    for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


def same_bits(a, b):
    pairs = zip(tree.leaves(a), tree.leaves(b), strict=True)
    return all(torch.equal(torch.as_tensor(x), torch.as_tensor(y)) for x, y in pairs)


@pytest.mark.parametrize("decoder", [Noisy, Recurrent])
@pytest.mark.filterwarnings("ignore::funcvae.batching.Unbatched")
def test_sample_k_draws_from_key_k_of_its_own(decoder):
    model, params, state = made(decoder)
    z = random.normal(KEY, (3, 8, 2), torch.float64)
    p, new = model.decode(params, state, z, train=True)
    use, following = random.split(state["decoder"]["random_key"])
    assert torch.equal(new["decoder"]["random_key"], following)
    for k in range(3):
        own = {**state, "decoder": {**state["decoder"], "random_key": random.fold_in(use, k)}}
        torch.testing.assert_close(p.logits[k], model.decode(params, own, z[k], train=True)[0].logits)
    one, _ = model.decode(params, state, z[:1], train=True)
    torch.testing.assert_close(one.logits[0], p.logits[0])
    assert same_bits(model.decode(params, state, z, train=False)[1], state)


NAMES = ("elbo", "elbo_mc", "iwae", "dreg", "stl", "vimco", "quadratic_cv:1")
ESTIMATORS = {name: fv.estimators.parse(name) for name in NAMES}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_chunks_equal_the_whole(name):
    estimator = ESTIMATORS[name]
    whole = estimator(*made(), X64, EPS, train=True)
    for chunk in (1, 2, 3):
        assert_close(fv.estimators.in_chunks(estimator, chunk)(*made(), X64, EPS, train=True), whole)


def test_chunks_of_several_points_for_each_noise_equal_the_whole():
    model = fv.vae(
        encoder=lambda: nn.Sequential(nn.Linear(6, 2), nn.Dropout(0.1)), decoder=Noisy, latent=2,
        posterior=fv.heads.bernoulli, prior=fv.priors.bernoulli,
    )  # fmt: skip
    params, state = model.init(KEY)
    eps = fv.noise.iid(KEY, 5, (8, 2))
    for name in ("disarm", "arm"):
        estimator = fv.estimators.parse(name)
        whole = estimator(model, params, state, X, eps, train=True)
        chunked = fv.estimators.in_chunks(estimator, 2)(model, params, state, X, eps, train=True)
        assert_close(chunked, whole, 1e-5)


def fitted(stop_after=None, model=None, ts=None, history=None, **options):
    model, opt = model or fv.vae(encoder=encoder, decoder=Noisy, latent=2), fv.optim.adam(1e-2)
    start = ts or fv.train.init(model, opt, KEY)
    settings = {"epochs": 2, "batch": 4, "samples": 3, "compile": False, **options}
    made = []
    stop = (lambda: len(made) == stop_after) if stop_after else (lambda: False)
    settings |= {"history": history, "stop": stop, "watch": lambda *_: made.append(1)}
    return fv.train.fit(start, model, ESTIMATORS["iwae"], opt, X, **settings)


def test_samples_split_into_shards_and_chunks_agree_with_the_unsharded_step():
    whole, _ = fitted()
    for options in ({"chunk": 2}, {"shards": 3, "split": by_samples}, {"shards": 2, "split": by_samples, "chunk": 1}):
        assert_close(fitted(**options)[0], whole, 1e-4)
    for options in ({}, {"chunk": 2}):
        assert_close(fitted(shards=2, split=by_rows, **options)[0], fitted(shards=2, split=by_rows)[0], 1e-4)


def constant(key, n, shape, *, dtype=torch.float32, **part):
    """The same noise for every key, so that only masks differ."""
    return torch.ones(n, *shape, dtype=dtype)


def test_each_shard_of_rows_has_masks_of_its_own():
    """Two shards of the same data: with shared masks, both would have the same gradient and bound."""
    model = fv.vae(encoder=lambda: nn.Linear(6, 4), decoder=Noisy, latent=2)
    ts = fv.train.init(model, fv.optim.adam(), KEY)
    settings = GradientSettings(model, lambda step: ESTIMATORS["iwae"], 2, 2, fv.model.as_is, constant)
    work = by_rows(settings, lambda f: f)
    batch = Batch(torch.tensor(0), random.split(KEY), X[[0, 0, 0, 0]])
    pieces = [range(2), range(2, 4)]
    share = work.shares(ts.params, ts.state, batch, pieces, SINGLE)
    assert not torch.allclose(share(pieces[0]), share(pieces[1]))
    assert torch.equal(share(pieces[0]), share(pieces[0]))


def test_two_runs_and_a_stopped_one_have_the_same_bits_and_global_generators_are_untouched():
    before = torch.get_rng_state()
    (a, history), (b, _) = fitted(), fitted()
    assert same_bits(a, b)
    part, begun = fitted(stop_after=3)
    assert int(part.step) == 3
    model = fv.vae(encoder=encoder, decoder=Noisy, latent=2)
    whole, all_of_it = fitted(model=model, ts=part, history=begun, epochs=1)
    assert same_bits(whole, a)
    assert (all_of_it.bound == history.bound).all()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_step_is_replayed_to_the_bit():
    model, opt = fv.vae(encoder=encoder, decoder=Noisy, latent=2), fv.optim.adam(1e-2)
    for options in ({}, {"chunk": 2}, {"shards": 2}):
        settings = {"batch": 4, "samples": 3, "compile": False, **options}
        ts = fv.train.init(model, opt, KEY)
        last, history = fv.train.fit(ts, model, ESTIMATORS["iwae"], opt, X, epochs=2, **settings)
        found = fv.train.replay(ts, 3, model, ESTIMATORS["iwae"], opt, X, **settings)
        assert float(found.metrics.bound) == history.bound[3]
        assert float(found.bound.mean()) == pytest.approx(history.bound[3], abs=1e-6)
        assert same_bits(found.after, last)


@pytest.mark.parametrize(
    "options",
    [{}, pytest.param({"chunk": 2}, marks=pytest.mark.slow), pytest.param({"shards": 2}, marks=pytest.mark.slow)],
)
@pytest.mark.usefixtures("backend")
def test_the_compiled_step_draws_the_same_masks(options):
    assert_close(fitted(compile=True, **options)[0], fitted(**options)[0], 1e-4)


DECODERS = {
    "gru": Recurrent,
    "lstm": lambda: Recurrent(nn.LSTM),
    "lstm without dropout": lambda: Recurrent(nn.LSTM, 0.0),
    "attention": Attending,
}


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.filterwarnings("ignore::funcvae.batching.Unbatched")
def test_recurrent_and_attention_decoders_train_evaluate_and_are_measured(name):
    model = fv.vae(encoder=encoder, decoder=DECODERS[name], latent=2)
    ts, history = fitted(model=model, epochs=30, batch=8)
    assert history.bound[-3:].mean() > history.bound[:3].mean() + 0.1
    trained = model, ts.params, ts.state
    found = fv.evaluate.log_likelihood(*trained, X, KEY, samples=200)
    assert same_bits(found, fv.evaluate.log_likelihood(*trained, X, KEY, samples=200))
    arms = {name: ESTIMATORS[name] for name in ("iwae", "elbo")}
    for train in (False, True):
        compared = fv.variance.compare(arms, *trained, X, KEY, samples=2, replicates=8, train=train, timings=0)
        assert compared.rows["iwae"].groups["decoder"].variance.value > 0


def test_a_recurrent_decoder_warns_that_its_samples_run_one_after_another():
    with pytest.warns(Unbatched, match="one after another in training mode"):
        fitted(model=fv.vae(encoder=encoder, decoder=Recurrent, latent=2), epochs=1)


def test_replicates_share_the_masks_unless_asked():
    trained = made()
    iwae, options = ESTIMATORS["iwae"], {"samples": 2, "replicates": 12, "train": True}
    shared = fv.variance.moments(iwae, *trained, X64, KEY, noise=constant, **options)
    assert shared.groups["all"].variance.value == pytest.approx(0, abs=1e-20)
    fresh = fv.variance.moments(iwae, *trained, X64, KEY, noise=constant, fresh_layers=True, **options)
    grads = []
    model, params, state = trained
    eps = torch.ones(2, 8, 2, dtype=torch.float64)
    for r in range(12):
        own = {
            name: {**part, "random_key": random.fold_in(random.split(part["random_key"])[0], r)} if part else part
            for name, part in state.items()
        }
        grads.append(iwae(model, params, own, X64, eps, train=True).grads)
    stacked = tree.map(lambda *g: torch.stack(g), *grads)
    assert_close(fresh.variance, tree.map(lambda g: g.var(0), stacked))
    compared = fv.variance.compare(
        {"iwae": iwae, "elbo": ESTIMATORS["elbo"]}, *trained, X64, KEY, noise=constant, fresh_layers=True, timings=0,
        chunk=5, **options,
    )  # fmt: skip
    value = compared.rows["iwae"].groups["all"].variance.value
    assert value == pytest.approx(fresh.groups["all"].variance.value)
    sources = fv.variance.sources(
        iwae, *trained, X64, KEY, batch=8, batches=3, noise=constant, fresh_layers=True, **options
    )
    assert sources.groups["all"].noise.value > 0
    with pytest.raises(BadValue, match="fresh_layers is True and train is False"):
        fv.variance.moments(iwae, *trained, X64, KEY, samples=2, fresh_layers=True)


def test_monitoring_evaluation_and_checks_advance_no_key():
    model, params, state = made()
    before = tree.map(torch.clone, state)
    fv.evaluate.log_likelihood(model, params, state, X64, KEY, samples=200)
    fv.model.check_data(model, params, state, X64)
    fv.variance.moments(ESTIMATORS["iwae"], model, params, state, X64, KEY, samples=2, replicates=4, train=True)
    assert same_bits(state, before)
    found = ESTIMATORS["iwae"].evaluate(model, params, state, X64, EPS)
    assert same_bits(found, ESTIMATORS["iwae"].evaluate(model, params, state, X64, EPS))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_masks_on_cuda_equal_those_on_the_cpu_to_the_bit():
    net = fv.functional(lambda: nn.Dropout(0.3))
    _, state = net.init(KEY)
    masks, new = net.apply({}, state, torch.ones(100, 6), train=True)
    on_cuda, after = net.apply({}, tree.map(torch.Tensor.cuda, state), torch.ones(100, 6, device="cuda"), train=True)
    assert on_cuda.is_cuda
    assert torch.equal(on_cuda.cpu() == 0, masks == 0)
    assert 0 < int((masks == 0).sum()) < 600
    assert torch.equal(after["random_key"].cpu(), new["random_key"])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_fit_with_random_layers_on_cuda_equals_that_on_the_cpu():
    model, opt = fv.vae(encoder=encoder, decoder=Noisy, latent=2), fv.optim.adam(1e-2)
    ts = fv.train.init(model, opt, random.key(0, device="cuda"))
    (there, _), (here, _) = fitted(model=model, ts=ts), fitted(model=model)
    assert_close(tree.map(torch.Tensor.cpu, there.params), here.params, 1e-3)
