"""A VAE for points in the plane with a learned decoder variance: the smallest complete example."""

from torch import Tensor, nn

from funcvae import heads
from funcvae._support import checks
from funcvae._support.checks import Count
from funcvae._support.pickling import remembered
from funcvae.model import VAE, vae
from funcvae.models.recipe import Recipe
from funcvae.models.system import System

__all__ = ["SYSTEMS", "GaussianMLP", "gaussian2d_vae"]


class GaussianMLP(nn.Module):
    """The parameters of a Gaussian: [mu, log sigma²] = Dense(tanh(Dense(input))), on the last axis."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.shared = nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh())
        self.param_layer = nn.Linear(hidden, 2 * outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps inputs [B, inputs] to [B, 2 outputs]."""
        return self.param_layer(self.shared(inputs))


@remembered
@checks.arguments
def gaussian2d_vae(latent: Count = 2, hidden: Count = 64) -> VAE:
    """A VAE whose q(z|x) and p(x|z) are Gaussians with mean and log-variance from a tanh network; x is [B, 2].

    It follows a blog post that calls the encoder p and the decoder q; here they have their usual names.

    Args:
        latent: Z.
        hidden: units in the hidden layer of each network.
    """
    return vae(
        encoder=lambda: GaussianMLP(2, hidden, latent),
        decoder=lambda: GaussianMLP(latent, hidden, 2),
        posterior=heads.normal_logvar,
        likelihood=heads.normal_logvar,
        latent=latent,
    )


SYSTEMS = (
    System(
        "gaussian2d_vae",
        "VAE of points in the plane: tanh networks, and a decoder with a learned variance",
        gaussian2d_vae,
        # With batches of 100, single steps of Adam at 1e-3 move the learned mean by about 5%.
        Recipe(shape=(2,), data="gaussian2d", epochs=200, batch=1000, samples=4),
    ),
)
