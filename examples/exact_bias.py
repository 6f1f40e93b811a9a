"""How exactly estimators of the ELBO, L_K and a Rényi bound keep their claims: python examples/exact_bias.py

The gradient of an estimator's target is computed by automatic differentiation of the target, which is a sum over a grid
of noise. The mean of the estimator is computed by `variance.exact`. Neither draws samples, and they share no formula
of a gradient: only the bound, the model and the rule for integrals.
"""

from pathlib import Path

import cyclopts
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.func import grad

import funcvae as fv
from funcvae.modules import Params

SAMPLES = 2
EPS = torch.finfo(torch.float64).eps
BOUNDS = {"ELBO": fv.bounds.elbo, "L_K": fv.bounds.iwae, "Rényi(0.5)": fv.bounds.renyi(0.5)}


def target_gradient(bound: fv.bounds.Bound, trained: fv.Trained, x: Tensor, nodes: int) -> Params:
    """The gradient of -E[bound(log w)] over two samples of one latent, for one datum x [1, D]."""
    axis = torch.linspace(-9, 9, nodes, dtype=torch.float64)
    eps = torch.cartesian_prod(axis, axis).T[..., None]  # [2, nodes², 1]
    density = torch.softmax(-(eps**2).sum((0, 2)) / 2, 0)

    def target(params: Params) -> Tensor:
        model, state = trained.model, trained.state
        items = x.expand(nodes**2, -1)
        q, _ = model.encode(params, state, items)
        terms, _ = fv.model.log_weight(model, params, state, items, q, q.sample(eps), train=False)
        return -(density * bound(terms.log_w)).sum()

    return grad(target)(trained.params)


def main(nodes: int = 100, out: str = "figures") -> tuple[dict[str, tuple[float, float, bool]], Path]:
    """Returns, by estimator, the relative errors of encoder and decoder, and whether no bias is claimed; a figure."""
    model = fv.models.gaussian2d_vae(latent=1, hidden=4)
    params, state = fv.tree.map(torch.Tensor.double, model.init(fv.random.key(0)))
    x = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    known = {name: target_gradient(bound, fv.Trained(model, params, state), x, nodes) for name, bound in BOUNDS.items()}

    found = {}
    for spec in fv.estimators.EXAMPLES.values():
        estimator = fv.estimators.parse(spec)
        if estimator.claims.target not in BOUNDS or estimator.claims.posterior == "discrete":
            continue
        mean = fv.variance.exact(estimator, model, params, state, x, samples=SAMPLES, nodes=nodes).mean
        right = known[estimator.claims.target]
        encoder, decoder = (
            float(fv.tree.norm(fv.tree.map(torch.sub, mean[part], right[part])) / fv.tree.norm(right[part]))
            for part in ("encoder", "decoder")
        )
        found[spec] = encoder, decoder, estimator.claims.unbiased_encoder
        print(f"{spec:16} {estimator.claims.target:10}  encoder {encoder:.1e}  decoder {decoder:.1e}")

    order = sorted(found, key=lambda spec: (found[spec][2], found[spec][0]))
    figure = Figure(figsize=(8, 5.4), layout="constrained")
    ax = figure.subplots()
    for unbiased, label, look in ((True, "claims no bias", "o"), (False, "declares a bias", "D")):
        rows = [row for row, spec in enumerate(order) if found[spec][2] == unbiased]
        errors = [found[order[row]][0] for row in rows]
        ax.plot(errors, rows, look, color=fv.figures.PALETTE[not unbiased], markersize=7, label=label)
    ax.axvline(EPS, color="0.5", linestyle="--", label="one rounding of float64")
    ax.set(xscale="log", xlim=(1e-17, 10))
    ax.set_xlabel("‖mean of the encoder's gradient − gradient of its target‖,\nrelative to the latter")
    ax.set_yticks(range(len(order)), order)
    ax.grid(color="0.92")
    ax.set_axisbelow(True)
    ax.legend(frameon=False, loc="center")
    figure.suptitle(f"Bias of each estimator with {SAMPLES} samples, without sampling")
    return found, fv.figures.save(figure, Path(out) / "exact_bias.png")


if __name__ == "__main__":
    cyclopts.run(main, result_action="return_value")
