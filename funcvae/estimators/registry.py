"""The estimators by name, and the strings that stand for them on the command line."""

from collections.abc import Callable
from typing import Any, get_type_hints

import torch
from torch import Tensor

from funcvae import optim
from funcvae._support import checks
from funcvae._support.checks import Count, Natural
from funcvae.errors import BadValue
from funcvae.estimators import discrete, quadratic, table
from funcvae.estimators.types import Estimator, EstimatorAt, by_step

__all__ = ["EXAMPLES", "SCHEDULABLE", "TABLE", "needs_steps", "parse", "parse_final", "parse_scheduled", "weights_of"]

TABLE: dict[str, Callable[..., Estimator]] = {
    factory.__name__: factory
    for factory in (
        table.elbo, table.beta_elbo, table.free_bits, table.elbo_mc, table.stl, table.iwae, table.iwae_stl,
        table.dreg, table.renyi, table.vr_iwae_dreg, table.score, table.rloo, table.vimco, table.vimco_am,
        table.vimco_star, table.ovis, table.rws, table.rws_dreg, table.miwae, table.ciwae, table.piwae, table.tvo,
        quadratic.quadratic_cv, discrete.arm, discrete.disarm, discrete.disarm_local, discrete.rebar,
        discrete.straight_through, discrete.reinmax, discrete.local_expectation,
    )
}  # fmt: skip
"""The factories of all estimators by name, such as "elbo" and "dreg"."""

EXAMPLES: dict[str, str] = dict(zip(TABLE, TABLE, strict=True)) | {
    "beta_elbo": "beta_elbo:4",
    "free_bits": "free_bits:0.1",
    "renyi": "renyi:0.5",
    "vr_iwae_dreg": "vr_iwae_dreg:0.5",
    "ovis": "ovis:0",
    "miwae": "miwae:2",
    "ciwae": "ciwae:0.5",
    "piwae": "piwae:2",
    "tvo": "tvo:0:0.5:1",
    "quadratic_cv": "quadratic_cv:1",
    "rebar": "rebar:0.7:0.6",
}
"""An example of each, in the form that `parse` reads."""


@checks.arguments
def weights_of(name: str) -> str:
    """The weights of an estimator, such as "path v², …", or its formula: a line of its factory's docstring."""
    doc = TABLE[checks.known("estimator", name, TABLE)].__doc__ or ""
    return doc.split("\n\n")[1].strip()


@checks.arguments
def parse(spec: str) -> Estimator:
    """Makes the estimator that a string names, such as "dreg", "renyi:0.5" (an argument) or "tvo:0:0.5:1" (several).

    Raises:
        BadValue: the name is unknown; an argument is missing, superfluous, of the wrong kind or out of range; or it is
            a schedule (see `parse_scheduled`).
    """
    name, *arguments = spec.split(":")
    factory = TABLE[checks.known("estimator", name, TABLE)]
    wanted = _kinds(factory)
    sequence = any(kind not in (int, float) for kind in wanted.values())
    if name in SCHEDULABLE and arguments and arguments[0] in optim.SCHEDULES:
        what = "changes with the training step, and here it must be one estimator"
        raise BadValue(f"estimator {checks.describe(spec)} {what}: give a number, as in {EXAMPLES[name]}")
    if bool(wanted) != bool(arguments) or (len(arguments) != len(wanted) and not sequence):
        form = f"{':'.join([name, *map(str.upper, wanted)])}, as in {EXAMPLES[name]}" if wanted else name
        raise BadValue(f"estimator {checks.describe(spec)}: write {form}")
    number = int if int in wanted.values() else float
    try:
        values = [number(argument) for argument in arguments]
    except ValueError:
        what = "whole number" if number is int else "number"
        given = checks.describe(":".join(arguments))
        raise BadValue(f"estimator {checks.describe(spec)}: {given} is not a {what}") from None
    return factory(values) if sequence else factory(*values)


@checks.arguments
def parse_scheduled(spec: str, steps: Count | None = None) -> Estimator | EstimatorAt:
    """Makes what a string names for `funcvae.train.fit`: an estimator, or a function of the step that returns one.

    It reads what `parse` reads. The argument of the estimators in SCHEDULABLE may also be a schedule in the form of
    `funcvae.optim.parse_schedule`, as in "beta_elbo:linear:0:1:10000".

    Args:
        steps: the number of steps of the whole run, for a schedule that depends on it: see `needs_steps`.

    Raises:
        BadValue: as from `parse` and `funcvae.optim.parse_schedule`.
    """
    name, schedule = _schedule_of(spec)
    value = optim.parse_schedule(schedule, steps) if schedule else 0.0
    if not callable(value):
        return parse(spec)
    factory = TABLE[name]
    return lambda step: factory(value(step))


@checks.arguments
def parse_final(spec: str, steps: Natural) -> Estimator:
    """The estimator that a string names, as `parse_scheduled` reads it; of a schedule, that after all steps of a run.

    Raises:
        BadValue: as from `parse_scheduled`.
    """
    return by_step(parse_scheduled(spec, max(1, steps)))(torch.tensor(steps))


@checks.arguments
def needs_steps(spec: str) -> bool:
    """Whether an estimator depends on the number of steps of the whole run. Raises what `parse_scheduled` raises."""
    _, schedule = _schedule_of(spec)
    return bool(schedule) and optim.needs_steps(schedule)


def _schedule_of(spec: str) -> tuple[str, str]:
    """The name of the estimator, and its argument if that may be a schedule."""
    name, _, argument = spec.partition(":")
    return name, argument if name in SCHEDULABLE else ""


def _kinds(factory: Callable[..., Estimator]) -> dict[str, Any]:
    """The kinds of a factory's arguments by name; that of a number or tensor is float."""
    hints = get_type_hints(factory)
    return {name: float if kind == float | Tensor else kind for name, kind in hints.items() if name != "return"}


SCHEDULABLE = tuple(name for name, factory in TABLE.items() if float | Tensor in get_type_hints(factory).values())
"""The estimators whose argument may be a schedule."""
