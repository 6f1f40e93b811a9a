"""Noise schemes: `(key, n, shape) -> eps [n, *shape]`, the standard normal base noise of the posterior.

Under every scheme here each sample by itself is standard normal, and different data (all axes of `shape` but the last)
are independent. Only under `iid` are the n samples of one datum independent of one another too, which some estimators
lean on (DReG, all with leave-one-out baselines): `Estimator.claims_under(scheme)` says what holds under which scheme,
or raises. A scheme of one's own is a function of the same arguments, marked with `independent` where it is so.

Where several processes share a batch, each draws its part of the noise (`in_parts`): a scheme that takes `rows` draws
those data's alone, and one that takes `samples` too (here `iid`) no more than what is asked for; of any other's all is
drawn, and a part kept.
"""

import inspect
from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from funcvae import random
from funcvae._support import checks
from funcvae.errors import BadType, BadValue, unknown

__all__ = [
    "TABLE", "Noise", "PartialNoise", "accepts", "iid", "in_parts", "independent", "is_independent", "mirrored",
    "moment_matched", "name_of", "numbered", "parse", "sobol",
]  # fmt: skip


class Noise(Protocol):
    """A noise scheme."""

    def __call__(self, key: random.Key, n: int, shape: random.Shape, *, dtype: torch.dtype = ...) -> Tensor:
        """eps [n, *shape], from a key."""
        ...


