"""Moments over replicates, against exact integration, closed forms and a plain loop of `torch.autograd.grad`."""

import math
from functools import cache

import pytest
import torch

import funcvae as fv
from funcvae import tree
from funcvae.errors import BadData, BadValue, NonFinite
from funcvae.estimators import parse
from funcvae.variance import exact, moments
from tests.support.compiling import use_aot_eager
from tests.support.models import MODELS, batch_norm_vae, generators, made, same_bits
from tests.support.oracles import assert_close, gradient_means, gradient_variances, log_weights, tiny, toy
from tests.support.specs import CONTINUOUS, slow_but

X = torch.tensor([[1.0]], dtype=torch.float64)
KEY = fv.random.key(11)
R = 20_000


@cache
def sampled(spec, s2, m, samples, seed=11):
    """Moments on the toy from 20,000 replicates."""
    return moments(parse(spec), *toy(m, s2), X, fv.random.key(seed), samples=samples, replicates=R, chunk=1000)


def within(found, se, known, z=4.0):
    """Whether an estimate is within z standard errors of the known value."""
    return abs(float(found) - known) <= z * float(se) + 1e-12


# Against known values.


@pytest.mark.parametrize("s2", [pytest.param(0.3, marks=pytest.mark.slow), 0.5, 2 / 3])
@pytest.mark.parametrize("spec", ["elbo_mc", "elbo", "stl"])
def test_moments_of_one_sample_equal_the_closed_forms(spec, s2):
    m = 0.8
    found = sampled(spec, s2, m, 1)
    for name, mean, variance in zip(
        ("m", "log_s"), gradient_means(m, s2, 1.0), gradient_variances(spec, m, s2, 1.0), strict=True
    ):
        assert within(-found.mean["encoder"][name], found.mean_se["encoder"][name], mean)
        assert within(found.variance["encoder"][name], found.variance_se["encoder"][name], variance)


def test_s_in_place_of_its_square_fails_the_closed_forms():
    found = sampled("elbo_mc", 2 / 3, 0.8, 1)
    wrong = gradient_variances("elbo_mc", 0.8, (2 / 3) ** 2, 1.0)[0]
    assert not within(found.variance["encoder"]["m"], found.variance_se["encoder"]["m"], wrong)


def test_stl_has_no_variance_where_q_is_the_posterior():
    found = sampled("stl", 0.5, 0.5, 1)
    assert found.groups["encoder"].variance.value < 1e-25
    assert found.groups["encoder"].variance.high < 1e-25
    assert sampled("elbo_mc", 0.5, 0.5, 1).groups["encoder"].variance.value == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize(
    "spec",
    slow_but(
        ("iwae", "dreg", "miwae:2"),
        ("iwae", "dreg", "vimco", "ovis:0", "iwae_stl", "rws", "renyi:0.5", "rloo", "miwae:2"),
    ),
)
def test_moments_of_two_samples_equal_those_of_quadrature(spec):
    known = exact(parse(spec), *toy(), X, samples=2, nodes=60)
    found = sampled(spec, 2 / 3, 0.8, 2)
    for part, name in (("encoder", "m"), ("encoder", "log_s"), ("prior", "mu")):
        mean, variance = float(known.mean[part][name]), float(known.variance[part][name])
        assert within(found.mean[part][name], found.mean_se[part][name], mean)
        assert within(found.variance[part][name], found.variance_se[part][name], variance)
        snr = abs(mean) / math.sqrt(variance)
        assert within(found.snr[part][name], found.snr_se[part][name], snr)
    total = sum(float(v) for v in known.variance["encoder"].values())
    group = found.groups["encoder"]
    assert within(group.variance.value, group.variance.se, total)
    norm = math.sqrt(sum(float(v) ** 2 for v in known.mean["encoder"].values()))
    assert within(group.norm.value, group.norm.se, norm)
    assert within(group.snr.value, group.snr.se, norm / math.sqrt(total))
    assert within(found.bound.value, found.bound.se, float(known.bound))


