"""Priors p(z): factories of an `nn.Module` that maps z to the distribution p(z). It may read only the shape of z.

A learned prior is a module with parameters. They are in `params["prior"]`, and every estimator trains them with the
decoder's weights.
"""

from torch import Tensor, nn

from funcvae._support import checks
from funcvae.distributions import Normal

__all__ = ["standard_normal"]


def standard_normal() -> nn.Module:
    """N(0, I), without parameters."""
    return _StandardNormal()


class _StandardNormal(nn.Module):
    def forward(self, z: Tensor) -> Normal:
        checks.floats("z", z)
        return Normal(z.new_zeros(()), z.new_ones(()))
