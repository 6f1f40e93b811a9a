"""Exact moments of a gradient against closed forms and sampling, and errors."""

import math
from typing import NamedTuple

import pytest
import torch
from torch import nn

import funcvae as fv
from funcvae import tree
from funcvae.errors import BadData, BadValue, NonFinite
from funcvae.estimators import discrete as discrete_estimators
from funcvae.estimators import parse
from funcvae.variance import exact
from tests.support import discrete
from tests.support.discrete import bernoulli_model, categorical_model, exact_gradient
from tests.support.oracles import (
    assert_close,
    elbo,
    gradient_means,
    gradient_variances,
    noise,
    quadrature_bound,
    tiny,
    toy,
)
from tests.support.specs import slow_but

X = torch.tensor([[1.0]], dtype=torch.float64)


@pytest.mark.parametrize("s2", [0.3, 0.5, 2 / 3, 1.2])
@pytest.mark.parametrize("delta", [0.0, -0.4, 0.3])
@pytest.mark.parametrize("spec", ["elbo_mc", "elbo", "stl"])
def test_moments_of_one_sample_equal_the_closed_forms_to_1e_9(spec, delta, s2):
    m = 0.6 + delta
    found = exact(parse(spec), *toy(m, s2, 0.2), X, samples=1, nodes=20)
    for name, mean, variance in zip(
        ("m", "log_s"), gradient_means(m, s2, 1.0, 0.2), gradient_variances(spec, m, s2, 1.0, 0.2), strict=True
    ):
        assert -found.mean["encoder"][name].item() == pytest.approx(mean, abs=1e-9)
        assert found.variance["encoder"][name].item() == pytest.approx(variance, abs=1e-9)
    assert found.bound.item() == pytest.approx(elbo(m, s2, 1.0, 0.2), abs=1e-9)


def test_s_in_place_of_its_square_fails_the_closed_forms():
    found = exact(parse("elbo_mc"), *toy(0.9, 0.3**2, 0.2), X, samples=1, nodes=20)
    assert abs(found.variance["encoder"]["m"].item() - gradient_variances("elbo_mc", 0.9, 0.3, 1.0, 0.2)[0]) > 0.1


def test_the_covariance_of_the_plain_gradient_is_known():
    # d/dm and d/dlog s of log w at eps are 2 (m* - m) - 2 s eps and 1 + 2 s eps (m* - m) - 2 s² eps², and in mu it is
    # m + s eps - mu; so Cov(m, log s) = -4 s² (m* - m), Cov(m, mu) = -2 s², Cov(log s, mu) = 2 s² (m* - m).
    m, s2 = 0.8, 2 / 3
    found = exact(parse("elbo_mc"), *toy(m, s2), X, samples=1, nodes=20)
    order = list(tree.named_leaves(found.mean))
    at = {name.split("/")[-1]: order.index(name) for name in order}
    cov = found.covariance
    assert cov[at["m"], at["log_s"]].item() == pytest.approx(-4 * s2 * (0.5 - m), abs=1e-9)
    assert cov[at["m"], at["mu"]].item() == pytest.approx(-2 * s2, abs=1e-9)
    assert cov[at["log_s"], at["mu"]].item() == pytest.approx(2 * s2 * (0.5 - m), abs=1e-9)
    torch.testing.assert_close(cov, cov.T)


@pytest.mark.parametrize("spec", ["dreg", "vimco"])
def test_a_batch_has_the_mean_of_its_means_and_independent_noise(spec):
    model, params, state, x = tiny()
    options = {"samples": 2, "nodes": 8, "tolerance": 1.0}
    both = exact(parse(spec), model, params, state, x, **options)
    one, two = (exact(parse(spec), model, params, state, x[i : i + 1], **options) for i in (0, 1))
    assert_close(both.mean, tree.map(lambda a, b: (a + b) / 2, one.mean, two.mean), atol=1e-12)
    assert_close(both.variance, tree.map(lambda a, b: (a + b) / 4, one.variance, two.variance), atol=1e-12)
    torch.testing.assert_close(both.covariance, (one.covariance + two.covariance) / 4)
    torch.testing.assert_close(both.bound, torch.cat([one.bound, two.bound]))


