"""The strings that stand for optimizers and schedules."""

import pytest
import torch

from funcvae import optim
from funcvae.errors import BadType, BadValue
from tests.support.optimizers import gap, ours, params_and_grads

STEPS = torch.arange(0, 12_000, 371)


@pytest.mark.parametrize(
    ("spec", "opt"),
    [
        ("adam", optim.adam(0.1, eps=1e-4)),
        ("adamw", optim.adamw(0.1, eps=1e-4)),
        ("adamw:0.3", optim.adamw(0.1, eps=1e-4, weight_decay=0.3)),
        ("sgd", optim.sgd(0.1)),
        ("sgd:0.9", optim.sgd(0.1, momentum=0.9)),
    ],
)
def test_a_string_makes_the_optimizer(spec, opt):
    params, grads = params_and_grads(steps=10)
    assert gap(ours(optim.parse(spec, 0.1, eps=1e-4), params, grads), ours(opt, params, grads)) == 0


@pytest.mark.parametrize(
    ("spec", "steps", "schedule"),
    [
        ("constant:0.1", None, optim.constant(0.1)),
        ("linear:1e-3:0:1e4", None, optim.linear(1e-3, 0, 10_000)),
        ("linear:1e-3:0", 5000, optim.linear(1e-3, 0, 5000)),
        ("cosine:1e-3", 5000, optim.cosine(1e-3, 5000)),
        ("cosine:1e-3:700", 5000, optim.cosine(1e-3, 700)),
        ("cosine:1e-3:700:1e-4", None, optim.cosine(1e-3, 700, 1e-4)),
        ("warmup_cosine:1e-3:1000", 5000, optim.warmup_cosine(1e-3, 1000, 5000)),
        ("warmup_cosine:1e-3:10:50:1e-5:1e-4", None, optim.warmup_cosine(1e-3, 10, 50, 1e-5, 1e-4)),
        ("exponential:1:0.9", 5000, optim.exponential(1, 0.9)),
        ("exponential:1:0.9:100", None, optim.exponential(1, 0.9, 100)),
        ("piecewise:0:1e-3:1000:1e-4", None, optim.piecewise({0: 1e-3, 1000: 1e-4})),
        ("repeat:5000:linear:0:1:2500", None, optim.repeat(optim.linear(0, 1, 2500), 5000)),
        ("repeat:50:cosine:1", 40, optim.repeat(optim.cosine(1, 40), 50)),
        ("repeat:50:1", None, optim.constant(1)),
    ],
)
def test_a_string_makes_the_schedule_and_tells_whether_it_depends_on_the_run(spec, steps, schedule):
    assert torch.equal(optim.parse_schedule(spec, steps)(STEPS), schedule(STEPS))
    needed = steps is not None and spec not in ("cosine:1e-3:700", "exponential:1:0.9")
    assert optim.needs_steps(spec) == needed
    if needed:
        with pytest.raises(BadValue, match="needs a number of steps: write"):
            optim.parse_schedule(spec)


def test_a_number_stays_a_number():
    assert optim.parse_schedule("1e-3") == 1e-3
    assert not optim.needs_steps("1e-3")


def test_the_examples_can_be_parsed():
    for example in optim.EXAMPLES.values():
        optim.parse(example, 0.1)
    for form in optim.SCHEDULES.values():
        optim.parse_schedule(form.split(", as in ")[1])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("adm", "unknown optimizer 'adm': did you mean 'adam"),
        ("adam:0.1", "optimizer 'adam:0.1': write adam$"),
        ("adamw:x", "optimizer 'adamw:x': write adamw or adamw:0.01$"),
        ("sgd:0.9:1", "write sgd or sgd:0.9$"),
        ("sgd:", "write sgd or sgd:0.9$"),
        ("sgd:-1", "momentum is -1: it must be at least 0"),
    ],
)
def test_the_error_for_a_wrong_optimizer_says_what_to_write(spec, message):
    with pytest.raises(BadValue, match=message):
        optim.parse(spec, 0.1)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "unknown schedule ''"),
        ("1e-3x", "unknown schedule '1e-3x': choose from: constant, cosine"),
        ("nan", "schedule is nan: it must be finite"),
        ("cosin:1", "did you mean 'cosine'"),
        ("cosine", r"schedule 'cosine': write cosine:START\[:STEPS\[:END\]\], as in cosine:1e-3:10000$"),
        ("linear:1:0:5:7", "write linear:START"),
        ("linear:a:0", "write linear:START"),
        ("linear:0:1:0.5", "steps is 0.5: it must be a whole number"),
        ("linear:0:1:0", "steps is 0: it must be at least 1"),
        ("warmup_cosine:1:60", "steps is 50: it must be above warmup, 60"),
        ("piecewise:0:1:5", "write piecewise:0:VALUE"),
        ("piecewise:5:1", "0 must be among them"),
        ("repeat:5", "write repeat:PERIOD:SCHEDULE, as in repeat:5000:linear:0:1:2500$"),
        ("repeat:x:1", "write repeat:PERIOD"),
        ("repeat:5:" * 5000 + "1", "write repeat:PERIOD"),
        ("repeat:5:cosine", "write cosine:START"),
    ],
)
def test_the_error_for_a_wrong_schedule_says_what_to_write(spec, message):
    with pytest.raises((BadValue, BadType), match=message):
        optim.parse_schedule(spec, 50)