@pytest.mark.parametrize("keys", [60, pytest.param(200, marks=pytest.mark.slow)])
def test_standard_errors_are_the_scatter_between_keys(keys):
    # each estimate's scatter between n keys is what its standard error says, to 4 · √(1/2n) of it
    error = 4 / math.sqrt(2 * keys)
    runs = [
        moments(parse("iwae"), *toy(), X, fv.random.key(s), samples=2, replicates=500, chunk=500) for s in range(keys)
    ]
    for field in ("mean", "variance", "snr"):
        for name in ("m", "log_s"):
            values = torch.stack([getattr(run, field)["encoder"][name] for run in runs])
            errors = torch.stack([getattr(run, f"{field}_se")["encoder"][name] for run in runs])
            assert float(values.std() / errors.square().mean().sqrt()) == pytest.approx(1, abs=error)
    for field in ("variance", "snr"):
        measured = [getattr(run.groups["encoder"], field) for run in runs]
        values, errors = torch.tensor([[m.value, m.se] for m in measured]).T
        assert float(values.std() / errors.square().mean().sqrt()) == pytest.approx(1, abs=1.25 * error)


def losses(spec, model, params, state, x, eps):
    """A loss with the gradient of the estimator, written with torch.distributions."""
    if spec == "stl":
        q, _ = model.encode(params, state, x)
        still = tree.map(torch.Tensor.detach, params)
        q_still, _ = model.encode(still, state, x)
        values = []
        for e in eps:
            z = q.loc + q.sigma * e
            p_x, p_z = model.decode(params, state, z)[0], model.prior(params, state, z)[0]
            values.append(p_x.log_prob(x).sum(1) + p_z.log_prob(z).sum(1) - q_still.log_prob(z).sum(1))
        return -torch.stack(values).mean()
    log_w = log_weights(model, params, state, x, eps)
    return -{"iwae": fv.bounds.iwae, "elbo_mc": fv.bounds.elbo}[spec](log_w).mean()


@pytest.mark.parametrize("chunk", [1, 5, 16])
@pytest.mark.parametrize("spec", ["iwae", "elbo_mc", "stl"])
def test_moments_are_those_of_a_plain_loop_of_autograd(spec, chunk):
    model, params, state, x = tiny()
    found = moments(parse(spec), model, params, state, x, KEY, samples=3, replicates=21, chunk=chunk)
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in tree.named_leaves(params).items()}
    here = tree.from_named(leaves, params)
    grads = []
    for r in range(21):
        eps = fv.noise.iid(fv.random.fold_in(KEY, r), 3, (2, 2), dtype=torch.float64)
        g = torch.autograd.grad(losses(spec, model, here, state, x, eps), list(leaves.values()))
        grads.append(dict(zip(leaves, g, strict=True)))
    for name in leaves:
        g = torch.stack([each[name] for each in grads])
        torch.testing.assert_close(tree.named_leaves(found.mean)[name], g.mean(0), atol=1e-10, rtol=1e-10)
        torch.testing.assert_close(tree.named_leaves(found.variance)[name], g.var(0), atol=1e-10, rtol=1e-10)
    flat = torch.stack([torch.cat([g.flatten() for g in each.values()]) for each in grads])
    assert found.groups["all"].variance.value == pytest.approx(float(flat.var(0).sum()), rel=1e-10)


# Chunks, reproducibility and side effects.


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("spec", ["iwae", "dreg", "rloo"])
def test_moments_agree_between_chunks(spec, dtype):
    model, params, state, x = tiny()
    params, x = tree.map(lambda t: t.to(dtype), (params, x))
    runs = [
        moments(parse(spec), model, params, state, x, KEY, samples=4, replicates=70, chunk=c) for c in (1, 7, 32, 70)
    ]
    most = max(float((m.abs() + 5 * v.sqrt()).max()) for m, v in
               zip(tree.leaves(runs[0].mean), tree.leaves(runs[0].variance), strict=True))  # fmt: skip
    tolerance = (1e-12 if dtype == torch.float64 else 1e-5) * most
    for run in runs[1:]:
        for field in ("mean", "mean_se"):
            assert_close(getattr(run, field), getattr(runs[0], field), atol=tolerance)
        assert_close(run.variance, runs[0].variance, atol=tolerance * most)


def test_one_chunk_size_gives_the_same_bits():
    args = (parse("iwae"), *tiny(), KEY)
    first, second = (moments(*args, samples=3, replicates=40, chunk=7) for _ in range(2))
    assert same_bits(first[:6], second[:6])
    assert first.groups == second.groups
    other = moments(parse("iwae"), *tiny(), fv.random.key(12), samples=3, replicates=40, chunk=7)
    assert not same_bits(first.mean, other.mean)


