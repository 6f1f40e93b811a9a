"""Heads: functions from a network's output to a distribution.

The output is a tensor or a tuple of two tensors. A head of two tensors splits a single tensor into halves along its
last axis. (The posteriors of `distributions.layered` also take the weights of their networks.) Any such function is a
head. The distribution of a likelihood head must have the shape of the data, after any leading axes of z. So the heads
of `categorical` and `concrete(…, classes)`, whose logits have an axis of classes, are for posteriors and priors only.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor

from funcvae._support import checks
from funcvae._support.checks import Positive, at_least
from funcvae.distributions import (
    Bernoulli,
    Categorical,
    CouplingFlow,
    Delta,
    Distribution,
    FullNormal,
    Layers,
    Normal,
    RelaxedBernoulli,
    RelaxedCategorical,
    SignedNormal,
    TwoLayers,
)
from funcvae.errors import BadValue

__all__ = [
    "Head", "Output", "bernoulli", "bernoulli_probs", "categorical", "concrete", "coupling_flow", "delta",
    "full_normal", "normal_fixed", "normal_logsigma", "normal_logvar", "signed_normal", "two_layers",
]  # fmt: skip

Classes = Annotated[int, at_least(2)]
Output = Tensor | tuple[Tensor, Tensor]
"""What a network returns: one tensor, or two of one shape."""
Head = Callable[[Any], Distribution]
"""Maps what a network returns to a distribution: a posterior, a prior or a likelihood."""


def normal_logvar(out: Output) -> Normal:
    """Normal(loc, exp(logvar / 2)) from (loc, logvar)."""
    loc, logvar = _pair(out)
    return Normal(loc, (logvar / 2).exp())


def normal_logsigma(out: Output) -> Normal:
    """Normal(loc, exp(log_sigma)) from (loc, log_sigma)."""
    loc, log_sigma = _pair(out)
    return Normal(loc, log_sigma.exp())


def signed_normal(out: Output) -> SignedNormal:
    """SignedNormal(loc, sigma) from (loc, sigma), where sigma may have any sign; z = loc + sigma · eps.

    Blog posts use this, but it is not a proper density. Samples have variance sigma², but `log_prob`, and the logarithm
    in the KL ½ (loc² + sigma² - log(sigma² + 1e-8) - 1), use sigma² + 1e-8 to stay finite at sigma = 0. `elbo` has
    the gradient of the posts' loss, but no estimator's claims hold. Prefer `normal_logsigma`.
    """
    loc, sigma = _pair(out)
    return SignedNormal(loc, sigma)


@checks.arguments
def normal_fixed(sigma: Positive) -> Head:
    """Makes the head Normal(out, sigma) with one fixed sigma: as a likelihood, a squared-error loss.

    -log N(x; x̂, sigma²) = C (x - x̂)² + ½ log 2π + log sigma with C = 1/(2 sigma²), so sigma = √½ gives the plain
    squared error plus a constant.

    Raises:
        BadValue: sigma is not positive; or, from the head, sigma is out of the range of the network's dtype.
    """
    return partial(_normal_fixed, sigma)


def _normal_fixed(sigma: float, out: Tensor) -> Normal:
    return Normal(out, checks.constant("sigma", sigma, _one(out)))


def bernoulli(out: Tensor) -> Bernoulli:
    """Bernoulli(out), where the network's output is the logits."""
    return Bernoulli(_one(out))


def bernoulli_probs(out: Tensor) -> Bernoulli:
    """Bernoulli with probabilities `out`, as a network that ends in a sigmoid returns them.

    They are clamped to [1e-6, 1 - 1e-6], because log p of a pixel with probability 0 or 1 may be infinite.
    """
    return Bernoulli(_one(out).logit(eps=1e-6))


@checks.arguments
def categorical(classes: Classes) -> Head:
    """Makes the head Categorical(logits) of variables with this number of classes; z is one-hot.

    The network's output is [..., V·classes], and so is z.

    Raises:
        BadValue: classes is below two; or, from the head, it does not divide the output's last axis.
    """
    return partial(_categorical, classes)


def _categorical(classes: int, out: Tensor) -> Categorical:
    return Categorical(_by_class(classes, out))


@checks.arguments
def concrete(temperature: Positive, classes: Classes | None = None) -> Head:
    """Makes the head of a relaxed Bernoulli, or of relaxed categorical variables if `classes` is given.

    The output is that of `bernoulli` or `categorical`. A posterior needs a prior with a density, such as
    `funcvae.priors.concrete`.

    Raises:
        BadValue: temperature is not positive, or classes is below two; or, from the head, temperature is out of the
            range of the network's dtype, or classes does not divide the output's last axis.

    Reference: Maddison, Mnih & Teh (2017), arXiv:1611.00712.
    """
    return partial(_concrete, temperature, classes)


def _concrete(temperature: float, classes: int | None, out: Tensor) -> RelaxedBernoulli | RelaxedCategorical:
    heat = checks.constant("temperature", temperature, _one(out))
    return RelaxedBernoulli(out, heat) if classes is None else RelaxedCategorical(_by_class(classes, out), heat)


def _by_class(classes: int, out: Tensor) -> Tensor:
    """The logits [..., V, C] from an output [..., V·C]."""
    variables, rest = divmod(checks.floats(_OUT, out, "... V·C").shape[-1], classes)
    if rest:
        raise BadValue(
            f"{out.shape[-1]} logits cannot be divided into variables of {classes} classes: use a multiple of {classes}"
        )
    return out.unflatten(-1, (variables, classes))


def delta(out: Tensor) -> Delta:
    """Delta(out). With this head as the posterior, the VAE is a plain autoencoder."""
    return Delta(_one(out))


