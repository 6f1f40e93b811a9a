"""Early stopping, the best parameters, and interrupts."""

import signal

import numpy as np
import pytest
import torch

import funcvae as fv
from funcvae.errors import BadValue
from funcvae.figures import of_results


@pytest.mark.parametrize(
    ("bounds", "patience", "min_delta", "epochs"),
    [
        ([1, 2, 1.9, 1.8, 3], 2, 0, 4),
        ([1, 2, 1.9, 2.1, 2.0, 1.0], 2, 0, 6),
        ([1, 2, 2.05, 2.1, 3], 2, 0.5, 4),
        ([3, 2], 1, 0, 2),
        ([1, 2, 3], 1, 0, None),
        ([np.nan, 2, np.nan, 1, np.nan, 1], 3, 0, 6),  # not after the fifth epoch, which has no bound
        ([2, np.nan, np.nan, 3], 1, 0, None),
    ],
)
def test_early_stopping_counts_the_epochs_without_an_improvement(bounds, patience, min_delta, epochs):
    until = fv.train.early_stopping(patience, min_delta)
    stops = [n for n in range(1, len(bounds) + 1) if until(np.array(bounds[:n], float))]
    assert (stops[0] if stops else None) == epochs


def trained(**options):
    model, opt = fv.models.gaussian2d_vae(), fv.optim.adam(0.3)  # so large that the test bound goes up and down
    ts = fv.train.init(model, opt, fv.random.key(1))
    x = fv.random.normal(fv.random.key(2), (60, 2))
    options = {"epochs": 12, "ts": ts, **options}
    arguments = {"test": x[50:], "batch": 10, "compile": False, **options}
    return fv.train.fit(arguments.pop("ts"), model, fv.estimators.elbo(), opt, x[:50], **arguments)


def test_fit_stops_early_keeps_the_best_and_resumes_to_the_bit():
    states = {}
    _, whole = trained(watch=lambda step, ts: states.update({step: fv.tree.map(torch.clone, ts)}))
    until, best = fv.train.early_stopping(2), fv.train.keep_best()
    epochs = next(n for n in range(1, 13) if until(whole.test_bound[:n]))
    assert 3 <= epochs < 12
    ts, history = trained(until=until, best=best)
    assert len(history.test_bound) == epochs
    assert (history.test_bound == whole.test_bound[:epochs]).all()
    at = int(history.test_bound.argmax())
    assert at == epochs - 3
    assert int(best.ts.step) == 5 * (at + 1)
    assert fv.tree.sha256(best.ts) == fv.tree.sha256(states[5 * (at + 1)])
    half, past = trained(epochs=2)
    resumed, both = trained(ts=half, history=past, epochs=10, until=until)
    assert fv.tree.sha256(resumed) == fv.tree.sha256(ts)
    assert (both.test_bound == history.test_bound).all()
    again, same = trained(ts=resumed, history=both, epochs=10, until=until)
    assert int(again.step) == int(ts.step), "it has ended already"
    assert len(same.loss) == len(history.loss)


def test_test_bounds_of_some_epochs_are_those_of_all_and_change_no_parameter():
    rows, epochs = [], np.arange(1, 6)
    ts, whole = trained(epochs=5)
    some, history = trained(epochs=5, test_every=2, log=rows.append)
    assert fv.tree.sha256(some) == fv.tree.sha256(ts)
    np.testing.assert_array_equal(
        history.test_bound, np.where((epochs % 2 == 0) | (epochs == 5), whole.test_bound, np.nan)
    )
    assert ["test_bound" in row for row in rows if row["kind"] == "epoch"] == [False, True, False, True, True]

    half, past = trained(epochs=2, test_every=2)
    _, resumed = trained(ts=half, history=past, epochs=3, test_every=2)
    np.testing.assert_array_equal(resumed.test_bound, history.test_bound)
    figure = of_results.several_runs([("all", whole), ("some", history)])
    assert [len(line.get_xdata()) for line in figure.axes[0].lines[:2]] == [5, 3]
    assert of_results.training(history).axes
    best = fv.train.keep_best()
    trained(epochs=5, test_every=2, best=best)
    assert int(best.ts.step) == 5 * (1 + int(np.nanargmax(history.test_bound)))


