"""Mixtures of normals."""

from typing import NamedTuple

import torch
from torch import Tensor

from funcvae._support.reprs import short_repr
from funcvae.distributions.normal import Normal

__all__ = ["Mixture"]


@short_repr
class Mixture(NamedTuple):
    """The mixture sum_c π_c N(loc_c, diag(sigma_c²)) with π = softmax(logits).

    logits is [C], loc and sigma are [C, Z].
    """

    logits: Tensor
    loc: Tensor
    sigma: Tensor

    @property
    def reparameterised(self) -> bool:
        """Samples have steps where the component changes: their derivatives are not those of their values."""
        return False

    @property
    def mean(self) -> Tensor:
        """The mean [Z]: sum_c π_c loc_c."""
        return self.logits.softmax(-1) @ self.loc

    def log_prob(self, z: Tensor) -> Tensor:
        """log sum_c π_c N(z; loc_c, diag(sigma_c²)) [...] of z [..., Z], in nats."""
        each = Normal(self.loc, self.sigma).log_prob(z.unsqueeze(-2)).sum(-1)
        return (self.logits.log_softmax(-1) + each).logsumexp(-1)

    def sample(self, eps: Tensor) -> Tensor:
        """loc_c + sigma_c · eps' of eps [..., Z], with c chosen by the first noise.

        c is the first component with u = Φ(eps_1) <= π_1 + ... + π_c. Given c, the position of u between this sum and
        the one before is uniform on (0, 1). eps'_1 is its quantile Φ⁻¹, and the other eps' are eps.
        """
        first = eps[..., :1]
        u = torch.special.ndtr(first)
        pi = self.logits.softmax(-1)
        ends = pi.cumsum(-1)
        c = (u > ends[..., :-1]).sum(-1)
        position = (u.squeeze(-1) - (ends - pi)[c]) / pi[c]
        tiny = torch.finfo(eps.dtype).eps
        noise = torch.cat([torch.special.ndtri(position.clamp(tiny, 1 - tiny)).unsqueeze(-1), eps[..., 1:]], -1)
        return self.loc[c] + self.sigma[c] * noise
