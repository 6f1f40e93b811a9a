"""The variance of a gradient estimator: exactly, for small models."""

import math
from typing import Any, NamedTuple

import torch
from numpy.polynomial.hermite_e import hermegauss
from torch import Tensor

from funcvae import tree
from funcvae._support import checks
from funcvae.errors import BadType, BadValue, NonFinite
from funcvae.estimators.types import GradientEstimator, check_estimator, checked_estimate
from funcvae.model import VAE, check_data
from funcvae.modules import Params, State

__all__ = ["Exact", "exact"]


class Exact(NamedTuple):
    """The moments of a gradient over the noise, without sampling."""

    mean: Params
    """E[grads], like params: the direction to descend, in nats."""
    variance: Params
    """The variance of each coordinate of grads, like params."""
    covariance: Tensor
    """[P, P], between all coordinates: those of `tree.leaves(params)`, each flattened, one after the other."""
    bound: Tensor
    """E[bound] [B], in nats."""


@torch.no_grad()
def exact(
    estimator: GradientEstimator,
    model: VAE,
    params: Params,
    state: State,
    x: Tensor,
    *,
    samples: int,
    nodes: int,
) -> Exact:
    """Mean and covariance of `estimator(...).grads` over independent noise, by tensor Gauss–Hermite quadrature.

        E[g(eps)] ≈ sum_i w_i g(eps_i),    eps_i on the grid of `nodes` points along each of the K·Z axes of one datum

    Exact to rounding for a polynomial of degree 2·nodes - 1 in every coordinate of eps, and quickly so for what is as
    smooth as a small network. The data of a batch have independent noise and do not meet in evaluation mode, so

        E[g] = mean_b E[g_b],    Cov g = (1/B²) sum_b Cov g_b.

    In float64, 60 nodes at K·Z = 2 and 40 at 3 gave ten digits on the linear-Gaussian toy, 20 at 4 nine for the mean
    and seven for the variance. The grid has nodes^(K·Z) points: more axes must do with fewer nodes. Twice as many show
    whether they were enough.

    Args:
        estimator: an Estimator, or any function of the same arguments that returns an Estimate.
        x: data [B, ...]; its dtype is the noise's.
        samples: K.
        nodes: of the quadrature, along each axis.

    Raises:
        BadValue: samples below one, nodes not in 1 … 256, a grid of more than 2^24 points, or a model of more than
            5,000 parameters.
        BadData: data the model cannot take, or that are not finite.
        NonFinite: a gradient or bound that is not finite; the message names the datum.
    """
    samples, nodes = checks.integer("samples", samples, 1), checks.integer("nodes", nodes)
    if not 1 <= nodes <= _MOST_NODES:
        raise BadValue(f"nodes is {checks.describe(nodes)}: it must lie between 1 and {_MOST_NODES}")
    check_estimator("estimator", estimator)
    check_data(model, params, state, x)
    if not x.is_floating_point():
        raise BadType(f"x is {x.dtype}: its dtype is the noise's, so it must be floating-point")
    axes = samples * model.latent
    if axes * math.log2(nodes) > math.log2(_MOST_POINTS):
        many = f"{nodes**axes:.1g}" if axes < 100 else f"about 2^{axes * math.log2(nodes):.3g}"
        raise BadValue(f"{nodes} nodes on samples · latent = {axes} axes are {many} points: take fewer")
    checks.fits("samples", (samples, model.latent, nodes**axes))
    size = sum(leaf.numel() for leaf in tree.leaves(params))
    if size > _MOST_PARAMETERS:
        raise BadValue(f"the model has {size:,} parameters: this is for small ones, up to {_MOST_PARAMETERS:,}")

    point, weight = (t.to(x.device, x.dtype) for t in map(torch.from_numpy, hermegauss(nodes)))
    weight = weight / weight.sum()
    stride = nodes ** torch.arange(axes, device=x.device)
    chunk = max(1, min(_POINTS_AT_ONCE, _NUMBERS_AT_ONCE // size))
    mean, covariance, bounds = x.new_zeros(size), x.new_zeros(size, size), []
    for item, datum in enumerate(x.split(1)):

        def gradient(eps: Tensor, datum: Tensor = datum) -> Any:
            out = checked_estimate(estimator(model, params, state, datum, eps.reshape(samples, 1, -1), train=False))
            return torch.cat([leaf.flatten() for leaf in tree.leaves(out.grads)]), out.bound

        first, second, bound = torch.zeros_like(mean), torch.zeros_like(covariance), x.new_zeros(1)
        for i in range(0, nodes**axes, chunk):
            number = torch.arange(i, min(i + chunk, nodes**axes), device=x.device)
            node = number.unsqueeze(1) // stride % nodes  # the digits of the point's number, one for each axis
            w = weight[node].prod(1)
            g, b = torch.vmap(gradient)(point[node])  # [points, P], [points, 1]
            first += w @ g
            second.addmm_((w * g.T), g)
            bound += w @ b
        if not (first.isfinite().all() and bound.isfinite().all()):
            raise NonFinite(f"the gradient or bound of item {item} is not finite: look at the parameters")
        mean += first / len(x)
        covariance += second.addr_(first, first, alpha=-1) / len(x) ** 2
        bounds.append(bound)

    def like(flat: Tensor) -> Params:
        return tree.like(flat.split([leaf.numel() for leaf in tree.leaves(params)]), params)

    return Exact(like(mean), like(covariance.diagonal()), covariance, torch.cat(bounds))


_MOST_NODES = 256  # numpy's weights overflow soon after
_MOST_POINTS, _MOST_PARAMETERS = 2**24, 5000
_POINTS_AT_ONCE, _NUMBERS_AT_ONCE = 8192, 2**23