def test_arguments_and_global_generators_are_left_alone():
    model, *tensors = tiny()
    before, states = tree.map(torch.clone, (tensors, KEY)), generators()
    moments(parse("dreg"), model, *tensors, KEY, samples=2, replicates=5)
    assert same_bits((tensors, KEY), before)
    assert generators() == states


def test_progress_is_reported():
    reported = []
    moments(parse("dreg"), *tiny(), KEY, samples=2, replicates=7, chunk=3, progress=lambda *at: reported.append(at))
    assert reported == [(0, 7), (1, 7), (2, 7), (4, 7), (7, 7)]  # at every renewal of the centre


@pytest.mark.parametrize("replicates", [1, 2, 3])
def test_few_replicates(replicates):
    model, params, state, x = tiny()
    found = moments(parse("iwae"), model, params, state, x, KEY, samples=2, replicates=replicates)
    eps = [fv.noise.iid(fv.random.fold_in(KEY, r), 2, (2, 2), dtype=torch.float64) for r in range(replicates)]
    grads = [parse("iwae")(model, params, state, x, e, train=False).grads for e in eps]
    assert_close(found.mean, tree.map(lambda *g: torch.stack(g).mean(0), *grads), atol=1e-12)
    group = found.groups["all"]
    if replicates == 1:
        assert all(bool(leaf.isnan().all()) for leaf in tree.leaves(found.variance))
        assert all(bool(leaf.isinf().all()) for leaf in tree.leaves((found.mean_se, found.variance_se, found.snr_se)))
        assert math.isnan(group.variance.value)
        assert math.isinf(group.variance.se)
    else:
        assert_close(found.variance, tree.map(lambda *g: torch.stack(g).var(0), *grads), atol=1e-12)
    assert not group.variance.trusted


# Every model and estimator.


@pytest.mark.parametrize("name", MODELS)
def test_every_model(name):
    model, params, state, x, _ = made(name)
    spec = {"mnist_ae": "elbo", "bernoulli": "disarm"}.get(name, "iwae")
    found = moments(parse(spec), model, params, state, x, KEY, samples=2, replicates=3, chunk=2)
    assert tree.structure(found.variance) == tree.structure(params)
    for mean, variance, p in zip(*map(tree.leaves, (found.mean, found.variance, params)), strict=True):
        assert mean.shape == variance.shape == p.shape
        assert mean.dtype == torch.float64
        assert bool(mean.isfinite().all())
        assert bool((variance >= 0).all())
    total = sum(float(v.sum()) for v in tree.leaves(found.variance))
    assert found.groups["all"].variance.value == pytest.approx(total, rel=1e-4, abs=1e-9)
    assert found.groups["all"].size == sum(p.numel() for p in tree.leaves(params))


@pytest.mark.slow
def test_the_resnet():
    model = fv.models.cifar_resnet_vae()
    params, state = model.init(fv.random.key(1))
    x = fv.random.uniform(fv.random.key(2), (2, 3, 32, 32))
    found = fv.variance.compare(
        {"elbo_mc": parse("elbo_mc")}, model, params, state, x, KEY, samples=1, replicates=2, timings=0
    )
    assert found.rows["elbo_mc"].groups["all"].variance.value > 0


@pytest.mark.parametrize("spec", CONTINUOUS)
def test_every_estimator(spec):
    found = moments(parse(spec), *tiny(), KEY, samples=4, replicates=5)
    assert found.groups["encoder"].variance.value > 0


def test_batch_norm_in_training_mode():
    model = batch_norm_vae()
    params, state = model.init(fv.random.key(1))
    x = fv.random.bernoulli(fv.random.key(2), 0.5, (4, 3)).float()
    args = (parse("elbo_mc"), model, params, state, x, KEY)
    one, two = (moments(*args, samples=2, replicates=6, train=train) for train in (True, False))
    assert one.groups["decoder"].variance.value > 0
    assert one.groups["decoder"].variance.value != pytest.approx(two.groups["decoder"].variance.value, rel=1e-3)


def test_a_function_is_an_estimator():
    def mine(model, params, state, x, eps, *, train):
        return parse("iwae")(model, params, state, x, eps, train=train)

    args = (*tiny(), KEY)
    assert same_bits(
        moments(mine, *args, samples=2, replicates=5).mean, moments(parse("iwae"), *args, samples=2, replicates=5).mean
    )


