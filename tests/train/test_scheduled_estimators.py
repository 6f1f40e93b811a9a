"""Training with a function of the step that returns the estimator, against steps with the estimator of each step."""

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import funcvae as fv
from funcvae import distributed, tree
from funcvae.errors import BadType, BadValue
from funcvae.estimators import beta_elbo, ciwae, free_bits
from funcvae.optim import linear
from tests.support.oracles import assert_close, double
from tests.support.training import same, small

CLAIMS = fv.Claims("a mixture", True, True, (), "any")
STEPS = 6
RISE = linear(0, 1, STEPS)


def mixed(step):
    """`ciwae` with a weight that rises, as a user would write it."""
    beta = RISE(step)

    def weights(log_w):
        r = (beta / len(log_w) + (1 - beta) * log_w.softmax(0)).to(log_w)
        return fv.Weights(path=r, score=-r, theta=r)

    def bound(log_w):
        return (beta * log_w.mean(0) + (1 - beta) * fv.bounds.iwae(log_w)).to(log_w)

    return fv.estimators.weighted(weights, bound=bound, claims=CLAIMS)


ANNEALED = {  # the function of the step, and the estimator of a number
    "beta_elbo": (lambda step: beta_elbo(RISE(step)), beta_elbo),
    "free_bits": (lambda step: free_bits(RISE(step)), free_bits),
    "mixed": (mixed, ciwae),
}
every_annealed = pytest.mark.parametrize(("estimator", "of"), ANNEALED.values(), ids=ANNEALED)
WAYS = {
    "plain": {},
    "chunks": {"chunk": 2},
    "rows": {"shards": 1},
    "chunked rows": {"shards": 1, "chunk": 2},
    "samples": {"shards": 2, "split": distributed.by_samples},
    "chunked samples": {"shards": 2, "split": distributed.by_samples, "chunk": 1},
}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def begun():
    """Three batches an epoch, in float64; with SGD, whose steps show the gradient's size."""
    model, opt = small(), fv.optim.sgd(0.01)
    ts = fv.train.init(model, opt, fv.random.key(0))
    return ts._replace(params=double(ts.params)), model, opt, fv.random.normal(fv.random.key(7), (12, 2), torch.float64)


def fit(estimator, compile=False, **options):
    ts, model, opt, x = begun()
    return fv.train.fit(ts, model, estimator, opt, x, test=x, epochs=2, batch=4, samples=5, compile=compile, **options)


def by_hand(of):
    """The TrainState and the test bounds of six steps, each with an estimator of a number."""
    ts, model, opt, x = begun()
    test_bounds = []
    for epoch in range(2):
        rows, keys = fv.train.batches(ts.key, 12, 4, epoch)
        for i in range(3):
            step = fv.train.make_step(model, of(int(ts.step) / STEPS), opt.update, samples=5)
            ts, _ = torch.no_grad()(step)(ts, keys[i], x[rows[i]])
        reached = of(int(ts.step) / STEPS)
        test_key = fv.train.run_keys(ts.key).test
        test_bounds.append(fv.train.test_bound(model, reached, ts, x, test_key, batch=4, samples=5))
    return ts, test_bounds


@every_way
@every_annealed
def test_every_step_and_test_bound_has_the_estimator_of_its_step(estimator, of, way):
    ts, history = fit(estimator, **way)
    known, test_bounds = by_hand(of)
    assert_close(ts.params, known.params, atol=1e-12)
    np.testing.assert_allclose(history.test_bound, test_bounds, rtol=1e-12)
    constant, _ = by_hand(lambda value: of(1.0))
    with pytest.raises(AssertionError):
        assert_close(ts.params, constant.params, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("beta_elbo", "chunks"),
        *(pytest.param("mixed", name, marks=pytest.mark.slow) for name in ("plain", "chunks", "rows", "samples")),
        *(pytest.param("beta_elbo", name, marks=pytest.mark.slow) for name in ("plain", "rows", "samples")),
    ],
)
def test_a_compiled_run_equals_the_eager_one_without_a_graph_for_each_step(monkeypatch, kind, name):
    graphs, compile = CompileCounterWithBackend("aot_eager"), torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, *, options, **given: compile(f, backend=graphs, **given))
    estimator, _ = ANNEALED[kind]
    _, eager = fit(estimator, **WAYS[name])
    counts = []
    torch._dynamo.reset()
    _, compiled = fit(estimator, compile=True, **WAYS[name], watch=lambda step, ts: counts.append(graphs.frame_count))
    np.testing.assert_allclose(compiled.loss, eager.loss, rtol=1e-8)
    np.testing.assert_allclose(compiled.test_bound, eager.test_bound, rtol=1e-8)
    assert 0 < counts[0] == counts[2]  # the test bound may make one after the third step
    assert counts[3] == counts[5]


