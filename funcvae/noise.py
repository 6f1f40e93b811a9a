"""Noise schemes: `(key, n, shape) -> eps [n, *shape]`, the standard normal base noise of the posterior.

In each of these schemes every single sample is standard normal, and different data (all axes of `shape` but the last)
are independent. Only `iid` also makes the n samples of one datum independent. Some estimators require that
(DReG, and all with leave-one-out baselines): `Estimator.claims_under(scheme)` returns the claims that hold, or
raises. Any function of the same arguments is a scheme; mark it with `independent` if its samples are independent.

When several processes share a batch, each draws its own part of the noise (`in_parts`). A scheme that takes `rows`
draws only those data, and one that takes `samples` as well (`iid`) draws only the numbers requested. Any other scheme
draws everything, and the part is selected.
"""

import inspect
from collections.abc import Callable
from typing import Annotated, Protocol, TypeVar

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from funcvae import random
from funcvae._support import checks
from funcvae._support.checks import Count, Dtype, Indices
from funcvae.errors import BadType, BadValue

__all__ = [
    "TABLE", "Noise", "accepts", "iid", "in_parts", "independent", "is_independent", "mirrored",
    "moment_matched", "name_of", "numbered", "parse", "sobol",
]  # fmt: skip


class Noise(Protocol):
    """A noise scheme: a function that draws standard normal noise from a key."""

    def __call__(self, key: random.Key, n: int, shape: random.Shape, *, dtype: torch.dtype = ...) -> Tensor:
        """The noise eps [n, *shape] of a key."""
        ...


AnyNoise = TypeVar("AnyNoise", bound=Noise)


def independent(scheme: AnyNoise) -> AnyNoise:
    """Marks a scheme whose samples of a datum are independent standard normals; a decorator."""
    try:
        scheme.independent = True  # type: ignore[attr-defined]
    except AttributeError:
        raise BadType(f"scheme is {checks.describe(scheme)}: it must be a function or an object of a class") from None
    return scheme


def is_independent(scheme: Noise) -> bool:
    """Whether a scheme, or the scheme inside a `functools.partial`, is marked as `independent`."""
    return getattr(getattr(scheme, "func", scheme), "independent", False)


@independent
@checks.arguments
def iid(
    key: random.Key,
    n: Count,
    shape: random.Shape,
    *,
    dtype: Dtype = torch.float32,
    samples: Indices | None = None,
    rows: Indices | None = None,
) -> Tensor:
    """n independent standard normal samples [n, *shape], on the device of the key.

    Args:
        shape: the shape of one sample, with the data along its first axis.
        samples: indices of the samples to draw; all unless given.
        rows: indices of the data to draw; all unless given.
    """
    whole = (n, *shape)
    if samples is None and rows is None:
        return _normal(key, whole, dtype)
    picked = (samples, rows) if rows is not None else (samples,)
    return _normal(key, whole, dtype, at=_flat_indices(whole, *picked, device=key.device))


def in_parts(scheme: Noise) -> Noise:
    """Turns a scheme into one that can draw a part: (key, n, shape, dtype=, samples=, rows=) -> eps.

    The part equals scheme(key, n, shape)[samples][:, rows] to rounding; `samples` or `rows` of None select all.
    """
    own = [name for name in ("samples", "rows") if accepts(scheme, name)]  # here, because the part may be compiled

    def part(
        key: random.Key, n: int, shape: random.Shape, *, dtype: torch.dtype = torch.float32, **parts: Tensor | None
    ) -> Tensor:
        wanted = {name: at for name, at in parts.items() if at is not None}
        eps = scheme(key, n, shape, dtype=dtype, **{name: at for name, at in wanted.items() if name in own})
        for axis, name in enumerate(("samples", "rows")):
            if name in wanted and name not in own:
                eps = eps.index_select(axis, wanted[name])
        return eps

    return part


def accepts(f: Callable[..., object], name: str) -> bool:
    """Whether a function has an argument of this name."""
    try:
        return name in inspect.signature(f).parameters
    except (TypeError, ValueError):  # a function in C may have no signature
        return False


@checks.arguments
def numbered(
    key: random.Key, numbers: Annotated[Indices, "n"], shape: random.Shape, *, dtype: Dtype = torch.float32
) -> Tensor:
    """Independent standard normals [len(numbers), *shape]; number i draws from `fold_in(key, i)`.

    Unlike in a scheme, the draws of a number do not depend on the other numbers.
    """
    checks.fits("shape", (len(numbers), *shape), 8)
    if not len(numbers):
        return torch.empty(0, *shape, dtype=dtype, device=key.device)
    return torch.vmap(lambda i: _normal(_fold_in(key, i), shape, dtype))(numbers)


@checks.arguments
def mirrored(
    key: random.Key, n: int, shape: random.Shape, *, dtype: Dtype = torch.float32, rows: Indices | None = None
) -> Tensor:
    """Antithetic pairs (n even): n/2 independent samples [n/2, *shape], then the same with opposite signs.

    The mean over a pair has no variance for an odd function of eps, and twice the variance of the mean over two
    independent samples for an even one. For `rows` see `iid`.

    Reference: Hammersley & Morton (1956), "A new Monte Carlo technique: antithetic variates".
    """
    half = _iid(key, _half(n), shape, dtype=dtype, rows=rows)
    return torch.cat([half, -half])


