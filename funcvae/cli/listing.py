"""The command that lists the named systems, estimators, noise schemes and data sets: `list`."""

from typing import Annotated, Literal

from cyclopts import Parameter

from funcvae import data, estimators, noise, runs
from funcvae._support.tables import WIDTH, as_text, table
from funcvae.cli.options import Flag
from funcvae.errors import BadValue
from funcvae.models import SYSTEMS

__all__ = ["list_"]


def list_(
    what: Literal["systems", "estimators", "noise", "data", "runs"] = "systems",
    folder: str | None = None,
    /,
    *,
    from_: Annotated[str | None, Parameter(name="from")] = None,
    wide: Flag = False,
) -> None:
    """List the named systems, estimators, noise schemes or data sets, or the runs in a folder.

    Args:
        what: What to list.
        folder: The folder whose runs to list. By default runs/.
        from_: Also list the systems of a file FILE.py or of a module. This runs its code.
        wide: Print lines that do not fit the terminal.
    """
    if from_ is not None and what != "systems":
        raise BadValue(f"--from is {from_}: it is for systems, not for {what}")
    if folder is not None and what != "runs":
        raise BadValue(f"unexpected argument {folder}: only `funcvae list runs FOLDER` takes a folder")
    own = {} if from_ is None else {f"{from_}:{name}": system for name, system in runs.systems_in(from_).items()}
    width = None if wide else WIDTH
    if what == "runs":
        folder = folder or "runs"
        found = runs.runs_in(folder)
        print(runs.runs_table(found, wide=wide) if found else f"{folder} holds no runs")
        return
    if what == "estimators":
        print(as_text(_ESTIMATORS_HEAD, width))
        print(table([row for name in estimators.TABLE for row in _estimator_rows(name)], align="<", width=width))
        return
    rows = {
        "systems": {name: system.about for name, system in (SYSTEMS | own).items()},
        "noise": {name: (scheme.__doc__ or "").splitlines()[0] for name, scheme in noise.TABLE.items()},
        "data": {name: loader.__doc__ or "" for name, loader in data.NAMED.items()},
    }[what]
    print(table(list(rows.items()), align="<", width=width))


_ESTIMATORS_HEAD = (
    "Ascent direction",
    "  encoder: sum_k path_k d_k + score_k s_k",
    "  decoder, prior: sum_k theta_k ∇ log w_k",
    "with f = log w, v = softmax_k(f), d_k the derivative of log w_k through z_k alone, s_k = ∇ log q(z_k|x) at fixed "
    "z_k; u = softmax_k((1-α) f), v_g = softmax_k(f) within one of M groups, r = β/K + (1-β)v.",
    "The further lines of each estimator have its target, whether its gradients are unbiased for the target, remarks, "
    "and its papers. An estimator without a remark on the posterior needs reparameterised samples, as of a normal "
    "posterior. Those for discrete posteriors evaluate the model at further points: z~ is the antithetic value of z, a "
    "a logit, u the uniform noise, s(z) = ∇ log q(z|x).",
    "",
)


def _estimator_rows(name: str) -> list[tuple[str, str]]:
    """Two rows of a table: the estimator's weights, and its target, biases and papers."""
    example = estimators.EXAMPLES[name]
    claims = estimators.parse(example).claims
    bias = {True: "unbiased", False: "biased"}
    parts = [
        claims.target,
        f"encoder {bias[claims.unbiased_encoder]}, decoder {bias[claims.unbiased_decoder]}",
        *([claims.note] if claims.note else []),
        *(["needs independent noise"] if claims.noise == "independent" else []),
        *([f"{claims.posterior} posterior"] if claims.posterior != "reparameterised" else []),
        ", ".join(claims.papers),
    ]
    return [(example, estimators.weights_of(name)), ("", "; ".join(parts))]
