"""Reproduces the published table of Burda et al. with fewer epochs: python examples/burda_table.py --root DATA

Trains `burda_vae` by Burda's recipe (batch 20, its learning rates, pixels binarized again in every epoch) as a VAE, as
an IWAE, and as an IWAE with DReG gradients. Prints L_5000 on test digits next to the published numbers, which took
3,280 epochs. Every cell is a run folder; an existing one is read, not trained again.
"""

from pathlib import Path

import cyclopts

import funcvae as fv
from funcvae.errors import BadValue, FuncvaeError

# Test negative log-likelihood in nats: Burda et al. (2016), and a public replication with DReG (None if not reported).
PUBLISHED = {
    ("VAE", 1): (86.76, 86.35), ("VAE", 5): (86.47, 86.10), ("VAE", 50): (86.35, 86.06),
    ("IWAE", 1): (86.76, 86.35), ("IWAE", 5): (85.54, 85.18), ("IWAE", 50): (84.78, 84.59),
    ("DReG", 1): (None, 86.08), ("DReG", 5): (None, 84.90), ("DReG", 50): (None, 84.32),
}  # fmt: skip
ESTIMATORS = {"VAE": "elbo_mc", "IWAE": "iwae", "DReG": "dreg"}


def main(
    epochs: int = 40,
    k: tuple[int, ...] = (1, 5),
    root: str = "data",
    source: str = "mnist",
    out: str = "runs/burda_table",
    samples: int = 5000,
    n: int = 1000,
) -> dict[tuple[str, int], float]:
    """Trains the missing cells and returns the NLL of each cell, in nats.

    Args:
        epochs: Number of epochs, of the recipe's 3,280. The learning rate falls after epochs 1, 4, 13, 40, 121, …
        k: Numbers of samples in training.
        root: Folder of the named data sets.
        source: Name or path of the data.
        out: Folder of the runs.
        samples: K of L_K in the evaluation.
        n: Number of test digits, the same for all cells.
    """
    test = fv.data.load(source, root=root).test
    if min(epochs, samples, *k) < 1 or not 2 <= n <= len(test):
        raise BadValue(f"--epochs, --samples and --k must be at least 1, and --n must lie between 2 and {len(test)}")
    nll: dict[tuple[str, int], float] = {}
    for name, count in [(name, count) for count in k for name in ESTIMATORS]:
        if (name, count) == ("IWAE", 1):
            nll[name, count] = nll["VAE", 1]  # at K = 1 they are equal
            continue
        folder = Path(out) / f"{ESTIMATORS[name]}-k{count}"
        if not (folder / "params.safetensors").is_file():
            config = fv.runs.configure(
                "burda_vae", estimator=ESTIMATORS[name], samples=count, epochs=epochs, data=source, data_dir=root,
                out=str(folder),
            )  # fmt: skip
            fv.runs.run(config)
        run = fv.runs.load(folder, data_dir=root)
        if (run.config.epochs, run.config.data) != (epochs, source):
            made = f"{run.config.epochs} epochs of {run.config.data}"
            raise BadValue(f"{folder} holds {made}: give another --out or the same --epochs and --source")
        report = fv.runs.evaluation_report(run, samples=samples, n=n, progress=fv.tracking.bar)
        found, units = report["log_likelihood"], report["active_units"]["number"]
        nll[name, count] = -found["mean"]
        errors = f"± {found['se']:.3f} noise ± {found['data_se']:.2f} data"
        print(f"{name:4} k = {count:2}  {nll[name, count]:6.2f} {errors}   {units:2} active units")

    print(f"\nTest NLL <= -L_{samples} in nats: {source}, epochs {epochs:,}, test items {n:,}")
    print("Published numbers in brackets: MNIST, 3,280 epochs, 10,000 test items")
    print(f"{'':6}" + "".join(f"{f'k = {count}':>26}" for count in k))
    for name in ESTIMATORS:
        cells = []
        for count in k:
            paper, replication = PUBLISHED.get((name, count), (None, None))
            published = " → ".join(f"{v:.2f}" for v in (paper, replication) if v)
            cells.append(f"{nll[name, count]:.2f}" + (f" ({published})" if published else ""))
        print(f"{name:6}" + "".join(f"{cell:>26}" for cell in cells))
    return nll


if __name__ == "__main__":
    try:
        cyclopts.run(main, result_action="return_value")
    except FuncvaeError as error:
        raise SystemExit(f"error: {error}") from None
