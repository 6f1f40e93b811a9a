"""Blocks of replicates, which one or several processes compute with the same bits.

Between two renewals of the centre (`online_moments.segments`) replicates are computed independently. They are divided
into blocks that depend on the replicates' numbers only. The blocks' sums are added along one tree
(`distributed.reduction`), and the rows of the replicates are concatenated in the order of their numbers.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from funcvae.distributed import reduction
from funcvae.distributed.collectives import Processes

__all__ = ["Block", "block_ranges", "merge"]


class Block(NamedTuple):
    """The result of r successive replicates."""

    sums: Tensor  # one vector, in float64
    rows: Tensor  # [r, M], in float64 on the CPU: the numbers kept of each replicate
    first_rows: list[Tensor]  # further rows [r' <= r, ...], of the first replicates only


def block_ranges(segment: range, chunk: int) -> list[range]:
    """The blocks of a segment's replicates; all but the last consist of whole chunks."""
    size = chunk * -(-max(_MIN_REPLICATES, -(-len(segment) // _MAX_BLOCKS)) // chunk)
    return [range(start, min(start + size, segment.stop)) for start in range(segment.start, segment.stop, size)]


def merge(
    ranges: list[range], compute: Callable[[range], Block], processes: Processes, empty: Callable[[], Block]
) -> Block:
    """All blocks merged into one. Each process computes some of them, and all return the result.

    `compute` maps the replicates of a block to the block; `empty` makes the block of no replicates.
    """
    computed = [empty()._replace(sums=torch.empty(0))]

    def sums(i: int) -> Tensor:
        block = compute(ranges[i])
        computed.append(block._replace(sums=torch.empty(0)))  # ordered_sum keeps the sums
        return block.sums

    total = reduction.ordered_sum(len(ranges), sums, processes, lambda: empty().sums)
    rows = processes.all_gather_rows(torch.cat([block.rows for block in computed]))
    columns = zip(*(block.first_rows for block in computed), strict=True)
    return Block(total, rows, [processes.all_gather_rows(torch.cat(column)) for column in columns])


_MIN_REPLICATES, _MAX_BLOCKS = 64, 1024  # fewest replicates in a block, most blocks in a segment
