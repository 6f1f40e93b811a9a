"""Priors p(z). A prior is a factory of an `nn.Module` that takes z, for its shape, and returns a distribution over z.

So a learned prior is a module with parameters: `params["prior"]` holds them, and every estimator trains them with the
decoder's weights.
"""

from torch import Tensor, nn

from funcvae._support import checks
from funcvae.distributions import Normal

__all__ = ["standard_normal"]


def standard_normal() -> nn.Module:
    """N(0, I), with nothing to learn."""
    return _StandardNormal()


class _StandardNormal(nn.Module):
    def forward(self, z: Tensor) -> Normal:
        checks.tensor("z", z, floating=True)
        return Normal(z.new_zeros(()), z.new_ones(()))
