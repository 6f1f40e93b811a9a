"""Defines new estimators and checks their claims: python examples/own_estimator.py

They are score-function gradients of L_K with a share of a baseline subtracted. `variance.exact` integrates over the
noise of a small model by quadrature, so it shows a bias to ten digits without sampling.
"""

import torch
from torch import Tensor, nn

import funcvae as fv


def with_baseline(share: float) -> fv.Estimator:
    """Score weight L_K - share · L_{-k} - v, with the bound L_{-k} = log (1/(K-1)) sum_{j≠k} w_j without sample k."""

    def weights(log_w: Tensor) -> fv.Weights:
        v = log_w.softmax(0)
        others = fv.estimators.others_logsumexp(log_w) - torch.tensor(len(log_w) - 1).log()
        score = fv.bounds.iwae(log_w) - share * others - v
        return fv.Weights(path=torch.zeros_like(v), score=score, theta=v)

    claims = fv.Claims("L_K", unbiased_encoder=True, unbiased_decoder=True, papers=("arXiv:1602.06725",))
    return fv.estimators.weighted(weights, bound=fv.bounds.iwae, claims=claims, name=f"{share:.0%} baseline")


def with_its_own_sample() -> fv.Estimator:
    """Score weight -v: the bound itself is the baseline. It contains sample k, so the gradient is biased."""

    def weights(log_w: Tensor) -> fv.Weights:
        v = log_w.softmax(0)
        return fv.Weights(path=torch.zeros_like(v), score=-v, theta=v)

    claims = fv.Claims("L_K", unbiased_encoder=False, unbiased_decoder=True)
    return fv.estimators.weighted(weights, bound=fv.bounds.iwae, claims=claims, name="with its own sample")


def main(nodes: int = 100) -> dict[str, tuple[float, float]]:
    """Returns each estimator's largest bias and total variance in the encoder's gradient at K = 2."""
    model = fv.vae(
        encoder=lambda: nn.Linear(2, 2),
        decoder=lambda: nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 2)),
        likelihood=fv.heads.normal_fixed(0.5),
        latent=1,
    )
    params, state = model.init(fv.random.key(0))
    params = fv.tree.map(torch.Tensor.double, params)
    x = torch.tensor([[0.5, -0.3], [-0.2, 0.8]], dtype=torch.float64)

    estimators = [with_baseline(share) for share in (0.0, 0.5, 1.0)] + [with_its_own_sample()]
    estimators += [fv.estimators.vimco(), fv.estimators.iwae(), fv.estimators.dreg()]
    right = fv.variance.exact(fv.estimators.dreg(), model, params, state, x, samples=2, nodes=nodes)
    found = {}
    for estimator in estimators:
        exact = fv.variance.exact(estimator, model, params, state, x, samples=2, nodes=nodes)
        off = fv.tree.map(torch.sub, exact.mean["encoder"], right.mean["encoder"])
        bias = max(float(t.abs().max()) for t in fv.tree.leaves(off))
        variance = sum(float(t.sum()) for t in fv.tree.leaves(exact.variance["encoder"]))
        found[estimator.name] = bias, variance
        print(f"{estimator.name:18} bias {bias:.1e}   variance of the encoder's gradient {variance:.4g}")
    return found


if __name__ == "__main__":
    main()
