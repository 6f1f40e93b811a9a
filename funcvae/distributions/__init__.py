"""Distributions as NamedTuples of tensors, which `vmap`, `vjp` and `torch.compile` accept.

`log_prob` is elementwise, or one number for each latent; `funcvae.model` sums it over the axes of a datum. `sample` is
a function of standard normal noise. `Layers` are the weight [out, in] and the bias [out] of each layer of a network.
"""

from funcvae.distributions.derivatives import is_reparameterised
from funcvae.distributions.discrete import Bernoulli, Categorical
from funcvae.distributions.divergence import kl
from funcvae.distributions.layered import CouplingFlow, Layers, TopDown, TwoLayers, layers_of
from funcvae.distributions.mixture import Mixture
from funcvae.distributions.normal import Delta, FullNormal, Normal, SignedNormal
from funcvae.distributions.relaxed import RelaxedBernoulli, RelaxedCategorical
from funcvae.distributions.types import Distribution, FinitePosterior, Posterior

__all__ = [
    "Bernoulli", "Categorical", "CouplingFlow", "Delta", "Distribution", "FinitePosterior", "FullNormal", "Layers",
    "Mixture", "Normal", "Posterior", "RelaxedBernoulli", "RelaxedCategorical", "SignedNormal", "TopDown", "TwoLayers",
    "is_reparameterised", "kl", "layers_of",
]  # fmt: skip
