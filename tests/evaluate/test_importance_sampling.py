"""Log-likelihood estimates and their bounds against closed forms, quadrature and fresh noise."""

import math
import warnings

import pytest
import torch
from torch import nn

import funcvae as fv
from funcvae import evaluate, tree
from funcvae.errors import BadData, BadType, BadValue, NonFinite
from tests.support.oracles import S2, assert_zero_mean, elbo, gap, iwae_asymptote, iwae_bound, log_evidence, tiny, toy

X = torch.tensor([[1.0]], dtype=torch.float64)
KEY = fv.random.key(0)


def quietly(f, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", evaluate.Untrusted)
        return f(*args, **kwargs)


def many(x=1.0, n=500):
    return torch.full((n, 1), x, dtype=torch.float64)


# The log-likelihood.


def test_log_likelihood_of_the_toy_is_its_evidence_within_its_standard_error():
    found = evaluate.log_likelihood(*toy(), many(), KEY, samples=4000, chunk=500)
    off = found.log_p.value - log_evidence(1.0) + found.log_p.se**2 / 2  # L_K's bias, to first order
    assert_zero_mean(off)
    assert float(off.std()) == pytest.approx(float(found.log_p.se.mean()), rel=0.1)  # the standard error is the scatter
    assert found.log_p.mean_se == pytest.approx(found.log_p.se.square().sum().sqrt().item() / 500)
    assert found.samples == 4000
    assert not found.untrusted.any()


def test_the_value_depends_on_the_number_of_samples():
    k, sizes = 3, {}
    for samples in (1, k):
        found = quietly(evaluate.log_likelihood, *toy(), many(n=20_000), KEY, samples=samples, chunk=samples)
        sizes[samples] = found.log_p.value
    assert_zero_mean(sizes[k] - iwae_bound(k, 0.8, S2, 1.0))
    assert_zero_mean(sizes[1] - elbo(0.8, S2, 1.0))
    with pytest.raises(AssertionError, match="standard errors"):
        assert_zero_mean(sizes[1] - iwae_bound(k, 0.8, S2, 1.0))


def test_the_gap_to_log_p_is_gamma_over_2k():
    k, gamma = 20, iwae_asymptote()
    log_w = evaluate.log_weights(*toy(m=0.5), many(n=200_000), KEY, samples=k, chunk=k)
    short = log_evidence(1.0) - fv.bounds.iwae(log_w)
    assert_zero_mean(short - gamma / (2 * k), z=4)
    with pytest.raises(AssertionError, match="standard errors"):
        assert_zero_mean(short - gamma / k, z=4)


@pytest.mark.parametrize("chunk", [1, 7, 100, 1000])
def test_results_of_chunk_sizes_agree_to_rounding(chunk):
    model, params, state, x = tiny()
    log_w = evaluate.log_weights(model, params, state, x, KEY, samples=100, chunk=chunk)
    assert log_w.shape == (100, 2)
    whole = evaluate.log_weights(model, params, state, x, KEY, samples=100, chunk=33)
    torch.testing.assert_close(log_w, whole, rtol=0, atol=1e-12)


def test_sample_k_has_the_noise_of_fold_in_k_for_any_number_of_samples():
    model, params, state, x = tiny()
    eps = torch.stack([fv.random.normal(fv.random.fold_in(KEY, k), (2, 2), torch.float64) for k in range(6)])
    known = fv.estimators.iwae()(model, params, state, x, eps, train=False).log_w
    torch.testing.assert_close(evaluate.log_weights(model, params, state, x, KEY, samples=6, chunk=4), known)
    longer = evaluate.log_weights(model, params, state, x, KEY, samples=9, chunk=5)
    torch.testing.assert_close(longer[:6], known)


def test_data_decoded_in_parts_give_the_same_log_weights(monkeypatch):
    model, params, state, _ = tiny()
    x = fv.random.normal(fv.random.key(4), (23, 2), torch.float64)
    whole = evaluate.log_weights(model, params, state, x, KEY, samples=10, chunk=5)
    monkeypatch.setattr("funcvae.evaluate.importance_sampling._LATENTS", 10)
    sizes = []
    counted = model._replace(encode=lambda params, state, x: (sizes.append(len(x)), model.encode(params, state, x))[1])
    torch.testing.assert_close(evaluate.log_weights(counted, params, state, x, KEY, samples=10, chunk=5), whole)
    assert sizes[-3:] == [8, 8, 8], "parts of one size need one compiled function"


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("shape", [(), (7,), (127,), (1, 28, 28)])  # with 1, 7, 1 and 112 factors for a logarithm
@pytest.mark.parametrize("scale", [0.01, 100.0])  # factors near 2; logits of several hundred, whose odds overflow
def test_the_log_likelihood_of_pixels_is_that_of_torchs_bernoulli(shape, scale, compile):
    class Shaped(nn.Linear):
        def forward(self, z):
            return super().forward(z).reshape(len(z), *shape)

    class Encoder(nn.Linear):
        def forward(self, x):
            return super().forward(x.reshape(len(x), -1))

    d = math.prod(shape)
    model = fv.vae(
        encoder=lambda: Encoder(d, 4),
        decoder=lambda: Shaped(2, d),
        posterior=fv.heads.normal_logsigma,
        likelihood=fv.heads.bernoulli,
        latent=2,
    )
    params, state = model.init(KEY)
    params["decoder"] = tree.map(lambda leaf: scale * leaf, params["decoder"])
    x = fv.random.bernoulli(KEY, 0.5, (5, *shape)).float()
    log_w = evaluate.log_weights(model, params, state, x, KEY, samples=6, compile=compile)

    eps = torch.stack([fv.random.normal(fv.random.fold_in(KEY, k), (5, 2)) for k in range(6)])
    q, _ = model.encode(params, state, x)
    z = q.sample(eps)
    logits = model.decode(params, state, z)[0].logits.double()
    each = [torch.distributions.Bernoulli(logits=logits).log_prob(x.double()).reshape(6, 5, -1)]
    each += [torch.distributions.Normal(0.0, 1.0).log_prob(z)]
    each += [-torch.distributions.Normal(q.loc, q.sigma).log_prob(z)]
    known = sum(terms.double().sum(-1) for terms in each)
    torch.testing.assert_close(log_w, known, rtol=2e-6, atol=1e-4)


def test_a_likelihood_of_ones_own_keeps_its_log_prob():
    class Halved(fv.distributions.Bernoulli):
        def log_prob(self, x):
            return super().log_prob(x) / 2

    class Half(nn.Linear):  # float16 cannot express 2^112
        def forward(self, z):
            return super().forward(z).half()

    def evaluated(decoder, likelihood):
        model = fv.vae(
            encoder=lambda: nn.Linear(112, 4),
            decoder=lambda: decoder(2, 112),
            posterior=fv.heads.normal_logsigma,
            likelihood=likelihood,
            latent=2,
        )
        params, state = model.init(KEY)
        params = tree.map(lambda leaf: 0 * leaf, params)  # q = p(z), so log w = log p(x|z)
        return evaluate.log_weights(model, params, state, torch.ones(3, 112), KEY, samples=2)

    known = torch.full((2, 3), -112 * math.log(2), dtype=torch.float64)
    torch.testing.assert_close(evaluated(nn.Linear, fv.heads.bernoulli), known, rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(evaluated(nn.Linear, Halved), known / 2, rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(evaluated(Half, fv.heads.bernoulli), known, rtol=1e-2, atol=0)


@pytest.mark.parametrize("shape", [(), (2,), (1, 2)])
def test_a_sigma_that_broadcasts_gives_the_same_log_weights(shape, monkeypatch):
    class Encoder(nn.Linear):
        def forward(self, x):
            return super().forward(x), torch.full(shape, -0.3, dtype=x.dtype)

    def with_sigma(of):
        model = fv.vae(
            encoder=lambda: Encoder(2, 2),
            decoder=lambda: nn.Linear(2, 2),
            posterior=lambda out: of(fv.heads.normal_logsigma(out)),
            likelihood=fv.heads.normal_fixed(1.0),
            latent=2,
        )
        params, state = model.init(KEY)
        return model, tree.map(torch.Tensor.double, params), state

    x = fv.random.normal(KEY, (9, 2), torch.float64)
    spelled = with_sigma(lambda q: q._replace(sigma=q.sigma.expand_as(q.loc)))
    whole = evaluate.log_weights(*spelled, x, KEY, samples=4)
    monkeypatch.setattr("funcvae.evaluate.importance_sampling._LATENTS", 8)
    torch.testing.assert_close(evaluate.log_weights(*with_sigma(lambda q: q), x, KEY, samples=4, chunk=4), whole)


def test_progress_is_reported():
    calls = []
    evaluate.log_weights(*toy(), X, KEY, samples=25, chunk=10, progress=lambda *call: calls.append(call))
    assert calls == [(0, 25), (10, 25), (20, 25), (25, 25)]


def test_standard_errors_are_the_spread_over_fresh_keys_and_fresh_data():
    means, noise, sampling = [], [], []
    for seed in range(60):
        x_key, key = fv.random.split(fv.random.key(seed))
        fixed = fv.random.normal(fv.random.key(99), (40, 1), torch.float64)
        fresh = math.sqrt(2) * fv.random.normal(x_key, (40, 1), torch.float64)  # from p(x)
        on_fixed, on_fresh = (
            evaluate.likelihood(evaluate.log_weights(*toy(s2=2.0), x, key, samples=400)).log_p for x in (fixed, fresh)
        )
        means.append((on_fixed.mean, on_fresh.mean))
        noise.append(on_fixed.mean_se)
        sampling.append(on_fresh.sampling_se)
    spread = torch.tensor(means).std(0)
    assert float(spread[0]) == pytest.approx(sum(noise) / 60, rel=0.3)
    assert float(spread[1]) == pytest.approx(sum(sampling) / 60, rel=0.3)
    assert spread[1] > 3 * spread[0]


def test_too_few_samples_raise_a_warning():
    with pytest.warns(evaluate.Untrusted, match="10 samples are too few to estimate the tail .* of 2 of 2 items"):
        evaluate.log_likelihood(*toy(), many(n=2), KEY, samples=10)


def test_results_that_are_not_finite_raise_an_error_that_names_the_item():
    model, params, state, x = tiny()
    for part in ("encoder", "decoder"):
        broken = tree.map(torch.clone, params)
        next(iter(broken[part].values())).fill_(math.nan)
        for call in (
            lambda p=broken: evaluate.reconstruction_error(model, p, state, x, KEY),
            lambda p=broken: evaluate.squared_error(model, p, state, x),
        ):
            with pytest.raises(NonFinite, match="reconstructions of item 0 are not finite"):
                call()
    broken = {**params, "encoder": tree.map(lambda p: p * math.nan, params["encoder"])}
    with pytest.raises(NonFinite, match="latents of item 0"):
        evaluate.active_units(model, broken, state, x)
    with pytest.raises(NonFinite, match="KLs of item 0"):
        evaluate.kl_per_dimension(model, broken, state, x)


def test_heavy_tails_raise_a_warning_and_light_tails_do_not():
    heavy, light = toy(s2=0.05), toy(s2=0.8)  # the weights have no variance if s2 < 1/4
    with pytest.warns(
        evaluate.Untrusted, match=r"not reliable for \d+ of 20 items \(the first is item \d+\): .* k̂ above 0.50"
    ):
        found = evaluate.log_likelihood(*heavy, many(n=20), KEY, samples=1000)
    assert found.untrusted.float().mean() > 0.5
    evaluate.log_likelihood(*light, many(n=20), KEY, samples=1000)  # warnings are errors


# The ladder and the gap to the posterior.


def test_the_ladder_equals_quadrature_and_rises():
    ladder = evaluate.bound_ladder(*toy(), many(n=2000), KEY, samples=(1, 2, 3, 50), chunk=25)
    assert list(ladder) == [1, 2, 3, 50]
    assert_zero_mean(ladder[1].value - elbo(0.8, S2, 1.0))
    assert_zero_mean(ladder[2].value - iwae_bound(2, 0.8, S2, 1.0))
    assert_zero_mean(ladder[3].value - iwae_bound(3, 0.8, S2, 1.0))
    means = [rung.mean for rung in ladder.values()]
    assert means == sorted(means)
    assert float(ladder[2].se.mean()) == pytest.approx(float(ladder[2].value.std()), rel=0.1)


def test_the_gap_is_the_kl_to_the_posterior():
    log_w = evaluate.log_weights(*toy(0.9, 0.7, 0.2), many(), KEY, samples=4000, chunk=500)
    found = evaluate.posterior_gap(log_w)
    assert_zero_mean(found.value - gap(0.9, 0.7, 1.0, 0.2) + evaluate.likelihood(log_w).log_p.se ** 2 / 2)
    assert float(found.se.mean()) == pytest.approx(float(found.value.std()), rel=0.1)
    assert evaluate.posterior_gap(log_w[:1]).se.isinf().all()


# Errors.


def bernoulli_vae(posterior=fv.heads.normal_logvar, outputs=4):
    model = fv.vae(
        encoder=lambda: nn.Linear(3, outputs), decoder=lambda: nn.Linear(2, 3), posterior=posterior, latent=2
    )
    return model, *model.init(KEY)


def test_data_that_are_not_binary_raise_an_error_under_a_bernoulli():
    x = torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.5, 1.0]])
    for call in (
        lambda x: evaluate.log_likelihood(*bernoulli_vae(), x, KEY, samples=3),
        lambda x: evaluate.reconstruction_error(*bernoulli_vae(), x, KEY, samples=3, batch=1),
    ):
        with pytest.raises(BadData, match="item 1 has values other than 0 and 1, which have no density"):
            call(x)
        quietly(call, x.round())


