"""The variance lab: the variance of gradient estimators, with its sources and standard errors.

`exact` computes the moments of a gradient without sampling, for small models; `moments` estimates them for any model;
`compare` compares estimators and noise schemes on common random numbers; `sources` splits the variance into one part
from the data and one from the noise; `sweep` measures any of these against K, the batch size or the training step.

An `Arm` of `compare` is an estimator, or a pair of an estimator and its noise scheme. A `Measure` of `sweep` maps (a
value of the axis, key) to estimates with standard errors by name.
"""

from funcvae.variance.comparison import Arm, compare
from funcvae.variance.decomposition import Decomposition, Sources, sources
from funcvae.variance.intervals import Measured
from funcvae.variance.monte_carlo import Moments, moments
from funcvae.variance.quadrature import Errors, Exact, exact
from funcvae.variance.results import Bias, Compared, Comparison
from funcvae.variance.scaling import Measure, Slope, Sweep, slope, sweep
from funcvae.variance.snr import Group
from funcvae.variance.weight_diagnostics import Importance

__all__ = [
    "Arm", "Bias", "Compared", "Comparison", "Decomposition", "Errors", "Exact", "Group", "Importance", "Measure",
    "Measured", "Moments", "Slope", "Sources", "Sweep", "compare", "exact", "moments", "slope", "sources", "sweep",
]  # fmt: skip