def test_sampled_moments_agree_within_their_standard_errors():
    model, params, state, x = tiny()
    estimator, replicates = parse("dreg"), 20_000
    found = exact(estimator, model, params, state, x, samples=2, nodes=16)
    eps = noise(replicates * 2, 2, 2).reshape(replicates, 2, 2, 2)
    grads = torch.vmap(lambda e: estimator(model, params, state, x, e, train=False).grads, chunk_size=2000)(eps)
    for part in grads:
        for name, g in grads[part].items():
            mean, variance = found.mean[part][name], found.variance[part][name]
            off = g - mean
            assert ((off.mean(0).abs() - 5 * (variance / replicates).sqrt()) < 1e-12).all()
            spread = off.square().var(0).sqrt() / math.sqrt(replicates)
            assert ((off.square().mean(0) - variance).abs() < 5 * spread + 1e-12).all()


def test_the_expected_bound_is_the_quadrature_of_the_bound():
    model, params, state, x = tiny()
    found = exact(parse("iwae"), model, params, state, x, samples=1, nodes=50)
    value, _ = quadrature_bound(parse("iwae").bound, model, params, state, x, 1, 50)
    assert found.bound.mean().item() == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0, "nodes": 3}, "samples is 0"),
        ({"samples": 1, "nodes": 0}, "nodes is 0"),
        ({"samples": 1, "nodes": 4, "tolerance": -1.0}, "tolerance is -1"),
        ({"samples": 5, "nodes": 60}, r"60 nodes along each of samples · latent = 5 axes make 8e\+08 points"),
    ],
)
def test_wrong_grids_raise_an_error(options, message):
    with pytest.raises(BadValue, match=message):
        exact(parse("iwae"), *toy(), X, **options)


def test_parameters_that_are_not_finite_raise_an_error_that_names_the_item():
    model, params, state, x = tiny()
    params["decoder"]["0.bias"] = params["decoder"]["0.bias"] * math.nan
    with pytest.raises(NonFinite, match="gradient or bound of item 0 is not finite"):
        exact(parse("iwae"), model, params, state, x, samples=1, nodes=3)


@pytest.mark.parametrize(
    ("samples", "nodes", "mean", "variance"),
    [(2, 60, 1e-10, 1e-10), (3, 40, 1e-10, 1e-9), pytest.param(4, 22, 1e-9, 1e-7, marks=pytest.mark.slow)],
)
def test_the_nodes_in_the_docstring_are_enough(samples, nodes, mean, variance):
    few, more = (exact(parse("iwae"), *toy(), X, samples=samples, nodes=n) for n in (nodes, nodes + 6))
    assert_close(few.mean["encoder"], more.mean["encoder"], atol=mean)
    assert_close(few.variance["encoder"], more.variance["encoder"], atol=variance)


class Abs(nn.Module):
    def forward(self, x):
        return x.abs()


def decoding_with(activation, key):
    model = fv.vae(
        encoder=lambda: nn.Linear(2, 2),
        decoder=lambda: nn.Sequential(nn.Linear(1, 3), activation(), nn.Linear(3, 2)),
        likelihood=fv.heads.normal_fixed(0.5),
        latent=1,
    )
    params, state = model.init(fv.random.key(key))
    return model, tree.map(torch.Tensor.double, params), state, torch.tensor([[0.5, -0.3], [-0.2, 0.8]]).double()


@pytest.mark.parametrize(
    "activation",
    slow_but((nn.Tanh, nn.ELU, nn.ReLU, Abs), (nn.Tanh, nn.Softplus, nn.ELU, nn.ReLU, nn.LeakyReLU, nn.Hardtanh, Abs)),
    ids=lambda a: a.__name__,
)
def test_the_estimated_errors_cover_the_true_errors_and_are_at_most_a_hundred_times_as_large(activation):
    for key in range(2):
        known = exact(parse("iwae"), *decoding_with(activation, key), samples=1, nodes=4001, tolerance=1.0)
        for nodes in (15, 50, 101):
            found = exact(parse("iwae"), *decoding_with(activation, key), samples=1, nodes=nodes, tolerance=10.0)
            for name, estimate in found.error._asdict().items():
                pairs = zip(tree.leaves(getattr(found, name)), tree.leaves(getattr(known, name)), strict=True)
                true = max(float((a - b).abs().max()) for a, b in pairs)
                assert true <= estimate <= max(100 * true, 1e-11), (key, nodes, name)


