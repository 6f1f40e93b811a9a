"""Sums whose bits do not depend on the number of processes.

The summands 0 … S-1 are added along one binary tree, which depends on S alone:

    sum(first, last) = sum(first, mid) + sum(mid, last),    mid - first = the greatest power of two below last - first.

Each process computes consecutive summands. It first adds the spans of the tree that contain only its summands
(`local_sums`). The processes exchange these sums, and each of them adds the rest of the tree (`combine_sums`).
"""

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from funcvae._support import checks
from funcvae.distributed.collectives import Processes, split_evenly

__all__ = ["combine_sums", "local_sums"]

Span = tuple[int, int]  # summands first … last-1


def local_sums(
    count: int, summand: Callable[[int], Tensor], processes: Processes, zeros: Callable[[], Tensor]
) -> list[Tensor]:
    """The sums of this process's spans, padded with zeros so that all processes have equally many sums."""
    spans = _spans_of_each(count, processes)

    def computed(first: int, last: int) -> Tensor | None:
        return summand(first) if last - first == 1 else None

    sums = [sum_along_tree(*span, computed) for span in spans[processes.rank]]
    return sums + [zeros() for _ in range(max(map(len, spans)) - len(sums))]


def combine_sums(sums: list[Tensor], count: int, processes: Processes) -> Tensor:
    """Exchanges the `local_sums` of all processes, and adds them to the whole sum."""
    size, spans, length = processes.size, _spans_of_each(count, processes), sums[0].numel()
    if size == 1:
        return sums[0]
    sent = sums[0].unsqueeze(0) if len(sums) == 1 else torch.stack(sums)
    if size == 2:  # each needs all sums of the other
        return _sum_of_spans(processes.all_gather(sent), spans, count)
    # Each process adds up one stretch of the vector for all. If each has one span of the tree (as many shards as
    # processes), this sends no more than an all-reduce.
    stretch = -(-length // size)
    sent = rearrange(F.pad(sent, (0, stretch * size - length)), "span (process p) -> process span p", process=size)
    own = _sum_of_spans(processes.all_to_all(sent.contiguous()), spans, count)
    return processes.all_gather(own).flatten()[:length]


def sum_along_tree(first: int, last: int, known: Callable[[int, int], Tensor | None]) -> Tensor:
    """The sum of summands first … last-1 along the tree; `known` gives the sum of a span, or None to split it."""
    if (value := known(first, last)) is not None:
        return value
    mid = midpoint(first, last)
    return sum_along_tree(first, mid, known) + sum_along_tree(mid, last, known)


def midpoint(first: int, last: int) -> int:
    """Where the tree splits a span of two or more summands: after the greatest power of two below its length."""
    return first + (1 << ((last - first - 1).bit_length() - 1))


def spans_within(count: int, own: range) -> list[Span]:
    """The largest spans of the tree over `count` summands that lie within `own`."""

    def within(first: int, last: int) -> list[Span]:
        if last <= own.start or first >= own.stop:
            return []
        if own.start <= first and last <= own.stop:
            return [(first, last)]
        mid = midpoint(first, last)
        return within(first, mid) + within(mid, last)

    return within(0, count) if count and len(own) else []


def _spans_of_each(count: int, processes: Processes) -> list[list[Span]]:
    return [spans_within(count, piece) for piece in _split_evenly(count, processes.size)]


def _sum_of_spans(sent: Tensor, spans: list[list[Span]], count: int) -> Tensor:
    """The sum along the tree, from the sums [size, most, p] that all processes sent for their spans."""
    known = {span: sent[r, i] for r, own in enumerate(spans) for i, span in enumerate(own)}
    return sum_along_tree(0, count, lambda first, last: known.get((first, last)))


_split_evenly = checks.unchecked(split_evenly)
