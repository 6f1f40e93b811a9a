"""Sums over the other samples: for each sample k, what the baselines of `rloo`, `vimco` and `ovis` are made of."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from funcvae._support import checks
from funcvae.errors import BadValue

__all__ = ["others_logsumexp", "others_mean"]


def others_mean(f: Tensor) -> Tensor:
    """mean_{j≠k} f_j for each k [K, B], K >= 2. (The sum less its k-th term would be NaN where that is -inf.)"""
    _others("f", f)
    before, after = f.cumsum(0), f.flip(0).cumsum(0).flip(0)
    return (_shifted(before, 1, 0.0) + _shifted(after, -1, 0.0)) / (len(f) - 1)


def others_logsumexp(f: Tensor) -> Tensor:
    """log sum_{j≠k} exp(f_j) for each k [K, B], K >= 2."""
    _others("f", f)
    before, after = f.logcumsumexp(0), f.flip(0).logcumsumexp(0).flip(0)
    return torch.logaddexp(_shifted(before, 1, -math.inf), _shifted(after, -1, -math.inf))


def _shifted(sums: Tensor, by: int, start: float) -> Tensor:
    """Cumulative sums [K, B] moved on by one row, so that each leaves its own term out."""
    return F.pad(sums[:-1], (0, 0, 1, 0), value=start) if by == 1 else F.pad(sums[1:], (0, 0, 0, 1), value=start)


def _others(name: str, f: Tensor) -> None:
    if len(checks.tensor(name, f, "K B", floating=True)) < 2:
        raise BadValue(f"{name} has shape {list(f.shape)}: it must be [K, B], with K >= 2")
