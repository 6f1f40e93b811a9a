"""Trains a model and compares the gradient variance of four estimators: python examples/quickstart.py

The model is the 2-D example, trained briefly.
"""

import torch

import funcvae as fv


def main(steps: int = 400) -> dict[str, float]:
    """Trains for about `steps` steps; returns each estimator's gradient variance, summed over the parameters."""
    init_key, noise_key, data_key = fv.random.split(fv.random.key(0), 3)
    train = fv.data.gaussian2d(data_key, 100 * steps)

    # A model is two networks, two heads and a prior. `fv.models` has named models.
    model = fv.models.gaussian2d_vae()
    opt = fv.optim.adam(1e-3)
    ts = fv.train.init(model, opt, init_key)
    elbo = fv.estimators.elbo()  # without compilation, which would take longer than the training
    ts, history = fv.train.fit(ts, model, elbo, opt, train, batch=100, samples=4, compile=False)
    print(f"bound at the first step {history.bound[0]:.2f}, at the last {history.bound[-1]:.2f} nats")

    # A new estimator is a function of the log-weights [N, B].
    def my_dreg(log_w: torch.Tensor) -> fv.Weights:
        v = log_w.softmax(0)
        return fv.Weights(path=v**2, score=torch.zeros_like(v), theta=v)

    claims = fv.Claims("L_K", unbiased_encoder=True, unbiased_decoder=True, papers=("arXiv:1810.04152",))
    mine = fv.estimators.weighted(my_dreg, bound=fv.bounds.iwae, claims=claims)

    # Estimators are pure functions of the noise, so they can be `vmap`ped over 200 replicates.
    x = train[:16]
    eps = fv.noise.iid(noise_key, 200, (8, len(x), model.latent))  # [R, N, B, Z]
    variance = {}
    for estimator in (fv.estimators.elbo_mc(), fv.estimators.stl(), fv.estimators.iwae(), mine):

        def gradient(eps: torch.Tensor, estimator: fv.Estimator = estimator) -> fv.tree.Tree:
            return estimator(model, ts.params, ts.state, x, eps, train=False).grads["encoder"]

        with torch.no_grad():
            grads = torch.vmap(gradient)(eps)
        variance[estimator.name] = sum(g.var(0).sum().item() for g in fv.tree.leaves(grads))
        print(f"{estimator.name:8}  variance of the encoder's gradient {variance[estimator.name]:.2e}")
    return variance


if __name__ == "__main__":
    main()
