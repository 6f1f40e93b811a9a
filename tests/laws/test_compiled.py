"""Compiled training equals eager training for every system."""

import pytest
import torch

import funcvae as fv
from funcvae import compilation, tree
from funcvae.estimators import parse, parse_scheduled
from tests.support.compiling import use_aot_eager
from tests.support.models import MODELS, made
from tests.support.oracles import assert_close


def in_float64(t):
    return tree.map(lambda t: t.double() if t.is_floating_point() else t, t)


def steps(name, spec, how):
    """Three training steps of a system from the same start, in separate buffers."""
    model, params, state, x, _ = made(name)
    if name in (
        "mnist_bn_vae",
        "bernoulli",
    ):  # in float32, Adam's full steps along gradients of pure rounding add up to 1e-1
        params, state, x = in_float64((params, state, x))
    opt = fv.optim.adam(1e-3)
    ts = fv.train.TrainState(torch.tensor(0), fv.random.key(5), params, state, opt.init(params))
    ts = tree.map(torch.clone, ts)
    step = torch.no_grad()(how(fv.train.make_step(model, parse_scheduled(spec), opt.update_, samples=2)))
    reports = []
    for keys in fv.train.step_keys(fv.random.key(6), torch.arange(3)):
        ts, report = step(ts, keys, x)
        reports.append(torch.stack(report))
    return ts, torch.stack(reports)


SPEC = {
    "mnist_ae": "elbo", "mnist_bn_vae": "dreg", "burda_vae": "iwae", "batch_norm": "vimco", "mnist_vae": "stl",
    "full_normal": "elbo", "bernoulli": "disarm", "dropout": "beta_elbo:linear:0:1:3",
    "conditional": "free_bits:linear:1:0:3",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "backend"),
    [("batch_norm", "aot_eager"), *(pytest.param(name, "inductor", marks=pytest.mark.slow) for name in MODELS)],
)
def test_compiled_steps_equal_eager_steps_and_repeat_to_the_bit(monkeypatch, name, backend):
    """The fast case checks the graphs with aot_eager; the slow ones compile them with inductor, twice."""
    if backend == "aot_eager":
        use_aot_eager(monkeypatch)
    spec = SPEC.get(name, "elbo_mc")
    ts, reports = steps(name, spec, compilation.compiled)
    eager, known = steps(name, spec, lambda f: f)
    if backend == "inductor":
        again, repeated = steps(name, spec, compilation.compiled)
        assert torch.equal(reports, repeated)
        assert all(torch.equal(a, b) for a, b in zip(tree.leaves(ts), tree.leaves(again), strict=True))
    torch.testing.assert_close(reports, known, rtol=1e-4, atol=1e-5)
    # Adam turns the rounding of a gradient that is zero into a step of its own size.
    assert_close(ts.params, eager.params, atol=6.1e-3, rtol=0)


@pytest.mark.slow
def test_compiled_fit_in_chunks_equals_eager_fit_to_rounding():
    model, _, _, x, _ = made("batch_norm")
    opt = fv.optim.adam(1e-2)
    ts, x = in_float64((fv.train.init(model, opt, fv.random.key(0)), x))  # see `steps`
    found = [
        fv.train.fit(ts, model, parse("iwae"), opt, x, test=x, epochs=2, batch=3, samples=10, chunk=chunk, compile=c)[1]
        for chunk, c in ((4, True), (4, False), (None, False))
    ]
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert a == pytest.approx(b, rel=1e-5)
    for step in range(2):
        again = fv.train.replay(ts, step, model, parse("iwae"), opt, x, batch=3, samples=10, chunk=4)
        assert [float(number) for number in again.metrics] == [column[step] for column in found[0][:5]]
        assert float(again.bound.mean()) == pytest.approx(found[0].bound[step], rel=1e-5)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_fit_with_a_cuda_graph_equals_eager_fit():
    model, *_ = made("batch_norm")
    opt = fv.optim.adam(1e-2)
    x = fv.random.bernoulli(fv.random.key(2), 0.5, (64, 3)).float()
    ts = fv.train.init(model, opt, fv.random.key(0, device="cuda"))
    found = [
        fv.train.fit(ts, model, parse("iwae"), opt, x, batch=16, samples=4, epochs=3, compile=c) for c in (True, False)
    ]
    (one, compiled), (two, eager) = found
    assert compiled.loss == pytest.approx(eager.loss, rel=1e-4)
    assert_close(one.state, two.state, atol=1e-4, rtol=1e-3)
