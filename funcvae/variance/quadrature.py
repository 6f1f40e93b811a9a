"""The exact moments of a gradient estimator, for small models."""

import math
from typing import Annotated, NamedTuple

import torch
from einops import rearrange, reduce
from numpy.polynomial.hermite_e import hermegauss
from torch import Tensor

from funcvae import tree
from funcvae._support import checks
from funcvae._support.checks import Count
from funcvae.distributions import is_reparameterised
from funcvae.errors import BadValue, NonFinite
from funcvae.estimators.types import GradientEstimator, check_estimator
from funcvae.model import VAE, check_data, noise_dtype
from funcvae.modules import Params, State
from funcvae.variance.problem import gradients

__all__ = ["Exact", "exact"]


class Exact(NamedTuple):
    """The moments of a gradient over the noise, without sampling."""

    mean: Params
    """E[grads], like params: the direction to descend, in nats."""
    variance: Params
    """The variance of each coordinate of grads, like params."""
    covariance: Tensor
    """[P, P], between all coordinates: the flattened `tree.leaves(params)`, concatenated."""
    bound: Tensor
    """E[bound] [B], in nats."""


@checks.arguments
@torch.no_grad()
def exact(
    estimator: GradientEstimator,
    model: VAE,
    params: Params,
    state: State,
    x: Annotated[Tensor, "B ..."],
    *,
    samples: Count,
    nodes: Annotated[int, checks.within(1, 256)],  # numpy's weights overflow for more nodes
) -> Exact:
    """Mean and covariance of `estimator(...).grads` over independent noise, by tensor Gauss–Hermite quadrature.

        E[g(eps)] ≈ sum_i w_i g(eps_i),    eps_i on the grid of `nodes` points along each of the K·Z axes of one datum

    It is exact to rounding for a polynomial of degree 2·nodes - 1 in every coordinate of eps, and converges quickly for
    smooth functions such as small networks. The data of a batch have independent noise, and in evaluation mode the
    gradient of a datum does not depend on other data, so

        E[g] = mean_b E[g_b],    Cov g = (1/B²) sum_b Cov g_b.

    On the linear-Gaussian toy in float64, 60 nodes at K·Z = 2 and 40 at K·Z = 3 give ten digits; 20 nodes at K·Z = 4
    give nine for the mean and seven for the variance. The grid has nodes^(K·Z) points, so more axes allow fewer nodes.
    Compare the result with that of more nodes to see if they are enough.

    Args:
        estimator: an Estimator, or any function of the same arguments that returns an Estimate.
        x: data [B, ...].
        samples: K.
        nodes: number of quadrature nodes along each axis.

    Raises:
        BadValue: samples is below one, nodes is not in 1 … 256, the grid has more than 2^24 points, the model has
            more than 5,000 parameters, or the posterior's samples are not reparameterised.
        BadData: the model cannot take the data, or they are not finite.
        NonFinite: a gradient or bound is not finite; the message names the datum.
    """
    check_estimator("estimator", estimator)
    check_data(model, params, state, x)
    q, _ = model.encode(params, state, x[:2])
    if not is_reparameterised(q):
        raise BadValue(
            f"the samples of the {type(q).__name__} posterior are not reparameterised: quadrature over normal noise "
            "is wrong for a function with steps; use moments"
        )
    axes = samples * model.latent
    if axes * math.log2(nodes) > math.log2(_MOST_POINTS):
        many = f"{nodes**axes:.1g}" if axes < 100 else f"about 2^{axes * math.log2(nodes):.3g}"
        raise BadValue(f"{nodes} nodes along each of samples · latent = {axes} axes make {many} points: use fewer")
    checks.fits("samples", (samples, model.latent, nodes**axes))
    size = sum(leaf.numel() for leaf in tree.leaves(params))
    if size > _MOST_PARAMETERS:
        raise BadValue(f"the model has {size:,} parameters: exact needs at most {_MOST_PARAMETERS:,}; use moments")

    point, weight = (t.to(x.device, noise_dtype(params)) for t in map(torch.from_numpy, hermegauss(nodes)))
    weight = weight / weight.sum()
    stride = nodes ** torch.arange(axes, device=x.device)
    chunk = max(1, min(_POINTS_AT_ONCE, _NUMBERS_AT_ONCE // size))
    gradient = gradients((estimator,), model.unchecked(), tuple(tree.named_leaves(params)), train=False)
    mean, covariance, bounds = weight.new_zeros(size), weight.new_zeros(size, size), []
    for item, datum in enumerate(x.split(1)):
        first, second, bound = torch.zeros_like(mean), torch.zeros_like(covariance), weight.new_zeros(1)
        for i in range(0, nodes**axes, chunk):
            number = torch.arange(i, min(i + chunk, nodes**axes), device=x.device)
            # The digits of the number of a point are its nodes, one for each axis.
            node = rearrange(number, "i -> i 1") // stride % nodes
            w = reduce(weight[node], "i a -> i", "prod")
            eps = rearrange(point[node], "i (n z) -> i n 1 z", n=samples)
            (leaves,), _, (b,) = gradient(params, state, datum, eps)
            g = torch.cat(leaves, 1)  # [i, P]
            first += w @ g
            second.addmm_((w * g.T), g)
            bound += w @ rearrange(b, "i -> i 1")
        if not (first.isfinite().all() and bound.isfinite().all()):
            raise NonFinite(f"the gradient or bound of item {item} is not finite: check the parameters")
        mean += first / len(x)
        covariance += second.addr_(first, first, alpha=-1) / len(x) ** 2
        bounds.append(bound)

    def like(flat: Tensor) -> Params:
        return tree.like(flat.split([leaf.numel() for leaf in tree.leaves(params)]), params)

    return Exact(like(mean), like(covariance.diagonal()), covariance, torch.cat(bounds))


_MOST_POINTS, _MOST_PARAMETERS = 2**24, 5000
_POINTS_AT_ONCE, _NUMBERS_AT_ONCE = 8192, 2**23
