"""One training step: the loss, its scale, and the optimizer."""

import pytest
import torch

import funcvae as fv
from funcvae._support import checks
from funcvae.errors import BadType, BadValue
from tests.support.specs import CONTINUOUS
from tests.support.training import small


def test_an_optimizer_without_an_in_place_update_gives_the_same_bits(points):
    model, opt = small(), fv.optim.adam(1e-2)
    pure = fv.optim.Optimizer(opt.init, opt.update)
    ts = fv.train.init(model, opt, fv.random.key(0))
    one, _ = fv.train.fit(ts, model, fv.estimators.elbo(), opt, points, batch=16, compile=False)
    two, _ = fv.train.fit(ts, model, fv.estimators.elbo(), pure, points, batch=16, compile=False)
    assert all(map(torch.equal, fv.tree.leaves(one), fv.tree.leaves(two)))


def test_scale_applies_to_the_loss_and_its_gradient_and_offset_to_the_loss(points):
    """Makes one step of SGD. It depends on the scale; a step of Adam does not."""
    model, elbo = small(), fv.estimators.elbo()

    def update(grads, opt_state, params):
        return fv.tree.map(lambda p, g: p - 0.01 * g, params, grads), opt_state

    ts = fv.train.init(model, fv.optim.adam(), fv.random.key(0))
    keys = fv.random.split(fv.random.key(1))
    plain, before = fv.train.make_step(model, elbo, update)(ts, keys, points)
    scaled, after = fv.train.make_step(model, elbo, update, scale=lambda batch: 2.0 * batch, offset=3.0)(
        ts, keys, points
    )
    assert after.bound == before.bound
    torch.testing.assert_close(after.loss, 100 * (-before.bound - 3))
    torch.testing.assert_close(after.grad_norm, 100 * before.grad_norm)
    moves = [fv.tree.map(torch.sub, new.params, ts.params) for new in (plain, scaled)]
    for one, hundred in zip(*map(fv.tree.leaves, moves), strict=True):
        torch.testing.assert_close(hundred, 100 * one, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("scale", [lambda batch: torch.ones(2), lambda batch: "2", lambda batch: None])
def test_a_scale_that_is_not_one_number_is_an_error(points, scale):
    model, opt = small(), fv.optim.adam()
    ts = fv.train.init(model, opt, fv.random.key(0))
    step = fv.train.make_step(model, fv.estimators.elbo(), opt.update, scale=scale)
    with pytest.raises(BadType, match=r"the result of scale is .*: it must be a number"):
        step(ts, fv.random.split(fv.random.key(1)), points)


@pytest.mark.parametrize("spec", CONTINUOUS)
def test_a_step_does_not_check_arguments_again(points, spec, monkeypatch):
    def fail(*args):
        raise AssertionError("a check inside of a step")

    model, opt = small(), fv.optim.adam()
    ts = fv.train.init(model, opt, fv.random.key(0))
    step = fv.train.make_step(model._replace(check=fail), fv.estimators.parse(spec), opt.update, samples=4)
    keys = fv.random.split(fv.random.key(1))
    monkeypatch.setattr(checks, "_checked", fail)
    step(ts, keys, points)


def test_per_example_is_1_and_summed_is_the_batch_size():
    assert [fv.train.per_example(b) for b in (1, 128)] == [1, 1]
    assert [fv.train.summed(b) for b in (1, 128)] == [1, 128]


def test_an_optimizer_state_of_other_parameters_is_an_error(points):
    model, opt = small(), fv.optim.adam()
    ts = fv.train.init(model, opt, fv.random.key(0))
    first = next(iter(ts.params["encoder"]))
    other = {**ts.params, "encoder": {**ts.params["encoder"], first: torch.zeros(1)}}
    for wrong in (opt.init(other), None, {}, tuple(opt.init(ts.params))):
        with pytest.raises(BadValue, match=r"ts\.opt_state is not of this optimizer and these params"):
            fv.train.fit(ts._replace(opt_state=wrong), model, fv.estimators.elbo(), opt, points, compile=False)


@pytest.mark.parametrize(
    ("transform", "error", "message"),
    [
        (lambda g, s, p: g, BadType, r"update of a Transform returned of type dict: it must return \(grads, state\)"),
        (lambda g, s, p: ({}, s), BadValue, "different structures"),
        (
            lambda g, s, p: (fv.tree.map(torch.sum, g), s),
            BadValue,
            r"a gradient has shape \[\]: its parameter or moment",
        ),
        (lambda g, s, p: (g, {"n": torch.zeros(1)}), BadValue, "returned opt_state of other names or shapes"),
    ],
)
def test_a_wrong_transform_is_an_error_before_the_first_step(points, transform, error, message):
    opt = fv.optim.chain(fv.optim.Transform(lambda params: {}, transform), fv.optim.sgd(0.1))
    with pytest.raises(error, match=message):
        fitted(opt, points)


@pytest.mark.parametrize(
    ("init", "update", "error", "message"),
    [
        (lambda p: 3, lambda g, s, p: (p, s), BadType, "a leaf of the optimizer's state is 3: it must be a tensor"),
        (
            lambda p: {},
            lambda g, s, p: p,
            BadType,
            r"update returned of type dict: it must return \(params, opt_state\)",
        ),
        (lambda p: {}, lambda g, s, p: (s, p), BadValue, "returned params of other names or shapes: it must keep them"),
    ],
)
def test_a_wrong_optimizer_is_an_error_before_the_first_step(points, init, update, error, message):
    with pytest.raises(error, match=message):
        fitted(fv.optim.Optimizer(init, update), points)


def fitted(opt, points):
    model = small()
    ts = fv.train.init(model, opt, fv.random.key(0))
    before = fv.tree.sha256(ts.params)

    def no_step(step, ts):
        raise AssertionError("it made a step")

    try:
        fv.train.fit(ts, model, fv.estimators.elbo(), opt, points, compile=False, watch=no_step)
    finally:
        assert fv.tree.sha256(ts.params) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda eps: eps.long(), "eps is a torch.int64 tensor .*: it must be floating-point"),
        (
            lambda eps: eps.double(),
            "eps is torch.float64 and the parameters are torch.float32: draw eps with dtype=",
        ),
        (lambda eps: eps[:, :1], r"eps has shape \[1, 1, 2\]: it must be \[1, 2, 2\]"),
    ],
)
@pytest.mark.parametrize("shards", [None, 2])
def test_noise_of_another_dtype_or_shape_is_an_error(points, change, message, shards):
    @fv.noise.independent
    def scheme(key, n, shape, *, dtype):
        return change(fv.noise.iid(key, n, shape, dtype=dtype))

    model, opt = small(), fv.optim.adam()
    ts = fv.train.init(model, opt, fv.random.key(0))
    options = {"noise": scheme, "compile": False, "batch": 50, "shards": shards}
    with pytest.raises((BadType, BadValue), match=message):
        fv.train.fit(ts, model, fv.estimators.elbo(), opt, points[:50].float(), **options)


def test_an_update_must_return_params_and_state(points):
    model, opt = small(), fv.optim.adam()
    ts = fv.train.init(model, opt, fv.random.key(0))
    step = fv.train.make_step(model, fv.estimators.elbo(), lambda grads, opt_state, params: None)
    with pytest.raises(BadType, match="update returned None: it must return"):
        step(ts, fv.random.split(fv.random.key(1)), points)