@checks.arguments
def moment_matched(
    key: random.Key, n: int, shape: random.Shape, *, dtype: Dtype = torch.float32, rows: Indices | None = None
) -> Tensor:
    """Two halves (n even) of n/2 independent samples; the second has the antithetic mean and variance of the first.

        eps'_k = -(m + (t'/t)^½ (eps_k - m)),    m = mean_k eps_k,  t = sum_k (eps_k - m)²

    where P(χ² <= t') = P(χ² >= t), and χ² has n/2 - 1 degrees of freedom. Mean, variance and direction of a normal
    sample are independent, so each half is jointly standard normal. At n = 2 this is `mirrored`. For `rows` see `iid`.

    Reference: Wu, Goodman & Ermon (2019), arXiv:1810.02555, where the second half has a new direction.
    """
    half = _iid(key, _half(n), shape, dtype=dtype, rows=rows)
    if len(half) == 1:
        return torch.cat([half, -half])
    mean = half.double().mean(0)
    apart = half - mean
    t = apart.square().sum(0).clamp(min=1e-30)  # in float32 two samples may be equal
    stretch = (_opposite_chi2(t, len(half) - 1) / t).sqrt()
    return torch.cat([half, -(mean + stretch * apart).to(dtype)])


@checks.arguments
def sobol(
    key: random.Key, n: Count, shape: random.Shape, *, dtype: Dtype = torch.float32, rows: Indices | None = None
) -> Tensor:
    """The normal quantiles of the first n points of a scrambled Sobol sequence over the last axis of `shape`.

    Each element along the other axes has its own scramble, drawn from the key: a random lower triangular matrix over
    the 30 binary digits of the points, and a digital shift. So each single point is uniform, to 30 bits, before the
    quantile. Use a power of two for n. For `rows` see `iid`.

    Raises:
        BadValue: n exceeds 2^30, or the last axis of `shape` exceeds the dimensions of torch's Sobol sequence.

    Reference: Matoušek (1998), "On the L2-discrepancy for anchored boxes".
    """
    checks.fits("n", (n, *shape), 32)  # bytes of the intermediate results for each number
    if n > 2**_DIGITS:
        raise BadValue(f"n is {n}: a Sobol sequence of {_DIGITS} digits has at most {2**_DIGITS} points")
    if not shape or not 1 <= shape[-1] <= SobolEngine.MAXDIM:
        must = f"its last axis must have 1 to {SobolEngine.MAXDIM} dimensions for sobol noise"
        raise BadValue(f"shape is {shape}: {must}")
    points = _sobol_points(n, shape[-1], key.device).reshape(n, *[1] * (len(shape) - 1), shape[-1])
    at = None if rows is None else _flat_indices((_DIGITS + 1, *shape), None, rows, device=key.device)
    shift, *columns = _bits(key, (_DIGITS + 1, *shape), at=at) & (2**_DIGITS - 1)
    scrambled = shift
    for place, column in zip(reversed(range(_DIGITS)), columns, strict=True):
        column = (column & (2**place - 1)) | 2**place  # keeps the digit; flips those below it at random
        scrambled = scrambled ^ (((points >> place) & 1) * column)
    return torch.special.ndtri((scrambled.double() + 0.5) / 2**_DIGITS).to(dtype)


TABLE: dict[str, Noise] = {scheme.__name__: scheme for scheme in (iid, mirrored, moment_matched, sobol)}
"""The noise schemes by name: "iid", "mirrored", "moment_matched", "sobol"."""


def parse(name: str) -> Noise:
    """The noise scheme of a name in `TABLE`. Raises BadValue if the name is unknown."""
    return TABLE[checks.known("noise", name, TABLE)]


def name_of(scheme: Noise) -> str:
    """The name of a noise scheme: that of its function or class."""
    scheme = getattr(scheme, "func", scheme)  # the scheme of a functools.partial
    return str(getattr(scheme, "__name__", type(scheme).__name__))


_iid, _normal, _bits = checks.unchecked(iid), checks.unchecked(random.normal), checks.unchecked(random.bits)
_fold_in, _flat_indices = checks.unchecked(random.fold_in), checks.unchecked(random.flat_indices)
_DIGITS = SobolEngine.MAXBIT


def _half(n: int) -> int:
    if n < 2 or n % 2:
        raise BadValue(f"samples is {n}: antithetic noise comes in pairs, so it must be even")
    return n // 2


def _sobol_points(n: int, dimension: int, device: torch.device) -> Tensor:
    """The first n points of the Sobol sequence [n, dimension], as whole numbers below 2^30."""
    return (SobolEngine(dimension).draw(n, dtype=torch.float64) * 2**_DIGITS).int().to(device)


# As torch.compiler.assume_constant_result, without its import of the compiler, which takes a second.
_sobol_points._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _opposite_chi2(t: Tensor, dof: int) -> Tensor:
    """Solves P(χ² <= t') = P(χ² >= t) for t', for χ² with dof degrees of freedom; float64.

    Newton's method solves for the logarithm of the probability of the tail of t'. That is nearly linear: in log t' for
    the lower tail, in t' for the upper one. It starts from Wilson and Hilferty's normal approximation of the cube root.
    """
    a = torch.full_like(t, dof / 2)
    below, above = torch.special.gammainc(a, t / 2), torch.special.gammaincc(a, t / 2)
    lower = above < below
    root = 2 * (1 - 2 / (9 * dof)) - (t / dof) ** (1 / 3)
    y = dof / 2 * root.clamp(min=0.1) ** 3  # the approximation fails far down the lower tail
    for _ in range(8):
        log_density = (a - 1) * y.log() - y - torch.lgamma(a)
        p, q = torch.special.gammainc(a, y), torch.special.gammaincc(a, y)
        left = y * ((above / p).log() * p / (y * log_density.exp())).exp()
        right = y + (q / below).log() * q / log_density.exp()
        y = torch.where(lower, left, right)
    return 2 * y
