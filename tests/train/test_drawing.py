"""The inputs of several steps, drawn together: they have the bits of those drawn one by one."""

import pytest
import torch

import funcvae as fv
from funcvae.distributed.sharding import GradientSettings
from funcvae.errors import BadData, BadValue
from funcvae.estimators.types import by_step
from funcvae.models.recipe import binarize
from funcvae.train.drawing import drawn_ahead, step_inputs
from tests.support.compiling import use_aot_eager

MODEL = fv.models.mnist_vae()
PARAMS, _ = MODEL.init(fv.random.key(0))
X = fv.random.uniform(fv.random.key(1), (50, 1, 28, 28))
KEYS = fv.random.split(fv.random.key(2), 2 * 20).view(20, 2, 2)


def settings(observe=fv.model.as_is, noise=fv.noise.iid, samples=4):
    return GradientSettings(MODEL.unchecked(), by_step(fv.estimators.iwae()), samples, samples, observe, noise)


def batches(sizes):
    return [(torch.arange(size), KEYS[i], X[i : i + size]) for i, size in enumerate(sizes)]


@pytest.mark.parametrize("noise", fv.noise.TABLE.values(), ids=fv.noise.TABLE)
@pytest.mark.parametrize("observe", [fv.model.as_is, fv.model.as_floats, binarize])
def test_they_have_the_bits_of_single_draws(observe, noise):
    gradient, given = settings(observe, noise), batches([16] * 5 + [3] + [16] * 7 + [3])
    found = list(drawn_ahead(gradient, 50, iter(given), PARAMS))
    for (x, eps), (_, keys, data) in zip(found, given, strict=True):
        one_x, one_eps = step_inputs(PARAMS, keys, data, gradient)
        assert torch.equal(x, one_x)
        assert torch.equal(eps, one_eps)


def test_few_calls_draw_all(monkeypatch):
    calls = []
    draw = fv.noise.independent(lambda *args, **options: calls.append(args) or fv.noise.iid(*args, **options))
    list(drawn_ahead(settings(noise=draw), 50, iter(batches([16] * 20)), PARAMS))
    assert len(calls) <= 22, "a trial of each step in the first group, then one call for each group"


def rounding(key, x):
    """An observation of which vmap changes the last bits."""
    in_vmap = torch._C._functorch.is_batchedtensor(x)
    return x * (1 + 1e-6 * in_vmap)


@pytest.mark.parametrize("observe", [lambda key, x: x if x.sum() > 0 else -x, rounding])
def test_an_observe_that_vmap_cannot_take_or_changes_is_called_for_each_step(observe):
    gradient, given = settings(observe), batches([16] * 5)
    for (x, _), (_, _, data) in zip(drawn_ahead(gradient, 50, iter(given), PARAMS), given, strict=True):
        assert torch.equal(x, data)


def test_the_steps_before_unreadable_data_are_made():
    def reading():
        yield from batches([16] * 3)
        raise BadData("item 7 is damaged")

    found = drawn_ahead(settings(), 50, reading(), PARAMS)
    assert [len(next(found)[0]) for _ in range(3)] == [16] * 3
    with pytest.raises(BadData, match="item 7 is damaged"):
        next(found)


def test_the_steps_before_an_observe_that_fails_are_made():
    def observe(key, x):
        if torch.equal(x, X[5:21]):
            raise BadData("item 7 is damaged")
        return x + 0

    found = drawn_ahead(settings(observe), 50, iter(batches([16] * 8)), PARAMS)
    with pytest.raises(BadData, match="item 7 is damaged"):
        list(found)


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize(
    "sharded",
    [{}, {"shards": 2}, {"shards": 2, "split": fv.distributed.by_samples, "samples": 2}],
    ids=["whole", "by rows", "by samples"],
)
def test_an_observe_that_changes_the_number_of_items_is_refused(sharded, compile, monkeypatch):
    use_aot_eager(monkeypatch)
    model, opt = fv.models.gaussian2d_vae(), fv.optim.adam()
    ts, x = fv.train.init(model, opt, fv.random.key(0)), torch.zeros(40, 2)
    options = {"observe": lambda key, x: x[:3], "batch": 20, "compile": compile, **sharded}
    with pytest.raises(BadValue, match="observe returned 3 items for 20 data: it must keep their number"):
        fv.train.fit(ts, model, fv.estimators.elbo(), opt, x, **options)


@pytest.mark.parametrize(("most", "items", "held"), [(50, 2**16, 2**4), (3, 1, 3), (50, 1, 50)])
def test_a_bounded_number_of_batches_is_held(most, items, held):
    """Batches without draws: 2^20 numbers of the data at once, or `most` batches."""
    read, x = [], torch.zeros(1, items)

    def reading():
        for i in range(200):
            read.append(i)
            yield torch.zeros(1), KEYS[0], x

    next(iter(drawn_ahead(settings(samples=1), most, reading(), PARAMS)))
    assert len(read) == min(most, held) + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(5, 7, 3), (7, 13, 11), (4, 100, 51), (1, 1, 1)])
def test_normals_under_vmap_have_the_same_bits_at_every_position(shape, dtype):
    keys = fv.random.split(fv.random.key(3), 50)
    one = torch.stack([fv.random.normal(key, shape, dtype) for key in keys])
    for size in (2, 7, 50):
        for i in range(0, 50, size):
            several = torch.vmap(lambda key: fv.random.normal(key, shape, dtype))(keys[i : i + size])
            assert torch.equal(several, one[i : i + size])
