"""The exact moments of a gradient estimator, for small models."""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Annotated, Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from funcvae import random, tree
from funcvae._support import checks, examples, tables
from funcvae._support.checks import Count
from funcvae._support.examples import Data
from funcvae._support.reprs import short_repr
from funcvae.distributions import Posterior, is_reparameterised
from funcvae.errors import BadValue, NonFinite
from funcvae.estimators.types import SAMPLES, GradientEstimator, check_estimator, check_posterior
from funcvae.model import CHECK_SEED, VAE, check_data, log_prob_terms, noise_dtype
from funcvae.modules import Params, State
from funcvae.variance import grids
from funcvae.variance.grids import ProductGrid
from funcvae.variance.problem import Gradients, gradients

__all__ = ["Errors", "Exact", "exact"]


@short_repr
class Errors(NamedTuple):
    """Estimates of the largest absolute error among the numbers of each field of an `Exact`."""

    mean: float
    variance: float
    covariance: float
    bound: float


@tables.shown
@short_repr
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

    def table(self) -> str:
        """The moments of the gradient in each network and parameter, as text in 80 columns. `print` shows it."""
        return tables.as_text(self._blocks())

    def _blocks(self, wide: bool = False) -> list[tables.Block]:
        means, variances = tree.named_leaves(self.mean), tree.named_leaves(self.variance)
        rows = []
        for name in [*self.mean, *means]:
            members = [path for path in means if f"{path}/".startswith(f"{name}/")]
            if not members:
                continue
            size, total = sum(means[path].numel() for path in members), sum(float(variances[p].sum()) for p in members)
            norm = math.sqrt(sum(float(means[path].square().sum()) for path in members))
            snr = norm / math.sqrt(total) if total > 0 else math.inf
            rows.append([name, f"{size:,}", f"{norm:.4g}", f"{total:.4g}", f"{snr:.4g}"])
        head = ("parameters", "numbers", "‖E g‖", "tr Cov g", "SNR")
        about = f"moments of the gradient, without sampling; mean bound {float(self.bound.mean()):.6g} nats per example"
        errors = f"estimated errors: mean {self.error.mean:.1g}, variance {self.error.variance:.1g}"
        return [about, tables.Table(head, {"": rows}), f"{errors}, bound {self.error.bound:.1g}"]


