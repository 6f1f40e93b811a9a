"""Computes sums over the replicates of a gradient in one pass. The gradient's moments follow from them.

A gradient is a list of flattened leaves. For every coordinate g the sums of (g - c)^j are kept in float64. At replicate
r the centre c is the mean of the first n replicates, with n the greatest power of two at most r (at r = 0, the centre
is replicate 0). This centre is close to the mean, so the sums lose no digits. It does not depend on the chunk size. For
r >= 1 it is independent of replicate r, so that

    u_r = n/(n+1) ‖g_r - c‖²      has the expectation tr Cov g, exactly.

The u_r are Welford's increments with a mean that is updated only at powers of two. They give the standard errors.

References: Welford (1962), "Note on a method for calculating corrected sums of squares and products"; Chan, Golub &
LeVeque (1983), "Algorithms for computing the sample variance", on whose merge of shifted data `recentred_` is based.

Functions whose names end in an underscore modify the sums in their arguments.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from einops import reduce
from torch import Tensor

__all__ = [
    "Leaves", "Sums", "add_chunk_", "add_powers_", "add_segment_", "central_powers", "empty_sums", "mean",
    "power_views", "recentred_", "replicates_in_center", "segments", "sum_powers_", "total_variance",
    "with_renewed_center_", "zero_powers",
]  # fmt: skip

Leaves = list[Tensor]


class Sums(NamedTuple):
    """The sums over the replicates so far, for L leaves of P coordinates each."""

    n: int  # number of replicates
    center: Leaves  # c [P] of each leaf, in the gradient's dtype
    powers: list[Leaves]  # powers[j - 1]: sum_r (g_r - c)^j [P] of each leaf, in float64, for j = 1 … order
    total: Tensor  # sum_r ‖g_r - c‖² [L], in float64
    norms: list[Tensor]  # ‖c‖² [L] of every centre after the renewals at replicates 1, 2, 4, 8, …


def empty_sums(first: Leaves, order: int) -> Sums:
    """Sums over no replicates, with the gradient of replicate 0 as the centre."""
    powers = [[torch.zeros_like(leaf, dtype=torch.float64) for leaf in first] for _ in range(order)]
    return Sums(0, [leaf.clone() for leaf in first], powers, torch.zeros(len(first), dtype=torch.float64), [])


def segments(replicates: range) -> Iterator[range]:
    """Divides successive replicates into segments at the renewals of the centre."""
    first, last = replicates.start, replicates.stop
    while first < last:
        end = min(last, max(1, 1 << first.bit_length()))
        yield range(first, end)
        first = end


def replicates_in_center(r: int) -> int:
    """The number n of replicates whose mean is the centre at replicate r >= 1."""
    return 1 << (r.bit_length() - 1)


def add_segment_(sums: Sums, first: int, grads: Leaves) -> tuple[Sums, Tensor, Tensor]:
    """Adds a segment of replicates first, first+1, … to the sums; their gradients are [c, P] for each leaf.

    Also returns ‖g_r - c‖² and (g_r - c)·c of each replicate and leaf, [c, L].
    """
    sums = with_renewed_center_(sums, first)
    squares, along = (rows.cpu() for rows in sum_powers_(sums.center, sums.powers, grads))
    return _with_squares(sums, squares), squares, along


def add_powers_(sums: Sums, flat: Tensor, squares: Tensor) -> Sums:
    """Adds a segment of c replicates to the sums, given its sums of powers as one vector and ‖g_r - c‖² [c, L]."""
    for powers, added in zip(sums.powers, power_views(flat, sums), strict=True):
        for leaf, more in zip(powers, added, strict=True):
            leaf.add_(more)
    return _with_squares(sums, squares)


def zero_powers(sums: Sums) -> Tensor:
    """A zero vector in float64 for the sums of powers of further replicates; `power_views` gives it their shape."""
    size = len(sums.powers) * sum(leaf.numel() for leaf in sums.center)
    return torch.zeros(size, dtype=torch.float64, device=sums.center[0].device)


def power_views(flat: Tensor, sums: Sums) -> list[Leaves]:
    """Splits a vector from `zero_powers` into leaves as in `Sums.powers`; the leaves are views of the vector."""
    sizes = [leaf.numel() for leaf in sums.center]
    leaves = flat.split(sizes * len(sums.powers))
    return [list(leaves[i : i + len(sizes)]) for i in range(0, len(leaves), len(sizes))]


def add_chunk_(sums: Sums, first: int, grads: Leaves) -> tuple[Sums, Tensor, Tensor]:
    """Adds replicates to the sums as `add_segment_` does, and renews the centre where that is due."""
    squares, alongs = [], []
    for part in segments(range(first, first + len(grads[0]))):
        rows = slice(part.start - first, part.stop - first)
        sums, square, along = add_segment_(sums, part.start, [leaf[rows] for leaf in grads])
        squares.append(square)
        alongs.append(along)
    return sums, torch.cat(squares), torch.cat(alongs)


def with_renewed_center_(sums: Sums, first: int) -> Sums:
    """Moves the centre to the mean so far if it is due at replicate `first`; otherwise returns the sums unchanged."""
    if first < 1 or first != replicates_in_center(first):
        return sums
    sums = recentred_(sums, mean(sums))
    norm = torch.stack([leaf.double() @ leaf.double() for leaf in sums.center]).cpu()
    return sums._replace(norms=[*sums.norms, norm])


def _with_squares(sums: Sums, squares: Tensor) -> Sums:
    """The sums with n and total updated for c replicates with squares [c, L]."""
    return sums._replace(n=sums.n + len(squares), total=sums.total + squares.sum(0))


def sum_powers_(center: Leaves, powers: list[Leaves], grads: Leaves) -> tuple[Tensor, Tensor]:
    """Adds the powers of g - c to sums of powers, in place; each leaf of the gradients g has one row per replicate.

    Also returns ‖g_r - c‖² and (g_r - c)·c of each replicate and leaf, [c, L], in float64.
    """
    rows = []
    for leaf, g in enumerate(grads):
        square = along = torch.zeros(len(g), dtype=torch.float64, device=g.device)
        columns = [slice(i, i + _COLUMNS) for i in range(0, g.shape[1], _COLUMNS)]
        for part in [...] if torch.compiler.is_compiling() else columns:
            c = center[leaf][part]
            deviation = (g[:, part] - c).double()  # squares of small numbers would underflow in float32
            square = square + reduce(deviation.square(), "c p -> c", "sum")
            along = along + reduce(deviation * c.double(), "c p -> c", "sum")
            power = deviation
            for j, sums in enumerate(powers):
                power = power * deviation if j else deviation
                sums[leaf][part].add_(reduce(power, "c p -> p", "sum"))
        rows.append((square, along))
    squares, alongs = zip(*rows, strict=True)
    return torch.stack(squares, 1), torch.stack(alongs, 1)


def recentred_(sums: Sums, center: Leaves) -> Sums:
    """Moves the sums to another centre, rounded to the dtype of the old one; overwrites the powers.

    With s_j = sum_r (g_r - c)^j and d the step from c to the other centre, by Horner's scheme,

        sum_r (g_r - c - d)^j = sum_i binom(j, i) (-d)^(j-i) s_i:    s_j -= d s_(j-1), for j = order … k, k = 1 … order.
    """
    center = [new.to(old.dtype) for new, old in zip(center, sums.center, strict=True)]
    total = sums.total.clone()
    order = len(sums.powers)
    for leaf, (new, old) in enumerate(zip(center, sums.center, strict=True)):
        d = new.double() - old.double()
        s = [power[leaf] for power in sums.powers]
        total[leaf] += (sums.n * (d @ d) - 2 * (d @ s[0])).cpu()
        for k in range(1, order + 1):
            for j in range(order, k - 1, -1):
                s[j - 1].sub_(sums.n * d) if j == 1 else s[j - 1].addcmul_(d, s[j - 2], value=-1)
    return sums._replace(center=center, total=total)


def mean(sums: Sums) -> Leaves:
    """The mean [P] of each leaf, in float64."""
    return [leaf.double() + power / sums.n for leaf, power in zip(sums.center, sums.powers[0], strict=True)]


def total_variance(sums: Sums) -> Tensor:
    """The unbiased variance, summed over the coordinates of each leaf: [L], in float64; NaN for one replicate."""
    off = torch.stack([power.square().sum() for power in sums.powers[0]]).cpu() / sums.n
    return (sums.total - off).clamp(min=0) / (sums.n - 1) if sums.n > 1 else torch.full_like(off, torch.nan)


def central_powers(sums: Sums) -> list[Leaves]:
    """The sums of powers about the mean: central_powers(sums)[j - 1] for j = 1 … order; those for j = 1 are zero."""
    center = [leaf.double() for leaf in sums.center]  # in float64, so that the mean is not rounded
    powers = [[leaf.clone() for leaf in power] for power in sums.powers]
    return recentred_(sums._replace(center=center, powers=powers), mean(sums)).powers


_COLUMNS = 2**15  # columns processed at a time, so that temporaries stay in the cache
