"""Four ways to weight the KL, on 32 bits that are made from 8 latents: python examples/kl_annealing.py

Early in training, the KL switches off a latent that the decoder does not use yet. A small KL at the start prevents it.
"""

from pathlib import Path

import cyclopts
from matplotlib.figure import Figure
from torch import nn

import funcvae as fv
from funcvae.estimators import beta_elbo, elbo, free_bits
from funcvae.optim import linear, repeat


def mlp(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs))


def main(epochs: int = 50, out: str = "figures") -> tuple[dict[str, tuple[float, float, int]], Path]:
    """Returns, by objective, the test ELBO and its KL in nats and the number of active units; and the figure."""
    keys, steps = fv.random.split(fv.random.key(0), 6), 50 * epochs
    z, a, b = map(fv.random.normal, keys[:3], [(6000, 8), (8, 32), (32, 32)])
    x = fv.random.bernoulli(keys[3], (0.5 * (z @ a).tanh() @ b).sigmoid()).float()
    model = fv.vae(encoder=lambda: mlp(32, 16), decoder=lambda: mlp(8, 32), latent=8, likelihood=fv.heads.bernoulli)
    opt, rise = fv.optim.adam(linear(3e-3, 1e-4, steps)), linear(0, 1, steps // 2)
    cycles = repeat(linear(0, 1, max(1, steps // 8)), steps // 4)
    objectives = {"ELBO": lambda step: elbo(), "β from 0 to 1": lambda step: beta_elbo(rise(step)),
        "four cycles": lambda step: beta_elbo(cycles(step)), "free bits": lambda step: free_bits(0.25)}  # fmt: skip
    figure = Figure(figsize=(8, 4), layout="constrained")
    figure.suptitle("KL annealing and free bits keep a latent that the plain ELBO loses")
    ax = figure.subplots()
    found = {}
    for i, (name, objective) in enumerate(objectives.items()):
        ts = fv.train.init(model, opt, keys[4])
        ts, _ = fv.train.fit(ts, model, objective, opt, x[:5000], epochs=epochs, batch=100, compile=False)
        bound = fv.train.test_bound(model, elbo(), ts, x[5000:], keys[5], samples=10)  # the same bound for all
        kls = fv.evaluate.kl_per_dimension(model, ts.params, ts.state, x[5000:]).sort(descending=True).values
        kl = kls.sum().item()
        ax.plot(range(1, 9), kls, "o^sD"[i] + "-", color=fv.figures.PALETTE[i], label=name)
        found[name] = bound, kl, fv.evaluate.active_units(model, ts.params, ts.state, x[5000:]).number
        print(f"{name:16}  ELBO {bound:8.3f}   KL {kl:5.2f}   {found[name][2]} of 8 units active")
    ax.set(xlabel="latent, in the order of its KL", ylabel="KL of the latent [nats per example]", ylim=(0, None))
    ax.legend(frameon=False, title="objective")
    return found, fv.figures.save(figure, Path(out) / "kl_annealing.png")


if __name__ == "__main__":
    cyclopts.run(main, result_action="return_value")
