"""Grids of points and weights whose weighted sums are expectations over the noise, or over the values of z."""

import math
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

__all__ = ["GRIDS", "ProductGrid", "cells", "shifted", "values"]


class ProductGrid(NamedTuple):
    """All combinations of one node of each axis, with the products of their weights."""

    nodes: list[Tensor]
    """The nodes of each axis [n, W]: W coordinates of the noise, or of z."""
    weights: list[Tensor]
    """Their weights [n], whose sum is 1."""

    @property
    def size(self) -> int:
        """The number of points."""
        return math.prod(map(len, self.nodes))

    def points(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """The points first, …, last - 1 as [c, A·W], and their weights [c]."""
        rest = torch.arange(first, min(last, self.size), device=self.weights[0].device)
        coordinates, weight = [], torch.ones_like(rest, dtype=self.weights[0].dtype)
        # The digits of the number of a point are its nodes, one for each axis.
        for nodes, weights in zip(self.nodes, self.weights, strict=True):
            at, rest = rest % len(nodes), rest // len(nodes)
            coordinates.append(nodes[at])
            weight = weight * weights[at]
        return torch.cat(coordinates, 1), weight


GRIDS = 7


def shifted(axes: int, nodes: int, number: int, like: Tensor) -> ProductGrid:
    """Grid 0 to 6 of the trapezoidal rule for normal noise, with equal steps; each is shifted, and the last is longer.

    In grid s, axis a moves by 3^(a mod 3) s^(1 + a//3) sevenths of a step: sums and differences of axes move, too.
    """
    step = 2 * min(math.sqrt(math.pi * nodes), _END) / nodes  # balances the errors of the step and of the ends
    at = torch.arange(nodes, dtype=like.dtype, device=like.device) - (nodes - 1) / 2
    shifts = [3 ** (a % 3) * number ** (1 + a // 3) % GRIDS / GRIDS for a in range(axes)]
    longer = _LONGER if number == GRIDS - 1 else 1.0
    points = [longer * step * (at + (shift - round(shift))) for shift in shifts]
    return ProductGrid([rearrange(p, "n -> n 1") for p in points], [(-p.square() / 2).softmax(0) for p in points])


_END = 9.0  # where the normal density, times powers of eps, is below rounding
_LONGER = 1.05  # a grid that is longer by this factor shows what lies beyond the ends of the others


def cells(breaks: Tensor, samples: int, nodes: int, middle: float = 0.5) -> ProductGrid:
    """Gauss-Legendre nodes in the uniform numbers u = Φ(eps) of each latent, between the u at which the points change.

    In a cell, u = lo + (hi - lo) t³(10 - 15t + 6t²), which makes integrands smooth that are singular at its ends.

    Args:
        breaks: [S, Z], in [0, 1].
        samples: the number N of noises, which have the same cells.
        nodes: the number in each cell.
        middle: the place t in (0, 1) of a single node.
    """
    t, weight = (breaks.new_tensor(each) / 2 for each in np.polynomial.legendre.leggauss(nodes))
    t = t + middle
    share = t**3 * (10 - 15 * t + 6 * t**2)
    weight = weight * t**2 * (1 - t) ** 2
    axes = []
    for at in breaks.T:
        ends = torch.cat([at.new_zeros(1), at.sort().values, at.new_ones(1)])
        low, width = ends[:-1], ends.diff()
        low, width = low[width > 0], width[width > 0]
        u = rearrange(low + torch.outer(share, width), "t cell -> (t cell) 1")
        u = u.clamp(torch.finfo(u.dtype).tiny, 1 - torch.finfo(u.dtype).eps / 2)  # where Φ⁻¹ is finite
        axes.append((torch.special.ndtri(u), torch.outer(weight / weight.sum(), width).flatten()))
    points, weights = zip(*axes * samples, strict=True)
    return ProductGrid(list(points), list(weights))


def values(of_variable: Tensor, log_q: Tensor, samples: int) -> ProductGrid:
    """All joint values of N independent draws of z, with their probabilities.

    Args:
        of_variable: the values of one variable [S, W].
        log_q: their log-probabilities [V, S] for each variable.
        samples: the number N of draws.
    """
    return ProductGrid([of_variable] * (samples * len(log_q)), list(log_q.exp()) * samples)
