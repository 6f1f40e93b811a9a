"""Compares the gradient variance of estimators: python examples/compare_estimators.py

Trains the 2-D example briefly, then compares estimators on it: seven of the library, a new one, and two with dependent
samples. Estimators with the same noise scheme use the same noise, so the ratio of two variances is much more precise
than either variance.
"""

from pathlib import Path

import cyclopts
import torch

import funcvae as fv


def mixed(share: float) -> fv.Estimator:
    """A new estimator: a mixture of dreg and iwae, which have the same mean.

    path (1-c) v² + c v, score -c v, theta v

    This is dreg with a control variate: c times the difference of the two, whose mean is zero. Which c reduce the
    variance, if any, depends on the model and changes during training.
    """

    def weights(log_w: torch.Tensor) -> fv.Weights:
        v = log_w.softmax(0)
        return fv.Weights(path=(1 - share) * v**2 + share * v, score=-share * v, theta=v)

    claims = fv.Claims("L_K", unbiased_encoder=True, unbiased_decoder=True)
    return fv.estimators.weighted(
        weights, bound=fv.bounds.iwae, claims=claims, name=f"{1 - share:.0%} dreg, {share:.0%} iwae"
    )


def main(
    steps: int = 400, replicates: int = 1000, batches: int = 200, out: str = "figures"
) -> tuple[fv.variance.Comparison, str, fv.variance.Sources, list[Path]]:
    """Returns the comparison, the name of the best estimator for L_K, the sources of dreg's variance, and figures."""
    init_key, data_key, noise_key, batch_key = fv.random.split(fv.random.key(0), 4)
    train = fv.data.gaussian2d(data_key, 100 * steps)
    model, opt = fv.models.gaussian2d_vae(), fv.optim.adam(1e-3)
    ts = fv.train.init(model, opt, init_key)
    ts, _ = fv.train.fit(ts, model, fv.estimators.elbo(), opt, train, batch=100, samples=4, compile=False)
    trained = fv.Trained(model, ts.params, ts.state)

    estimators = [fv.estimators.parse(name) for name in ("elbo", "elbo_mc", "stl", "iwae", "dreg", "vimco", "rws")]
    arms: dict[str, fv.variance.Arm] = {estimator.name: estimator for estimator in [*estimators, mixed(0.02)]}
    # With dependent samples the mean of log (1/K) sum_k w_k is not L_K, so iwae has another target.
    arms |= {
        "elbo_mc, mirrored": (fv.estimators.elbo_mc(), fv.noise.mirrored),
        "iwae, sobol": (fv.estimators.iwae(), fv.noise.sobol),
    }
    found = fv.variance.compare(
        arms, *trained, train[:100], noise_key, samples=8, replicates=replicates, reference="dreg", timings=25
    )
    print(found)

    dreg = found.row(found.reference)
    others = [row for row in found.rows.values() if row.target == dreg.target and row is not dreg]
    fit = [dreg] + [row for row in others if not row.bias["encoder"].detected]
    best = min(fit, key=lambda row: row.cost("encoder"))
    times = best.ratio["encoder"].value
    print(f"\nOf {len(fit)} estimators for {dreg.target} without detected bias, {best.name} has the least")
    print(f"variance × time in the encoder. Its variance is {times:.3f} times dreg's.\n")

    # More samples reduce only the part of the noise. A larger batch reduces both parts.
    estimator = fv.estimators.dreg()
    sources = fv.variance.sources(estimator, *trained, train, batch_key, batch=100, samples=8, batches=batches)
    print(f"Sources of the variance of dreg's gradient, in {sources}")

    drawn = fv.figures.of_results.of_comparison(found, name="gaussian2d_vae")
    paths = [fv.figures.save(figure, f"{out}/compare_estimators_{name}.png") for name, figure in drawn.items()]
    return found, best.name, sources, paths


if __name__ == "__main__":
    cyclopts.run(main, result_action="return_value")
