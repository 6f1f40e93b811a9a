"""The gradient estimators: a table of short functions from log-weights to weights, all run by one engine."""

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
