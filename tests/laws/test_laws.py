"""Laws that hold for every model and every estimator, tested once for each code path.

A gradient is computed in one of three ways: with one pull-back, with two pull-backs, or with a closed-form KL. An
estimator adds a function of the log-weights, which does not depend on the model. So every model is tested with one
estimator of each way (PATHS), and every estimator with one small model with BatchNorm, with normal or with Bernoulli
latents (SMALL). Only the agreement of float32 with float64 depends on both; its other pairs are marked slow.
"""

import pytest
import torch

import funcvae as fv
from funcvae import tree
from funcvae.estimators import parse
from tests.support.models import MODELS, B, N, allows, generators, layout, made, same_bits
from tests.support.oracles import assert_close, double
from tests.support.specs import CONTINUOUS, SEPARATE, SPECS, WEIGHTED, slow_but

PATHS = ("iwae", "piwae:2", "elbo")  # one pull-back, two pull-backs, closed-form KL
SMALL = ("batch_norm", "bernoulli")
PAIRS = [(name, spec) for name in MODELS for spec in SPECS if allows(name, spec)]
LEAST = [(name, spec) for name, spec in PAIRS if spec in PATHS or name in SMALL]


@pytest.fixture
def inputs(request):
    """A model with copies of its arguments, so that tests cannot disturb each other."""
    model, *tensors = made(request.param)
    return model, *tree.map(torch.clone, tensors)


def in_double(inputs):
    model, *tensors = inputs
    return model, *double(tensors)


def unit(spec, log_w):
    """The scale of rounding errors. `score` multiplies by the log-weights themselves, which are hundreds of nats."""
    return float(log_w.abs().max().clamp(min=1)) if spec == "score" else 1.0


def pairs(*values):
    return pytest.mark.parametrize(("inputs", "spec"), values, indirect=["inputs"])


every_path = pairs(*LEAST)
every_pair = pairs(*(pair if pair in LEAST else pytest.param(*pair, marks=pytest.mark.slow) for pair in PAIRS))
both_modes = pytest.mark.parametrize("train", [True, False])


@every_path
@both_modes
def test_arguments_are_unchanged_and_the_same_arguments_give_the_same_bits(inputs, spec, train):
    model, *tensors = inputs
    before = tree.map(torch.clone, tensors)
    first = parse(spec)(model, *tensors, train=train)
    assert same_bits(tensors, before)
    out = tree.map(torch.clone, tuple(first))
    second = parse(spec)(model, *tensors, train=train)
    assert same_bits(tuple(first), out), "a second call changed the result of the first"
    assert same_bits(tuple(second), out)


@every_path
def test_global_generators_are_neither_read_nor_changed(inputs, spec):
    model, params, state, x, eps = inputs
    before = generators()
    out = parse(spec)(model, params, state, x, eps, train=True)
    model.init(fv.random.key(5))
    fv.noise.iid(fv.random.key(6), N, (B, model.latent))
    assert generators() == before
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        assert same_bits(tuple(parse(spec)(model, params, state, x, eps, train=True)), tuple(out))


@every_path
@both_modes
def test_the_result_has_the_layout_of_the_arguments(inputs, spec, train):
    model, params, state, x, eps = inputs
    out = parse(spec)(model, params, state, x, eps, train=train)
    assert layout(out.grads) == layout(params)
    assert layout(out.state) == layout(state)
    assert (out.bound.shape, out.log_w.shape) == ((B,), (N, B))
    assert all(bool(leaf.isfinite().all()) for leaf in tree.leaves(tuple(out)))
    assert not any(leaf.requires_grad for leaf in tree.leaves(tuple(out)))
    if not train:
        assert same_bits(out.state, state)


@every_path
@both_modes
def test_vmap_over_replicates_equals_a_loop(inputs, spec, train):
    model, params, state, x, _ = inputs
    replicates = fv.noise.iid(fv.random.key(8), 3, (N, B, model.latent))

    def one(eps):
        return tuple(parse(spec)(model, params, state, x, eps, train=train))

    mapped = torch.vmap(one)(replicates)
    for r, eps in enumerate(replicates):
        alone = one(eps)
        here = tree.map(lambda t, like, r=r: t[r] if t.ndim > like.ndim else t, mapped, alone)
        assert_close(here, alone, atol=1e-4 * unit(spec, alone[2]), rtol=1e-4)


@every_pair
@both_modes
def test_float64_agrees_with_float32_to_rounding(inputs, spec, train):
    model, params, state, x, eps = inputs
    single = parse(spec)(model, params, state, x, eps, train=train)
    exact = parse(spec)(*in_double(inputs), train=train)
    assert layout(exact.grads) == layout(double(params))
    assert exact.bound.dtype == exact.log_w.dtype == torch.float64
    assert_close(double(tuple(single)), tuple(exact), atol=1e-3 * unit(spec, exact.log_w), rtol=1e-3)


@pairs(*(pair for pair in LEAST if pair[1] in SEPARATE))
def test_examples_are_independent_in_evaluation_mode(inputs, spec):
    model, params, state, x, eps = inputs
    together = parse(spec)(model, params, state, x, eps, train=False)
    rows = [tree.map(lambda t, i=i: t[i : i + 1], x) for i in range(B)]
    alone = [parse(spec)(model, params, state, rows[i], eps[:, i : i + 1], train=False) for i in range(B)]
    torch.testing.assert_close(together.bound, torch.cat([out.bound for out in alone]))
    mean = tree.map(lambda *grads: torch.stack(grads).mean(0), *(out.grads for out in alone))
    assert_close(together.grads, mean, atol=1e-4 * unit(spec, together.log_w), rtol=1e-4)


