"""One-pass sums against two passes in numpy."""

from itertools import pairwise

import numpy as np
import pytest
import torch

import funcvae as fv
from funcvae.variance import online_moments


def data(replicates, offset=0.0, dtype=torch.float64):
    """Two leaves of skewed gradients, [R, 5] and [R, 1]."""
    keys = fv.random.split(fv.random.key(4), 2)
    leaves = [fv.random.normal(key, (replicates, size), torch.float64) for key, size in zip(keys, (5, 1), strict=True)]
    return [(offset + (1 + i) * leaf.exp()).to(dtype) for i, leaf in enumerate(leaves)]


def summed(leaves, order, cuts=()):
    """The sums of all replicates, in chunks that start at 0 and the cuts."""
    sums, squares, alongs = online_moments.empty_sums([leaf[0] for leaf in leaves], order), [], []
    bounds = [0, *cuts, len(leaves[0])]
    for a, b in pairwise(bounds):
        for segment in online_moments.segments(range(a, b)):
            part = [leaf[segment.start : segment.stop] for leaf in leaves]
            sums, square, along = online_moments.add_segment_(sums, segment.start, part)
            squares.append(square)
            alongs.append(along)
    return sums, torch.cat(squares).numpy(), torch.cat(alongs).numpy()


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("replicates", [1, 2, 3, 8, 9, 100])
def test_mean_variance_and_central_powers_are_those_of_two_passes(replicates, offset):
    leaves = data(replicates, offset)
    sums, _, _ = summed(leaves, order=4)
    assert sums.n == replicates
    for i, leaf in enumerate(leaves):
        x = leaf.numpy()
        np.testing.assert_allclose(online_moments.mean(sums)[i], x.mean(0), rtol=1e-14)
        for j in range(1, 5):
            known = ((x - x.mean(0)) ** j).sum(0)
            np.testing.assert_allclose(
                online_moments.central_powers(sums)[j - 1][i],
                known,
                rtol=1e-8 if offset else 1e-11,
                atol=1e-8 * replicates,
            )
        if replicates > 1:
            assert online_moments.total_variance(sums)[i].item() == pytest.approx(x.var(0, ddof=1).sum(), rel=1e-9)
    if replicates == 1:
        assert online_moments.total_variance(sums).isnan().all()


def test_plain_sums_of_squares_lose_digits_that_shifted_sums_keep():
    x = data(100, 1e8)[0].numpy()
    plain = (x**2).sum(0) - x.sum(0) ** 2 / 100
    sums, _, _ = summed(data(100, 1e8), order=2)
    known = ((x - x.mean(0)) ** 2).sum(0)
    assert np.abs(plain / known - 1).max() > 0.01
    np.testing.assert_allclose(online_moments.central_powers(sums)[1][0], known, rtol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_results_of_chunks_agree(dtype):
    leaves = data(37, 3.0, dtype)
    whole = summed(leaves, order=4)
    parts = summed(leaves, order=4, cuts=(1, 2, 5, 16, 17, 30))
    ones = summed(leaves, order=4, cuts=range(1, 37))
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    for other in (parts, ones):
        for a, b in zip(whole[1:], other[1:], strict=True):
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
        for a, b in zip(online_moments.central_powers(whole[0]), online_moments.central_powers(other[0]), strict=True):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=100 * tolerance)


def test_the_centre_is_the_mean_of_a_power_of_two_of_replicates():
    leaves = data(37)
    sums, squares, alongs = summed(leaves, order=1)
    assert [online_moments.replicates_in_center(r) for r in (1, 2, 3, 4, 7, 8, 36)] == [1, 2, 2, 4, 4, 8, 32]
    for r in (1, 2, 3, 15, 16, 36):
        n = online_moments.replicates_in_center(r)
        for i, leaf in enumerate(leaves):
            c = leaf[:n].mean(0)
            assert squares[r, i] == pytest.approx(float((leaf[r] - c).square().sum()), rel=1e-10)
            assert alongs[r, i] == pytest.approx(float((leaf[r] - c) @ c), rel=1e-10)
    torch.testing.assert_close(sums.center[0], leaves[0][:32].mean(0))


def test_segments_end_at_renewals_of_the_centre():
    for replicates, ends in ((range(9), (0, 1, 2, 4, 8, 9)), (range(5, 7), (5, 7)), (range(5, 20), (5, 8, 16, 20))):
        assert list(online_moments.segments(replicates)) == [range(*pair) for pair in pairwise(ends)]


def test_squared_deviations_from_the_centre_estimate_the_variance_without_bias():
    # normals in 3 dimensions have the total variance 3; for each r the mean over many runs, in standard errors
    runs, replicates = 20_000, 7
    x = fv.random.normal(fv.random.key(1), (replicates, 3 * runs), torch.float64)
    center, u = x[:1], []
    for r in range(1, replicates):
        n = online_moments.replicates_in_center(r)
        center = x[:n].mean(0)
        square = (x[r] - center).square().unflatten(0, (runs, 3)).sum(1)
        u.append((n / (n + 1) * square, square))
    for scaled, plain in u:
        assert abs(scaled.mean() - 3) < 4 * scaled.std() / runs**0.5
        assert abs(plain.mean() - 3) > 4 * plain.std() / runs**0.5, "without n/(n+1) it is too large"


def test_columns_computed_in_parts_give_the_same_sums(monkeypatch):
    leaves = data(20)
    whole = summed(leaves, order=4)
    monkeypatch.setattr(online_moments, "_COLUMNS", 2)
    parts = summed(leaves, order=4)
    np.testing.assert_allclose(whole[1], parts[1], rtol=1e-13)
    torch.testing.assert_close(online_moments.central_powers(whole[0])[3], online_moments.central_powers(parts[0])[3])
