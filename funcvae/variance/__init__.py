"""The variance lab: how noisy a gradient estimator is, where that comes from, and how sure one can be of it.

`exact` has the moments of a gradient without sampling, for small models; `moments` estimates them for any model;
`compare` sets estimators and noise schemes side by side on common random numbers; `sources` splits the variance into
that of the data and that of the noise; `sweep` follows any of these along K, a batch's size or training.
"""

from funcvae.variance.comparison import Arm, compare
from funcvae.variance.decomposition import Decomposition, Sources, sources
from funcvae.variance.intervals import Measured
from funcvae.variance.monte_carlo import Moments, moments
from funcvae.variance.quadrature import Exact, exact
from funcvae.variance.results import Bias, Compared, Comparison
from funcvae.variance.scaling import Measure, Slope, Sweep, slope, sweep
from funcvae.variance.snr import Group
from funcvae.variance.weight_diagnostics import Importance

__all__ = [
    "Arm", "Bias", "Compared", "Comparison", "Decomposition", "Exact", "Group", "Importance", "Measure", "Measured",
    "Moments", "Slope", "Sources", "Sweep", "compare", "exact", "moments", "slope", "sources",
    "sweep",
]  # fmt: skip
