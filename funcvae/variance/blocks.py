"""Replicates in blocks, for one process to compute or several, merged such that the bits do not depend on how many.

Between two renewals of their centre (`streaming.segments`) replicates are independent of one another. They are cut into
blocks that depend on their numbers alone; the blocks' sums are added along one tree (`funcvae.reduction`), and what is
kept of each replicate is put together in the order of their numbers.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from funcvae.distributed import reduction
from funcvae.distributed.processes import Processes


class Block(NamedTuple):
    """What some replicates in succession gave."""

    sums: Tensor
    """One vector, in float64."""
    rows: Tensor
    """[r, M], in float64 on the CPU: what is kept of each."""
    more: list[Tensor]
    """Further rows [r' <= r, ...], of the first replicates alone."""


def blocks(first: int, last: int, chunk: int) -> list[range]:
    """The replicates first … last-1, which are taken `chunk` at a time, in blocks of whole chunks, but for the last."""
    size = chunk * -(-max(_LEAST, -(-(last - first) // _MOST)) // chunk)
    return [range(start, min(start + size, last)) for start in range(first, last, size)]


def merged(
    pieces: list[range], compute: Callable[[range], Block], processes: Processes, nothing: Callable[[], Block]
) -> Block:
    """All blocks as one; each process computes its own, and all have the result.

    Args:
        pieces: the blocks.
        compute: from the replicates of one to what they give.
        processes: who does it.
        nothing: makes what no replicates at all give.
    """
    found = [nothing()._replace(sums=torch.empty(0))]

    def sums(i: int) -> Tensor:
        block = compute(pieces[i])
        found.append(block._replace(sums=torch.empty(0)))  # the tree has them
        return block.sums

    total = reduction.ordered_sum(len(pieces), sums, processes, lambda: nothing().sums)
    rows = processes.all_gather_rows(torch.cat([block.rows for block in found]))
    columns = zip(*(block.more for block in found), strict=True)
    return Block(total, rows, [processes.all_gather_rows(torch.cat(column)) for column in columns])


_LEAST, _MOST = 64, 1024  # replicates in a block, and blocks
