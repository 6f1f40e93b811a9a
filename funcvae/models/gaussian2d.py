"""A VAE for points in the plane whose decoder knows its own variance: the smallest complete example."""

from torch import Tensor, nn

from funcvae import heads
from funcvae._support import checks
from funcvae.model import VAE, vae
from funcvae.models.recipe import Recipe

__all__ = ["RECIPES", "GaussianMLP", "gaussian2d_vae"]


class GaussianMLP(nn.Module):
    """The parameters of a Gaussian: [mu, log sigma²] = Dense(tanh(Dense(input))), on the last axis."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.shared = nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh())
        self.param_layer = nn.Linear(hidden, 2 * outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """inputs [B, inputs] -> [B, 2 outputs]."""
        return self.param_layer(self.shared(inputs))


def gaussian2d_vae(latent: int = 2, hidden: int = 64) -> VAE:
    """q(z|x) and p(x|z) both Gaussian with mean and log-variance from a tanh network; x is [B, 2].

    After a blog post that calls the encoder p and the decoder q; here they have their usual names.
    """
    checks.fits("latent and hidden", (checks.integer("latent", latent, 1), checks.integer("hidden", hidden, 1)))
    return vae(
        encoder=lambda: GaussianMLP(2, hidden, latent),
        decoder=lambda: GaussianMLP(latent, hidden, 2),
        posterior=heads.normal_logvar,
        likelihood=heads.normal_logvar,
        latent=latent,
    )


RECIPES = (
    Recipe(
        name="gaussian2d_vae",
        about="points in the plane; tanh networks, decoder with a log-variance",
        model=lambda train: gaussian2d_vae(),
        shape=(2,),
        data="gaussian2d",
        epochs=200,
        batch=1000,  # at 100, single steps of Adam at 1e-3 throw the learned mean about by some 5%
        samples=4,
        compile=False,
    ),
)
