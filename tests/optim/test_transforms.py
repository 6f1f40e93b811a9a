"""Transforms of gradients, and chains, against torch and by hand."""

import pytest
import torch

from funcvae import optim, tree
from funcvae.errors import BadType, BadValue
from tests.support.optimizers import arguments_survive, gap, ours, params_and_grads, with_torch


def transformed(transform, grads, params):
    return transform.update(grads, transform.init(params), params)


def test_the_clipped_norm_is_the_largest_and_the_direction_stays():
    params, grads = params_and_grads()
    for g in grads:
        clipped, state = transformed(optim.clip_by_global_norm(0.5), g, params)
        size = torch.cat([leaf.flatten() for leaf in tree.leaves(g)]).norm()
        want = tree.map(lambda leaf, size=size: leaf * min(1, 0.5 / size), g)
        assert gap(clipped, want) < 1e-14
        assert state == {}
    assert tree.norm(clipped) == pytest.approx(0.5, rel=1e-12)
    small, _ = transformed(optim.clip_by_global_norm(0.5), grads[0], params)
    assert gap(small, grads[0]) == 0


def test_clipping_differs_from_torchs_only_by_its_1e_6():
    params, grads = params_and_grads()
    opt = optim.chain(optim.clip_by_global_norm(0.5), optim.sgd(0.1, momentum=0.9))
    want = with_torch(torch.optim.SGD, params, grads, clip=0.5, lr=0.1, momentum=0.9)
    assert gap(ours(opt, params, grads), want) < 1e-5
    assert gap(ours(optim.sgd(0.1, momentum=0.9), params, grads), want) > 0.1


def test_a_gradient_of_zero_is_not_scaled_and_one_that_is_not_finite_stays_so():
    params, _ = params_and_grads(steps=1)
    clip = optim.clip_by_global_norm(1.0)
    assert gap(transformed(clip, tree.zeros_like(params), params)[0], tree.zeros_like(params)) == 0
    wrong, _ = transformed(clip, {**params, "scale": torch.tensor(torch.inf)}, params)
    assert wrong["scale"].isnan()


@pytest.mark.parametrize("mask", [None, lambda path: path == "w"], ids=["all", "masked"])
@pytest.mark.parametrize(("ours_", "theirs"), [(optim.sgd, torch.optim.SGD), (optim.adam, torch.optim.Adam)])
def test_decayed_weights_before_an_optimizer_are_torchs_weight_decay(mask, ours_, theirs):
    params, grads = params_and_grads()
    undecayed = ("b", "scale") if mask else ()
    want = with_torch(theirs, params, grads, None, undecayed, lr=0.01, weight_decay=0.3)
    opt = optim.chain(optim.add_decayed_weights(0.3, mask), ours_(0.01))
    assert gap(ours(opt, params, grads), want) < 1e-12
    assert gap(ours(ours_(0.01), params, grads), want) > 1e-3


def test_a_mask_sees_the_paths_of_the_parameters():
    seen = []
    params = {"encoder": {"a.weight": torch.ones(1)}, "prior": {}, "decoder": [torch.ones(2)]}
    transformed(optim.add_decayed_weights(0.1, lambda path: seen.append(path) or True), params, params)
    assert seen == list(tree.named_leaves(params)) == ["encoder/a.weight", "decoder/0"]


def test_transforms_are_applied_from_left_to_right():
    params, g = {"w": torch.tensor([3.0])}, {"w": torch.tensor([4.0])}
    clip, decay = optim.clip_by_global_norm(1.0), optim.add_decayed_weights(1.0)
    for parts, want in (((clip, decay), 3 - (1 + 3)), ((decay, clip), 3 - 1)):
        opt = optim.chain(*parts, optim.sgd(1.0))
        new, state = opt.update(g, opt.init(params), params)
        assert new["w"] == want
        assert tree.structure(state) == tree.structure(opt.init(params))


def test_the_state_of_a_transform_is_carried_on():
    def update(grads, state, params):
        return tree.map(lambda g: g * state["n"], grads), {"n": state["n"] + 1}

    counted = optim.Transform(lambda params: {"n": torch.tensor(0.0)}, update)
    params = {"w": torch.tensor([0.0])}
    opt = optim.chain(counted, optim.clip_by_global_norm(1e3), optim.sgd(1.0))
    assert ours(opt, params, [{"w": torch.ones(1)}] * 4)["w"] == -(0 + 1 + 2 + 3)


@pytest.mark.parametrize("last", [optim.adamw(0.1), optim.Optimizer(*optim.sgd(0.1)[:2])], ids=["in place", "pure"])
def test_a_chain_is_pure_compiles_and_has_an_update_in_place_if_its_optimizer_has(last):
    mask = lambda path: path != "b"  # noqa: E731
    opt = optim.chain(optim.clip_by_global_norm(0.1), optim.add_decayed_weights(0.1, mask), last)
    assert arguments_survive(opt)
    assert (opt.update_ is None) == (last.update_ is None)
    params, grads = params_and_grads(steps=5)
    want = ours(opt, params, grads)
    for update in (opt.update_ or opt.update, torch.compile(opt.update, fullgraph=True, backend="aot_eager")):
        mine, state = tree.map(torch.clone, params), opt.init(params)
        for g in grads:
            mine, state = update(g, state, mine)
        assert gap(mine, want) < 1e-12


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: optim.clip_by_global_norm(0), BadValue, "max_norm is 0: it must be positive"),
        (lambda: optim.add_decayed_weights(-1), BadValue, "weight_decay is -1"),
        (lambda: optim.add_decayed_weights(0.1, "bias"), BadType, "mask is 'bias': it must be a function"),
        (lambda: optim.chain(), BadType, "the last part of chain is None: it must be an Optimizer"),
        (lambda: optim.chain(optim.adam(), optim.clip_by_global_norm(1)), BadType, "it must be a Transform"),
        (lambda: optim.chain(optim.clip_by_global_norm(1)), BadType, "the last part of chain is Transform"),
        (lambda: optim.chain(optim.clip_by_global_norm, optim.adam()), BadType, "it must be a Transform"),
    ],
)
def test_a_wrong_part_is_an_error_of_one_line(make, error, message):
    with pytest.raises(error, match=message):
        make()
