"""The exact moments of a gradient estimator, for small models."""

import math
from typing import Annotated, NamedTuple

import torch
from einops import rearrange, reduce
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

__all__ = ["Errors", "Exact", "exact"]


class Errors(NamedTuple):
    """Estimates of the largest absolute error among the numbers of each field of an `Exact`."""

    mean: float
    variance: float
    covariance: float
    bound: float


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
    error: Errors
    """Estimates of the errors of the other fields."""


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
    nodes: Count,
    tolerance: Annotated[float, checks.at_least(0)] = 1e-4,
) -> Exact:
    """Mean and covariance of `estimator(...).grads` over independent noise, by the trapezoidal rule.

        E[g(eps)] ≈ sum_i w_i g(eps_i) / sum_i w_i,    w_i = exp(-|eps_i|²/2)

    eps_i are the points of a grid, with `nodes` equal steps along each of the K·Z axes of one datum. The rule converges
    exponentially for smooth functions, and faster than Gauss–Hermite quadrature. The data of a batch have independent
    noise, and in evaluation mode the gradient of a datum does not depend on other data, so

        E[g] = mean_b E[g_b],    Cov g = (1/B²) sum_b Cov g_b.

    The mean of the results over all shifts of the grid is the integral. So the results of shifted grids lie on both
    sides of it, and `error` is three times the largest difference from the results of six shifted grids, or 256 times
    the machine epsilon, relative as in `tolerance`, if that is more. One of the six is longer, because a gradient may
    grow exponentially with eps, as with a decoder of log σ, and then have a part beyond the ends. This holds for smooth
    networks and for those with kinks, such as ReLU, where the error only decreases as 1/nodes. Measured in float64 with
    Tanh, Softplus, ELU, ReLU, LeakyReLU, hard tanh and |·|, 20 to 150 nodes and K·Z = 1, `error` is 1.6 to 36 times the
    true error (with 12 nodes up to 196 times).

    On the linear-Gaussian toy in float64, 60 nodes at K·Z = 2 and 40 at K·Z = 3 give ten digits; 22 nodes at K·Z = 4
    give nine for the mean and seven for the variance. The seven grids have nodes^(K·Z) points each, so more axes allow
    fewer nodes.

    Args:
        estimator: an Estimator, or any function of the same arguments that returns an Estimate.
        x: data [B, ...].
        samples: K.
        nodes: number of steps along each axis.
        tolerance: the largest estimated error to accept. It is relative: for the mean, to the largest root mean square
            of a coordinate of the gradient; for variance and covariance, to its square; for the bound, to the largest.

    Raises:
        BadValue: an estimated error exceeds the tolerance; samples or nodes is below one, a grid has more than 2^24
            points, the model has more than 5,000 parameters, or the posterior's samples are not reparameterised.
        BadData: the model cannot take the data, or they are not finite.
        NonFinite: a gradient or bound is not finite; the message names the datum.

    Reference: Trefethen (2022), "Exactness of quadrature formulas", arXiv:2101.09501.
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
    if not size:
        raise BadValue("params has no leaves: there is no gradient")
    if size > _MOST_PARAMETERS:
        raise BadValue(f"the model has {size:,} parameters: exact needs at most {_MOST_PARAMETERS:,}; use moments")

    chunk = max(1, min(_POINTS_AT_ONCE, _NUMBERS_AT_ONCE // size))
    axis = torch.arange(axes, device=x.device)
    step = 2 * min(math.sqrt(math.pi * nodes), _END) / nodes  # balances the errors of the step and of the ends
    number_of_step = torch.arange(nodes, dtype=noise_dtype(params), device=x.device) - (nodes - 1) / 2
    gradient = gradients((estimator,), model.unchecked(), tuple(tree.named_leaves(params)), train=False)

    def integrate(point: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The mean, variance [P], covariance [P, P] and bounds [B] on the grid with these points [K·Z, nodes]."""
        weight = (-point.square() / 2).softmax(1)
        mean, covariance, bounds = weight.new_zeros(size), weight.new_zeros(size, size), []
        for item, datum in enumerate(x.split(1)):
            first, second, bound = torch.zeros_like(mean), torch.zeros_like(covariance), weight.new_zeros(1)
            for i in range(0, nodes**axes, chunk):
                number = torch.arange(i, min(i + chunk, nodes**axes), device=x.device)
                # The digits of the number of a point are its nodes, one for each axis.
                node = rearrange(number, "i -> i 1") // nodes**axis % nodes
                w = reduce(weight[axis, node], "i a -> i", "prod")
                eps = rearrange(point[axis, node], "i (n z) -> i n 1 z", n=samples)
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
        return mean, covariance.diagonal(), covariance, torch.cat(bounds)

    # In grid s, axis a moves by 3^(a mod 3) s^(1 + a//3) sevenths of a step: sums and differences of axes move, too.
    s = rearrange(torch.arange(_GRIDS, device=x.device), "s -> s 1")
    shifts = 3 ** (axis % 3) * s ** (1 + axis // 3) % _GRIDS / _GRIDS
    shifts = rearrange((shifts - shifts.round()).to(number_of_step), "s a -> s a 1")
    grids = step * (number_of_step + shifts)
    grids[-1] *= _LONGER
    mean, variance, covariance, bound = found = integrate(grids[0])
    square = float((mean.square() + variance).max())
    scales = Errors(math.sqrt(square), square, square, float(bound.abs().max()))
    eps = torch.finfo(mean.dtype).eps
    error = Errors(*(_ROUNDING * eps * scale for scale in scales))
    for grid in grids[1:]:
        apart = (_SAFETY * float((a - b).abs().max()) for a, b in zip(found, integrate(grid), strict=True))
        error = Errors(*map(max, error, apart))
    for name, estimate, scale in zip(Errors._fields, error, scales, strict=True):
        if estimate > (allowed := tolerance * max(scale, eps)):
            raise BadValue(
                f"the error of the {name} is about {estimate:.1g} with {nodes} nodes, and tolerance allows "
                f"{allowed:.1g}: use more nodes, float64 or a larger tolerance, or moments"
            )

    def like(flat: Tensor) -> Params:
        return tree.like(flat.split([leaf.numel() for leaf in tree.leaves(params)]), params)

    return Exact(like(mean), like(variance), covariance, bound, error)


_MOST_POINTS, _MOST_PARAMETERS = 2**24, 5000
_POINTS_AT_ONCE, _NUMBERS_AT_ONCE = 8192, 2**23
_GRIDS = 7
_END = 9.0  # where the normal density, times powers of eps, is below rounding
_LONGER = 1.05  # a grid that is longer by this factor shows what lies beyond the ends of the others
_SAFETY = 3  # grids can lie on one side of the integral, as where several kinks cancel
_ROUNDING = 256  # multiples of the machine epsilon
