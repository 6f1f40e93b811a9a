"""Schedules against torch's schedulers and closed forms."""

import math

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.optim import lr_scheduler

from funcvae import optim
from funcvae.errors import BadType, BadValue

STEPS = torch.arange(60)


def torchs(scheduler, lr=0.3, steps=60):
    """The learning rates of a scheduler of torch."""
    opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=lr)
    scheduled, rates = scheduler(opt), []
    for _ in range(steps):
        rates.append(opt.param_groups[0]["lr"])
        opt.step()
        scheduled.step()
    return torch.tensor(rates, dtype=torch.float64)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (optim.constant(0.3), lambda opt: lr_scheduler.ConstantLR(opt, 1.0)),
        (optim.linear(0.3, 0.03, 40), lambda opt: lr_scheduler.LinearLR(opt, 1.0, 0.1, 40)),
        (optim.cosine(0.3, 59, 0.01), lambda opt: lr_scheduler.CosineAnnealingLR(opt, 59, 0.01)),
        (optim.exponential(0.3, 0.9), lambda opt: lr_scheduler.ExponentialLR(opt, 0.9)),
        (optim.piecewise({0: 0.3, 20: 0.03, 50: 0.003}), lambda opt: lr_scheduler.MultiStepLR(opt, [20, 50])),
        (
            optim.repeat(optim.cosine(0.3, 25, 0.01), 25),
            lambda opt: lr_scheduler.CosineAnnealingWarmRestarts(opt, 25, eta_min=0.01),
        ),
        (
            optim.warmup_cosine(0.3, 15, 60, start=0.03),
            lambda opt: lr_scheduler.SequentialLR(
                opt, [lr_scheduler.LinearLR(opt, 0.1, 1.0, 15), lr_scheduler.CosineAnnealingLR(opt, 45)], [15]
            ),
        ),
    ],
    ids=["constant", "linear", "cosine", "exponential", "piecewise", "repeat", "warmup_cosine"],
)
@pytest.mark.filterwarnings("ignore:The epoch parameter")
def test_schedules_equal_those_of_torch(ours, theirs):
    found = ours(STEPS)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, torchs(theirs), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("schedule", "step", "value"),
    [
        (optim.linear(0, 1, 10), 3, 0.3),
        (optim.linear(0, 1, 10), 99, 1),
        (optim.cosine(2, 10), 5, 1),
        (optim.cosine(2, 10, 1), 99, 1),
        (optim.warmup_cosine(1, 10, 30), 5, 0.5),
        (optim.warmup_cosine(1, 10, 30, end=0.2), 20, 0.6),
        (optim.warmup_cosine(1, 10, 30, end=0.2), 99, 0.2),
        (optim.exponential(8, 0.5, 10), 30, 1),
        (optim.repeat(optim.linear(0, 1, 5), 10), 27, 1),
        (optim.repeat(optim.linear(0, 1, 5), 10), 31, 0.2),
    ],
)
def test_schedules_equal_their_formulas(schedule, step, value):
    found = schedule(torch.tensor(step))
    assert found.shape == ()
    assert found == pytest.approx(value, abs=1e-15)
    assert torch.vmap(schedule)(torch.tensor([step, 0]))[0] == found


def test_a_schedule_in_float32_would_not_pass():
    wrong = lambda t: 0.9 ** (t / 1)  # noqa: E731
    assert (wrong(STEPS) - optim.exponential(1, 0.9)(STEPS)).abs().max() > 1e-9


def test_compiled_schedules_equal_eager_ones_without_a_second_graph():
    graphs = CompileCounter()

    @torch.compile(fullgraph=True, backend=graphs)
    def all_of(t):
        made_inside = optim.repeat(optim.linear(0, 1, 5), 10)(t)
        return made_inside, *[f(t) for f in fs]

    fs = [optim.constant(1), optim.cosine(1, 9), optim.warmup_cosine(1, 3, 9), optim.piecewise({0: 1, 4: 2})]
    for t in range(12):
        t = torch.tensor(t)
        assert all_of(t) == (optim.repeat(optim.linear(0, 1, 5), 10)(t), *[f(t) for f in fs])
    assert graphs.frame_count == 1


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: optim.constant(math.nan), BadValue, "value is nan: it must be finite"),
        (lambda: optim.linear(0, 1, 0), BadValue, "steps is 0: it must be at least 1"),
        (lambda: optim.warmup_cosine(1, 10, 10), BadValue, "steps is 10: it must be above warmup, 10"),
        (lambda: optim.exponential(1, -0.5), BadValue, "decay"),
        (lambda: optim.piecewise({}), BadValue, "0 must be among them"),
        (lambda: optim.piecewise({1: 0.1}), BadValue, r"values has steps list \(1\): 0 must be among them"),
        (lambda: optim.piecewise({0: 0.1, 0.5: 1}), BadType, "a step of values is 0.5: it must be a whole number"),
        (lambda: optim.piecewise({0: 0.1, 1: "a"}), BadType, "a value is 'a'"),
        (lambda: optim.piecewise([0.1]), BadType, "values"),
        (lambda: optim.repeat(0.1, 10), BadType, "schedule is 0.1: it must be a function"),
        (lambda: optim.repeat(optim.constant(1), 0), BadValue, "period is 0"),
    ],
)
def test_a_wrong_schedule_is_an_error_of_one_line(make, error, message):
    with pytest.raises(error, match=message):
        make()
