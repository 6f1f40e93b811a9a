"""A VAE of small photographs: a ResNet-18 encoder and its mirror image as decoder."""

from typing import Annotated

import torch
from einops import rearrange
from torch import Tensor, nn

from funcvae import heads, random
from funcvae._support import checks
from funcvae._support.checks import Count, FloatsOrBytes
from funcvae._support.pickling import remembered
from funcvae.errors import BadValue
from funcvae.model import VAE, from_bytes, vae
from funcvae.models.recipe import Recipe
from funcvae.models.system import System

__all__ = ["MEAN", "STD", "SYSTEMS", "ResNetDecoder", "ResNetEncoder", "cifar_resnet_vae", "standardize", "to_pixels"]

MEAN, STD = (0.4914, 0.4824, 0.4467), (0.2471, 0.2435, 0.2616)  # of CIFAR-10's channels


def _colours(name: str, x: Tensor) -> Tensor:
    """Checks that images have 1 or 3 channels."""
    if x.shape[-3] not in (1, 3):
        raise BadValue(f"{name} has shape {list(x.shape)}: it must be [B, C, H, W] with C = 3, or C = 1 for grey")
    return x


Photos = Annotated[FloatsOrBytes, "... C H W", _colours]


@checks.arguments
def standardize(key: random.Key, x: Photos, rows: Tensor | None = None) -> Tensor:
    """Scales pixels [B, 3, H, W] in [0, 1], or bytes, to channels of mean about 0 and variance about 1."""
    x = from_bytes(x)
    return (x - _by_channel(MEAN, x)) / _by_channel(STD, x)


@checks.arguments
def to_pixels(x: Annotated[Photos, checks.floating]) -> Tensor:
    """The inverse of `standardize`."""
    return _by_channel(MEAN, x) + _by_channel(STD, x) * x


def _by_channel(values: tuple[float, ...], x: Tensor) -> Tensor:
    """A number for each channel [C, 1, 1], in the dtype and on the device of x, which does not wait for it."""
    return rearrange([x.new_full((), value) for value in values], "c -> c 1 1")


class ResNetEncoder(nn.Module):
    """Images [B, 3, H, W] -> (mu, log sigma²), each [B, latent]: a ResNet-18 for small images.

    The first convolution is 3×3 with stride 1, and there is no max-pooling.
    """

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 64, 3, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            _stage(64, 64),
            _stage(64, 128, stride=2),
            _stage(128, 256, stride=2),
            _stage(256, 512, stride=2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.fc_mu = nn.Linear(512, latent)
        self.fc_var = nn.Linear(512, latent)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps x [B, 3, H, W] to (mu, log sigma²)."""
        h = self.encoder(x)
        return self.fc_mu(h), self.fc_var(h)


class ResNetDecoder(nn.Module):
    """Latents [B, latent] -> (images [B, 3, H, W], log_scale [B, 1, 1, 1]): the encoder's mirror image."""

    def __init__(self, latent: int, height: int, width: int) -> None:
        super().__init__()
        self.decoder = nn.Sequential(
            nn.Linear(latent, 512 * 4 * 4),
            nn.Unflatten(1, (512, 4, 4)),
            _stage(512, 256),
            nn.Upsample(scale_factor=2),
            _stage(256, 128),
            nn.Upsample(scale_factor=2),
            _stage(128, 64),
            nn.Upsample(scale_factor=2),
            _stage(64, 64),
            nn.Identity() if (height, width) == (32, 32) else nn.Upsample((height, width)),
            nn.Conv2d(64, 3, 3, padding=1, bias=False),
        )
        self.log_scale = nn.Parameter(torch.zeros(1))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Maps z [B, latent] to (images, log_scale)."""
        return self.decoder(z), self.log_scale.expand(len(z), 1, 1, 1)


@remembered
@checks.arguments
def cifar_resnet_vae(latent: Count = 256, height: Count = 32, width: Count = 32) -> VAE:
    """A VAE with a ResNet-18 encoder, its mirror image as decoder, and a Gaussian likelihood of learned scale.

        log N(x; x̂, exp(log_scale)²) + log p(z) - log q(z|x)

    `log_scale` starts at 0, which suits x of variance 1. The recipe standardizes the channels, so its nats are those of
    a density of standardized pixels. The model follows the post "Introduction to Variational Autoencoders (VAEs) and
    Implementation with Pytorch", which takes both networks from a library and samples the KL: `elbo_mc` with N = 1.

    Args:
        latent: Z.
        height: height of the images in pixels.
        width: width of the images. Unless they are 32×32, features are resized before the last convolution.
    """
    return vae(
        encoder=lambda: ResNetEncoder(latent),
        decoder=lambda: ResNetDecoder(latent, height, width),
        posterior=heads.normal_logvar,
        likelihood=heads.normal_logsigma,
        latent=latent,
    )


def _stage(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Two residual blocks of two 3×3 convolutions each; the first block changes channels and size."""
    from torchvision.models.resnet import BasicBlock, conv1x1

    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs))
    return nn.Sequential(BasicBlock(inputs, outputs, stride, shortcut), BasicBlock(outputs, outputs))


def _photos(train: Tensor | None = None, latent: Count = 256) -> VAE:
    height, width = (32, 32) if train is None else train.shape[-2:]
    return cifar_resnet_vae(latent, height, width)


SYSTEMS = (
    System(
        "cifar_resnet_vae",
        "VAE of small photographs: ResNet-18 encoder and decoder, learned likelihood scale, sampled KL",
        _photos,
        Recipe(
            shape=(3, None, None),
            data="cifar10",
            epochs=30,
            batch=32,
            estimator="elbo_mc",
            observe=standardize,  # gives the data the scale at which log_scale starts
            pixels=to_pixels,
            lr=lambda steps_per_epoch: 1e-4,
        ),
    ),
)
