"""The training loop against an explicit loop, and runs that stop and continue."""

import math
import random as python_random

import numpy as np
import pytest
import torch
from torch import nn

import funcvae as fv
from funcvae.data import gaussian2d
from funcvae.errors import BadData, BadType, BadValue, NonFinite
from tests.support.training import begun, binarize01, fit, same, small


def test_fit_equals_an_explicit_loop(points):
    model, opt, elbo = small(), fv.optim.adam(1e-2), fv.estimators.elbo()
    ts = fv.train.init(model, opt, fv.random.key(0))
    trained, history = fv.train.fit(
        ts, model, elbo, opt, points, epochs=2, batch=16, samples=3, observe=binarize01, compile=False
    )
    order_key, step_key = fv.random.split(ts.key)
    params, state, opt_state = ts.params, ts.state, ts.opt_state
    bounds, norms = [], []
    for epoch in range(2):
        order = fv.random.permutation(fv.random.fold_in(order_key, epoch), 50)
        for i in range(4):
            noise_key, observe_key = fv.random.split(fv.random.fold_in(step_key, 4 * epoch + i))
            x = binarize01(observe_key, points[order[16 * i : 16 * (i + 1)]])
            out = elbo(model, params, state, x, fv.noise.iid(noise_key, 3, (len(x), 2)), train=True)
            params, opt_state = opt.update(out.grads, opt_state, params)
            bounds.append(out.bound.mean().item())
            norms.append(sum(g.square().sum() for g in fv.tree.leaves(out.grads)).sqrt().item())
    assert all(map(torch.equal, fv.tree.leaves(trained.params), fv.tree.leaves(params)))
    np.testing.assert_array_equal(history.bound, bounds)
    np.testing.assert_array_equal(history.loss, -history.bound)
    np.testing.assert_allclose(history.grad_norm, norms, rtol=1e-6)
    assert trained.step == 8


def test_fit_does_not_modify_its_arguments_or_a_global_generator(points):
    model, opt = small(), fv.optim.adam()
    ts = fv.train.init(model, opt, fv.random.key(0))
    before = fv.tree.map(torch.clone, (ts, points))
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), python_random.getstate()  # noqa: NPY002
    fv.train.fit(ts, model, fv.estimators.elbo(), opt, points, test=points, epochs=1, batch=16, compile=False)
    assert all(map(torch.equal, fv.tree.leaves((ts, points)), fv.tree.leaves(before)))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.random.get_state()[1].tolist() == numpy_state[1].tolist()  # noqa: NPY002
    assert python_random.getstate() == python_state


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(points):
    (a, one), (b, two), (_, three) = fit(points), fit(points), fit(points, seed=1)
    assert all(map(torch.equal, fv.tree.leaves(a), fv.tree.leaves(b)))
    np.testing.assert_array_equal(one.loss, two.loss)
    assert not np.array_equal(one.loss, three.loss)


def test_continued_training_equals_uninterrupted_training_bit_for_bit(points):
    model, opt, elbo = small(), fv.optim.adam(), fv.estimators.elbo()
    start = fv.train.init(model, opt, fv.random.key(0))
    whole, _ = fv.train.fit(start, model, elbo, opt, points, epochs=3, batch=16, compile=False)
    half, _ = fv.train.fit(start, model, elbo, opt, points, epochs=1, batch=16, compile=False)
    rest, history = fv.train.fit(half, model, elbo, opt, points, epochs=2, batch=16, compile=False)
    assert all(map(torch.equal, fv.tree.leaves(whole), fv.tree.leaves(rest)))
    assert len(history.loss) == 8


def test_training_continued_within_an_epoch_equals_uninterrupted_training_bit_for_bit(points):
    model, opt, elbo = small(), fv.optim.adam(), fv.estimators.elbo()
    start = fv.train.init(model, opt, fv.random.key(0))
    whole, _ = fv.train.fit(start, model, elbo, opt, points, epochs=1, batch=16, compile=False)
    step = fv.train.make_step(model, elbo, opt.update)
    rows, keys = fv.train.batches(start.key, 50, 16, 0)
    ts, _ = step(start, keys[0], points[rows[0]])
    rest, history = fv.train.fit(ts, model, elbo, opt, points, epochs=1, batch=16, compile=False)
    assert all(map(torch.equal, fv.tree.leaves(whole), fv.tree.leaves(rest)))
    assert len(history.loss) == 3


