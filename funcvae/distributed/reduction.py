"""Sums whose bits do not depend on how many processes make them.

The summands 0 … S-1 are added along one binary tree, which depends on S alone:

    sum(first, last) = sum(first, mid) + sum(mid, last),    mid - first the greatest power of two below last - first.

A process has successive summands. It adds those spans of the tree that it has all of (`own`); these are exchanged, and
every process adds up the rest (`exchanged`).
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from funcvae.distributed.processes import Processes, cut

Span = tuple[int, int]


def summed(count: int, summand: Callable[[int], Tensor], processes: Processes, nothing: Callable[[], Tensor]) -> Tensor:
    """The sum of vectors [p] along the tree; each process computes its own summands, and all have the sum.

    Args:
        count: S, 1 or more.
        summand: from a number to the vector; at most log S of them are kept at a time.
        processes: who does it.
        nothing: makes a vector of zeros [p].
    """
    return exchanged(own(count, summand, processes, nothing), count, processes)


def own(
    count: int, summand: Callable[[int], Tensor], processes: Processes, nothing: Callable[[], Tensor]
) -> list[Tensor]:
    """What a process adds up by itself: the sums of its spans, and zeros such that all have as many."""
    spans = _spans(count, processes)

    def computed(first: int, last: int) -> Tensor | None:
        return summand(first) if last - first == 1 else None

    here = [along_the_tree(*span, computed) for span in spans[processes.rank]]
    return here + [nothing() for _ in range(max(map(len, spans)) - len(here))]


def exchanged(here: list[Tensor], count: int, processes: Processes) -> Tensor:
    """The whole sum, from what each process has added up by itself."""
    size, spans, length = processes.size, _spans(count, processes), here[0].numel()
    if size == 1:
        return here[0]
    sent = here[0].unsqueeze(0) if len(here) == 1 else torch.stack(here)
    if size == 2:  # each needs all of the other's
        return _joined(processes.all_gather(sent), spans, count)
    # Each process adds up one stretch of the vector, for all of them. Where each has one span of the tree, as with as
    # many shards as processes, no more is sent than the engine's own sum takes.
    stretch = -(-length // size)
    sent = F.pad(sent, (0, stretch * size - length)).view(-1, size, stretch)
    mine = _joined(processes.all_to_all(sent.transpose(0, 1).contiguous()), spans, count)
    return processes.all_gather(mine).flatten()[:length]


def along_the_tree(first: int, last: int, known: Callable[[int, int], Tensor | None]) -> Tensor:
    """The sum of summands first … last-1 along the tree; `known` gives what is known of a span of it, or None."""
    if (found := known(first, last)) is not None:
        return found
    mid = halfway(first, last)
    return along_the_tree(first, mid, known) + along_the_tree(mid, last, known)


def halfway(first: int, last: int) -> int:
    """Where the tree cuts a span of two or more: after the greatest power of two that leaves something."""
    return first + (1 << ((last - first - 1).bit_length() - 1))


def nodes(count: int, own: range) -> list[Span]:
    """The largest spans of the tree over `count` summands that lie within some of them."""

    def within(first: int, last: int) -> list[Span]:
        if last <= own.start or first >= own.stop:
            return []
        if own.start <= first and last <= own.stop:
            return [(first, last)]
        mid = halfway(first, last)
        return within(first, mid) + within(mid, last)

    return within(0, count) if count and len(own) else []


def _spans(count: int, processes: Processes) -> list[list[Span]]:
    """The spans that each process has all of."""
    return [nodes(count, piece) for piece in cut(count, processes.size)]


def _joined(sent: Tensor, spans: list[list[Span]], count: int) -> Tensor:
    """The sum along the tree of what all processes sent [size, most, p] for the spans that they have."""
    known = {span: sent[r, i] for r, some in enumerate(spans) for i, span in enumerate(some)}
    return along_the_tree(0, count, lambda first, last: known.get((first, last)))