class ReluOfSum(nn.Module):
    def __init__(self, *axes):
        super().__init__()
        self.axes, self.last = list(axes), nn.Linear(1, 1)

    def forward(self, z):
        return self.last((z[..., self.axes].sum(-1, keepdim=True) - 0.3).relu())


@pytest.mark.parametrize("axes", [(0, 1), (0, 3)])
def test_the_estimated_error_covers_kinks_along_a_diagonal_of_two_axes(axes):
    model = fv.vae(
        encoder=lambda: nn.Linear(1, 8),
        decoder=lambda: ReluOfSum(*axes),
        likelihood=fv.heads.normal_fixed(0.5),
        latent=4,
    )
    params, state = model.init(fv.random.key(0))
    params = tree.map(torch.Tensor.double, params)
    params["encoder"] = tree.map(torch.zeros_like, params["encoder"])  # q = N(0, I)
    few, more = (
        exact(parse("elbo"), model, params, state, torch.ones(1, 1).double(), samples=1, nodes=n, tolerance=10.0)
        for n in (8, 17)
    )
    pairs = zip(tree.leaves(few.mean), tree.leaves(more.mean), strict=True)
    assert max(float((a - b).abs().max()) for a, b in pairs) < few.error.mean
    assert float((few.covariance - more.covariance).abs().max()) < few.error.covariance


class LogSigma(nn.Module):
    """The parameters of p(x|z) = N(b, exp(-2 w z))."""

    def __init__(self):
        super().__init__()
        self.b, self.w = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def forward(self, z):
        return torch.cat([self.b + 0 * z, -self.w * z], -1)


@pytest.mark.parametrize("w", [1.0, 1.5, 2.0])
@pytest.mark.parametrize("nodes", [30, 200, 4000])
def test_the_estimated_error_covers_what_an_exponential_gradient_has_beyond_the_ends(w, nodes):
    model = fv.vae(encoder=lambda: nn.Linear(1, 2), decoder=LogSigma, likelihood=fv.heads.normal_logsigma, latent=1)
    params, state = model.init(fv.random.key(0))
    params = tree.map(lambda p: torch.zeros_like(p, dtype=torch.float64), params)  # q = N(0, 1)
    params["decoder"]["w"] += w
    found = exact(
        parse("elbo_mc"), model, params, state, torch.ones(1, 1).double(), samples=1, nodes=nodes, tolerance=1e9
    )
    # The gradient in w is z - z exp(2 w z), with z ~ N(0, 1).
    square = 1 - 2 * (1 + 4 * w**2) * math.exp(2 * w**2) + (1 + 16 * w**2) * math.exp(8 * w**2)
    known = square - 4 * w**2 * math.exp(4 * w**2)
    apart = abs(float(found.variance["decoder"]["w"]) - known)
    assert apart <= found.error.variance <= 100 * apart


def test_errors_above_the_tolerance_raise_an_error_that_says_what_to_do():
    smooth = exact(parse("dreg"), *decoding_with(nn.Tanh, 0), samples=2, nodes=50)
    assert max(smooth.error) < 1e-6
    with pytest.raises(BadValue, match=r"error of the mean is about 0\.2 with 50 nodes, and tolerance allows"):
        exact(parse("dreg"), *decoding_with(nn.ReLU, 0), samples=2, nodes=50)
    kinked = exact(parse("dreg"), *decoding_with(nn.ReLU, 0), samples=2, nodes=50, tolerance=1.0)
    assert kinked.error.mean > 1e-3


def test_points_computed_in_parts_give_the_same_moments(monkeypatch):
    model, params, state, x = tiny()
    whole = exact(parse("dreg"), model, params, state, x, samples=1, nodes=9, tolerance=1.0)
    monkeypatch.setattr("funcvae.variance.quadrature._POINTS_AT_ONCE", 10)
    parts = exact(parse("dreg"), model, params, state, x, samples=1, nodes=9, tolerance=1.0)
    assert_close(tuple(parts)[:4], tuple(whole)[:4], atol=1e-13)


