"""The systems that the benchmarks time, each with the training step that a PyTorch user would write."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import funcvae as fv
from funcvae.model import Observe, as_is
from funcvae.models import burda, cifar
from funcvae.models.recipe import binarize

INPUTS, HIDDEN, LATENT, BATCH = 784, 400, 20, 128  # the Bernoulli VAE


def make_encoder() -> nn.Module:
    return nn.Sequential(nn.Linear(INPUTS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2 * LATENT))


def make_decoder() -> nn.Module:
    return nn.Sequential(nn.Linear(LATENT, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, INPUTS))


def bernoulli_vae() -> fv.VAE:
    return fv.vae(encoder=make_encoder, decoder=make_decoder, latent=LATENT)


def module_step(x: Tensor, samples: int) -> Callable[[], None]:
    """A step on the ELBO of the Bernoulli VAE, with its KL in closed form."""
    encoder, decoder = make_encoder().to(x.device), make_decoder().to(x.device)

    def loss() -> Tensor:
        mu, logvar = encoder(x).chunk(2, -1)
        z = mu + (logvar / 2).exp() * torch.randn(samples, *mu.shape, device=x.device)
        logits = decoder(z.flatten(0, 1)).unflatten(0, (samples, -1))
        nll = F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1).mean(0)
        kl = 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(-1)
        return (nll + kl).mean()

    return _trained(loss, encoder, decoder)


def burda_step(x: Tensor, samples: int) -> Callable[[], None]:
    """A step on the importance-weighted bound of the Burda VAE, with newly binarized pixels."""
    encoder = burda.BurdaEncoder(50).to(x.device)
    decoder = burda.BurdaDecoder(50, torch.full((784,), 0.5)).to(x.device)

    def loss() -> Tensor:
        seen = torch.bernoulli(x)
        mu, log_sigma = encoder(seen)
        eps = torch.randn(samples, *mu.shape, device=x.device)
        z = mu + log_sigma.exp() * eps
        logits = decoder(z.flatten(0, 1)).unflatten(0, (samples, -1))
        log_p_x = (
            -F.binary_cross_entropy_with_logits(logits, seen.expand_as(logits), reduction="none").flatten(2).sum(-1)
        )
        log_w = log_p_x - 0.5 * (z**2).sum(-1) + (0.5 * eps**2 + log_sigma).sum(-1)
        return -(log_w.logsumexp(0) - math.log(samples)).mean()

    return _trained(loss, encoder, decoder, eps=1e-4)


def cifar_step(x: Tensor, samples: int) -> Callable[[], None]:
    """A step on the ELBO of the ResNet VAE, with a sampled KL."""
    encoder, decoder = cifar.ResNetEncoder(256).to(x.device), cifar.ResNetDecoder(256, 32, 32).to(x.device)
    mean, std = (torch.tensor(values, device=x.device).view(3, 1, 1) for values in (cifar.MEAN, cifar.STD))

    def loss() -> Tensor:
        seen = (x - mean) / std
        mu, logvar = encoder(seen)
        eps = torch.randn_like(mu)
        z = mu + (logvar / 2).exp() * eps
        x_hat, log_scale = decoder(z)
        log_p_x = -0.5 * ((seen - x_hat) / log_scale.exp()) ** 2 - log_scale - 0.5 * math.log(2 * math.pi)
        log_ratio = -0.5 * z**2 + 0.5 * eps**2 + logvar / 2
        return -(log_p_x.flatten(1).sum(-1) + log_ratio.sum(-1)).mean()

    return _trained(loss, encoder, decoder)


def _trained(loss: Callable[[], Tensor], *networks: nn.Module, eps: float = 1e-8) -> Callable[[], None]:
    opt = torch.optim.Adam([p for net in networks for p in net.parameters()], lr=1e-3, eps=eps, fused=True)

    def step() -> None:
        opt.zero_grad()
        loss().backward()
        opt.step()

    return step


class System(NamedTuple):
    """A system to time."""

    model: Callable[[], fv.VAE]
    module_step: Callable[[Tensor, int], Callable[[], None]]
    shape: tuple[int, ...]
    batch: int
    estimator: str
    observe: Observe = as_is
    eps: float = 1e-8

    def data(self) -> Tensor:
        """Zeros and ones from a key; their values do not change the time."""
        return fv.random.bernoulli(fv.random.key(2), 0.3, (self.batch, *self.shape)).float()


SYSTEMS = {
    "bernoulli": System(bernoulli_vae, module_step, (INPUTS,), BATCH, "elbo"),
    "burda": System(fv.models.burda_vae, burda_step, (1, 28, 28), 20, "iwae", binarize, 1e-4),
    "cifar": System(fv.models.cifar_resnet_vae, cifar_step, (3, 32, 32), 16, "elbo_mc", cifar.standardize),
}
