"""The loop over replicates that `moments` and `compare` share: it sums the gradients of several lanes.

A lane is one estimator under one noise scheme. Replicates are divided into segments between two renewals of the centres
(`online_moments.segments`), a segment into blocks that are distributed over processes, and a block into chunks that are
computed together. `moments` and `compare` each define the `ChunkStep` that computes a chunk.

The blocks depend on the replicates' numbers only, and are added in order, so the bits do not depend on the number of
processes. Memory does not grow with the number of blocks.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from funcvae._support import examples
from funcvae._support.progress import Progress
from funcvae.distributed.collectives import Processes
from funcvae.model import noise_dtype
from funcvae.noise import Noise
from funcvae.variance import intervals, online_moments, snr, weight_diagnostics
from funcvae.variance.intervals import Measured
from funcvae.variance.online_moments import Leaves, Sums
from funcvae.variance.problem import Lane, Problem, check_finite, noise_chunks
from funcvae.variance.snr import Group, Series
from funcvae.variance.weight_diagnostics import Importance

__all__ = ["Accumulator", "Block", "ChunkStep", "LaneRows", "LaneStatistics", "block_ranges", "blocks", "schemes_of"]


class LaneRows(NamedTuple):
    """The numbers that are kept for each of c replicates of a lane, for L leaves, in float64 on the CPU."""

    square: Tensor  # ‖g_r - c‖² [c, L]
    along: Tensor  # (g_r - c)·c [c, L]
    bound: Tensor  # the batch's mean bound [c, 1]
    difference: Tensor
    """(g_r - g_ref,r)·(c - c_ref) [c, L], with the first lane as the reference; [c, 0] for the reference itself, and if
    the targets differ."""


ChunkStep = Callable[[int, list[Tensor], list[Leaves], list[list[Leaves]]], tuple[list[LaneRows], list[Tensor]]]
"""Takes the number of the first of c replicates, each scheme's noise [c, N, B, Z], and each lane's centre and sums of
powers, to which it adds in place.