def test_groups_by_pattern():
    found = moments(parse("iwae"), *tiny(), KEY, samples=2, replicates=9, groups=("*.bias",))
    biases = [leaf for name, leaf in tree.named_leaves(found.variance).items() if name.endswith("bias")]
    assert found.groups["*.bias"].variance.value == pytest.approx(sum(float(b.sum()) for b in biases))
    assert found.groups["*.bias"].size == sum(b.numel() for b in biases)
    with pytest.raises(BadValue, match="unknown group of parameters 'enc': "):
        moments(parse("iwae"), *tiny(), KEY, samples=2, groups=("enc",))


@pytest.mark.slow
def test_compiled_moments_equal_eager_ones_to_rounding():
    eager, compiled = (
        moments(parse("iwae"), *tiny(), KEY, samples=3, replicates=30, chunk=8, compile=c) for c in (False, True)
    )
    assert_close(compiled[:6], eager[:6], atol=1e-10, rtol=1e-8)


# Errors.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples is 0"),
        ({"samples": 2, "replicates": 0}, "replicates is 0: it must be at least 1"),
        ({"samples": 2, "replicates": -3}, "replicates is -3"),
        ({"samples": 2, "chunk": 0}, "chunk is 0: it must be at least 1"),
        ({"samples": 2, "noise": fv.noise.mirrored}, "dreg requires independent samples"),
    ],
)
def test_wrong_arguments_raise_an_error(options, message):
    with pytest.raises(BadValue, match=message):
        moments(parse("dreg"), *tiny(), KEY, **options)


def test_data_that_are_not_finite_raise_an_error_that_names_the_item():
    model, params, state, x = tiny()
    with pytest.raises(BadData, match="first in item 1"):
        moments(
            parse("dreg"), model, params, state, x.clone().index_fill_(0, torch.tensor(1), math.nan), KEY, samples=2
        )


@pytest.mark.parametrize("chunk", [1, 4, 50])
def test_a_gradient_that_is_not_finite_raises_an_error_with_its_replicate_and_key(chunk):
    model, params, state, x = tiny()

    def breaks(model, params, state, x, eps, *, train):
        out = parse("iwae")(model, params, state, x, eps, train=train)
        bad = torch.where(eps[0, 0, 0] > 1.5, torch.nan, 1.0)
        return out._replace(grads=tree.map(lambda g: g * bad, out.grads))

    def first(r):
        return float(fv.noise.iid(fv.random.fold_in(KEY, r), 2, (2, 2), dtype=torch.float64)[0, 0, 0])

    r = next(r for r in range(50) if first(r) > 1.5)
    with pytest.raises(NonFinite, match=f"breaks: the gradient or bound of replicate {r} is not finite") as error:
        moments(breaks, model, params, state, x, KEY, samples=2, replicates=50, chunk=chunk)
    message = str(error.value)
    assert "\n" not in message
    key = eval(message[message.index("torch.tensor") : message.index(", which")])
    assert torch.equal(key, fv.random.fold_in(KEY, r))
    eps = fv.noise.iid(key, 2, (2, 2), dtype=torch.float64)
    assert bool(tree.leaves(breaks(model, params, state, x, eps, train=False).grads)[0].isnan().any())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_moments_on_cuda_equal_those_on_the_cpu():
    model, params, state, x = tiny()
    here = moments(parse("dreg"), model, params, state, x, KEY, samples=2, replicates=20)
    there = moments(
        parse("dreg"), model, *tree.map(torch.Tensor.cuda, (params, state, x)), KEY, samples=2, replicates=20
    )
    assert_close(tree.map(torch.Tensor.cpu, there[:6]), here[:6], atol=1e-10)


def test_compiled_moments_equal_eager_ones(monkeypatch):
    """A warning that the compiler cannot follow would be an error."""
    use_aot_eager(monkeypatch)
    monkeypatch.setattr("funcvae.compilation.available", lambda: True)
    model = fv.models.gaussian2d_vae()
    trained, x = (model, *model.init(fv.random.key(0))), fv.random.normal(fv.random.key(1), (4, 2))
    eager, compiled = (
        moments(parse("dreg"), *trained, x, fv.random.key(0), samples=2, replicates=8, compile=compile)
        for compile in (False, True)
    )
    assert_close(compiled.variance, eager.variance, atol=1e-5)
