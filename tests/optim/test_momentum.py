"""SGD against torch.optim.SGD."""

from functools import partial

import pytest
import torch

from funcvae import optim, tree
from funcvae.errors import BadValue
from tests.support.optimizers import arguments_survive, gap, ours, params_and_grads, with_torch

SETTINGS = [
    {}, {"momentum": 0.9}, {"momentum": 0.9, "dampening": 0.5}, {"momentum": 0.9, "nesterov": True}, {"dampening": 0.5},
]  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS)
def test_sgd_equals_torchs_to_1e_12_over_100_steps(settings):
    params, grads = params_and_grads()
    assert (
        gap(
            ours(optim.sgd(0.1, **settings), params, grads),
            with_torch(torch.optim.SGD, params, grads, lr=0.1, **settings),
        )
        < 1e-12
    )
    schedule = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.97)
    want = with_torch(torch.optim.SGD, params, grads, schedule, lr=0.1, **settings)
    assert gap(ours(optim.sgd(optim.exponential(0.1, 0.97), **settings), params, grads), want) < 1e-12


def test_the_first_gradient_is_not_dampened():
    opt, params = optim.sgd(1.0, momentum=0.9, dampening=0.5), {"w": torch.zeros(1)}
    params, state = opt.update({"w": torch.ones(1)}, opt.init(params), params)
    assert params["w"] == -1
    params, state = opt.update({"w": torch.ones(1)}, state, params)
    assert params["w"] == pytest.approx(-1 - 0.9 - 0.5)


def test_sgds_defaults_are_torchs():
    params, grads = params_and_grads()
    assert gap(ours(optim.sgd(), params, grads), with_torch(torch.optim.SGD, params, grads)) < 1e-12


@pytest.mark.parametrize("settings", SETTINGS)
def test_update_is_pure_and_equals_the_update_in_place(settings):
    opt = optim.sgd(0.1, **settings)
    assert arguments_survive(opt)
    params, grads = params_and_grads(steps=5, dtype=torch.float32)
    mine, state = tree.map(torch.clone, params), opt.init(params)
    for g in grads:
        mine, state = opt.update_(g, state, mine)
    assert gap(mine, ours(opt, params, grads)) == 0


def test_update_under_vmap_over_gradients_equals_a_loop():
    params, grads = params_and_grads(steps=4)
    opt = optim.sgd(0.1, momentum=0.9, nesterov=True)
    _, state = opt.update(grads[0], opt.init(params), params)
    stacked = tree.map(lambda *g: torch.stack(g), *grads)
    new, _ = torch.vmap(opt.update, in_dims=(0, None, None), out_dims=(0, optim.SGDState(None, 0)))(
        stacked, state, params
    )
    for i, g in enumerate(grads):
        assert gap(tree.map(lambda t, i=i: t[i], new), opt.update(g, state, params)[0]) < 1e-12


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1}, "lr is -1: it must be at least 0"),
        ({"momentum": -0.1}, "momentum"),
        ({"nesterov": True}, "nesterov needs momentum without dampening: they are 0.0 and 0.0"),
        ({"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "they are 0.9 and 0.1"),
    ],
)
def test_a_setting_outside_its_range_is_an_error(settings, message):
    with pytest.raises(BadValue, match=message):
        optim.sgd(**settings)
