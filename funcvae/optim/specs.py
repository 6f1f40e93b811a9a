"""The strings that stand for optimizers and schedules on the command line."""

import inspect
from collections.abc import Callable
from typing import Any

from funcvae._support import checks
from funcvae._support.checks import Count
from funcvae.errors import BadValue
from funcvae.optim import schedules
from funcvae.optim.adaptive import adam, adamw
from funcvae.optim.momentum import sgd
from funcvae.optim.protocol import NotNegative, Optimizer, Rate
from funcvae.optim.schedules import Schedule

__all__ = ["EXAMPLES", "SCHEDULES", "needs_steps", "parse", "parse_schedule"]

EXAMPLES = {"adam": "adam", "adamw": "adamw:0.01", "sgd": "sgd:0.9"}
"""An example of each optimizer, in the form that `parse` reads."""

SCHEDULES = {
    "constant": "constant:VALUE, as in constant:1e-3",
    "linear": "linear:START:END[:STEPS], as in linear:1e-3:0:10000",
    "cosine": "cosine:START[:STEPS[:END]], as in cosine:1e-3:10000",
    "warmup_cosine": "warmup_cosine:PEAK:WARMUP[:STEPS[:START[:END]]], as in warmup_cosine:1e-3:500:10000",
    "exponential": "exponential:START:DECAY[:STEPS], as in exponential:1e-3:0.5:1000",
    "piecewise": "piecewise:0:VALUE[:FIRST_STEP:VALUE …], as in piecewise:0:1e-3:1000:1e-4",
    "repeat": "repeat:PERIOD:SCHEDULE, as in repeat:5000:linear:0:1:2500",
}
"""The form of each schedule that `parse_schedule` reads, with an example."""


@checks.arguments
def parse(spec: str, lr: Rate, eps: NotNegative = 1e-8) -> Optimizer:
    """Makes the optimizer that a string names: "adam", "adamw", "adamw:WEIGHT_DECAY", "sgd" or "sgd:MOMENTUM".

    Args:
        eps: for adam and adamw.

    Raises:
        BadValue: the name is unknown, or its argument is superfluous, not a number or out of range.
    """
    name, *words = spec.split(":")
    example = EXAMPLES[checks.known("optimizer", name, EXAMPLES)]
    argument, numbers = {"adamw": "weight_decay", "sgd": "momentum"}.get(name), _numbers(words)
    if numbers is None or len(numbers) > (argument is not None):
        raise BadValue(f"optimizer {checks.describe(spec)}: write {name}{f' or {example}' if argument else ''}")
    options: Any = dict(zip([argument], numbers, strict=False))
    if name == "sgd":
        return sgd(lr, **options)
    return {"adam": adam, "adamw": adamw}[name](lr, eps=eps, **options)


@checks.arguments
def parse_schedule(spec: str, steps: Count | None = None) -> float | Schedule:
    """Makes the schedule that a string describes, or the number that it is.

    It is the name of a schedule and its arguments in order, such as "linear:1e-3:0:10000". An argument `steps` at the
    end may be left out, as in "cosine:1e-3": then it is the number of steps of the whole run. "piecewise" takes pairs
    FIRST_STEP:VALUE, and "repeat" a PERIOD and another schedule, as in "repeat:5000:linear:0:1:2500".

    Args:
        steps: the number of steps of the whole run, if it is known.

    Raises:
        BadValue: the name is unknown; an argument is missing, superfluous, not a number or out of range; or the number
            of steps is needed and not given.
    """

    def total() -> int:
        if steps is None:
            form = SCHEDULES[spec.split(":")[0]]
            raise BadValue(f"schedule {checks.describe(spec)} needs a number of steps: write {form}")
        return steps

    return _schedule(spec, total)


@checks.arguments
def needs_steps(spec: str) -> bool:
    """Whether a schedule depends on the number of steps of the whole run. Raises what `parse_schedule` raises."""
    asked = []

    def total() -> int:
        asked.append(True)
        return 2**53

    _schedule(spec, total)
    return bool(asked)


def _schedule(spec: str, total: Callable[[], int]) -> float | Schedule:
    """The schedule of a string; calls `total` if it depends on the number of steps of the whole run."""
    if numbers := _numbers([spec]):
        return checks.is_finite("schedule", numbers[0])
    name, *words = spec.split(":")
    wrong = BadValue(f"schedule {checks.describe(spec)}: write {SCHEDULES[checks.known('schedule', name, SCHEDULES)]}")
    if name == "repeat":
        period = _numbers(words[:1])
        if not period or words[1:2] in ([], ["repeat"]):
            raise wrong
        inner = _schedule(":".join(words[1:]), total)
        return schedules.repeat(inner if callable(inner) else schedules.constant(inner), period[0])
    numbers = _numbers(words)
    if not numbers:
        raise wrong
    if name == "piecewise":
        if len(numbers) % 2:
            raise wrong
        return schedules.piecewise(dict(zip(numbers[::2], numbers[1::2], strict=True)))
    factory = getattr(schedules, name)
    parameters = list(inspect.signature(factory).parameters.values())
    values = dict(zip([each.name for each in parameters], numbers, strict=False))
    missing = [each.name for each in parameters[len(numbers) :] if each.default is each.empty]
    if len(numbers) > len(parameters) or missing not in ([], ["steps"]):
        raise wrong
    return factory(**values, **{name: total() for name in missing})


def _numbers(words: list[str]) -> list[Any] | None:
    """The numbers that words stand for, whole ones as int; None if a word is not a number."""
    try:
        return [int(number) if number.is_integer() else number for number in map(float, words)]
    except ValueError:
        return None
