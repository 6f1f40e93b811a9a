"""Four posteriors of a curved p(z|x): python examples/posteriors.py

Two latents are seen only through x = z_1 + z_2 + z_1²/2 plus noise. So p(z|x) lies along a curve. Each posterior is
fitted to one x with `elbo_mc`. How far its ELBO stays below log p(x) is its KL(q ‖ p(z|x)), computed on a grid.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cyclopts
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import funcvae as fv
from funcvae.distributions import layers_of

X = torch.tensor([[1.0]])


class Curve(nn.Module):
    """z [B, 2] to the mean of x [B, 1]. It has no parameters."""

    def forward(self, z: Tensor) -> Tensor:
        first, second = z.split(1, -1)
        return first + second + first**2 / 2


class WithWeights(nn.Module):
    """loc and log sigma [B, Z], and the weights of other networks: of the flow's couplings, or of the second layer."""

    def __init__(self, latent: int, networks: int) -> None:
        super().__init__()
        self.base = nn.Linear(1, 2 * latent)
        self.networks = nn.ModuleList(
            nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 2)) for _ in range(networks)
        )

    def forward(self, x: Tensor) -> tuple[object, ...]:
        return *self.base(x).chunk(2, -1), [layers_of(network) for network in self.networks]


def two_layers(out: tuple[Tensor, Tensor, list[fv.distributions.Layers]]) -> fv.distributions.Posterior:
    loc, log_sigma, (layers,) = out
    return fv.heads.two_layers((loc, log_sigma, layers))


POSTERIORS: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], fv.distributions.Posterior]]] = {
    "independent normals": (lambda: nn.Linear(1, 4), fv.heads.normal_logvar),
    "normal with full covariance": (lambda: nn.Linear(1, 5), fv.heads.full_normal),
    "flow of four couplings": (lambda: WithWeights(2, 4), fv.heads.coupling_flow),
    "two layers, q(z₁|x) q(z₂|z₁)": (lambda: WithWeights(1, 1), two_layers),
}


def main(steps: int = 4000, out: str = "figures") -> tuple[dict[str, tuple[float, float]], Path]:
    """Returns KL(q ‖ p(z|x)) of each posterior on the grid, and log p(x) minus its ELBO, in nats; and the figure."""
    axis = torch.linspace(-4, 4, 401)
    z = torch.cartesian_prod(axis, axis)[:, None]  # [401², 1, 2]
    opt = fv.optim.adam(fv.optim.cosine(1e-2, steps))
    found = {}
    figure = Figure(figsize=(9.6, 3.2), layout="constrained")
    figure.suptitle("Posteriors of two latents (orange), fitted to a curved p(z|x) (grey)")
    panels = figure.subplots(1, len(POSTERIORS), sharex=True, sharey=True)
    for ax, (name, (encoder, head)) in zip(panels, POSTERIORS.items(), strict=True):
        model = fv.vae(
            encoder=encoder, decoder=Curve, latent=2, posterior=head, likelihood=fv.heads.normal_fixed(0.3)
        )  # fmt: skip
        ts = fv.train.init(model, opt, fv.random.key(0))
        ts, _ = fv.train.fit(
            ts, model, fv.estimators.elbo_mc(), opt, X.expand(100, 1), epochs=steps, batch=100, compile=False,
            progress=fv.tracking.bar,
        )  # fmt: skip
        q, _ = model.encode(ts.params, ts.state, X)
        terms, _ = fv.model.log_weight(model, ts.params, ts.state, X, q, z, train=False)
        joint = (terms.log_p_x + terms.log_p_z).flatten().double()
        log_p, log_q = joint.log_softmax(0), terms.log_q.flatten().double().log_softmax(0)
        kl = float((log_q.exp() * (log_q - log_p)).sum())
        log_evidence = float(joint.logsumexp(0) + 2 * (axis[1] - axis[0]).log())
        eps = fv.noise.iid(fv.random.key(1), 20_000, (1, 2))
        elbo = float(fv.estimators.elbo_mc()(model, ts.params, ts.state, X, eps, train=False).bound)
        found[name] = kl, log_evidence - elbo
        print(f"{name:29} KL(q ‖ p(z|x)) = {kl:.3f} nats, log p(x) - ELBO = {log_evidence - elbo:.3f} nats")
        for density, colour in ((log_p, "0.75"), (log_q, fv.figures.PALETTE[1])):
            levels = density.max() - torch.tensor([4.5, 2.0, 0.5])  # three, two and one standard deviations
            ax.contour(axis, axis, density.view(401, 401).T, levels=levels, colors=colour, linestyles="solid")
        ax.set_title(f"{name}\nKL = {kl:.2f} nats", fontsize="small")
        ax.set(xlabel="z₁", aspect="equal", xlim=(-3.5, 3), ylim=(-3.5, 3))
    panels[0].set_ylabel("z₂")
    return found, fv.figures.save(figure, Path(out) / "posteriors.png")


if __name__ == "__main__":
    cyclopts.run(main, result_action="return_value")
