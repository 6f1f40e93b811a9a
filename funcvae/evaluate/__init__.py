"""Evaluation: log-likelihood by importance sampling with standard errors, bounds, reconstructions and latents.

Most results are functions of the log-weights log w_k = log p(x, z_k) - log q(z_k|x) [K, B]. `log_weights` computes
them, which takes most of the time; `likelihood`, `ladder` and `posterior_gap` take them, so one pass serves all three.
`log_likelihood` and `bound_ladder` do both steps in one call.

Networks are in evaluation mode, and sums over samples are in float64. Functions of a model raise BadData if the model
cannot take the data, and NonFinite if a result is not finite.
"""

from funcvae.evaluate.importance_sampling import bound_ladder, log_likelihood, log_weights
from funcvae.evaluate.latents import ActiveUnits, active_units, kl_per_dimension
from funcvae.evaluate.linear_gaussian import PPCA, ppca
from funcvae.evaluate.reconstruction import reconstruction_error, squared_error
from funcvae.evaluate.weights import (
    Estimated,
    Likelihood,
    Untrusted,
    ladder,
    likelihood,
    posterior_gap,
    untrusted_message,
)

__all__ = [
    "PPCA", "ActiveUnits", "Estimated", "Likelihood", "Untrusted", "active_units", "bound_ladder",
    "kl_per_dimension", "ladder", "likelihood", "log_likelihood", "log_weights", "posterior_gap", "ppca",
    "reconstruction_error", "squared_error", "untrusted_message",
]  # fmt: skip