@checks.arguments
@torch.no_grad()
def exact(
    estimator: GradientEstimator,
    model: VAE,
    params: Params,
    state: State,
    x: Data,
    *,
    samples: Count,
    nodes: Count | None = None,
    tolerance: Annotated[float, checks.at_least(0)] = 1e-4,
) -> Exact:
    """Mean and covariance of `estimator(...).grads` over independent noise, without sampling.

    The posterior decides how. If it has finitely many `values()`, they are enumerated: all joint values of the draws z,
    with their probabilities. An estimator that depends on the noise beyond z, as by an antithetic pair, names the steps
    of its points in u = Φ(eps) (`Points.breaks`). Then the cells between them are enumerated, by a Gauss-Legendre rule
    in each cell; one node is enough if the gradient is constant there. Other posteriors take the trapezoidal rule

        E[g(eps)] ≈ sum_i w_i g(eps_i) / sum_i w_i,    w_i = exp(-|eps_i|²/2)

    where eps_i are the points of a grid, with `nodes` equal steps along each of the K·Z axes of one datum. It converges
    exponentially for smooth functions, and faster than Gauss-Hermite quadrature. The data of a batch have independent
    noise, and in evaluation mode the gradient of a datum does not depend on other data, so

        E[g] = mean_b E[g_b],    Cov g = (1/B²) sum_b Cov g_b.

    The mean of the trapezoidal results over all shifts of the grid is the integral. So the results of shifted grids lie
    on both sides of it, and `error` is three times the largest difference from the results of six shifted grids, or 256
    times the machine epsilon, relative as in `tolerance`, if that is more. One of the six is longer, because a gradient
    may grow exponentially with eps, as with a decoder of log σ, and then have a part beyond the ends. This holds for
    smooth networks and for those with kinks, such as ReLU, where the error only decreases as 1/nodes. Measured in
    float64 with Tanh, Softplus, ELU, ReLU, LeakyReLU, hard tanh and |·|, 20 to 150 nodes and K·Z = 1, `error` is 1.6 to
    36 times the true error (with 12 nodes up to 196 times). In cells it is three times the difference from half the
    nodes, and for enumerated values the rounding.

    On the linear-Gaussian toy in float64, 60 nodes at K·Z = 2 and 40 at K·Z = 3 give ten digits; 22 nodes at K·Z = 4
    give nine for the mean and seven for the variance. The seven grids have nodes^(K·Z) points each, so more axes allow
    fewer nodes.

    Args:
        estimator: an Estimator, or any function of the same arguments that returns an Estimate.
        x: data [B, ...].
        samples: the number K of noises.
        nodes: number of steps along each axis, or of nodes in each cell; by default it is doubled until the errors are
            within the tolerance. Values are enumerated without nodes.
        tolerance: the largest estimated error to accept. It is relative: for the mean, to the largest root mean square
            of a coordinate of the gradient; for variance and covariance, to its square; for the bound, to the largest.

    Raises:
        BadValue: an estimated error exceeds the tolerance; there are more than 2^20 joint values or 2^24 points; the
            model has more than 5,000 parameters; the estimator does not allow the posterior, or depends on the noise
            beyond z; or samples or nodes is below one.
        BadData: the model cannot take the data, or they are not finite.
        NonFinite: a gradient or bound is not finite; the message names the datum.

    Reference: Trefethen (2022), "Exactness of quadrature formulas", arXiv:2101.09501.
    """
    check_estimator("estimator", estimator)
    check_data(model, params, state, x)
    size = sum(leaf.numel() for leaf in tree.leaves(params))
    if not size:
        raise BadValue("params has no leaves: there is no gradient")
    if size > _MOST_PARAMETERS:
        raise BadValue(f"the model has {size:,} parameters: exact needs at most {_MOST_PARAMETERS:,}; use moments")
    model = model.unchecked()
    q, _ = model.encode(params, state, x)
    check_posterior(estimator, q, is_reparameterised)
    if not (hasattr(q, "values") or is_reparameterised(q)):
        raise BadValue(
            f"the samples of the {type(q).__name__} posterior are not reparameterised: quadrature over normal noise "
            "is wrong for a function with steps; list its values(), or use moments"
        )
    problem = _Problem(estimator, model, params, state, x, samples)
    points = getattr(estimator, "points", SAMPLES)
    if not hasattr(q, "values"):
        found, error = _trapezoidal(problem, nodes, tolerance)
    elif points.breaks is None:
        found, error = _by_values(problem, q.values())
    else:
        found, error = _in_cells(problem, q, points.breaks, nodes, tolerance)
    mean, variance, covariance, bound = found

    def like(flat: Tensor) -> Params:
        return tree.like(flat.split([leaf.numel() for leaf in tree.leaves(params)]), params)

    return Exact(like(mean), like(variance), covariance, bound, error)


class _Problem(NamedTuple):
    estimator: GradientEstimator
    model: VAE
    params: Params
    state: State
    x: Data
    samples: int

    @property
    def like(self) -> Tensor:
        """An empty tensor of the noise's dtype and device."""
        return torch.empty(0, dtype=noise_dtype(self.params), device=examples.device(self.x))

    def gradient(self, model: VAE) -> Gradients:
        """The gradients of the estimator for a model."""
        return gradients((self.estimator,), model, tuple(tree.named_leaves(self.params)), train=False)


Found = tuple[Tensor, Tensor, Tensor, Tensor]
"""The mean, variance [P], covariance [P, P] and bounds [B]."""


def _by_values(problem: _Problem, of_variable: Tensor) -> tuple[Found, Errors]:
    """The sum over all joint values of the draws, which take the place of the noise: the posterior returns it as z."""
    variables = problem.model.latent // of_variable.shape[-1]
    if (number := problem.samples * variables * math.log2(len(of_variable))) > math.log2(_MOST_VALUES):
        raise BadValue(
            f"{problem.samples} draws of {variables} variables with {len(of_variable)} values each have about "
            f"2^{number:.3g} joint values: exact enumerates at most 2^20; use fewer samples or latents, or moments"
        )

    def encode(params: Params, state: State, x: Data, train: bool = False) -> tuple[Posterior, State]:
        q, state = problem.model.encode(params, state, x, train)
        fields: Any = q
        return _given(type(q))(*fields), state

    def grid_of(datum: Data) -> ProductGrid:
        q, _ = problem.model.encode(problem.params, problem.state, datum)
        log_q = log_prob_terms(q, rearrange(of_variable.repeat(1, variables), "s z -> s 1 z"))
        if log_q.ndim != 3 and variables > 1:
            raise BadValue(
                f"log_prob of the {type(q).__name__} sums over its {variables} variables: it must be elementwise, or "
                "values() must list all joint values"
            )
        log_q = log_q.reshape(len(of_variable), variables, -1).sum(-1)
        if ((log_q.exp().sum(0) - 1).abs() > _TOTAL).any():
            kind = type(q).__name__
            raise BadValue(f"the probabilities of the values() of the {kind} do not add up to 1: list all values")
        return grids.values(of_variable, log_q.T, problem.samples)

    model = problem.model._replace(encode=encode)
    _check_z_decides(problem, model)
    found = _integrate(problem, model, grid_of)
    return found, _errors(found, [])