def test_until_and_best_need_a_test_set():
    for option in ({"until": fv.train.early_stopping(1)}, {"best": fv.train.keep_best()}):
        with pytest.raises(BadValue, match="until and best depend on the test bound: give test, too"):
            trained(test=None, **option)
    with pytest.raises(BadValue, match="no best TrainState yet"):
        _ = fv.train.keep_best().ts


@pytest.fixture
def default_interrupt():
    """Python's own handler of SIGINT, which a process that was started in the background lacks."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("default_interrupt")
def test_an_interrupt_returns_what_was_reached_and_a_second_one_raises():
    before = signal.getsignal(signal.SIGINT)

    def watch(step, ts):
        if step == 7:
            signal.raise_signal(signal.SIGINT)

    ts, history = trained(watch=watch, stop=fv.train.interrupt())
    assert int(ts.step) == 7
    assert len(history.loss) == 7
    assert signal.getsignal(signal.SIGINT) is before

    def twice(step, ts):
        if step == 7:
            signal.raise_signal(signal.SIGINT)
            while not stop():  # until Python has handled the first
                pass
            signal.raise_signal(signal.SIGINT)

    stop = fv.train.interrupt()
    with pytest.raises(KeyboardInterrupt):
        trained(watch=twice, stop=stop)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("spec", ["elbo", "elbo_mc", "iwae", "dreg", "tvo:0:0.5:1"])
@pytest.mark.parametrize(
    "options", [{}, {"chunk": 2}, {"shards": 3}, {"shards": 2, "split": fv.distributed.by_samples}]
)
def test_the_history_has_reconstruction_and_kl_apart(spec, options):
    model, opt, est = fv.models.gaussian2d_vae(), fv.optim.adam(0.0), fv.estimators.parse(spec)
    ts = fv.train.init(model, opt, fv.random.key(1))
    x = fv.random.normal(fv.random.key(2), (12, 2))
    _, history = fv.train.fit(ts, model, est, opt, x, batch=12, samples=5, compile=False, **options)
    step = fv.train.replay(ts, 0, model, est, opt, x, batch=12, samples=5, compile=False, **options)
    q, _ = model.encode(ts.params, ts.state, step.x)
    z = q.loc + q.sigma * step.eps
    p, _ = model.decode(ts.params, ts.state, z)
    reconstruction = torch.distributions.Normal(p.loc, p.sigma).log_prob(step.x).sum(-1).mean()
    standard, posterior = torch.distributions.Normal(0.0, 1.0), torch.distributions.Normal(q.loc, q.sigma)
    if spec == "elbo":
        kl = torch.distributions.kl_divergence(posterior, standard).sum(-1).mean()
    else:
        kl = (posterior.log_prob(z) - standard.log_prob(z)).sum(-1).mean()
    assert history.reconstruction[0] == pytest.approx(float(reconstruction), rel=1e-5)
    assert history.kl[0] == pytest.approx(float(kl), rel=1e-4)
    if spec in ("elbo", "elbo_mc"):
        assert history.bound[0] == pytest.approx(history.reconstruction[0] - history.kl[0], rel=1e-5)
    else:
        assert abs(history.bound[0] - history.reconstruction[0] + history.kl[0]) > 1e-3


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_early_stopping_and_the_best_state_on_cuda_agree_with_the_cpu():
    found = []
    for device in ("cpu", "cuda"):
        ts = fv.train.init(fv.models.gaussian2d_vae(), fv.optim.adam(0.3), fv.random.key(1, device=device))
        best = fv.train.keep_best()
        _, history = trained(ts=ts, until=fv.train.early_stopping(1), best=best, epochs=4)
        assert best.ts.step.device.type == device
        found.append((len(history.test_bound), int(best.ts.step)))
    assert found[0] == found[1]


def test_bounds_of_an_estimator_that_changes_are_not_compared():
    model, opt = fv.models.gaussian2d_vae(), fv.optim.adam()
    x = fv.random.normal(fv.random.key(2), (20, 2))
    for option in ({"until": fv.train.early_stopping(1)}, {"best": fv.train.keep_best()}):
        with pytest.raises(BadValue, match="the estimator, and so its bound, changes with the step"):
            fv.train.fit(
                fv.train.init(model, opt, fv.random.key(1)), model, lambda step: fv.estimators.beta_elbo(1.0), opt, x,
                test=x, compile=False, **option,
            )  # fmt: skip
