"""The gradient estimators: a table of short functions from log-weights to weights, all run by one engine."""

from funcvae.estimators.chunks import in_chunks
from funcvae.estimators.compose import surrogate, together
from funcvae.estimators.engine import weighted
from funcvae.estimators.leave_one_out import others_logsumexp, others_mean
from funcvae.estimators.registry import EXAMPLES, TABLE, parse, weights_of
from funcvae.estimators.table import (
    beta_elbo,
    ciwae,
    dreg,
    elbo,
    elbo_mc,
    iwae,
    iwae_stl,
    miwae,
    ovis,
    piwae,
    renyi,
    rloo,
    rws,
    score,
    stl,
    tvo,
    vimco,
    vr_iwae_dreg,
)
from funcvae.estimators.types import Claims, Estimate, Estimator, GradientEstimator, Weights

__all__ = [
    "EXAMPLES", "TABLE", "Claims", "Estimate", "Estimator", "GradientEstimator", "Weights", "beta_elbo", "ciwae",
    "dreg", "elbo", "elbo_mc", "in_chunks", "iwae", "iwae_stl", "miwae", "others_logsumexp", "others_mean", "ovis",
    "parse", "piwae", "renyi", "rloo", "rws", "score", "stl", "surrogate", "together", "tvo", "vimco", "vr_iwae_dreg",
    "weighted", "weights_of",
]  # fmt: skip