@pytest.mark.parametrize(
    ("spec", "samples"), [("elbo", 1), ("elbo", 4), ("dreg", 1), ("dreg", 4), ("piwae:2", 2), ("piwae:2", 4)]
)
def test_batch_norm_updates_its_statistics_once_a_call_with_the_mean_over_samples(spec, samples):
    model, params, state, x, _ = in_double(made("batch_norm"))
    eps = fv.noise.iid(fv.random.key(9), samples, (B, 2), dtype=torch.float64)
    new = parse(spec)(model, params, state, x, eps, train=True).state
    q, _ = model.encode(params, state, x, train=True)
    for part, inputs in {"encoder": x.unsqueeze(0), "decoder": q.sample(eps)}.items():
        h = inputs @ params[part]["0.weight"].T + params[part]["0.bias"]
        old = state[part]
        torch.testing.assert_close(new[part]["1.running_mean"], 0.9 * old["1.running_mean"] + 0.1 * h.mean((0, 1)))
        torch.testing.assert_close(new[part]["1.running_var"], 0.9 * old["1.running_var"] + 0.1 * h.var(1).mean(0))
        assert new[part]["1.num_batches_tracked"] == old["1.num_batches_tracked"] + 1


@pytest.mark.parametrize("spec", SPECS)
def test_inference_mode_gives_the_same_result(spec):
    model, *tensors = made("gaussian2d_vae" if spec in CONTINUOUS else "bernoulli")
    with torch.inference_mode():
        out = parse(spec)(model, *tensors, train=True)
    assert_close(tuple(out), tuple(parse(spec)(model, *tensors, train=True)), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("chunk", slow_but((3,), (1, 3, N)))
@every_path
def test_chunks_give_the_same_result_to_rounding(inputs, spec, chunk):
    model, *tensors = in_double(inputs)
    estimator = parse(spec)
    whole, parts = (e(model, *tensors, train=True) for e in (estimator, fv.estimators.in_chunks(estimator, chunk)))
    assert layout(parts) == layout(whole)
    assert_close(tuple(parts), tuple(whole), atol=1e-10 * unit(spec, whole.log_w), rtol=1e-9)
    bound = fv.estimators.in_chunks(estimator, chunk).bound(model, *tensors)
    torch.testing.assert_close(bound, estimator.bound(model, *tensors))


@pytest.mark.parametrize(
    ("spec", "backend"),
    [(spec, "aot_eager") for spec in ("piwae:2", "rebar:0.7:0.6")]
    + [pytest.param(spec, "inductor", marks=pytest.mark.slow) for spec in SPECS],
)
def test_compiled_equals_eager(spec, backend):
    model, *tensors = made("batch_norm" if spec in CONTINUOUS else "bernoulli")
    estimator = parse(spec)

    def call(*tensors):
        return tuple(estimator(model, *tensors, train=True))

    torch._dynamo.reset()
    try:
        compiled = torch.compile(call, fullgraph=True, dynamic=False, backend=backend)(*tensors)
    finally:
        torch._dynamo.reset()
    assert_close(compiled, call(*tensors), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("spec", WEIGHTED)
def test_weights_and_bound_compile_as_one_graph(spec):
    """Together with `test_compiled_equals_eager` this covers the whole estimator."""
    estimator = parse(spec)
    log_w = fv.random.normal(fv.random.key(2), (N, B))

    def call(log_w):
        weights, bound = estimator.parts.weigh(log_w)
        return tuple(weights), bound

    torch._dynamo.reset()
    try:
        compiled = torch.compile(call, fullgraph=True, dynamic=False, backend="aot_eager")(log_w)
    finally:
        torch._dynamo.reset()
    assert_close(compiled, call(log_w), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("spec", PATHS)
def test_every_way_works_with_the_resnet(spec, resnet):
    model, params, state, x, eps = resnet
    out = parse(spec)(model, params, state, x, eps, train=True)
    assert layout(out.grads) == layout(params)
    assert all(bool(leaf.isfinite().all()) for leaf in [*tree.leaves(out.grads), out.bound, out.log_w])


@pytest.fixture(scope="module")
def resnet():
    model = fv.models.cifar_resnet_vae()
    init_key, x_key, noise_key = fv.random.split(fv.random.key(3), 3)
    x = fv.random.normal(x_key, (2, 3, 32, 32))
    return model, *model.init(init_key), x, fv.noise.iid(noise_key, 2, (2, model.latent))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@every_pair
def test_the_result_on_cuda_equals_that_on_the_cpu(inputs, spec):
    model, *tensors = in_double(inputs)
    here = parse(spec)(model, *tensors, train=True)
    there = parse(spec)(model, *tree.map(torch.Tensor.cuda, tensors), train=True)
    assert all(leaf.is_cuda for leaf in tree.leaves(tuple(there)))
    assert_close(tree.map(torch.Tensor.cpu, tuple(there)), tuple(here), atol=1e-8, rtol=1e-6)
