"""Sums along a tree: their bits do not depend on which process computes which part."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import funcvae as fv
from funcvae.distributed import reduction, sharding
from funcvae.distributed.collectives import SINGLE, split_evenly

# Splitting and adding.


@given(st.integers(0, 60), st.integers(1, 20))
def test_split_evenly_covers_the_range_with_sizes_that_differ_by_at_most_one_longer_first(n, parts):
    pieces = split_evenly(n, parts)
    assert len(pieces) == parts
    assert [i for piece in pieces for i in piece] == list(range(n))
    sizes = [len(piece) for piece in pieces]
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) - min(sizes) <= 1


@st.composite
def owners(draw):
    """A number of shards, and consecutive ranges that cover them, some of them empty."""
    count = draw(st.integers(1, 17))
    ends = sorted(draw(st.lists(st.integers(0, count), max_size=20)))
    return count, [range(a, b) for a, b in zip([0, *ends], [*ends, count], strict=True)]


def halves(first, last):
    """All spans of the tree, from its definition: the left part is the longest power of two below the whole."""
    yield first, last
    if last - first > 1:
        left = max(2**i for i in range(20) if 2**i < last - first)
        yield from halves(first, first + left)
        yield from halves(first + left, last)


@given(owners())
def test_spans_within_ranges_are_the_largest_spans_of_the_tree_and_cover_all(owned):
    count, ranges = owned
    spans = set(halves(0, count))
    found = [reduction.spans_within(count, own) for own in ranges]
    assert [i for own in found for span in own for i in range(*span)] == list(range(count))
    for own, theirs in zip(ranges, found, strict=True):
        assert set(theirs) <= spans
        inside = {span for span in spans if own.start <= span[0] and span[1] <= own.stop}
        wider = {(a, b) for a, b in inside if not any(c <= a and b <= d and (c, d) != (a, b) for c, d in inside)}
        assert set(theirs) == wider, "they are the largest spans"


def leaf_of(values):
    return lambda first, last: values[first] if last - first == 1 else None


def summed(values, ranges):
    """The sum when each owner first adds its own shards, and then all sums are added."""
    known = {}
    for own in ranges:
        for span in reduction.spans_within(len(values), own):
            known[span] = reduction.sum_along_tree(*span, leaf_of(values))
    return reduction.sum_along_tree(0, len(values), lambda a, b: known.get((a, b)))


def left_to_right(values, ranges):
    """The wrong variant: the sum of each owner's sum from left to right."""
    return sum(sum(values[i] for i in own) for own in ranges if len(own))


def draws(count, seed):
    """Vectors of numbers of very different magnitudes, so that their sum is rounded."""
    a, b = fv.random.split(fv.random.key(seed))
    return [*fv.random.normal(a, (count, 40)) * 10 ** fv.random.uniform(b, (count, 40), minval=-3, maxval=3)]


@given(owners(), st.integers(0, 99))
def test_the_bits_of_the_sum_along_the_tree_do_not_depend_on_the_owners(owned, seed):
    count, ranges = owned
    values = draws(count, seed)
    alone = summed(values, [range(count)])
    assert torch.equal(alone, summed(values, ranges))
    exact = torch.stack(values).double()
    assert ((alone - exact.sum(0)).abs() <= 1e-6 * exact.abs().sum(0)).all()


def test_the_bits_of_a_sum_from_left_to_right_depend_on_the_owners():
    differing = 0
    for count in range(3, 18):
        values = draws(count, count)
        alone = left_to_right(values, [range(count)])
        differing += any(not torch.equal(alone, left_to_right(values, split_evenly(count, n))) for n in (2, 3, 4))
    assert differing > 10


@pytest.mark.parametrize("count", [1, 2, 3, 8, 11])
def test_one_process_sums_shares_along_the_tree_and_counts_its_request_to_stop(count):
    values = draws(count, 0)
    like = ({"w": torch.zeros(39)}, {})
    pieces = split_evenly(count, count)
    for stop in (False, True):
        flat = sharding.sum_shares(
            pieces, lambda piece: values[piece.start].clone(), SINGLE, like, stop=stop, ordered=True
        )
        assert torch.equal(flat[:-1], summed(values, [range(count)])[:-1])
        assert flat[-1] == summed(values, [range(count)])[-1] + stop
