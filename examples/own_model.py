"""Trains your own networks on your own images: python examples/own_model.py FOLDER

FOLDER holds images of one size, whose height and width are multiples of four pixels, directly or in a folder for each
class.
"""

from pathlib import Path

import cyclopts
from torch import Tensor, nn

import funcvae as fv


class Encoder(nn.Module):
    """Images [B, C, H, W] -> (mu, log sigma²), each [B, latent]. Any module that returns a pair works."""

    def __init__(self, channels: int, height: int, width: int, latent: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 32, 4, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(32, 64, 4, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(),
        )  # fmt: skip
        self.mu = nn.Linear(64 * (height // 4) * (width // 4), latent)
        self.logvar = nn.Linear(64 * (height // 4) * (width // 4), latent)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.features(x)
        return self.mu(h), self.logvar(h)


def decoder(channels: int, height: int, width: int, latent: int) -> nn.Module:
    """Latents [B, latent] -> images. The Monte-Carlo axis is `vmap`ped, so the module does not see it."""
    return nn.Sequential(
        nn.Linear(latent, 64 * (height // 4) * (width // 4)),
        nn.Unflatten(1, (64, height // 4, width // 4)), nn.ReLU(),
        nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1), nn.ReLU(),
        nn.ConvTranspose2d(32, channels, 4, stride=2, padding=1), nn.Sigmoid(),
    )  # fmt: skip


def main(folder: str, steps: int = 600, latent: int = 32, out: str = "figures") -> list[Path]:
    images = fv.data.load(folder)  # a tenth becomes the test set, unless there are folders train and test
    channels, height, width = images.train.shape[1:]
    model = fv.vae(
        encoder=lambda: Encoder(channels, height, width, latent),
        decoder=lambda: decoder(channels, height, width, latent),
        posterior=fv.heads.normal_logvar,
        likelihood=fv.heads.normal_fixed(0.1),  # or normal_logsigma, for a decoder that returns (mean, log sigma)
        latent=latent,
    )
    opt, batch = fv.optim.adam(1e-3), min(64, len(images.train))
    ts = fv.train.init(model, opt, fv.random.key(0))
    per_epoch = -(-len(images.train) // batch)
    epochs = -(-steps // per_epoch)
    ts, history = fv.train.fit(
        ts, model, fv.estimators.dreg(), opt, images.train, test=images.test,
        epochs=epochs, batch=batch, samples=4, observe=fv.model.as_floats, progress=fv.tracking.bar,
        compile=fv.compilation.pays(steps, ts.params, 4 * images.train[:batch].numel()),
    )  # fmt: skip
    print(f"L_4 on the test set: {history.test_bound[-1]:.1f} nats")

    trained, (pairs_key, samples_key) = fv.Trained(model, ts.params, ts.state), fv.random.split(fv.random.key(1))
    shown = images.decode(images.test[:: max(1, len(images.test) // 20)][:20])  # of all classes, which are sorted
    drawn = {
        "reconstructions": fv.figures.of_model.reconstructions(*trained, shown, pairs_key, name="own model"),
        "samples": fv.figures.of_model.image_samples(*trained, samples_key, 100, name="own model"),
    }
    return [fv.figures.save(figure, f"{out}/own_model_{what}.png") for what, figure in drawn.items()]


if __name__ == "__main__":
    print(*cyclopts.run(main, result_action="return_value"), sep="\n")