def test_a_history_as_a_frame_has_steps_epochs_and_test_bounds(points):
    _, history = fit(points, test=points, epochs=2)
    frame = history.to_pandas()
    assert history.steps_per_epoch == 4
    assert frame.step.tolist() == list(range(8))
    assert frame.epoch.tolist() == [0] * 4 + [1] * 4
    assert frame.kl.tolist() == history.kl.tolist()
    assert frame.test_bound.dropna().to_dict() == dict(zip((3, 7), history.test_bound, strict=True))
    assert history.to_csv().splitlines()[0] == "step,epoch,loss,bound,grad_norm,reconstruction,kl,test_bound"


def test_a_history_from_within_an_epoch_has_no_epochs(points):
    model, opt, elbo = small(), fv.optim.adam(), fv.estimators.elbo()
    ts = fv.train.init(model, opt, fv.random.key(0))
    made = iter((False, True))
    ts, first = fv.train.fit(ts, model, elbo, opt, points, batch=16, compile=False, stop=lambda: next(made))
    _, rest = fv.train.fit(ts, model, elbo, opt, points, batch=16, compile=False)
    _, whole = fv.train.fit(ts, model, elbo, opt, points, batch=16, compile=False, history=first)
    assert "epoch" not in rest.to_dict()
    assert whole.to_dict()["epoch"] == [0] * 4


def test_validation_uses_the_same_noise_every_epoch(points):
    _, history = fit(points, test=points[:20], lr=0.0, epochs=3)
    assert len(set(history.test_bound)) == 1
    assert len(set(history.bound)) == 12


def test_the_test_bound_is_the_mean_over_examples_in_evaluation_mode(points):
    model, iwae = small(), fv.estimators.iwae()
    ts = fv.train.init(model, fv.optim.adam(), fv.random.key(0))
    key, test = fv.random.key(9), points[:20]
    value = fv.train.test_bound(model, iwae, ts, test, key, batch=16, samples=3)
    total = 0.0
    for i, x in enumerate(test.split(16)):
        noise_key, _ = fv.random.split(fv.random.fold_in(key, i))
        eps = fv.noise.iid(noise_key, 3, (len(x), 2))
        total += iwae(model, ts.params, ts.state, x, eps, train=False).bound.sum().item()
    assert value == pytest.approx(total / 20, rel=1e-6)


def test_rows_are_logged_for_every_step_and_every_epoch(points):
    rows = []
    _, history = fit(points, test=points, log=rows.append)
    steps, epochs = ([row for row in rows if row["kind"] == kind] for kind in ("step", "epoch"))
    assert len(rows) == 10
    assert [row["step"] for row in steps] == list(range(8))
    assert [row["loss"] for row in steps] == history.loss.tolist()
    assert [row["test_bound"] for row in epochs] == history.test_bound.tolist()
    assert [row["step"] for row in epochs] == [4, 8]
    for name in ("bound", "reconstruction", "kl"):
        mean = np.average(getattr(history, name)[:4], weights=[16, 16, 16, 2])
        assert epochs[0][f"train_{name}"] == pytest.approx(mean, rel=1e-12)
    assert rows.index(epochs[0]) == 4


def test_the_bound_of_an_epoch_counts_each_item_once_also_in_a_short_last_batch():
    data = torch.zeros(33, 2)
    data[0] = 20.0  # in the batch of 32, whose mean is far from that of the last item
    rows, model, opt = [], small(), fv.optim.adam(0.0)
    ts = fv.train.init(model, opt, fv.random.key(2))
    fv.train.fit(ts, model, fv.estimators.iwae(), opt, data, batch=32, samples=50, compile=False, log=rows.append)
    first, last, epoch = rows[0]["bound"], rows[1]["bound"], rows[2]["train_bound"]
    assert abs(first - last) > 1
    assert epoch == pytest.approx((32 * first + last) / 33, rel=1e-12)


def test_the_test_bound_approaches_minus_the_entropy_of_the_data_and_does_not_exceed_it():
    data = gaussian2d(fv.random.key(1), 2000)
    _, history = fit(data[:1000], test=data[1000:], epochs=20, batch=50, lr=2e-2, samples=4)
    entropy = math.log(2 * math.pi * math.e) + 0.5 * math.log(0.75)  # of N(mu, cov) with det(cov) = 3/4
    noise = 1 / math.sqrt(1000)  # log p(x) has variance 1: half a chi-square with 2 degrees of freedom
    assert history.test_bound[-1] == pytest.approx(-entropy, abs=0.1)
    assert history.test_bound[-1] < -entropy + 4 * noise


