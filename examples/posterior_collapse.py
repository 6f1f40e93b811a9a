"""Posterior collapse that the ELBO does not cause: python examples/posterior_collapse.py

A linear VAE is probabilistic PCA, whose likelihood has a closed form. For a fixed variance of the decoder, maximum
likelihood uses one latent for every eigenvalue of the data's covariance above that variance. A VAE trained on the ELBO
uses equally many. So the likelihood causes the collapse, not the ELBO (Lucas et al. 2019, arXiv:1911.02469), and the
remedy is to learn the variance.
"""

from pathlib import Path

import cyclopts
import torch
from matplotlib.figure import Figure

import funcvae as fv
from funcvae.evaluate.linear_gaussian import eigenvalues

FEATURES, LATENT, POINTS = 12, 8, 2000


def points(key: fv.random.Key) -> torch.Tensor:
    """Correlated Gaussian data [n, 12] whose covariance has eigenvalues from about 6 down to 0.1."""
    basis_key, x_key = fv.random.split(key)
    basis, _ = torch.linalg.qr(fv.random.normal(basis_key, (FEATURES, FEATURES), torch.float64))
    scale = torch.logspace(0.8, -1, FEATURES, dtype=torch.float64).sqrt()
    return (fv.random.normal(x_key, (POINTS, FEATURES), torch.float64) * scale @ basis.T).float()


def main(steps: int = 4000, out: str = "figures") -> tuple[dict[float, tuple[int, int, float]], Path]:
    """Returns, by variance, the latents that maximum likelihood and the VAE use, and the VAE's loss of log p(x)."""
    x = points(fv.random.key(0))
    values = eigenvalues(x.double())
    variances = [0.25, 0.55, 0.8, 1.7, 2.6, 5.0, 8.0]  # between the eigenvalues, where the optimum is unique
    batch = 200
    epochs = -(-steps * batch // POINTS)
    found = {}
    for sigma2 in variances:
        model = fv.models.linear_vae(FEATURES, LATENT, sigma2)
        opt = fv.optim.adam(lambda step: 0.02 * (1 - step.double() / steps).clamp(min=0.01))
        ts = fv.train.init(model, opt, fv.random.key(1))
        ts, _ = fv.train.fit(
            ts, model, fv.estimators.elbo(), opt, x, epochs=epochs, batch=batch, compile=False, progress=fv.tracking.bar
        )
        trained = fv.Trained(model, ts.params, ts.state)
        used = fv.evaluate.active_units(*trained, x).number
        best = fv.evaluate.ppca(x.double(), LATENT, sigma2)
        wanted = int((best.weight.norm(dim=0) > 0).sum())
        weight, mean = (ts.params["decoder"][name].double() for name in ("weight", "bias"))
        learned = best._replace(weight=weight, mean=mean)
        short = float((best.log_likelihood(x.double()) - learned.log_likelihood(x.double())).mean())
        found[sigma2] = wanted, used, short
    for sigma2, (wanted, used, short) in found.items():
        print(
            f"sigma² {sigma2:4}: maximum likelihood uses {wanted} latents, the VAE {used}; it is {short:.3f} nats worse"
        )

    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    figure.suptitle("Posterior collapse in a linear VAE: the likelihood drops latents, not the ELBO")
    left, right = figure.subplots(1, 2)
    direction = range(1, FEATURES + 1)
    left.plot(direction, values.numpy(), "D", color=fv.figures.PALETTE[0], markersize=7)
    for sigma2 in variances:
        left.axhline(sigma2, color="0.4", linewidth=0.8, linestyle="--")
        left.annotate(f"σ² = {sigma2:g}", (FEATURES + 0.6, sigma2), ha="right", va="bottom", size="small")
    left.set(
        yscale="log",
        xlabel="principal direction",
        ylabel="variance of the data",
        title="Directions in the data, and σ² of the decoder",
    )
    left.set_xticks(list(direction))
    left.set_yticks([0.1, 0.3, 1, 3, 10], ["0.1", "0.3", "1", "3", "10"])
    left.minorticks_off()
    by_likelihood, by_vae, _ = zip(*found.values(), strict=True)
    right.plot(variances, by_likelihood, "s", color=fv.figures.PALETTE[1], markersize=11, label="maximum likelihood")
    right.plot(variances, by_vae, "o", color=fv.figures.PALETTE[5], markersize=6, label="VAE trained on the ELBO")
    right.set(xscale="log", xlabel="decoder's variance σ²", ylabel=f"latents used, of {LATENT}")
    right.set_title("Latents used, with and without the ELBO")
    right.set_xticks(variances, [f"{v:g}" for v in variances])
    right.minorticks_off()
    right.legend(frameon=False)
    return found, fv.figures.save(figure, Path(out) / "posterior_collapse.png")


if __name__ == "__main__":
    cyclopts.run(main, result_action="return_value")
