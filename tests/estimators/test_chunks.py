"""What `in_chunks` takes. (That it gives the same numbers is a law: see tests/laws.)"""

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
def test_only_an_estimator_is_cut_and_only_once(estimator, message):
    with pytest.raises(BadType, match=message):
        estimators.in_chunks(estimator, 2)


def test_a_chunk_holds_a_sample_at_least():
    with pytest.raises(BadValue, match="chunk is 0"):
        estimators.in_chunks(estimators.iwae(), 0)
