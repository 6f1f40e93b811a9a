"""Optimizers against those of `torch.optim`."""

import torch

from funcvae import tree


def params_and_grads(steps=100, dtype=torch.float64):
    """Parameters, and gradients of many orders of magnitude, so that eps has an effect."""
    g = torch.Generator().manual_seed(0)
    shapes = {"w": (3, 4), "b": (4,), "scale": ()}

    def draw():
        return {name: torch.randn(shape, generator=g, dtype=dtype) for name, shape in shapes.items()}

    sizes = torch.logspace(-9, 1, steps)
    return draw(), [tree.map(lambda t, s=s: s.to(dtype) * t, draw()) for s in sizes]


def with_torch(kind, params, grads, schedule=None, undecayed=(), clip=None, **settings):
    """The parameters after torch's optimizer. `schedule` maps it to a scheduler; `undecayed` do not decay."""
    params = {name: p.clone().requires_grad_() for name, p in params.items()}
    groups = [{"params": [p for name, p in params.items() if name not in undecayed]}]
    if undecayed:
        groups += [{"params": [params[name] for name in undecayed], "weight_decay": 0}]
    opt = kind(groups, **settings)
    scheduler = schedule(opt) if schedule else None
    for g in grads:
        for name, p in params.items():
            p.grad = g[name].clone()
        if clip:
            torch.nn.utils.clip_grad_norm_(params.values(), clip)
        opt.step()
        if scheduler:
            scheduler.step()
    return {name: p.detach() for name, p in params.items()}


def ours(opt, params, grads):
    """The parameters after an optimizer of the library."""
    state = opt.init(params)
    for g in grads:
        params, state = opt.update(g, state, params)
    return params


def gap(a, b):
    """The largest difference between two trees."""
    return max((x - y).abs().max().item() for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True))


def arguments_survive(opt):
    """Whether an update leaves its arguments as they are."""
    params, (g, *_) = params_and_grads(steps=2)
    _, state = opt.update(g, opt.init(params), params)
    arguments = (g, state, params)
    before = tree.map(torch.clone, arguments)
    opt.update(*arguments)
    return all(torch.equal(a, b) for a, b in zip(tree.leaves(arguments), tree.leaves(before), strict=True))
