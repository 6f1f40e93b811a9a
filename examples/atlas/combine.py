"""Unbiased linear combinations of estimators: python examples/atlas/combine.py --root data

A combination sum_i a_i g_i of unbiased gradients with sum_i a_i = 1 is unbiased. Its total variance is a^T C a, where
C_ij is the trace of the covariance of g_i and g_j on the same noise. The least is at a = C^-1 1 / (1^T C^-1 1). The
weights are fitted to half of the replicates and tested on the other half, for each network and for each parameter
tensor ("layer").

Trains `burda_vae` with `dreg`, K = 8, for four epochs.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cyclopts
import numpy as np
import torch
from tqdm.auto import tqdm

import funcvae as fv

SETS = {
    "L_K": ("iwae", "dreg", "vimco", "ovis:0"),
    "ELBO": ("elbo", "elbo_mc", "stl", "rloo"),
    "ELBO, quadratic_cv:γ for any γ": ("elbo_mc", "quadratic_cv:1"),
    "ELBO, with quadratic_cv:1": ("elbo", "elbo_mc", "stl", "rloo", "quadratic_cv:1"),
}
BATCH = 20
SPLITS = 20
"""Random halves of the replicates."""


def gradients(
    run: fv.Trained, names: Sequence[str], x: Any, key: fv.random.Key, samples: int, replicates: int
) -> dict[str, np.ndarray]:
    """The gradients of each layer [replicates, estimators, size], on the same noise."""
    estimators = [fv.estimators.parse(name) for name in names]
    found: dict[str, list[np.ndarray]] = {}
    for r in tqdm(range(replicates), desc=f"K = {samples}", unit="replicate", leave=False):
        eps = fv.noise.iid(fv.random.fold_in(key, r), samples, (len(x), run.model.latent))
        grads = [fv.tree.named_leaves(each(*run, x, eps, train=False).grads) for each in estimators]
        for layer in grads[0]:
            found.setdefault(layer, []).append(np.stack([each[layer].numpy().ravel() for each in grads]))
    return {layer: np.stack(each) for layer, each in found.items()}


def covariance(g: np.ndarray) -> np.ndarray:
    """C [estimators, estimators] of gradients [replicates, estimators, size]."""
    centered = g - g.mean(0)
    return np.einsum("rip,rjp->ij", centered, centered, optimize=True) / (len(g) - 1)


def best_weights(c: np.ndarray) -> np.ndarray:
    """The weights with sum 1 and least variance. Equal estimators make C singular; the ridge shares their weight."""
    ridge = 1e-6 * np.trace(c) / len(c) * np.eye(len(c))
    a = np.linalg.solve(c + ridge, np.ones(len(c)))
    return a / a.sum()


def gains(layers: Mapping[str, np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """The best single estimator's variance over that of the combination, on test halves: [splits, 2].

    The columns are one vector of weights for all layers, and one for each layer. The best single estimator is also
    chosen on the training half.
    """
    replicates = len(next(iter(layers.values())))
    found = []
    for _ in range(SPLITS):
        order = rng.permutation(replicates)
        fit, test = order[: replicates // 2], order[replicates // 2 :]
        c_fit = {layer: covariance(g[fit]) for layer, g in layers.items()}
        c_test = {layer: covariance(g[test]) for layer, g in layers.items()}
        whole_fit, whole_test = (np.sum(list(c.values()), axis=0) for c in (c_fit, c_test))
        single = np.diag(whole_test)[np.diag(whole_fit).argmin()]
        a = best_weights(whole_fit)
        each = {layer: best_weights(c) for layer, c in c_fit.items()}
        found.append([single / (a @ whole_test @ a), single / sum(w @ c_test[layer] @ w for layer, w in each.items())])
    return np.array(found)


def main(
    root: str = "data", out: Path = Path("atlas"), samples: tuple[int, ...] = (2, 8), replicates: int = 200,
    epochs: int = 4,
) -> dict[tuple[str, int, str], np.ndarray]:  # fmt: skip
    """Prints the gain of each set of estimators, for each network; its run is kept in OUT.

    Args:
        root: Folder of the named data sets.
        out: Folder for the run.
        samples: Numbers of samples K of the gradients.
        replicates: Draws of the noise.
        epochs: Epochs of training.
    """
    torch.set_num_threads(1)
    folder = out / "combine"
    if not fv.runs.has_run(folder):
        settings: Any = {"estimator": "dreg", "samples": 8, "epochs": epochs, "data_dir": root, "out": str(folder)}
        fv.runs.train(fv.models.SYSTEMS["burda_vae"], **settings)
    run = fv.runs.load(fv.runs.resume(folder))  # which leaves a finished run unchanged
    choice_key, observe_key, noise_key = fv.random.split(fv.random.key(0), 3)
    train = run.dataset().train
    x = run.observed(observe_key, train, fv.random.permutation(choice_key, len(train))[:BATCH])
    rng, found = np.random.default_rng(0), {}
    print("The best single estimator's variance over that of the combination; mean and range over the splits")
    print(f"{'estimators':32} K  network   one weight for all layers   a weight for each layer")
    for title, names in SETS.items():
        for k in samples:
            layers = gradients(run.trained, names, x, noise_key, k, replicates)
            for network in ("encoder", "decoder"):
                part = {layer: g for layer, g in layers.items() if layer.startswith(network)}
                gain = found[title, k, network] = gains(part, rng)
                texts = [f"{g.mean():8.3f} [{g.min():.3f}, {g.max():.3f}]" for g in gain.T]
                print(f"{title:32} {k}  {network}  {texts[0]:26}  {texts[1]}", flush=True)
    return found


if __name__ == "__main__":
    cyclopts.run(main, result_action="return_value")