def full_normal(out: Output) -> FullNormal:
    """FullNormal(loc, L) from (loc [..., Z], triangle [..., Z(Z+1)/2]), or one tensor [..., Z + Z(Z+1)/2] of both.

    The triangle holds the rows of the lower triangular L one after another. The diagonal of L is exponentiated: the
    network returns its logarithm.

    Raises:
        BadValue: the output is not of these widths.
    """
    loc, triangle = _loc_and_triangle(out)
    i = torch.arange(loc.shape[-1], device=loc.device)
    start = i * (i + 1) // 2  # of row i in the triangle
    rows, diagonal = triangle[..., start.unsqueeze(-1) + i], triangle[..., start + i].exp()
    # Above the diagonal, the rows hold elements of other rows, which `tril` replaces by zero.
    return FullNormal(loc, torch.where(i == i.unsqueeze(-1), diagonal.unsqueeze(-1), rows).tril())


def _loc_and_triangle(out: Output) -> tuple[Tensor, Tensor]:
    if isinstance(out, tuple | list):
        loc, triangle = _pair(out)
        latent, width = loc.shape[-1], loc.shape[-1] + triangle.shape[-1]
    else:
        width = checks.floats(_OUT, out, "... Z+Z(Z+1)/2").shape[-1]
        latent = max(1, (math.isqrt(9 + 8 * width) - 3) // 2)
        loc, triangle = out[..., :latent], out[..., latent:]
    if width != latent * (latent + 3) // 2:
        widths = " or ".join(f"{z * (z + 3) // 2} for Z = {z}" for z in (latent, latent + 1))
        raise BadValue(f"{_OUT} has {width} numbers for each datum: this head takes Z + Z(Z+1)/2, such as {widths}")
    return loc, triangle


def two_layers(out: tuple[Tensor, Tensor, Layers]) -> TwoLayers:
    """TwoLayers(Normal(loc, exp(log_sigma)), layers) from (loc, log_sigma, layers).

    `layers` are the weights of a network from z_1 to (m, log s) of z_2, from `funcvae.distributions.layers_of`.

    Raises:
        BadValue: the sizes of the layers do not fit.
    """
    first, layers = _normal_and("layers", out)
    _check_layers("layers", layers, first.loc.shape[-1])
    return TwoLayers(first, layers)


def coupling_flow(out: tuple[Tensor, Tensor, Sequence[Layers]]) -> CouplingFlow:
    """CouplingFlow(Normal(loc, exp(log_sigma)), couplings) from (loc, log_sigma, couplings).

    Each coupling is the weights of a network from one half of z to (s, t) for the other half: from Z // 2 numbers to
    2 (Z - Z // 2) in the first coupling, third and so on, and from Z - Z // 2 to 2 (Z // 2) in the others.

    Raises:
        BadValue: Z is 1, or the sizes of the layers do not fit.
    """
    base, couplings = _normal_and("couplings", out)
    latent = base.loc.shape[-1]
    if latent < 2:
        raise BadValue("a coupling flow has Z = 1: it needs two halves, so Z of at least 2")
    for i, layers in enumerate(couplings):
        half = (latent + i % 2) // 2
        _check_layers(f"coupling {i + 1}", layers, half, 2 * (latent - half))
    return CouplingFlow(base, couplings)


def _normal_and(name: str, out: Any) -> tuple[Normal, Any]:
    """The normal and the weights of an output (loc, log_sigma, weights)."""
    if len(checks.sequence(_OUT, out)) != 3:
        raise BadValue(f"{_OUT} has {len(out)} parts: this head takes (loc, log_sigma, {name})")
    checks.floats(_OUT, out[0], "... Z")
    return normal_logsigma((out[0], out[1])), tuple(checks.sequence(name, out[2]))


def _check_layers(name: str, layers: Any, inputs: int, outputs: int | None = None) -> None:
    """Raises unless these are the weights of a network from `inputs` to an even number of outputs, or to `outputs`."""
    first, width = inputs, inputs
    for layer in checks.sequence(name, layers):
        if len(checks.sequence(f"a layer of {name}", layer)) != 2:
            raise BadValue(f"a layer of {name} has {len(layer)} tensors: it must be (weight, bias)")
        weight, bias = checks.floats(f"a weight of {name}", layer[0]), checks.floats(f"a bias of {name}", layer[1])
        if weight.ndim != 2 or weight.shape[1] != width or bias.shape != weight.shape[:1]:
            shapes = f"{list(weight.shape)} and {list(bias.shape)}"
            raise BadValue(f"a layer of {name} has shapes {shapes}: it must be [n, {width}] and [n]")
        width = len(weight)
    if not len(layers) or (width % 2 if outputs is None else width != outputs):
        what = "an even number" if outputs is None else outputs
        raise BadValue(f"{name} map {first} numbers to {width}: they must map them to {what}, in at least one layer")


def _pair(out: Output) -> tuple[Tensor, Tensor]:
    """The two tensors of an output, or the halves of its one tensor [..., 2·D]."""
    if isinstance(out, tuple | list):
        if len(out) != 2:
            raise BadValue(f"{_OUT} is {len(out)} tensors: this head takes one tensor or two")
        return _one(out[0]), _one(out[1])
    if checks.floats(_OUT, out, "... 2·D").shape[-1] % 2:
        raise BadValue(f"{_OUT} has a last axis of odd length {out.shape[-1]}: this head splits it into two halves")
    first, second = out.chunk(2, dim=-1)
    return first, second


def _one(out: Tensor) -> Tensor:
    return checks.floats(_OUT, out)


_OUT = "the network's output"
