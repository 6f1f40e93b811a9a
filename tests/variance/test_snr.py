"""Groups of parameters. The tests of `moments` and `compare` test their variances and ratios."""

import pytest

from funcvae.errors import BadValue
from funcvae.variance import snr

NAMES = ["encoder/0.weight", "encoder/0.bias", "decoder/weight", "decoder/bias", "prior/empty"]
SIZES = [6, 2, 8, 4, 0]


def test_groups_are_all_the_networks_each_parameter_and_patterns():
    groups = snr.parameter_groups(NAMES, SIZES, ("*.bias", "*/bias", "decoder"))
    assert groups == {
        "all": [0, 1, 2, 3],
        "encoder": [0, 1],
        "decoder": [2, 3],
        "encoder/0.weight": [0],
        "encoder/0.bias": [1],
        "decoder/weight": [2],
        "decoder/bias": [3],
        "*.bias": [1],
        "*/bias": [3],
    }


@pytest.mark.parametrize(
    ("pattern", "hint"), [("encodr", "did you mean 'encoder'"), ("prior", "unknown group"), ("*.w", "choose from")]
)
def test_a_group_that_matches_nothing_raises_an_error(pattern, hint):
    with pytest.raises(BadValue, match=hint) as error:
        snr.parameter_groups(NAMES, SIZES, (pattern,))
    assert str(error.value).startswith(f"unknown group of parameters {pattern!r}: ")
