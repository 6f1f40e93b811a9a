"""Means and sums over the other samples, for the baselines of `rloo`, `vimco` and `ovis`."""

import math
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from funcvae._support import checks
from funcvae._support.checks import Floats, that

__all__ = ["others_logsumexp", "others_mean"]


Several = Annotated[Floats, "K B", that(lambda f: len(f) >= 2, "[K, B], with K >= 2")]
"""Numbers [K, B] of K >= 2 samples."""


@checks.arguments
def others_mean(f: Several) -> Tensor:
    """The mean over the other samples, mean_{j≠k} f_j, for each k: [K, B], K >= 2.

    (Subtracting term k from the sum would give NaN where term k is -inf.)
    """
    before, after = f.cumsum(0), f.flip(0).cumsum(0).flip(0)
    return (_shifted(before, 1, 0.0) + _shifted(after, -1, 0.0)) / (len(f) - 1)


@checks.arguments
def others_logsumexp(f: Several) -> Tensor:
    """The log-sum over the other samples, log sum_{j≠k} exp(f_j), for each k: [K, B], K >= 2."""
    before, after = f.logcumsumexp(0), f.flip(0).logcumsumexp(0).flip(0)
    return torch.logaddexp(_shifted(before, 1, -math.inf), _shifted(after, -1, -math.inf))


def _shifted(sums: Tensor, by: int, start: float) -> Tensor:
    """Cumulative sums [K, B] shifted by one row, so that each excludes its own term."""
    return F.pad(sums[:-1], (0, 0, 1, 0), value=start) if by == 1 else F.pad(sums[1:], (0, 0, 0, 1), value=start)