class PartialNoise(Protocol):
    """A noise scheme that draws parts."""

    def __call__(
        self,
        key: random.Key,
        n: int,
        shape: random.Shape,
        *,
        dtype: torch.dtype = ...,
        samples: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """eps [n, *shape][samples][:, rows], from a key; None for all."""
        ...


AnyNoise = TypeVar("AnyNoise", bound=Noise)


def independent(scheme: AnyNoise) -> AnyNoise:
    """Marks a scheme (it is a decorator) whose samples of one datum are independent standard normals."""
    if not isinstance(getattr(checks.function("scheme", scheme), "__dict__", None), dict):
        raise BadType(
            f"scheme is {checks.describe(scheme)}: a mark can be set on a function, or on an object of a class"
        )
    scheme.__dict__["independent"] = True
    return scheme


def is_independent(scheme: Noise) -> bool:
    """Whether a scheme is marked so, or is a `functools.partial` of one that is."""
    return getattr(getattr(scheme, "func", scheme), "independent", False)


@independent
def iid(
    key: random.Key,
    n: int,
    shape: random.Shape,
    *,
    dtype: torch.dtype = torch.float32,
    samples: Tensor | None = None,
    rows: Tensor | None = None,
) -> Tensor:
    """n independent standard normal samples [n, *shape], on the key's device.

    Args:
        key: used up.
        n: samples of each datum.
        shape: of one sample, the data along its first axis.
        dtype: float32 or float64.
        samples: only these of the n, as indices; all unless given.
        rows: only these of the data, as indices; all unless given.
    """
    whole = (checks.integer("samples", n, 1), *checks.shape("shape", shape))
    if samples is None and rows is None:
        return random.normal(key, whole, dtype)
    picked = (samples, rows) if rows is not None else (samples,)
    return random.normal(key, whole, dtype, at=random.flat_indices(whole, *picked, device=random.checked(key).device))


def in_parts(scheme: Noise) -> PartialNoise:
    """The scheme as one that draws parts: (key, n, shape, dtype=, samples=, rows=) -> eps.

    What it draws is scheme(key, n, shape)[samples][:, rows], to rounding, with indices or None for all.
    """
    own = [name for name in ("samples", "rows") if accepts(scheme, name)]  # here, for the compiler cannot look

    def part(
        key: random.Key,
        n: int,
        shape: random.Shape,
        *,
        dtype: torch.dtype = torch.float32,
        samples: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        wanted = {name: at for name, at in {"samples": samples, "rows": rows}.items() if at is not None}
        eps = scheme(key, n, shape, dtype=dtype, **{name: at for name, at in wanted.items() if name in own})
        for axis, name in enumerate(("samples", "rows")):
            if name in wanted and name not in own:
                eps = checks.tensor("what the noise scheme returned", eps, "N B ...").index_select(axis, wanted[name])
        return eps

    return part


def accepts(f: Callable[..., object], name: str) -> bool:
    """Whether a function has an argument of this name."""
    checks.text("name", name)
    checks.function("f", f)
    try:
        return name in inspect.signature(f).parameters
    except (TypeError, ValueError):  # some that are not written in Python do not tell
        return False


def numbered(key: random.Key, numbers: Tensor, shape: random.Shape, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Independent standard normals [len(numbers), *shape]: not a scheme, for that of number i comes from
    `fold_in(key, i)`, whichever others are drawn."""
    random.checked(key)
    checks.same_device(key=key, numbers=checks.tensor("numbers", numbers, "n"))
    if not len(numbers):
        return torch.empty(0, *checks.shape("shape", shape), dtype=checks.dtype("dtype", dtype), device=key.device)
    return torch.vmap(lambda i: random.normal(random.fold_in(key, i), shape, dtype))(numbers)


def mirrored(
    key: random.Key,
    n: int,
    shape: random.Shape,
    *,
    dtype: torch.dtype = torch.float32,
    rows: Tensor | None = None,
) -> Tensor:
    """Antithetic pairs (n even): n/2 independent samples [n/2, *shape], then the same with their signs changed.

    What is odd in eps has no variance left in the mean of a pair; what is even has twice as much. For `rows` see `iid`.

    Raises:
        BadValue: n is odd.

    Reference: Hammersley & Morton (1956), "A new Monte Carlo technique: antithetic variates".
    """
    half = iid(key, _half(n), shape, dtype=dtype, rows=rows)
    return torch.cat([half, -half])


def moment_matched(
    key: random.Key,
    n: int,
    shape: random.Shape,
    *,
    dtype: torch.dtype = torch.float32,
    rows: Tensor | None = None,
) -> Tensor:
    """Two halves (n even) of n/2 independent samples, the second with the antithetic mean and variance of the first.

        eps'_k = -(m + (t'/t)^½ (eps_k - m)),    m = mean_k eps_k,  t = sum_k (eps_k - m)²

    where t' is as far up the distribution of t, χ² with n/2 - 1 degrees of freedom, as t is from its top. Mean,
    variance and direction of a normal sample are independent, so each half is jointly standard normal. At n = 2 this
    is `mirrored`. For `rows` see `iid`.

    Raises:
        BadValue: n is odd.

    Reference: Wu, Goodman & Ermon (2019), arXiv:1810.02555, which draws the second half's direction anew.
    """
    half = iid(key, _half(n), shape, dtype=dtype, rows=rows)
    if len(half) == 1:
        return torch.cat([half, -half])
    mean = half.double().mean(0)
    apart = half - mean
    t = apart.square().sum(0).clamp(min=1e-30)  # in float32 two samples may be equal
    stretch = (_opposite_chi2(t, len(half) - 1) / t).sqrt()
    return torch.cat([half, -(mean + stretch * apart).to(dtype)])


def sobol(
    key: random.Key,
    n: int,
    shape: random.Shape,
    *,
    dtype: torch.dtype = torch.float32,
    rows: Tensor | None = None,
) -> Tensor:
    """The first n points of a scrambled Sobol sequence over the last axis of `shape`, through the normal quantile.

    Each element along the other axes has a scramble of its own, drawn from the key: a random lower triangular matrix
    over the points' 30 binary digits, and a digital shift. So each point by itself is uniform, to 30 bits, before the
    quantile. Best where n is a power of two. For `rows` see `iid`.

    Reference: Matoušek (1998), "On the L2-discrepancy for anchored boxes".
    """
    shape, n = checks.shape("shape", shape), checks.integer("samples", n, 1)
    random.checked(key)
    checks.dtype("dtype", dtype)
    checks.fits("samples", (n, *shape), 32)  # bytes that a number takes on the way
    if n > 2**_DIGITS:
        raise BadValue(f"samples is {n}: a Sobol sequence of {_DIGITS} digits has at most {2**_DIGITS} points")
    if not shape or not 1 <= shape[-1] <= SobolEngine.MAXDIM:
        raise BadValue(f"sobol noise needs a last axis of 1 to {SobolEngine.MAXDIM} dimensions: shape is {shape}")
    points = _sobol_points(n, shape[-1]).to(key.device)
    points = points.reshape(n, *[1] * (len(shape) - 1), shape[-1])
    at = None if rows is None else random.flat_indices((_DIGITS + 1, *shape), None, rows, device=key.device)
    shift, *columns = random.bits(key, (_DIGITS + 1, *shape), at=at) & (2**_DIGITS - 1)
    scrambled = shift
    for place, column in zip(reversed(range(_DIGITS)), columns, strict=True):
        column = (column & (2**place - 1)) | 2**place  # the digit itself stays; those below it change at random
        scrambled = scrambled ^ (((points >> place) & 1) * column)
    return torch.special.ndtri((scrambled.double() + 0.5) / 2**_DIGITS).to(dtype)


TABLE: dict[str, Noise] = {scheme.__name__: scheme for scheme in (iid, mirrored, moment_matched, sobol)}
"""The schemes by name."""


def parse(name: str) -> Noise:
    """The scheme of this name."""
    if checks.text("name", name) not in TABLE:
        raise unknown("noise", name, TABLE)
    return TABLE[name]


def name_of(scheme: Noise) -> str:
    """What a scheme is called."""
    scheme = getattr(scheme, "func", scheme)  # of a functools.partial
    return str(getattr(scheme, "__name__", type(scheme).__name__))


_DIGITS = SobolEngine.MAXBIT


def _half(n: int) -> int:
    if checks.integer("samples", n) < 2 or n % 2:
        raise BadValue(f"samples is {n}: antithetic noise comes in pairs, so samples must be even")
    return n // 2


def _sobol_points(n: int, dimension: int) -> Tensor:
    """The first n points of the Sobol sequence [n, dimension], as whole numbers below 2^30."""
    return (SobolEngine(dimension).draw(n, dtype=torch.float64) * 2**_DIGITS).int()


# What torch.compiler.assume_constant_result does, less its import of the compiler, which takes a second.
_sobol_points._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _opposite_chi2(t: Tensor, dof: int) -> Tensor:
    """t' with P(χ² <= t') = P(χ² >= t), for χ² with dof degrees of freedom; float64.

    Newton's method on the logarithm of whichever tail t' is in, where it is nearly a straight line: in log t' for the
    lower one, in t' for the upper. It starts from Wilson and Hilferty's normal approximation to the cube root.
    """
    a = torch.full_like(t, dof / 2)
    below, above = torch.special.gammainc(a, t / 2), torch.special.gammaincc(a, t / 2)
    lower = above < below
    root = 2 * (1 - 2 / (9 * dof)) - (t / dof) ** (1 / 3)
    y = dof / 2 * root.clamp(min=0.1) ** 3  # (the cube is of no use far down the lower tail)
    for _ in range(_NEWTON_STEPS):
        log_density = (a - 1) * y.log() - y - torch.lgamma(a)
        p, q = torch.special.gammainc(a, y), torch.special.gammaincc(a, y)
        left = y * ((above / p).log() * p / (y * log_density.exp())).exp()
        right = y + (q / below).log() * q / log_density.exp()
        y = torch.where(lower, left, right)
    return 2 * y


_NEWTON_STEPS = 8