def test_training_updates_batchnorm_statistics():
    model = fv.vae(
        encoder=lambda: nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4)),
        decoder=lambda: nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4)),
        likelihood=fv.heads.normal_logvar,
        latent=2,
    )
    data = fv.random.normal(fv.random.key(1), (32, 2))
    ts, _ = fit(data, model=model, samples=2)
    for name in ("encoder", "decoder"):
        assert ts.state[name]["1.num_batches_tracked"] == 4
        assert ts.state[name]["1.running_mean"].abs().max() > 0


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_run_on_cuda_agrees_with_the_run_on_the_cpu(points):
    model, opt = small(), fv.optim.adam(1e-2)
    losses = []
    for device in ("cpu", "cuda"):
        ts = fv.train.init(model, opt, fv.random.key(0, device=device))
        _, history = fv.train.fit(
            ts, model, fv.estimators.elbo(), opt, points, test=points, epochs=2, batch=16, compile=False
        )
        losses.append(history.loss)
    np.testing.assert_allclose(*losses, rtol=1e-4)


@pytest.mark.parametrize("name", ["epochs", "batch", "samples"])
def test_a_count_of_zero_is_an_error(points, name):
    with pytest.raises(BadValue, match=f"{name} is 0: it must be at least 1"):
        fit(points, **{name: 0})


def test_data_the_model_cannot_take_is_an_error_before_any_step(points):
    with pytest.raises(BadData, match="train has NaN or infinite values, first in item 3"):
        fit(points.clone().index_fill_(0, torch.tensor([3]), torch.nan))
    with pytest.raises(BadData, match=r"cannot take train with items of shape \[3\]"):
        fit(torch.zeros(10, 3))
    with pytest.raises(BadData, match="test is empty"):
        fit(points, test=points[:0])
    with pytest.raises(BadData, match=r"decoder describes data of shape \[1, 28, 28\] in a batch of 2: .* \[784\]"):
        fit(torch.rand(4, 784), model=fv.models.burda_vae())
    with pytest.raises(BadData, match=r"train ranges from .* a Bernoulli likelihood requires \[0, 1\]"):
        fit(torch.rand(4, 1, 28, 28) * 255, model=fv.models.burda_vae())


def test_parameters_that_are_not_finite_after_the_last_update_are_an_error(points):
    with pytest.raises(NonFinite, match=r"parameters' norm became (nan|inf) after step 0 \(epoch 0\): a smaller"):
        fit(points, lr=1e38, epochs=1, batch=50)


def test_data_that_are_not_a_tensor_are_an_error(points):
    with pytest.raises(
        BadType, match=r"train is list .*: it must be a tensor \[n, ...\], a dict of such tensors, or a source"
    ):
        fit([points])


def test_a_loss_that_is_not_finite_is_an_error_and_earlier_steps_are_logged(points):
    rows = []
    large = 1e30  # squared, it overflows float32

    def observe(key: fv.random.Key, x: torch.Tensor) -> torch.Tensor:
        return torch.where(torch.tensor(len(x) == 2), x * large, x)  # the last, short batch of each epoch

    with pytest.raises(NonFinite, match=r"loss became (nan|inf) at step 3 \(epoch 0\)"):
        fit(points, observe=observe, log=rows.append)
    assert [row["step"] for row in rows] == [0, 1, 2]


def test_fit_scales_each_batch_by_its_size(points):
    _, history = fit(points, scale=fv.train.summed, offset=1.0, epochs=1)
    np.testing.assert_allclose(history.loss, (-history.bound - 1) * [16, 16, 16, 2], rtol=1e-6)


def test_watch_is_called_after_every_step_and_does_not_change_the_run(points):
    seen = []

    def watch(step, ts):
        seen.append((step, int(ts.step), fv.tree.map(torch.clone, ts.params)))

    watched, _ = fit(points, watch=watch)
    alone, _ = fit(points)
    assert [step for step, *_ in seen] == [now for _, now, _ in seen] == list(range(1, 9))
    assert all(map(torch.equal, fv.tree.leaves(watched), fv.tree.leaves(alone)))
    assert all(map(torch.equal, fv.tree.leaves(seen[-1][2]), fv.tree.leaves(watched.params)))


def test_watch_continues_the_numbers_of_steps_in_a_continued_run(points):
    model, opt = small(), fv.optim.adam()
    ts = fv.train.init(model, opt, fv.random.key(0))
    ts, _ = fv.train.fit(ts, model, fv.estimators.elbo(), opt, points, batch=16, compile=False)
    steps = []
    fv.train.fit(
        ts,
        model,
        fv.estimators.elbo(),
        opt,
        points,
        batch=16,
        watch=lambda step, ts: steps.append((step, int(ts.step))),
        compile=False,
    )
    assert steps == [(s, s) for s in range(5, 9)]


