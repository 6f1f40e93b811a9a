"""Four ways to weight the KL, on 32 bits that are made from 8 latents: python examples/kl_annealing.py

Early in training, the KL switches off a latent that the decoder does not use yet. A small KL at the start prevents it.
"""

import cyclopts
from torch import nn

import funcvae as fv
from funcvae.estimators import beta_elbo, elbo, free_bits
from funcvae.optim import linear, repeat


def mlp(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs))


def main(epochs: int = 50) -> dict[str, tuple[float, float, int]]:
    """Returns the ELBO and its KL on test data, in nats, and the number of active units, for each objective."""
    keys, steps = fv.random.split(fv.random.key(0), 6), 50 * epochs
    z, a, b = map(fv.random.normal, keys[:3], [(6000, 8), (8, 32), (32, 32)])
    x = fv.random.bernoulli(keys[3], (0.5 * (z @ a).tanh() @ b).sigmoid()).float()
    model = fv.vae(encoder=lambda: mlp(32, 16), decoder=lambda: mlp(8, 32), latent=8, likelihood=fv.heads.bernoulli)
    opt, rise = fv.optim.adam(linear(3e-3, 1e-4, steps)), linear(0, 1, steps // 2)
    cycles = repeat(linear(0, 1, max(1, steps // 8)), steps // 4)
    objectives = {"ELBO": lambda step: elbo(), "β from 0 to 1": lambda step: beta_elbo(rise(step)),
        "four cycles": lambda step: beta_elbo(cycles(step)), "free bits": lambda step: free_bits(0.25)}  # fmt: skip
    found = {}
    for name, objective in objectives.items():
        ts = fv.train.init(model, opt, keys[4])
        ts, _ = fv.train.fit(ts, model, objective, opt, x[:5000], epochs=epochs, batch=100, compile=False)
        bound = fv.train.test_bound(model, elbo(), ts, x[5000:], keys[5], samples=10)  # the same bound for all
        kl = fv.evaluate.kl_per_dimension(model, ts.params, ts.state, x[5000:]).sum().item()
        found[name] = bound, kl, fv.evaluate.active_units(model, ts.params, ts.state, x[5000:]).number
        print(f"{name:16}  ELBO {bound:8.3f}   KL {kl:5.2f}   {found[name][2]} of 8 units active")
    return found


if __name__ == "__main__":
    cyclopts.run(main, result_action="return_value")