@pytest.mark.parametrize(
    ("head", "outputs", "message"),
    [
        (fv.heads.delta, 2, "the posterior is a Delta, which has no density"),
        (fv.heads.signed_normal, 4, "whose density is not that of its samples"),
    ],
)
def test_posteriors_without_a_density_raise_an_error(head, outputs, message):
    with pytest.raises(BadType, match=message):
        evaluate.log_likelihood(*bernoulli_vae(head, outputs), torch.zeros(2, 3), KEY, samples=3)


def test_the_kl_of_a_point_posterior_raises_an_error():
    with pytest.raises(BadType, match="Delta"):
        evaluate.kl_per_dimension(*bernoulli_vae(fv.heads.delta, 2), torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("options", "message"), [({"samples": 0}, "samples is 0"), ({"samples": 3, "chunk": 0}, "chunk is 0")]
)
def test_numbers_below_one_raise_an_error(options, message):
    with pytest.raises(BadValue, match=message):
        evaluate.log_likelihood(*toy(), X, KEY, **options)
    for call in (evaluate.active_units, evaluate.kl_per_dimension, evaluate.squared_error):
        with pytest.raises(BadValue, match="batch is 0"):
            call(*toy(), X, batch=0)


def test_data_that_are_not_finite_raise_an_error_that_names_the_item():
    x = torch.tensor([[1.0], [math.nan], [2.0]], dtype=torch.float64)
    for call in (
        lambda: evaluate.log_likelihood(*toy(), x, KEY, samples=3),
        lambda: evaluate.reconstruction_error(*toy(), x, KEY),
        lambda: evaluate.active_units(*toy(), x),
        lambda: evaluate.kl_per_dimension(*toy(), x),
        lambda: evaluate.squared_error(*toy(), x),
    ):
        with pytest.raises(BadData, match="NaN or infinite values, first in item 1"):
            call()


def test_log_weights_that_are_not_finite_raise_an_error_that_names_the_item():
    model, params, state = toy()
    x = torch.tensor([[1.0], [1e200]], dtype=torch.float64)  # its square is infinite
    with pytest.raises(NonFinite, match="log-weights of item 1 are not finite"):
        evaluate.log_weights(model, params, state, x, KEY, samples=3)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_evaluation_on_cuda_equals_that_on_the_cpu():
    model, params, state, x = tiny()
    on_cuda = (model, *tree.map(torch.Tensor.cuda, (params, state, x)))
    here = quietly(evaluate.log_likelihood, model, params, state, x, KEY, samples=200)
    there = quietly(evaluate.log_likelihood, *on_cuda, KEY.cuda(), samples=200)
    for a, b in zip(tree.leaves(tuple(there)[:3]), tree.leaves(tuple(here)[:3]), strict=True):
        assert a.is_cuda
        torch.testing.assert_close(a.cpu(), b)
    for measure in (evaluate.kl_per_dimension, evaluate.squared_error):
        torch.testing.assert_close(measure(*on_cuda).cpu(), measure(model, params, state, x))
    assert evaluate.active_units(*on_cuda).variance.is_cuda