def test_a_last_batch_of_one_item_is_an_error_with_batch_norm():
    model = fv.models.mnist_bn_vae()
    images = fv.random.uniform(fv.random.key(0), (9, 1, 28, 28))
    with pytest.raises(BadData, match="9 items in batches of 4 leave a batch of a single item"):
        fit(images, model=model, batch=4)
    with pytest.raises(BadData, match="in batches of 1 leave"):
        fit(images, model=model, batch=1)
    fit(images, model=model, batch=3, epochs=1)
    fit(images, model=fv.models.mnist_vae(), batch=4, epochs=1)


def test_noise_that_an_estimator_does_not_support_is_an_error_before_training():
    model, opt, x = fv.models.gaussian2d_vae(), fv.optim.adam(1e-3), torch.zeros(4, 2)
    ts = fv.train.init(model, opt, fv.random.key(0))
    with pytest.raises(BadValue, match="dreg requires independent samples; mirrored noise is not independent"):
        fv.train.fit(ts, model, fv.estimators.dreg(), opt, x, samples=2, noise=fv.noise.mirrored, compile=False)
    for scheme in fv.noise.TABLE.values():
        _, history = fv.train.fit(
            ts, model, fv.estimators.iwae(), opt, x, samples=2, batch=4, noise=scheme, compile=False
        )
        assert len(history.bound) == 1


@pytest.mark.parametrize("k", range(1, 12))
def test_a_run_stopped_at_any_step_and_continued_equals_an_uninterrupted_run(points, k):
    """Compares TrainStates, histories and rows bit for bit. An epoch has four steps; Adam has a schedule."""
    options = {"test": points[:10], "batch": 16, "samples": 2, "compile": False}
    start, model, estimator, opt = begun()
    rows, whole_rows = [], []
    whole, history = fv.train.fit(start, model, estimator, opt, points, epochs=3, **options, log=whole_rows.append)
    steps = iter(range(1, 99))
    half, past = fv.train.fit(
        start, model, estimator, opt, points, epochs=3, **options, log=rows.append, stop=lambda: next(steps) >= k
    )
    assert half.step == k == len(past.bound)
    assert len(past.test_bound) == k // 4
    ended, joined = fv.train.fit(
        half, model, estimator, opt, points, epochs=3 - k // 4, **options, log=rows.append, history=past
    )
    assert same(ended, whole)
    assert rows == whole_rows
    for name, array in history._asdict().items():
        np.testing.assert_array_equal(getattr(joined, name), array)


def test_without_the_history_the_mean_bound_of_the_epoch_is_wrong(points):
    """The mean then covers only the steps after the stop. The test above would fail."""
    start, model, estimator, opt = begun()
    rows, steps = [], iter(range(1, 99))
    half, _ = fv.train.fit(start, model, estimator, opt, points, batch=16, stop=lambda: next(steps) >= 2, compile=False)
    fv.train.fit(start, model, estimator, opt, points, batch=16, log=rows.append, compile=False)
    whole = rows[-1]["train_bound"]
    fv.train.fit(half, model, estimator, opt, points, batch=16, log=rows.append, compile=False)
    assert rows[-1]["train_bound"] != whole


@pytest.mark.parametrize(
    ("every", "stop_at", "saved"), [(0, 99, [8]), (3, 99, [3, 6, 8]), (4, 99, [4, 8]), (3, 5, [3, 5]), (0, 1, [1])]
)
def test_save_gets_the_state_of_its_step_after_the_rows_of_earlier_steps_are_logged(points, every, stop_at, saved):
    start, model, estimator, opt = begun()
    kept, rows = {}, []

    def save(ts):
        kept[int(ts.step)] = fv.tree.map(torch.clone, ts), list(rows)

    steps = iter(range(1, 99))
    fv.train.fit(
        start, model, estimator, opt, points, epochs=2, batch=16, log=rows.append, save=save, save_every=every,
        stop=lambda: next(steps) >= stop_at,
        compile=False,
    )  # fmt: skip
    assert list(kept) == saved
    for step, (ts, before) in kept.items():
        steps = iter(range(1, 99))
        again, _ = fv.train.fit(
            start,
            model,
            estimator,
            opt,
            points,
            epochs=2,
            batch=16,
            stop=lambda s=step, n=steps: next(n) >= s,
            compile=False,
        )
        assert same(ts, again)
        assert [row["step"] for row in before if "loss" in row] == list(range(step))
        assert len([row for row in before if "loss" not in row]) == step // 4


