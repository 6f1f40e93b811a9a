"""A decoder with dropout and noise, trained, evaluated and measured: python examples/random_layers.py"""

from functools import partial

import torch
from torch.nn import Dropout, Linear, Sequential, Tanh

import funcvae as fv


class Decoder(Sequential):
    """Adds noise in training mode alone. Its noise, and dropout among its layers, draw from a key in the state."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = super().forward(z)
        return out + 0.1 * torch.randn_like(out) if self.training else out


def main(epochs: int = 20, replicates: int = 500, compile: bool = False) -> tuple[set[str], set[float], float]:
    """Returns the hashes of two runs, the bounds of two evaluations, and the share of the random layers."""
    init_key, data_key, key = fv.random.split(fv.random.key(0), 3)
    x = fv.random.bernoulli(data_key, 0.3, (64, 9)).float()
    model = fv.vae(
        encoder=lambda: Linear(9, 4), decoder=lambda: Decoder(Linear(2, 8), Tanh(), Dropout(), Linear(8, 9)), latent=2
    )
    iwae, opt = fv.estimators.iwae(), fv.optim.adam()
    ts = fv.train.init(model, opt, init_key)
    fit = partial(fv.train.fit, ts, model, iwae, opt, x, epochs=epochs, batch=16, samples=4, compile=compile)
    runs = [fit()[0], fit()[0]]
    bounds = {fv.train.test_bound(model, iwae, run, x, key, samples=4) for run in runs}
    trained = fv.Trained(model, runs[0].params, runs[0].state)
    moments = partial(fv.variance.moments, iwae, *trained, x, key, samples=4, replicates=replicates, train=True)
    shared, fresh = (moments(fresh_layers=each).groups["decoder"].variance.value for each in (False, True))
    print(f"random layers: {1 - shared / fresh:.0%} of the variance of the decoder's gradient")
    return {fv.tree.sha256(run) for run in runs}, bounds, 1 - shared / fresh


if __name__ == "__main__":
    main()
