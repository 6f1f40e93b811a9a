"""The estimators by name, and the numbers of samples that each accepts."""

import pytest
import torch

from funcvae.estimators import EXAMPLES, parse

X = torch.tensor([[1.0]], dtype=torch.float64)
SPECS = [*EXAMPLES.values(), "ovis:1", "tvo:0:1"]
every_estimator = pytest.mark.parametrize("spec", SPECS)


def of_samples(*counts):
    """Every estimator with each of these numbers of samples that it accepts."""
    more = {"rloo": 2, "vimco": 2, "ovis": 2, "miwae": 2, "piwae": 2}
    takes = {
        spec: [
            n
            for n in counts
            if n >= (least := more.get(spec.split(":")[0], 1)) and (":2" not in spec or n % least == 0)
        ]
        for spec in SPECS
    }
    return [(spec, n) for spec, ns in takes.items() for n in ns]


CONTINUOUS = [spec for spec in EXAMPLES.values() if parse(spec).claims.posterior != "discrete"]
"""The estimators that allow a Normal posterior."""
DISCRETE = [spec for spec in EXAMPLES.values() if parse(spec).claims.posterior != "reparameterised"]
"""The estimators that allow a Bernoulli posterior."""
