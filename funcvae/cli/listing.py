"""The command that lists the named systems, estimators, noise schemes and data sets: `list`."""

from typing import Literal

import tyro

from funcvae import data, estimators, noise
from funcvae.models import RECIPES

__all__ = ["list_"]


def list_(what: tyro.conf.Positional[Literal["systems", "estimators", "noise", "data"]] = "systems", /) -> None:
    """List the named systems, estimators, noise schemes or data sets.

    Args:
        what: What to list.
    """
    if what == "estimators":
        print(_ESTIMATORS_HEAD)
        for name in estimators.TABLE:
            print(_estimator_lines(name))
        return
    rows = {
        "systems": {name: recipe.about for name, recipe in RECIPES.items()},
        "noise": {name: (scheme.__doc__ or "").splitlines()[0] for name, scheme in noise.TABLE.items()},
        "data": {name: loader.__doc__ or "" for name, loader in data.NAMED.items()},
    }[what]
    width = max(map(len, rows))
    for name, about in rows.items():
        print(f"{name:{width}}  {about}".rstrip())


_ESTIMATORS_HEAD = """\
Up the gradient goes   encoder: sum_k path_k d_k + score_k s_k   decoder, prior: sum_k theta_k ∇ log w_k
with f = log w, v = softmax_k(f), d_k the derivative of log w_k through z_k alone, s_k = ∇ log q(z_k|x) at fixed z_k;
u = softmax_k((1-α) f), v_g = softmax_k(f) within one of M groups, r = β/K + (1-β)v. Under each its target, whether its
gradients are unbiased for that, what else is to be known, and its papers.
"""


def _estimator_lines(name: str) -> str:
    """An estimator's weights, target, biases and papers."""
    example = estimators.EXAMPLES[name]
    claims = estimators.parse(example).claims
    bias = {True: "unbiased", False: "biased"}
    parts = [
        claims.target,
        f"encoder {bias[claims.unbiased_encoder]}, decoder {bias[claims.unbiased_decoder]}",
        *([claims.note] if claims.note else []),
        *(["needs independent noise"] if claims.noise == "independent" else []),
        ", ".join(claims.papers),
    ]
    return f"{example:18} {estimators.weights_of(name)}\n{'':18} {'; '.join(parts)}"