def test_a_large_model_raises_an_error():
    model = fv.models.burda_vae(latent=1)
    params, state = model.init(fv.random.key(0))
    with pytest.raises(BadValue, match="parameters: exact needs at most 5,000"):
        exact(parse("iwae"), model, params, state, torch.zeros(1, 1, 28, 28), samples=1, nodes=3)


def test_data_that_are_not_finite_raise_an_error_that_names_the_item():
    x = torch.tensor([[1.0], [math.nan]], dtype=torch.float64)
    with pytest.raises(BadData, match="first in item 1"):
        exact(parse("iwae"), *toy(), x, samples=1, nodes=3)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_moments_on_cuda_equal_those_on_the_cpu():
    model, params, state, x = tiny()
    options = {"samples": 2, "nodes": 6, "tolerance": 1.0}
    here = exact(parse("dreg"), model, params, state, x, **options)
    there = exact(parse("dreg"), model, *tree.map(torch.Tensor.cuda, (params, state, x)), **options)
    assert there.covariance.is_cuda
    assert_close(tree.map(torch.Tensor.cpu, tuple(there)[:4]), tuple(here)[:4], atol=1e-10)


# Finite posteriors.

UNBIASED = ("score", "rloo", "vimco", "vimco_am", "vimco_star", "ovis:0", "disarm", "disarm_local", "local_expectation")


def flat(grads):
    return torch.cat([leaf.flatten() for leaf in tree.leaves(grads)])


@pytest.mark.parametrize("model", [bernoulli_model, categorical_model])
@pytest.mark.parametrize("spec", UNBIASED)
def test_unbiased_estimators_of_a_finite_posterior_have_the_gradient_of_the_bound(spec, model):
    trained, estimator = model(), parse(spec)
    found = exact(estimator, *trained, discrete.X, samples=2)
    bound, grads = exact_gradient(*trained, discrete.X, estimator.claims.target, 2)
    assert found.bound.item() == pytest.approx(bound.item(), abs=1e-12)
    assert_close(found.mean, grads, atol=1e-12)
    assert max(found.error) < 1e-9


@pytest.mark.parametrize("spec", ["arm", "rebar:0.7:0.6", "rebar:-1:2"])
def test_gradients_that_depend_on_the_uniform_number_are_integrated(spec):
    trained = bernoulli_model()
    found = exact(parse(spec), *trained, discrete.X, samples=1, tolerance=1e-8)
    assert_close(found.mean, exact_gradient(*trained, discrete.X, "ELBO", 1)[1], atol=1e-9)


@pytest.mark.parametrize("spec", ["ovis:1", "rws", "tvo:0:0.5:1", "straight_through", "reinmax"])
def test_biased_estimators_of_a_finite_posterior_are_biased(spec):
    trained, estimator = bernoulli_model(), parse(spec)
    assert not estimator.claims.unbiased_encoder
    found = exact(estimator, *trained, discrete.X, samples=2)
    target = "ELBO" if estimator.claims.target == "ELBO" else "L_K"
    grads = exact_gradient(*trained, discrete.X, target, 2)[1]
    assert (flat(found.mean["encoder"]) - flat(grads["encoder"])).norm() > 0.01 * flat(grads["encoder"]).norm()


@pytest.mark.parametrize(
    ("spec", "samples"),
    [
        ("rloo", 2), ("rebar:0.7:0.6", 1),
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in (("disarm", 2), ("arm", 1))),
    ],
)  # fmt: skip
def test_sampled_moments_of_a_finite_posterior_agree_within_their_standard_errors(spec, samples):
    trained, estimator = bernoulli_model(), parse(spec)
    found = exact(estimator, *trained, discrete.X, samples=samples)
    sampled = fv.variance.moments(
        estimator, *trained, discrete.X, fv.random.key(5), samples=samples, replicates=20_000, chunk=1000
    )
    mean, se = flat(sampled.mean), flat(sampled.mean_se)
    assert ((mean - flat(found.mean)).abs() <= 4 * se + 1e-12).all()
    total = sampled.groups["all"].variance
    assert abs(total.value - flat(found.variance).sum().item()) < 4 * total.se


def test_the_variance_of_disarm_is_at_most_that_of_arm():
    trained = bernoulli_model()
    arm, disarm = (exact(parse(spec), *trained, discrete.X, samples=1) for spec in ("arm", "disarm"))
    assert (flat(disarm.variance) <= flat(arm.variance) + 1e-12).all()
    assert flat(disarm.variance).sum() < 0.95 * flat(arm.variance).sum()