Returns the rows of each lane, and each scheme's log-weights [c, N, B].
"""


class LaneStatistics(NamedTuple):
    """The statistics of all replicates of a lane."""

    lane: Lane
    sums: Sums
    series: Series
    groups: dict[str, Group]
    bound: Measured
    difference: Tensor  # `LaneRows.difference` of all replicates
    importance: Importance


def schemes_of(lanes: Sequence[Lane]) -> list[Noise]:
    """The distinct noise schemes of the lanes. `==` compares them, because equal bound methods may not be identical."""
    schemes: list[Noise] = []
    for lane in lanes:
        if lane.scheme not in schemes:
            schemes.append(lane.scheme)
    return schemes


class Block(NamedTuple):
    """The result of r successive replicates."""

    sums: Tensor  # one vector, in float64
    rows: Tensor  # [r, M], in float64 on the CPU: the numbers kept of each replicate
    first_rows: list[Tensor]  # further rows [r' <= r, ...], of the first replicates only


def block_ranges(segment: range, chunk: int) -> list[range]:
    """The blocks of a segment's replicates; all but the last consist of whole chunks."""
    size = chunk * -(-max(_MIN_REPLICATES, -(-len(segment) // _MAX_BLOCKS)) // chunk)
    return [range(start, min(start + size, segment.stop)) for start in range(segment.start, segment.stop, size)]


def blocks(
    ranges: list[range], compute: Callable[[range], Block], processes: Processes, empty: Callable[[], Block]
) -> Iterator[Block]:
    """All blocks in order, in every process: in each round, process r computes the r-th of the next blocks.

    A process holds the sums of as many blocks as there are processes.

    Args:
        compute: maps the replicates of a block to the block.
        empty: makes the block of no replicates.
    """
    for first in range(0, len(ranges), processes.size):
        together = ranges[first : first + processes.size]
        own = compute(together[processes.rank]) if processes.rank < len(together) else empty()
        lengths = [*map(len, together), *[0] * (processes.size - len(together))]
        sums, rows = processes.all_gather(own.sums), processes.all_gather_parts(own.rows, lengths)
        columns = [processes.all_gather_parts(column) for column in own.first_rows]
        for i in range(len(together)):
            yield Block(sums[i], rows[i], [column[i] for column in columns])


_MIN_REPLICATES, _MAX_BLOCKS = 64, 64  # fewest replicates in a block, most blocks in a segment


class Accumulator:
    """The sums and rows of all lanes' replicates so far; the first lane is the reference of `LaneRows.difference`.

    `centers` are the lanes' gradients of replicate 0, and `order` is the highest power that is summed.
    """

    def __init__(
        self, lanes: Sequence[Lane], problem: Problem, step: ChunkStep, centers: list[Leaves], order: int,
        processes: Processes,
    ) -> None:  # fmt: skip
        self.lanes, self.problem, self.step, self.processes = lanes, problem, step, processes
        self.schemes = schemes_of(lanes)
        self.sums = [online_moments.empty_sums(center, order) for center in centers]
        self.rows: list[list[LaneRows]] = [[] for _ in lanes]  # of each lane and block
        self.weights = [weight_diagnostics.empty_sums(problem) for _ in self.schemes]

    def add(self, replicates: range, progress: Progress) -> None:
        """Adds further replicates, which must follow those added so far."""
        progress(replicates.start, replicates.stop)
        for segment in online_moments.segments(replicates):
            self._add_segment(segment, lambda done: progress(done, replicates.stop))

    def statistics(self, groups: dict[str, list[int]]) -> list[LaneStatistics]:
        """The statistics of each lane so far, for groups of the parameters' leaves."""
        names, sizes = self.problem.names, self.problem.sizes
        importance = [weight_diagnostics.importance(weights) for weights in self.weights]
        columns = [LaneRows(*map(torch.cat, zip(*rows, strict=True))) for rows in self.rows]
        raw = [snr.series_of(sums, rows.square, rows.along) for sums, rows in zip(self.sums, columns, strict=True)]
        rounded = snr.zero_to_rounding(raw, names, torch.finfo(noise_dtype(self.problem.params)).eps)
        found = []
        for lane, sums, rows, series in zip(self.lanes, self.sums, columns, rounded, strict=True):
            weights = importance[self.schemes.index(lane.scheme)]
            by_group = {
                name: snr.group_estimates(series, members, sum(sizes[i] for i in members))
                for name, members in groups.items()
            }
            mean_bound = intervals.mean_interval(rows.bound.flatten().numpy())
            found.append(LaneStatistics(lane, sums, series, by_group, mean_bound, rows.difference, weights))
        return found

    def _add_segment(self, segment: range, report: Callable[[int], object]) -> None:
        self.sums = [online_moments.with_renewed_center_(sums, segment.start) for sums in self.sums]
        pieces = block_ranges(segment, self.problem.chunk)
        for piece, block in zip(pieces, blocks(pieces, self._compute, self.processes, self._empty), strict=True):
            self._add_block(block)
            report(piece.stop)

    def _compute(self, replicates: range) -> Block:
        block, rows, kept = self._empty(), [], []
        centers = [sums.center for sums in self.sums]
        flat = block.sums.chunk(len(self.lanes))
        powers = [online_moments.power_views(*args) for args in zip(flat, self.sums, strict=True)]
        compile = self.problem.settings.compile
        streams = [noise_chunks(self.problem, scheme, replicates, compile) for scheme in self.schemes]
        for drawn in zip(*streams, strict=True):
            first = drawn[0][0]
            lanes, log_w = self.step(first, [eps for _, eps in drawn], centers, powers)
            for lane, row in zip(self.lanes, lanes, strict=True):
                check_finite(lane.name, self.problem.key, first, row.bound, row.square, row.along)
            weights = [weight_diagnostics.summarize(each, first) for each in log_w]
            rows.append(torch.cat([*(column for row in lanes for column in row), *(ess for ess, _ in weights)], 1))
            kept.append([log_w for _, log_w in weights])
        return Block(block.sums, torch.cat(rows), [torch.cat(column) for column in zip(*kept, strict=True)])

    def _widths(self) -> list[int]:
        """The widths of the columns of `Block.rows`: `LaneRows` of each lane, then the ESS [B] of each scheme."""
        leaves, widths = len(self.problem.names), list[int]()
        for lane in self.lanes:
            widths += [leaves, leaves, 1, leaves * lane.is_compared_with(self.lanes[0])]
        return widths + [examples.count(self.problem.x)] * len(self.schemes)

    def _empty(self) -> Block:
        sums = torch.cat([online_moments.zero_powers(sums) for sums in self.sums])
        rows = torch.zeros(0, sum(self._widths()), dtype=torch.float64)
        return Block(sums, rows, [weight_diagnostics.no_log_weights(self.problem)] * len(self.schemes))

    def _add_block(self, block: Block) -> None:
        columns = (column.contiguous() for column in block.rows.split(self._widths(), 1))
        for i, flat in enumerate(block.sums.chunk(len(self.lanes))):
            row = LaneRows(*(next(columns) for _ in LaneRows._fields))
            self.sums[i] = online_moments.add_powers_(self.sums[i], flat, row.square)
            self.rows[i].append(row)
        pairs = zip(self.weights, columns, block.first_rows, strict=True)
        self.weights = [weight_diagnostics.add(*each) for each in pairs]