def test_a_state_that_is_not_finite_is_not_saved(points):
    saved = []
    with pytest.raises(NonFinite, match=r"after step 0 .*") as raised:
        fit(points, lr=float("inf"), save=lambda ts: saved.append(ts), save_every=1)
    assert saved == []
    assert raised.value.step == 0


def test_a_negative_save_every_is_an_error(points):
    with pytest.raises(BadValue, match="save_every is -1"):
        fit(points, save_every=-1)


def test_a_run_compiled_by_inductor_agrees_with_the_eager_run(points):
    """One graph without random numbers, because the C++ compiler takes most of the time."""

    def ones(key, n, shape, *, dtype=torch.float32):
        return torch.ones(n, *shape, dtype=dtype)

    (_, compiled), (_, eager) = (fit(points[:32], noise=ones, compile=how) for how in (True, False))
    np.testing.assert_allclose(compiled.loss, eager.loss, rtol=1e-4)


def test_a_compiled_run_agrees_with_the_eager_run_and_continues_bit_for_bit(points, backend):
    """A fresh compiler sees batches of 16, 16, 16 and 2 or, in the continued run, first 2 and then 16.

    Only the first run has a `watch` callback. Compilation is slow, so all checks use one model.
    """
    start, model, estimator, opt = begun()
    before, seen, saved = fv.tree.map(torch.clone, (start, points)), [], []

    def watch(step, ts):
        seen.append((step, int(ts.step), fv.tree.map(torch.clone, ts.params)))

    def save(ts):
        saved.append(fv.tree.map(torch.clone, ts))

    def train(ts, **options):
        return fv.train.fit(ts, model, estimator, opt, points, epochs=2, batch=16, **options)

    torch.compiler.reset()
    whole, history = train(start, compile=True, watch=watch, save=save, save_every=3)
    half = saved[0]
    assert int(half.step) == 3
    torch.compiler.reset()
    ended, rest = train(half, compile=True)
    assert same(ended, whole)
    np.testing.assert_array_equal(rest.loss, history.loss[3:])
    _, eager = train(start, compile=False)
    np.testing.assert_allclose(history.loss, eager.loss, rtol=1e-4)
    assert same((start, points), before)
    assert not any(
        a.data_ptr() == b.data_ptr() for a, b in zip(fv.tree.leaves(start), fv.tree.leaves(whole), strict=True)
    )
    assert [step for step, *_ in seen] == [now for _, now, _ in seen] == list(range(1, 9))
    assert same(seen[-1][2], whole.params)
    if backend == "inductor":
        found = fv.train.replay(half, 6, model, estimator, opt, points, batch=16, compile=True)
        assert float(found.metrics.loss) == history.loss[6]
        assert float(found.bound.mean()) == pytest.approx(history.bound[6], rel=1e-6)


def test_a_history_of_another_dtype_can_be_continued(points):
    start, model, estimator, opt = begun()
    half, past = fv.train.fit(start, model, estimator, opt, points, batch=16, compile=False)
    past = past._replace(
        **{name: array.astype(np.float32) for name, array in zip(past._fields[:6], past, strict=False)}
    )
    _, history = fv.train.fit(half, model, estimator, opt, points, batch=16, history=past, compile=False)
    np.testing.assert_array_equal(history.loss[:4], past.loss)
    assert len(history.loss) == 8


def test_a_short_last_batch_is_not_compiled(points, monkeypatch):
    sizes = []

    def counted(f, *, device):
        return lambda ts, keys, x: sizes.append(len(x)) or f(ts, keys, x)

    monkeypatch.setattr(fv.compilation, "compiled", counted)
    model, opt, elbo = fv.models.gaussian2d_vae(), fv.optim.adam(), fv.estimators.elbo()
    ts = fv.train.init(model, opt, fv.random.key(0))
    found, _ = fv.train.fit(ts, model, elbo, opt, points, epochs=2, batch=16)
    expected, _ = fv.train.fit(ts, model, elbo, opt, points, epochs=2, batch=16, compile=False)
    assert sizes == [16] * 6, "of 2 · (16 + 16 + 16 + 2) points"
    assert all(map(torch.equal, fv.tree.leaves(found), fv.tree.leaves(expected)))
