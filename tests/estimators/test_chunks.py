"""Arguments of `in_chunks`. tests/laws checks that it gives the same numbers."""

import pytest

from funcvae import estimators
from funcvae.errors import BadType, BadValue


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        ("dreg", "it must be an Estimator"),
        (estimators.dreg, "estimator is the function dreg: it must be an Estimator"),
        (lambda *args, train: None, "it must be an Estimator"),
        (estimators.in_chunks(estimators.dreg(), 2), "dreg is already in chunks"),
    ],
)
def test_in_chunks_takes_an_estimator_that_is_not_in_chunks(estimator, message):
    with pytest.raises(BadType, match=message):
        estimators.in_chunks(estimator, 2)


def test_a_chunk_without_samples_is_an_error():
    with pytest.raises(BadValue, match="chunk is 0"):
        estimators.in_chunks(estimators.iwae(), 0)
