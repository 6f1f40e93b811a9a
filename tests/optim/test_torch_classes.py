"""Optimizers of torch.optim as pure functions, against themselves."""

from functools import partial

import pytest
import torch

import funcvae as fv
from funcvae import optim, tree
from funcvae.compilation import Uncompiled
from funcvae.errors import BadType, BadValue
from tests.support.optimizers import arguments_survive, gap, ours, params_and_grads, with_torch
from tests.support.training import small

CASES = [
    (torch.optim.Adagrad, {"initial_accumulator_value": 0.1, "lr_decay": 0.01}),
    (torch.optim.RMSprop, {"momentum": 0.9, "centered": True}),
    (torch.optim.RAdam, {"weight_decay": 0.1}),
    (torch.optim.NAdam, {}),
    (torch.optim.SGD, {"momentum": 0.9, "dampening": 0.5}),
    (torch.optim.Adadelta, {}),
    (torch.optim.Adam, {"amsgrad": True}),
    (torch.optim.Adamax, {}),
    (torch.optim.ASGD, {}),
    (torch.optim.Rprop, {}),
]
KINDS = pytest.mark.parametrize(("kind", "options"), CASES, ids=[kind.__name__ for kind, _ in CASES])


@KINDS
def test_every_class_equals_itself_over_100_steps(kind, options):
    params, grads = params_and_grads()
    opt = optim.from_torch(kind, 0.05, **options)
    assert gap(ours(opt, params, grads), with_torch(kind, params, grads, lr=0.05, **options)) < 1e-12
    assert arguments_survive(opt)
    after = opt.update(grads[0], opt.init(params), params)[1]
    assert tree.structure(after) == tree.structure(opt.init(params))
    assert [t.shape for t in tree.leaves(after)] == [t.shape for t in tree.leaves(opt.init(params))]


def test_a_schedule_equals_torchs_scheduler():
    params, grads = params_and_grads()
    schedule = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.97)
    want = with_torch(torch.optim.RMSprop, params, grads, schedule, lr=0.05)
    assert gap(ours(optim.from_torch(torch.optim.RMSprop, optim.exponential(0.05, 0.97)), params, grads), want) < 1e-12


def test_it_trains_with_the_usual_warning_and_resumes_from_a_checkpoint(tmp_path):
    model, opt, x = small(), optim.from_torch(torch.optim.NAdam, 0.01), fv.random.normal(fv.random.key(1), (12, 2))
    opt = optim.chain(optim.clip_by_global_norm(1.0), opt)
    fit = partial(fv.train.fit, model=model, estimator=fv.estimators.elbo(), opt=opt, train=x, batch=4, epochs=2)
    ts = fv.train.init(model, opt, fv.random.key(0))
    reference, _ = fit(ts, compile=False)
    with pytest.warns(Uncompiled, match="torch.optim.NAdam runs eagerly"):
        found, _ = fit(ts)
    half, _ = fit(ts, epochs=1, compile=False)
    fv.train.checkpoint.save(tmp_path / "half", half, {})
    loaded, _ = fv.train.checkpoint.load(tmp_path / "half", ts)
    resumed, _ = fit(loaded, epochs=1, compile=False)
    for other in (found, resumed):
        assert all(torch.equal(a, b) for a, b in zip(tree.leaves(reference), tree.leaves(other), strict=True))


class Counting(torch.optim.Optimizer):
    """Keeps the number of updates in its group, and has a step without a closure."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr, "k": 0})

    def step(self):
        (group,) = self.param_groups
        group["k"] += 1


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: optim.from_torch(torch.optim.LBFGS, 0.1), BadType, "LBFGS calls a closure that computes the loss"),
        (
            lambda: ours(optim.from_torch(Counting, 0.1), *params_and_grads(2)),
            BadType,
            "keeps state in its param_groups",
        ),
        (lambda: optim.from_torch(dict, 0.1), BadType, "kind is dict: it must be a class of torch.optim"),
        (lambda: optim.from_torch("RMSprop", 0.1), BadType, "kind is 'RMSprop'"),
        (lambda: optim.from_torch(torch.optim.RMSprop, -1), BadValue, "lr is -1"),
        (lambda: optim.from_torch(torch.optim.RMSprop, 0.1, beta=3), BadValue, "RMSprop: .*unexpected keyword.*beta"),
        (lambda: optim.from_torch(torch.optim.RMSprop, 0.1, alpha=-1), BadValue, "RMSprop: Invalid alpha"),
        (lambda: optim.from_torch(torch.optim.RMSprop, 0.1).init({}), BadValue, "params has no leaves"),
        (lambda: optim.from_torch(torch.optim.Muon, 0.1).init({"b": torch.ones(2)}), BadValue, "Muon: .*2D"),
    ],
)
def test_what_cannot_be_used_is_an_error_of_one_line(make, error, message):
    with pytest.raises(error, match=message):
        make()
