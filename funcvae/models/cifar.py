"""A VAE of small photographs: ResNet-18 both ways."""

import torch
from torch import Tensor, nn

from funcvae import heads, random
from funcvae._support import checks
from funcvae.errors import BadValue
from funcvae.model import VAE, vae
from funcvae.models.recipe import Recipe

__all__ = ["MEAN", "RECIPES", "STD", "ResNetDecoder", "ResNetEncoder", "cifar_resnet_vae", "standardize", "to_pixels"]

MEAN, STD = (0.4914, 0.4824, 0.4467), (0.2471, 0.2435, 0.2616)  # of CIFAR-10's channels


def standardize(key: random.Key, x: Tensor, rows: Tensor | None = None) -> Tensor:
    """Pixels [B, 3, H, W] in [0, 1] to channels of about mean 0 and variance 1."""
    _check_colours(x)
    return (x - x.new_tensor(MEAN).view(3, 1, 1)) / x.new_tensor(STD).view(3, 1, 1)


def to_pixels(x: Tensor) -> Tensor:
    """The inverse of `standardize`."""
    _check_colours(x)
    return x.new_tensor(MEAN).view(3, 1, 1) + x.new_tensor(STD).view(3, 1, 1) * x


def _check_colours(x: Tensor) -> None:
    checks.tensor("x", x, "... C H W", floating=True)
    if x.shape[-3] not in (1, 3):
        raise BadValue(f"x has shape {list(x.shape)}: it must have 3 channels, or 1 for grey, [B, C, H, W]")


class ResNetEncoder(nn.Module):
    """Images [B, 3, H, W] -> (mu, log sigma²), each [B, latent]: ResNet-18 in its form for small images.

    Its first convolution is 3×3 with stride 1, and there is no max-pooling.
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
        """x [B, 3, H, W] -> (mu, log sigma²)."""
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
        """z [B, latent] -> (images, log_scale)."""
        return self.decoder(z), self.log_scale.expand(len(z), 1, 1, 1)


def cifar_resnet_vae(latent: int = 256, height: int = 32, width: int = 32) -> VAE:
    """ResNet-18 encoder, its mirror image as decoder, and a Gaussian likelihood with one learned log_scale.

        log N(x; x̂, exp(log_scale)²) + log p(z) - log q(z|x)

    `log_scale` starts at 0, which suits x of variance 1: the recipe standardizes the channels, and its nats are those
    of a density of standardized pixels. After the post "Introduction to Variational Autoencoders (VAEs) and
    Implementation with Pytorch", which takes both networks from a library and samples its KL: `elbo_mc` with N = 1.

    Args:
        latent: Z.
        height: of the images, in pixels.
        width: of the images. Where they are not 32×32, features are resized to their size before the last convolution.
    """
    checks.fits("latent", (checks.integer("latent", latent, 1), 512 * 16))
    checks.fits("height and width", (512, checks.integer("height", height, 1), checks.integer("width", width, 1)))
    return vae(
        encoder=lambda: ResNetEncoder(latent),
        decoder=lambda: ResNetDecoder(latent, height, width),
        posterior=heads.normal_logvar,
        likelihood=heads.normal_logsigma,
        latent=latent,
    )


def _stage(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Two residual blocks of two 3×3 convolutions each, the first of which changes channels and size."""
    from torchvision.models.resnet import BasicBlock, conv1x1

    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs))
    return nn.Sequential(BasicBlock(inputs, outputs, stride, shortcut), BasicBlock(outputs, outputs))


RECIPES = (
    Recipe(
        name="cifar_resnet_vae",
        about="ResNet-18 both ways, latent 256, Gaussian likelihood with a learned scale, sampled KL",
        model=lambda train: cifar_resnet_vae(height=train.shape[-2], width=train.shape[-1]),
        shape=(3, None, None),
        data="cifar10",
        epochs=30,
        batch=32,
        estimator="elbo_mc",
        observe=standardize,  # a scale that starts at 1 wants data of that size
        pixels=to_pixels,
        lr=lambda steps_per_epoch: 1e-4,
        compile=False,  # minutes of compiling, and on a CPU no step the faster
    ),
)