def test_an_estimator_that_hides_its_use_of_the_noise_is_an_error():
    points = fv.estimators.Points(discrete_estimators.ANTITHETIC.sample, 2)  # without breaks

    def hidden(f, seen):
        return fv.Weights(torch.zeros_like(f), f / len(f), torch.full_like(f, 1 / len(f)))

    estimator = fv.estimators.from_points(points, hidden, bound=fv.bounds.elbo, claims=parse("disarm").claims)
    with pytest.raises(BadValue, match="the gradient depends on the noise beyond z"):
        exact(estimator, *bernoulli_model(), discrete.X, samples=1)


def test_a_support_too_large_to_enumerate_is_an_error():
    with pytest.raises(BadValue, match=r"3 draws of 8 variables with 2 values each have about 2\^24 joint values"):
        exact(parse("rloo"), *bernoulli_model(8), discrete.X, samples=3)


def test_values_that_are_not_all_values_are_an_error():
    class Half(fv.distributions.Bernoulli):
        def values(self):
            return super().values()[1:]

    model, params, state = bernoulli_model()

    def half(network):
        def apply(*args, **kwargs):
            p, state = network(*args, **kwargs)
            return Half(*p), state

        return apply

    model = model._replace(encode=half(model.encode), prior=half(model.prior))
    with pytest.raises(BadValue, match=r"the probabilities of the values\(\) of the Half do not add up to 1"):
        exact(parse("score"), model, params, state, discrete.X, samples=1)


def test_gradients_in_float32_are_integrated():
    model, params, state = bernoulli_model()
    single = tree.map(torch.Tensor.float, params)
    found = exact(parse("rebar:0.7:0.6"), model, single, state, discrete.X.float(), samples=1, tolerance=1e-3)
    known = exact_gradient(model, params, state, discrete.X, "ELBO", 1)[1]
    assert_close(tree.map(torch.Tensor.double, found.mean), known, atol=1e-4)


def test_a_finite_posterior_may_hold_other_distributions_and_take_noise_of_three_axes_only():
    class Nested(NamedTuple):
        of: fv.distributions.Bernoulli
        loc = mean = property(lambda self: self.of.mean)
        reparameterised = property(lambda self: False)

        def values(self):
            return self.of.values()

        def log_prob(self, z):
            return self.of.log_prob(z)

        def sample(self, eps):
            assert eps.ndim == 3
            return self.of.sample(eps)

    model, params, state = bernoulli_model()

    def encode(*args, **kwargs):
        q, state = model.encode(*args, **kwargs)
        return Nested(q), state

    found = exact(parse("rloo"), model._replace(encode=encode), params, state, discrete.X, samples=2)
    assert_close(found.mean, exact(parse("rloo"), model, params, state, discrete.X, samples=2).mean, atol=1e-14)


def test_too_many_nodes_in_a_cell_and_breaks_of_another_shape_are_errors():
    with pytest.raises(BadValue, match="nodes is 2000: it must be at most 1024 in each cell"):
        exact(parse("arm"), *bernoulli_model(1), discrete.X, samples=1, nodes=2000)
    points = fv.estimators.Points(lambda q, eps: q.sample(eps), breaks=lambda q: q.mean)
    wrong = fv.estimators.from_points(
        points, lambda f, seen: fv.Weights(0 * f, f, 0 * f + 1), bound=fv.bounds.elbo, claims=parse("arm").claims
    )
    with pytest.raises(BadValue, match="the breaks"):
        exact(wrong, *bernoulli_model(), discrete.X, samples=1)


def test_nodes_are_doubled_until_the_error_is_within_the_tolerance():
    found = exact(parse("elbo_mc"), *toy(0.9, 0.5, 0.2), X, samples=1, tolerance=1e-10)
    assert -found.mean["encoder"]["m"].item() == pytest.approx(gradient_means(0.9, 0.5, 1.0, 0.2)[0], abs=1e-10)


def test_too_many_points_by_default_are_an_error():
    with pytest.raises(BadValue, match=r"12 nodes along each of samples · latent = 16 axes make .* points"):
        exact(parse("elbo_mc"), *tiny(), samples=8)
