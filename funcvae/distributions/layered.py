"""Distributions whose parts depend on one another through small networks: two stochastic layers, and a flow.

A distribution is a tree of tensors, so it holds the weights of its networks, and not modules.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from funcvae import random
from funcvae._support.reprs import short_repr
from funcvae.distributions.normal import Normal
from funcvae.distributions.types import Posterior

__all__ = ["CouplingFlow", "Layers", "TopDown", "TwoLayers", "layers_of"]

Layers = Sequence[tuple[Tensor, Tensor]]
"""The weight [out, in] and the bias [out] of each linear layer of a network, with tanh between the layers."""


def layers_of(module: nn.Module) -> Layers:
    """The weights and biases of the `nn.Linear` layers of a module, in the order in which it lists them."""
    return tuple((layer.weight, layer.bias) for layer in module.modules() if isinstance(layer, nn.Linear))


@short_repr
class TwoLayers(NamedTuple):
    """Two stochastic layers, z = (z_1, z_2): z_1 ~ first, and z_2 ~ N(m(z_1), s(z_1)²), with (m, log s) from `layers`.

    Reference: Burda, Grosse & Salakhutdinov (2016), arXiv:1509.00519.
    """

    first: Normal
    layers: Layers

    @property
    def reparameterised(self) -> bool:
        """Samples have the derivatives of their values."""
        return True

    @property
    def loc(self) -> Tensor:
        """The centre (μ_1, m(μ_1)), where μ_1 is the mean of z_1."""
        return torch.cat([self.first.loc, self.second(self.first.loc).loc], -1)

    @property
    def mean(self) -> Tensor:
        """E[z], estimated from 64 draws with fixed noise, because E[m(z_1)] has no closed form."""
        return _mean(self)

    def second(self, z_1: Tensor) -> Normal:
        """The distribution of z_2 given z_1."""
        m, log_s = _network(self.layers, z_1)
        return Normal(m, log_s.exp())

    def log_prob(self, z: Tensor) -> Tensor:
        """log N(z_1; first) + log N(z_2; m(z_1), s(z_1)²): one number for each z, in nats."""
        z_1, z_2 = self._parts(z)
        return self.first.log_prob(z_1).sum(-1) + self.second(z_1).log_prob(z_2).sum(-1)

    def sample(self, eps: Tensor) -> Tensor:
        """(z_1, m(z_1) + s(z_1) · eps_2) with z_1 = μ_1 + σ_1 · eps_1."""
        eps_1, eps_2 = self._parts(eps)
        z_1 = self.first.sample(eps_1)
        return torch.cat([z_1, self.second(z_1).sample(eps_2)], -1)

    def _parts(self, z: Tensor) -> tuple[Tensor, Tensor]:
        size = self.first.loc.shape[-1]
        return z[..., :size], z[..., size:]


@short_repr
class TopDown(NamedTuple):
    """Two stochastic layers in the order of a prior, z = (z_1, z_2): z_2 ~ top, and z_1 ~ N(m(z_2), s(z_2)²).

    It is `TwoLayers(top, layers)`, the distribution of (z_2, z_1), with the two parts of z exchanged. The mean of `top`
    must be of shape [Z_2], as it tells the size of z_2.
    """

    top: Normal
    layers: Layers

    @property
    def mean(self) -> Tensor:
        """E[z], estimated from 64 draws with fixed noise, because E[m(z_2)] has no closed form."""
        return TwoLayers(*self).mean.roll(-self._size, -1)

    def log_prob(self, z: Tensor) -> Tensor:
        """log N(z_2; top) + log N(z_1; m(z_2), s(z_2)²): one number for each z, in nats."""
        return TwoLayers(*self).log_prob(z.roll(self._size, -1))

    def sample(self, eps: Tensor) -> Tensor:
        """(m(z_2) + s(z_2) · eps_1, z_2) with z_2 drawn from `top` with eps_2."""
        return TwoLayers(*self).sample(eps.roll(self._size, -1)).roll(-self._size, -1)

    @property
    def _size(self) -> int:
        return self.top.loc.shape[-1]


@short_repr
class CouplingFlow(NamedTuple):
    """The distribution of z = T(y), y ~ base, where T is a sequence of affine couplings.

    Each coupling transforms one half b of its input, given the other half a:

        b <- exp(tanh(s(a))) · b + t(a),    with (s, t) from the layers of the coupling.

    The first coupling transforms the second half (coordinates from Z // 2 on), the next one the first half, and so on.
    The tanh bounds the scale between 1/e and e, which keeps T and its inverse finite.

    Reference: Dinh, Sohl-Dickstein & Bengio (2017), arXiv:1605.08803.
    """

    base: Normal
    couplings: Sequence[Layers]

    @property
    def reparameterised(self) -> bool:
        """Samples have the derivatives of their values."""
        return True

    @property
    def loc(self) -> Tensor:
        """The centre T(μ), where μ is the mean of y. It is not the mean of z."""
        return self._transformed(self.base.loc)

    @property
    def mean(self) -> Tensor:
        """E[z], estimated from 64 draws with fixed noise, because it has no closed form."""
        return _mean(self)

    def log_prob(self, z: Tensor) -> Tensor:
        """log N(T⁻¹(z); base) - log |det ∂T/∂y|: one number for each z, in nats."""
        log_det = z.new_zeros(())
        for i, layers in reversed(list(enumerate(self.couplings))):
            a, b = _halves(z, i)
            log_scale, shift = _affine(layers, a)
            z = _joined(a, (b - shift) * (-log_scale).exp(), i)
            log_det = log_det + log_scale.sum(-1)
        return self.base.log_prob(z).sum(-1) - log_det

    def sample(self, eps: Tensor) -> Tensor:
        """T(μ + σ · eps)."""
        return self._transformed(self.base.sample(eps))

    def _transformed(self, z: Tensor) -> Tensor:
        for i, layers in enumerate(self.couplings):
            a, b = _halves(z, i)
            log_scale, shift = _affine(layers, a)
            z = _joined(a, b * log_scale.exp() + shift, i)
        return z


def _network(layers: Layers, h: Tensor) -> tuple[Tensor, ...]:
    """The two halves of the output of linear layers with tanh between them."""
    *hidden, last = layers
    for weight, bias in hidden:
        h = nn.functional.linear(h, weight, bias).tanh()
    return nn.functional.linear(h, *last).chunk(2, -1)


def _affine(layers: Layers, a: Tensor) -> tuple[Tensor, Tensor]:
    """The log-scale and the shift of a coupling."""
    s, t = _network(layers, a)
    return s.tanh(), t


def _halves(z: Tensor, i: int) -> tuple[Tensor, Tensor]:
    """The half of z that coupling i conditions on, and the half that it transforms."""
    half = z.shape[-1] // 2
    first, second = z[..., :half], z[..., half:]
    return (second, first) if i % 2 else (first, second)


def _joined(a: Tensor, b: Tensor, i: int) -> Tensor:
    """The inverse of `_halves`."""
    return torch.cat([b, a] if i % 2 else [a, b], -1)


def _mean(q: Posterior) -> Tensor:
    """The mean of 64 draws, of which each half is the other's mirror image.

    The noise is the same for all data, so a latent that does not depend on x also has the same estimate for all x.
    """
    like = q.loc
    half = random.normal(random.key(_MEAN_SEED, device=like.device), (32, like.shape[-1]), like.dtype)
    eps = torch.cat([half, -half]).reshape(64, *[1] * (like.ndim - 1), -1)
    return q.sample(eps).mean(0)


_MEAN_SEED = 2**63 + 3
