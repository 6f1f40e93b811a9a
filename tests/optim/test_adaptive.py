"""Adam and AdamW against those of torch.optim, and pure updates that do not modify their arguments."""

import doctest
from functools import partial

import pytest
import torch

from funcvae import optim, tree
from funcvae.errors import BadValue
from funcvae.optim import adaptive
from tests.support.optimizers import arguments_survive, gap, ours, params_and_grads, with_torch

DECAYING = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.97)
SETTINGS = [(1e-3, 0.9, 0.999, 1e-8), (0.1, 0.5, 0.9, 1e-4), (1e-2, 0.0, 0.99, 1e-8), (1e-4, 0.95, 0.9999, 1e-12)]


@pytest.fixture(params=["kernel", "formula"])
def form(request, monkeypatch):
    """Both forms of the update: torch's kernel, and the formula that is used in compiled and transformed code."""
    calls = []
    kernel = adaptive.torch_adam
    monkeypatch.setattr(adaptive, "torch_adam", lambda *args, **options: (calls.append(1), kernel(*args, **options)))
    if request.param == "formula":
        monkeypatch.setattr(adaptive, "_fusible", lambda *args: False)
    yield
    assert bool(calls) == (request.param == "kernel")


@pytest.mark.parametrize(("lr", "b1", "b2", "eps"), SETTINGS)
def test_adam_equals_torchs_to_1e_12_over_100_steps(form, lr, b1, b2, eps):
    params, grads = params_and_grads()
    want = with_torch(torch.optim.Adam, params, grads, lr=lr, betas=(b1, b2), eps=eps)
    assert gap(ours(optim.adam(lr, (b1, b2), eps), params, grads), want) < 1e-12


def test_a_schedule_equals_torchs_lambda_lr_to_1e_12(form):
    params, grads = params_and_grads()
    want = with_torch(torch.optim.Adam, params, grads, DECAYING, lr=0.05)
    assert gap(ours(optim.adam(lambda step: 0.05 * 0.97 ** step.double()), params, grads), want) < 1e-12


def test_a_schedule_sees_the_number_of_updates_already_made():
    seen = []
    params, grads = params_and_grads(steps=3)
    ours(optim.adam(lambda step: seen.append(step.item()) or 0.1), params, grads)
    assert seen == [0, 1, 2]


@pytest.mark.parametrize("wrong", ["eps inside the root", "eps before the correction", "no correction", "step from 0"])
def test_the_tolerance_catches_wrong_adams(wrong):
    def step(t, g, m, v, p, lr=1e-2, b1=0.9, b2=0.999, eps=1e-8):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        c1, c2 = 1 - b1**t, 1 - b2**t
        match wrong:
            case "eps inside the root":
                return m, v, p - lr * m / c1 / (v / c2 + eps).sqrt()
            case "eps before the correction":
                return m, v, p - lr * m / c1 * c2**0.5 / (v.sqrt() + eps)
            case "no correction":
                return m, v, p - lr * m / (v.sqrt() + eps)
            case "step from 0":
                return m, v, p - lr * m / (1 - b1 ** (t + 1)) / ((v / (1 - b2 ** (t + 1))).sqrt() + eps)
            case "none":
                return m, v, p - lr * m / c1 / ((v / c2).sqrt() + eps)

    def run():
        p, m, v = params["w"], torch.zeros(3, 4).double(), torch.zeros(3, 4).double()
        for t, g in enumerate(grads, 1):
            m, v, p = step(t, g["w"], m, v, p)
        return (p - want["w"]).abs().max()

    params, grads = params_and_grads()
    want = with_torch(torch.optim.Adam, params, grads, lr=1e-2)
    assert run() > 1e-9
    wrong = "none"
    assert run() < 1e-12


@pytest.mark.parametrize("mask", [None, lambda path: path == "w"], ids=["all", "masked"])
@pytest.mark.parametrize(("lr", "b1", "b2", "eps"), SETTINGS)
def test_adamw_equals_torchs_to_1e_12_over_100_steps(form, lr, b1, b2, eps, mask):
    params, grads = params_and_grads()
    undecayed = ("b", "scale") if mask else ()
    settings = {"betas": (b1, b2), "eps": eps, "weight_decay": 0.3}
    want = with_torch(torch.optim.AdamW, params, grads, DECAYING, undecayed, lr=lr, **settings)
    found = ours(optim.adamw(optim.exponential(lr, 0.97), **settings, mask=mask), params, grads)
    assert gap(found, want) < 1e-12
    assert gap(ours(optim.adam(lr, (b1, b2), eps), params, grads), want) > 1e-6


def test_adamws_defaults_are_torchs(form):
    params, grads = params_and_grads()
    assert gap(ours(optim.adamw(), params, grads), with_torch(torch.optim.AdamW, params, grads)) < 1e-12


@pytest.mark.parametrize("opt", [optim.adam(0.1), optim.adamw(0.1)])
def test_update_does_not_modify_its_arguments(opt):
    assert arguments_survive(opt)


