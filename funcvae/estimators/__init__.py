r"""The gradient estimators: a table of short functions from log-weights to weights, all run by one engine.

For data x and samples $z_k = z(\epsilon_k, x)$, k = 1 … K, the docstrings write

$$f_k = \log w_k = \log p(x, z_k) - \log q(z_k \mid x), \qquad v_k = \mathrm{softmax}_k(f), \qquad
L_K = \log \frac{1}{K} \sum_k w_k.$$

With $d_k = (\partial f_k / \partial z_k) \, \partial z_k / \partial \phi$, where q's parameters are held constant in
$f_k$, and $s_k = \nabla_\phi \log q(z_k \mid x)$ at fixed $z_k$, an estimator with the weights path, score and theta
ascends along

$$\sum_k \mathrm{path}_k \, d_k + \mathrm{score}_k \, s_k \quad \text{(encoder)}, \qquad
\sum_k \mathrm{theta}_k \nabla \log w_k \quad \text{(decoder and prior)}.$$

The docstring of every factory has a line with its three weights, which `funcvae list estimators` prints. "Unbiased"
means that with independent noise the expected gradient is that of the expected target, which is in `Estimate.bound`. A
factory raises BadValue if its argument is out of range, and an estimator if it does not allow the number of samples.

`TABLE` has the factory of each estimator by name, and `EXAMPLES` a string for it that `parse` reads. The argument of
those in `SCHEDULABLE` may be a schedule: an `EstimatorAt` maps the step to the estimator.
"""

from funcvae.estimators.chunks import in_chunks
from funcvae.estimators.compose import surrogate, together
from funcvae.estimators.discrete import (
    arm,
    disarm,
    disarm_local,
    local_expectation,
    rebar,
    reinmax,
    straight_through,
)
from funcvae.estimators.engine import from_points, log_p_x, log_w, weighted
from funcvae.estimators.leave_one_out import others_logsumexp, others_mean
from funcvae.estimators.quadratic import quadratic_cv
from funcvae.estimators.registry import (
    EXAMPLES,
    SCHEDULABLE,
    TABLE,
    needs_steps,
    parse,
    parse_final,
    parse_scheduled,
    weights_of,
)
from funcvae.estimators.table import (
    beta_elbo,
    ciwae,
    dreg,
    elbo,
    elbo_mc,
    free_bits,
    iwae,
    iwae_stl,
    miwae,
    ovis,
    piwae,
    renyi,
    rloo,
    rws,
    rws_dreg,
    score,
    stl,
    tvo,
    vimco,
    vimco_am,
    vimco_star,
    vr_iwae_dreg,
)
from funcvae.estimators.types import Claims, Estimate, Estimator, EstimatorAt, GradientEstimator, Points, Seen, Weights

__all__ = [
    "EXAMPLES", "SCHEDULABLE", "TABLE", "Claims", "Estimate", "Estimator", "EstimatorAt", "GradientEstimator", "Points",
    "Seen", "Weights", "arm", "beta_elbo", "ciwae", "disarm", "disarm_local", "dreg", "elbo", "elbo_mc", "free_bits",
    "from_points", "in_chunks", "iwae", "iwae_stl", "local_expectation", "log_p_x", "log_w", "miwae", "needs_steps",
    "others_logsumexp", "others_mean", "ovis", "parse", "parse_final", "parse_scheduled", "piwae", "quadratic_cv",
    "rebar", "reinmax", "renyi", "rloo", "rws", "rws_dreg", "score", "stl", "straight_through", "surrogate", "together",
    "tvo", "vimco", "vimco_am", "vimco_star", "vr_iwae_dreg", "weighted", "weights_of",
]  # fmt: skip