@lru_cache
def _given(kind: Any) -> Any:
    """The same distribution, except that `sample(z)` returns z."""
    return type(kind.__name__, (kind,), {"sample": lambda self, z: z})


def _check_z_decides(problem: _Problem, given: VAE) -> None:
    """Raises BadValue if the gradient depends on the noise beyond the z that it makes, for one noise."""
    datum = examples.head(problem.x, 1)
    key = random.key(CHECK_SEED, device=examples.device(datum))
    eps = random.normal(key, (1, problem.samples, 1, problem.model.latent), problem.like.dtype)
    q, _ = problem.model.encode(problem.params, problem.state, datum)
    pairs = [(problem.model, eps), (given, q.sample(eps[0]).unsqueeze(0))]
    own, enumerated = (
        torch.cat(problem.gradient(model)(problem.params, problem.state, datum, noise)[0][0], 1)
        for model, noise in pairs
    )
    if not torch.allclose(own, enumerated, rtol=1e-3, atol=1e-3 * float(own.abs().max())):
        raise BadValue(
            "the gradient depends on the noise beyond z, so the values of z do not determine it: make the estimator by "
            "from_points with Points(..., breaks=...)"
        )


def _in_cells(
    problem: _Problem, q: Posterior, breaks_of: Callable[[Posterior], Tensor], nodes: int | None, tolerance: float
) -> tuple[Found, Errors]:
    """Gauss-Legendre rules in the cells of u in which the points of an estimator are constant."""
    breaks = checks.floats("the breaks", breaks_of(q), "S B Z")
    if breaks.shape[1:] != q.loc.shape:
        raise BadValue(f"the breaks have shape {list(breaks.shape)}: it must be {['S', *q.loc.shape]}")
    cells = len(breaks) + 1

    @lru_cache(maxsize=3)  # the rule of n nodes is compared with that of n/2, which came before
    def integrate(nodes: int, middle: float = 0.5) -> Found:
        def grid_of(datum: Data) -> ProductGrid:
            q, _ = problem.model.encode(problem.params, problem.state, datum)
            return grids.cells(rearrange(breaks_of(q), "s 1 z -> s z"), problem.samples, nodes, middle)

        return _integrate(problem, problem.model, grid_of)

    def refined(n: int) -> tuple[Found, Errors]:
        found = integrate(n)
        return found, _errors(found, [integrate(n // 2) if n > 1 else integrate(1, _OFF_MIDDLE)])

    return _until(refined, problem, nodes, 1, cells, tolerance)


def _trapezoidal(problem: _Problem, nodes: int | None, tolerance: float) -> tuple[Found, Errors]:
    """The trapezoidal rule over normal noise, on seven shifted grids."""
    axes = problem.samples * problem.model.latent

    def integrate(n: int, number: int) -> Found:
        rule = grids.shifted(axes, n, number, problem.like)
        return _integrate(problem, problem.model, lambda datum: rule)

    def refined(n: int) -> tuple[Found, Errors]:
        found, *others = (integrate(n, number) for number in range(grids.GRIDS))
        return found, _errors(found, others)

    return _until(refined, problem, nodes, _FIRST, 1, tolerance)


def _until(
    refined: Callable[[int], tuple[Found, Errors]], problem: _Problem, nodes: int | None, first: int, cells: int,
    tolerance: float,
) -> tuple[Found, Errors]:  # fmt: skip
    """The result with the given nodes; or with twice as many until the errors are within the tolerance."""
    axes, n = problem.samples * problem.model.latent, nodes or first
    if axes * math.log2(cells * n) > math.log2(_MOST_POINTS):
        many = f"{(cells * n) ** axes:.1g}" if axes < 100 else f"about 2^{axes * math.log2(cells * n):.3g}"
        raise BadValue(
            f"{cells * n} nodes along each of samples · latent = {axes} axes make {many} points: use fewer nodes, "
            "samples or latents, or moments"
        )
    if cells > 1 and n > _MOST_IN_CELL:
        raise BadValue(f"nodes is {n}: it must be at most {_MOST_IN_CELL} in each cell")
    found, error = refined(n)
    while (
        nodes is None
        and _beyond(found, error, tolerance)
        and axes * math.log2(2 * cells * n) <= _MOST_BY_DEFAULT
        and 2 * n <= _MOST_IN_CELL
    ):
        n *= 2
        found, error = refined(n)
    if beyond := _beyond(found, error, tolerance):
        name, estimate, allowed = beyond
        raise BadValue(
            f"the error of the {name} is about {estimate:.1g} with {n} nodes, and tolerance allows {allowed:.1g}: use "
            "more nodes, float64 or a larger tolerance, or moments"
        )
    return found, error


def _integrate(problem: _Problem, model: VAE, grid_of: Callable[[Data], ProductGrid]) -> Found:
    """The moments of the gradient over a grid for each datum."""
    params, state, x, n = problem.params, problem.state, problem.x, examples.count(problem.x)
    gradient = problem.gradient(model)
    size = sum(leaf.numel() for leaf in tree.leaves(params))
    chunk = max(1, min(_POINTS_AT_ONCE, _NUMBERS_AT_ONCE // size))
    mean, bounds = problem.like.new_zeros(size), []
    covariance = mean.new_zeros(size, size)
    for item, datum in enumerate(examples.split(x, 1)):
        grid = grid_of(datum)
        first, second, bound = torch.zeros_like(mean), torch.zeros_like(covariance), mean.new_zeros(1)
        for i in range(0, grid.size, chunk):
            at, w = grid.points(i, i + chunk)
            (leaves,), _, (b,) = gradient(params, state, datum, rearrange(at, "i (n z) -> i n 1 z", n=problem.samples))
            g = torch.cat(leaves, 1)  # [i, P]
            first += w @ g
            second.addmm_((w * g.T), g)
            bound += w @ rearrange(b, "i -> i 1")
        if not (first.isfinite().all() and bound.isfinite().all()):
            raise NonFinite(f"the gradient or bound of item {item} is not finite: check the parameters")
        mean += first / n
        covariance += second.addr_(first, first, alpha=-1) / n**2
        bounds.append(bound)
    return mean, covariance.diagonal(), covariance, torch.cat(bounds)


def _errors(found: Found, others: list[Found]) -> Errors:
    """The errors, from the differences of other results and the rounding of numbers."""
    eps = torch.finfo(found[0].dtype).eps
    error = Errors(*(_ROUNDING * eps * scale for scale in _scales(found)))
    for other in others:
        apart = (_SAFETY * float((a - b).abs().max()) for a, b in zip(found, other, strict=True))
        error = Errors(*map(max, error, apart))
    return error


def _beyond(found: Found, error: Errors, tolerance: float) -> tuple[str, float, float] | None:
    """The first field whose error is not within the tolerance: (name, error, allowed error)."""
    eps = torch.finfo(found[0].dtype).eps
    for name, estimate, scale in zip(Errors._fields, error, _scales(found), strict=True):
        if estimate > (allowed := tolerance * max(scale, eps)):
            return name, estimate, allowed
    return None


def _scales(found: Found) -> Errors:
    """What errors are relative to."""
    mean, variance, _, bound = found
    square = float((mean.square() + variance).max())
    return Errors(math.sqrt(square), square, square, float(bound.abs().max()))


_MOST_VALUES, _MOST_POINTS, _MOST_PARAMETERS = 2**20, 2**24, 5000
_MOST_BY_DEFAULT = 20  # nodes are doubled up to 2^20 points
_MOST_IN_CELL = 1024
_FIRST = 12  # nodes along an axis
_POINTS_AT_ONCE, _NUMBERS_AT_ONCE = 8192, 2**23
_OFF_MIDDLE = 0.3  # the place of a second node, which shows whether one is enough
_SAFETY = 3  # grids can lie on one side of the integral, as where several kinks cancel
_ROUNDING = 256  # multiples of the machine epsilon
_TOTAL = 1e-3
