"""The estimators by name, the posteriors that they allow, and the numbers of samples that each accepts."""

import pytest
import torch

from funcvae.errors import BadValue
from funcvae.estimators import EXAMPLES, parse

X = torch.tensor([[1.0]], dtype=torch.float64)
SPECS = [*EXAMPLES.values(), "ovis:1", "tvo:0:1"]
SEPARATE = [spec for spec in SPECS if spec != "free_bits:0.1"]  # whose bound of a datum does not depend on others


def allowing(*posteriors):
    """The estimators whose claims require one of these kinds of posterior."""
    return [spec for spec in SPECS if parse(spec).claims.posterior in posteriors]


CONTINUOUS = allowing("reparameterised", "any")  # a normal posterior
DISCRETE = allowing("discrete", "any")  # a Bernoulli posterior
WEIGHTED = [spec for spec in SPECS if parse(spec).weights]  # a function of the log-weights alone
every_estimator = pytest.mark.parametrize("spec", SPECS)
every_continuous = pytest.mark.parametrize("spec", CONTINUOUS)


def slow_but(quick, values):
    """The values of a parameter, all but the quick ones marked slow."""
    return [value if value in quick else pytest.param(value, marks=pytest.mark.slow) for value in values]


def accepts(spec, samples):
    """Whether the weights of an estimator allow this number of samples."""
    estimator = parse(spec)
    try:
        return estimator.weights is None or bool(estimator.parts.weigh(torch.zeros(samples, 1)))
    except BadValue:
        return False


def of_samples(*counts, specs=CONTINUOUS):
    """Each of these estimators with each number of samples that it accepts."""
    return [(spec, n) for spec in specs for n in counts if accepts(spec, n)]