@pytest.mark.parametrize("opt", [optim.adam(0.1), optim.adamw(optim.constant(0.1), weight_decay=0.1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_in_place_update_equals_update_bit_for_bit(dtype, opt):
    params, grads = params_and_grads(steps=10, dtype=dtype)
    mine, state_ = tree.map(torch.clone, params), opt.init(params)
    owned, state = mine, opt.init(params)
    for g in grads:
        mine, state_ = opt.update_(g, state_, mine)
        params, state = opt.update(g, state, params)
        for a, b in zip(tree.leaves((mine, state_)), tree.leaves((params, state)), strict=True):
            assert torch.equal(a, b)
            assert a.dtype == b.dtype
    assert all(a is b for a, b in zip(tree.leaves(mine), tree.leaves(owned), strict=True))


@pytest.mark.parametrize("odd", ["transposed", "expanded", "with a graph", "float32"])
def test_gradients_of_another_layout_or_dtype_equal_plain_gradients(odd):
    """torch's kernel ignores strides, so it must not get such gradients directly."""
    made = {
        "transposed": lambda g: g.T.contiguous().T,
        "expanded": lambda g: g[:1].expand(3, 4),
        "with a graph": lambda g: g.clone().requires_grad_(),
        "float32": lambda g: g.float(),
    }[odd]
    params, (g, *_) = params_and_grads(steps=2)
    opt = optim.adam(0.1)
    w = made(g["w"])
    plain = {**g, "w": w.detach().double().contiguous()}
    one, _ = opt.update({**g, "w": w}, opt.init(params), params)
    other, _ = opt.update(plain, opt.init(params), params)
    assert gap(one, other) < (1e-8 if odd == "float32" else 1e-12)  # squared in float32
    assert gap(other, with_torch(torch.optim.Adam, params, [plain], lr=0.1)) < 1e-12


def test_update_of_a_tree_without_leaves_only_counts_the_step():
    state = optim.AdamState(torch.zeros((), dtype=torch.int64), {}, {})
    params, state = optim.adam().update({}, state, {})
    assert params == {}
    assert state.step == 1


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_schedule_on_cuda_equals_that_on_the_cpu():
    params, grads = params_and_grads()
    opt = optim.adam(lambda step: 0.05 * 0.97 ** step.double())
    on_cuda = [tree.map(torch.Tensor.cuda, t) for t in (params, *grads)]
    assert gap(tree.map(torch.Tensor.cpu, ours(opt, on_cuda[0], on_cuda[1:])), ours(opt, params, grads)) < 1e-12


@pytest.mark.parametrize("opt", [optim.adam(0.1), optim.adamw(optim.linear(0.1, 0.0, 4), weight_decay=0.1)])
def test_update_under_vmap_over_gradients_equals_a_loop(opt):
    params, grads = params_and_grads(steps=4, dtype=torch.float32)
    _, state = opt.update(grads[0], opt.init(params), params)
    stacked = tree.map(lambda *g: torch.stack(g), *grads)
    new, new_state = torch.vmap(opt.update, in_dims=(0, None, None), out_dims=(0, optim.AdamState(None, 0, 0)))(
        stacked, state, params
    )
    for i, g in enumerate(grads):
        one, one_state = opt.update(g, state, params)
        assert gap(tree.map(lambda t, i=i: t[i], new), one) < 1e-6
        assert gap(tree.map(lambda t, i=i: t[i], new_state.v), one_state.v) < 1e-6
    assert new_state.step == 2


def test_gradients_are_matched_to_parameters_by_name():
    opt = optim.adam(0.1)
    params = {"a": torch.tensor(1.0), "b": torch.tensor(2.0)}
    new, _ = opt.update({"b": torch.tensor(1.0), "a": torch.tensor(-1.0)}, opt.init(params), params)
    torch.testing.assert_close(new, {"a": torch.tensor(1.1), "b": torch.tensor(1.9)})


def test_the_structure_of_the_parameters_is_kept():
    params = {"encoder": {"w": torch.ones(2)}, "decoder": [torch.ones(1), (torch.zeros(3),)], "prior": {}}
    opt = optim.adam()
    new, state = opt.update(params, opt.init(params), params)
    assert tree.structure(new) == tree.structure(state.m) == tree.structure(state.v) == tree.structure(params)
    assert state.step.dtype == torch.int64


def test_the_example_of_the_docstring_runs():
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner()
    (example,) = finder.find(optim.adam, "adam", globs={"adam": optim.adam, "torch": torch})
    assert runner.run(example) == (0, 5)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"lr": -1e-3}, "lr"),
        ({"lr": float("nan")}, "lr"),
        ({"betas": (1.0, 0.9)}, "betas"),
        ({"betas": (-0.1, 0.9)}, "betas"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"eps": -1e-8}, "eps"),
    ],
)
def test_a_setting_outside_its_range_is_an_error(settings, named):
    with pytest.raises(BadValue, match=named):
        optim.adam(**settings)
