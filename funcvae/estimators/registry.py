"""The estimators by name, and the strings that stand for them on the command line."""

from collections.abc import Callable
from typing import get_type_hints

from funcvae._support import checks
from funcvae.errors import BadValue
from funcvae.estimators import discrete, quadratic, table
from funcvae.estimators.types import Estimator

__all__ = ["EXAMPLES", "TABLE", "parse", "weights_of"]

TABLE: dict[str, Callable[..., Estimator]] = {
    factory.__name__: factory
    for factory in (
        table.elbo, table.beta_elbo, table.elbo_mc, table.stl, table.iwae, table.iwae_stl, table.dreg, table.renyi,
        table.vr_iwae_dreg, table.score, table.rloo, table.vimco, table.vimco_am, table.vimco_star, table.ovis,
        table.rws, table.rws_dreg, table.miwae, table.ciwae, table.piwae, table.tvo, quadratic.quadratic_cv,
        discrete.arm, discrete.disarm, discrete.disarm_local, discrete.rebar, discrete.straight_through,
        discrete.reinmax, discrete.local_expectation,
    )
}  # fmt: skip
"""The factories by name."""

EXAMPLES: dict[str, str] = dict(zip(TABLE, TABLE, strict=True)) | {
    "beta_elbo": "beta_elbo:4",
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
        BadValue: the name is unknown, or an argument is missing, superfluous, of the wrong kind or out of range.
    """
    name, *arguments = spec.split(":")
    factory = TABLE[checks.known("estimator", name, TABLE)]
    wanted = {key: kind for key, kind in get_type_hints(factory).items() if key != "return"}
    sequence = any(kind not in (int, float) for kind in wanted.values())
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
