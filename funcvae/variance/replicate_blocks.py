"""Replicates in blocks, for one process to compute or several, merged such that the bits do not depend on how many.

Between two renewals of their centre (`online_moments.segments`) replicates are independent of one another. They are cut
into blocks that depend on their numbers alone; the blocks' sums are added along one tree (`distributed.reduction`), and
the rows of the replicates are put together in the order of their numbers.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from funcvae.distributed import reduction
from funcvae.distributed.collectives import Processes

__all__ = ["Block", "block_ranges", "merge"]


class Block(NamedTuple):
    """What r replicates in succession give."""

    sums: Tensor
    """One vector, in float64."""
    rows: Tensor
    """[r, M], in float64 on the CPU: what is kept of each."""
    first_rows: list[Tensor]
    """Further rows [r' <= r, ...], of the first replicates alone."""


def block_ranges(segment: range, chunk: int) -> list[range]:
    """A segment's replicates, which are taken `chunk` at a time, in blocks of whole chunks, but for the last."""
    size = chunk * -(-max(_MIN_REPLICATES, -(-len(segment) // _MAX_BLOCKS)) // chunk)
    return [range(start, min(start + size, segment.stop)) for start in range(segment.start, segment.stop, size)]


def merge(
    ranges: list[range], compute: Callable[[range], Block], processes: Processes, empty: Callable[[], Block]
) -> Block:
    """All blocks as one; each process computes its own, and all have the result.

    Args:
        ranges: the replicates of each block.
        compute: from the replicates of a block to the block.
        processes: they share the blocks.
        empty: makes the block of no replicates.
    """
    computed = [empty()._replace(sums=torch.empty(0))]

    def sums(i: int) -> Tensor:
        block = compute(ranges[i])
        computed.append(block._replace(sums=torch.empty(0)))  # the tree has them
        return block.sums

    total = reduction.ordered_sum(len(ranges), sums, processes, lambda: empty().sums)
    rows = processes.all_gather_rows(torch.cat([block.rows for block in computed]))
    columns = zip(*(block.first_rows for block in computed), strict=True)
    return Block(total, rows, [processes.all_gather_rows(torch.cat(column)) for column in columns])


_MIN_REPLICATES, _MAX_BLOCKS = 64, 1024  # in a block; of a segment
