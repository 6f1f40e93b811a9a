"""More samples hurt IWAE's encoder and help DReG's: python examples/rainforth.py

The linear-Gaussian model of Rainforth et al. (2018), arXiv:1802.04537, near its optimum. With `iwae`, the
signal-to-noise ratio of the encoder's gradient of L_K falls as K^-½: its mean falls as 1/K, its standard deviation only
as K^-½. With `dreg` the standard deviation falls as K^-3/2, so the ratio grows as K^½ (Tucker et al. 2019,
arXiv:1810.04152). For the prior's mean the two gradients are equal, and their standard deviation falls as K^-½.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import cyclopts
import torch
from torch import Tensor, nn

import funcvae as fv
from funcvae.distributions import Normal
from funcvae.modules import Params

D, POINTS = 20, 1024


class LearnedMean(nn.Module):
    """The prior N(mu, I) with a learned mu."""

    def __init__(self) -> None:
        super().__init__()
        self.mu = nn.Parameter(torch.zeros(D))

    def forward(self, z: Tensor) -> Normal:
        return Normal(self.mu, torch.ones_like(self.mu))


def model() -> fv.VAE:
    """p(z) = N(mu, I), p(x|z) = N(z, I) and q(z|x) = N(A x + b, 2/3 I). The variance of p(z|x) is 1/2."""
    return fv.vae(
        encoder=lambda: nn.Linear(D, D),
        decoder=nn.Identity,
        posterior=lambda loc: Normal(loc, torch.full_like(loc, math.sqrt(2 / 3))),
        likelihood=fv.heads.normal_fixed(1.0),
        prior=LearnedMean,
        latent=D,
    )


def near_the_optimum(key: fv.random.Key) -> tuple[Params, Tensor]:
    """The optimal A, b and mu plus noise of standard deviation 0.01, and the data x [1024, D] from N(mu_true, 2 I)."""
    true_key, x_key, *keys = fv.random.split(key, 5)
    x = fv.random.normal(true_key, (D,), torch.float64)
    x = x + math.sqrt(2) * fv.random.normal(x_key, (POINTS, D), torch.float64)
    mean = x.mean(0)
    best = torch.eye(D, dtype=torch.float64) / 2, mean / 2, mean
    a, b, mu = (t + 0.01 * fv.random.normal(k, t.shape, torch.float64) for k, t in zip(keys, best, strict=True))
    return {"encoder": {"weight": a, "bias": b}, "decoder": {}, "prior": {"mu": mu}}, x


def main(
    ks: tuple[int, ...] = (30, 100, 300, 1000, 3000), replicates: int = 256, batch: int = 16, out: str = "figures"
) -> tuple[fv.variance.Sweep, list[Path]]:
    """Measures the gradients at every K, over `replicates` draws of the noise, on the first `batch` items of data."""
    toy, (params, x) = model(), near_the_optimum(fv.random.key(0))
    _, state = toy.init(fv.random.key(1))
    arms = {"iwae": fv.estimators.iwae(), "dreg": fv.estimators.dreg()}

    def measure(k: int, key: fv.random.Key) -> Mapping[str, fv.variance.Measured]:
        found = fv.variance.compare(
            arms, toy, params, state, x[:batch], key, samples=k, replicates=replicates, reference="dreg", timings=0
        )  # fmt: skip
        iwae, dreg = found.row("iwae"), found.row("dreg")
        return {
            # The signal is the mean of dreg's gradient, which is iwae's too. The mean over iwae's own replicates would
            # be mostly noise, because 1/√R exceeds the ratio. So this is not `iwae.groups["encoder"].snr`.
            "iwae, encoder": iwae.signal["encoder"],
            "dreg, encoder": dreg.groups["encoder"].snr,
            # Both have the same. The ratio is not monotone below K = 100, because the mean changes there too.
            "both, prior": iwae.groups["prior"].variance.sqrt(),
        }

    found = fv.variance.sweep(measure, ks, fv.random.key(2), progress=fv.tracking.bar)
    print("signal-to-noise ratio of the encoder's gradient, and standard deviation of the prior's gradient")
    print(found)
    print(f"{'theory':>10}  {'-1/2':>13}  {'+1/2':>13}  {'-1/2':>12}")

    title = "More samples hurt IWAE's encoder and help DReG's\n(in theory by slopes of −½ and +½)"
    ylabel = "signal-to-noise ratio of the encoder's gradient"
    encoder = fv.figures.of_results.of_scaling(found.only("iwae, encoder", "dreg, encoder"), ylabel=ylabel, title=title)
    title = "More samples help the prior, with IWAE and DReG alike\n(in theory by a slope of −½)"
    ylabel = "standard deviation of the prior's gradient"
    prior = fv.figures.of_results.of_scaling(found.only("both, prior"), ylabel=ylabel, title=title)
    return found, [
        fv.figures.save(encoder, f"{out}/rainforth_encoder.png"),
        fv.figures.save(prior, f"{out}/rainforth_prior.png"),
    ]


if __name__ == "__main__":
    cyclopts.run(main, result_action="return_value")