@every_way
def test_a_constant_function_gives_the_bits_of_its_estimator(way):
    for spec in ("elbo", "iwae"):
        estimator = fv.estimators.parse(spec)
        (one, plain), (two, scheduled) = fit(estimator, **way), fit(lambda step, e=estimator: e, **way)
        assert same(one, two)
        assert all(map(np.array_equal, plain, scheduled))


@every_way
def test_replay_equals_the_step_of_the_run_to_the_bit(way):
    start, model, opt, x = begun()
    states = {}
    fit(mixed, **way, watch=lambda step, ts: states.update({step: tree.map(torch.clone, ts)}))
    found = fv.train.replay(start, 4, model, mixed, opt, x, batch=4, samples=5, compile=False, **way)
    assert same(found.after, states[5])
    known = fv.train.replay(start, 4, model, ciwae(4 / STEPS), opt, x, batch=4, samples=5, compile=False, **way)
    assert not same(known.after, states[5])  # its steps before had another weight
    other = fv.train.replay(found.before, 4, model, ciwae(4 / STEPS), opt, x, batch=4, samples=5, compile=False, **way)
    assert_close(other.grads, found.grads, atol=1e-12)
    assert_close(other.bound, found.bound, atol=1e-12)


def test_eager_training_may_change_the_kind_of_estimator():
    def switched(step):
        return beta_elbo(0.5) if step < 3 else fv.estimators.iwae()

    ts, _ = fit(switched)
    known, _ = by_hand(lambda part: switched(part * STEPS))
    assert_close(ts.params, known.params, atol=1e-12)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda step: None, r"the result of estimator\(step\) is None: it must be an Estimator"),
        (lambda step: fv.estimators.elbo, r"the result of estimator\(step\) is the function elbo"),
        (fv.estimators.elbo, "estimator is the factory elbo: call it"),
        (fv.estimators.beta_elbo, "estimator is the factory beta_elbo: call it"),
        (lambda model, params, state, x, eps, train: None, "it must be an Estimator, or a function of the step that"),
        (lambda: fv.estimators.elbo(), "it must be an Estimator, or a function of the step that returns one"),
        ("elbo", "estimator is 'elbo': it must be a function"),
        (None, "estimator is None"),
    ],
)
def test_what_is_neither_an_estimator_nor_a_function_of_the_step_is_an_error_of_one_line(wrong, message):
    ts, model, opt, x = begun()
    for call in (
        lambda: fit(wrong),
        lambda: fv.train.make_step(model, wrong, opt.update),
        lambda: fv.train.test_bound(model, wrong, ts, x, fv.random.key(0)),
        lambda: fv.train.replay(ts, 0, model, wrong, opt, x),
    ):
        with pytest.raises(BadType, match=message):
            call()


def test_the_noise_is_checked_for_the_estimator_of_the_first_step():
    with pytest.raises(BadValue, match="requires independent samples"):
        fit(lambda step: fv.estimators.dreg(), noise=fv.noise.moment_matched)


def test_make_step_is_a_pure_function_of_the_train_state():
    ts, model, opt, x = begun()
    step = fv.train.make_step(model, ANNEALED["beta_elbo"][0], opt.update, samples=2)
    keys = fv.train.step_keys(fv.random.key(1), torch.arange(1))[0]
    for made in (0, 4):
        at = ts._replace(step=torch.tensor(made))
        known = fv.train.make_step(model, beta_elbo(made / STEPS), opt.update, samples=2)
        assert_close(step(at, keys, x), known(at, keys, x), atol=1e-12)
