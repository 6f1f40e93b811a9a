"""Reproduces the published table of Burda et al.: python examples/burda_table.py --root DATA

Trains `burda_vae` by Burda's recipe (batch 20, its learning rates, pixels binarized again in every epoch) as a VAE, as
an IWAE, and as an IWAE with DReG gradients, for 40 of its 3,280 epochs. Prints the test NLL (-L_5000) next to the
published numbers, and next to those of the complete runs recorded in `examples/burda_full/`. Each cell has its own run
folder, but at k = 1 the IWAE is the VAE. A stopped run is resumed; a finished run is not trained again.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import cyclopts
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

import funcvae as fv
from funcvae.errors import BadValue, FuncvaeError

# Test negative log-likelihood in nats: Burda et al. (2016), and a public replication with DReG (None if not reported).
PUBLISHED = {
    ("VAE", 1): (86.76, 86.35), ("VAE", 5): (86.47, 86.10), ("VAE", 50): (86.35, 86.06),
    ("IWAE", 1): (86.76, 86.35), ("IWAE", 5): (85.54, 85.18), ("IWAE", 50): (84.78, 84.59),
    ("DReG", 1): (None, 86.08), ("DReG", 5): (None, 84.90), ("DReG", 50): (None, 84.32),
}  # fmt: skip
ESTIMATORS = {"VAE": "elbo_mc", "IWAE": "iwae", "DReG": "dreg"}
ALL_EPOCHS, FULL = 3280, Path(__file__).parent / "burda_full"


class Cell(NamedTuple):
    """A test NLL in nats, and its standard errors for the Monte-Carlo noise and for the choice of digits."""

    nll: float
    noise: float
    data: float

    def __str__(self) -> str:
        return f"{self.nll:.2f} ± {self.noise:.3f} ± {self.data:.2f}"


Key = tuple[str, int]  # the name of a row of the table, and k


def main(
    epochs: int = 40,
    k: tuple[int, ...] = (1, 5),
    root: str = "data",
    source: str = "mnist",
    out: str = "runs/burda_table",
    samples: int = 5000,
    n: int = 1000,
    record: Path | None = None,
) -> dict[Key, float]:
    """Trains the missing cells and returns the NLL of each cell, in nats.

    Args:
        epochs: Number of epochs, of the recipe's 3,280. The learning rate falls after epochs 1, 4, 13, 40, 121, …
        k: Numbers of samples in training.
        root: Folder of the named data sets.
        source: Name or path of the data.
        out: Folder of the runs.
        samples: K of L_K in the evaluation.
        n: Number of test digits for the runs trained here.
        record: Folder for the record of each run, and a figure of the learning curves.
    """
    test = fv.data.load(source, root=root).test
    if min(epochs, samples, *k) < 1 or not 2 <= n <= len(test):
        raise BadValue(f"--epochs, --samples and --k must be at least 1, and --n must lie between 2 and {len(test)}")
    if record and record.resolve() == FULL.resolve() and epochs != ALL_EPOCHS:
        raise BadValue(f"{record} holds the runs of {ALL_EPOCHS:,} epochs: give another --record")
    found: dict[Key, Cell] = {}
    curves: dict[Key, list[dict[str, Any]]] = {}
    for name, count in [(name, count) for count in k for name in ESTIMATORS]:
        if (name, count) == ("IWAE", 1):
            found[name, count] = found["VAE", 1]  # at k = 1 they are equal
            continue
        run = trained(Path(out) / f"{ESTIMATORS[name]}-k{count}", ESTIMATORS[name], count, epochs, source, root)
        report = evaluated(run, samples, n)
        found[name, count] = cell(report)
        print(f"{name:4}  k = {count:2}  {found[name, count]}  {report['active_units']['number']:2} active units")
        if record:
            curves[name, count] = recorded(run, report, record / run.path.name)

    print(f"\nTest NLL <= -L_{samples} in nats ± Monte-Carlo error ± error for the choice of digits")
    print(f"{epochs:,} epochs: {source}, {n:,} test items")
    if epochs != ALL_EPOCHS:
        print(f"all {ALL_EPOCHS:,} epochs: mnist, 10,000 test items, L_5000")
    print(f"{'':24}" + "".join(f"{f'k = {count}':>24}" for count in k))
    published = {key: " → ".join(f"{v:.2f}" for v in values if v) for key, values in PUBLISHED.items()}
    rows: dict[str, Mapping[Key, Any]] = {f"{epochs:,} epochs": found}
    rows |= {f"all {ALL_EPOCHS:,} epochs": all_epochs()} if epochs != ALL_EPOCHS else {}
    rows |= {"published": published}
    for name in ESTIMATORS:
        for row, cells in rows.items():
            shown = "".join(f"{cells.get((name, count), '')!s:>24}" for count in k)
            if shown.strip():
                print(f"{name:6}{row:18}{shown}")
    print("published: Burda et al. (2016) → a public replication; with DReG the replication alone; 3,280 epochs")
    if record:
        print(fv.figures.save(drawn(curves, found, epochs), record / "learning_curves.png"))
    return {key: each.nll for key, each in found.items()}


def trained(folder: Path, estimator: str, k: int, epochs: int, source: str, root: str) -> fv.runs.Run:
    """The finished run in a folder, trained or resumed if necessary."""
    if not fv.runs.has_run(folder):
        fv.runs.train(
            "burda_vae", estimator=estimator, samples=k, epochs=epochs, data=source, data_dir=root, out=str(folder),
            test_every=max(1, epochs // 328), checkpoint_every=100_000,
        )  # fmt: skip
    settings = fv.runs.summarize(folder).settings
    if any(settings[name] != value for name, value in (("epochs", epochs), ("data", source))):
        made = f"{settings['epochs']} epochs of {settings['data']}"
        raise BadValue(f"{folder} holds {made}: give another --out or the same --epochs and --source")
    if any(settings[name] != value for name, value in (("estimator", estimator), ("samples", k))):
        raise BadValue(f"{folder} holds {settings['estimator']} with k = {settings['samples']}: give another --out")
    if not (folder / "params.safetensors").is_file():
        fv.runs.resume(folder)
    return fv.runs.load(folder, data_dir=root)


def evaluated(run: fv.runs.Run, samples: int, n: int) -> dict[str, Any]:
    """The evaluation of a run, from its evaluation.json if that has as many samples and test items."""
    file = run.path / "evaluation.json"
    if file.is_file():
        report = json.loads(file.read_text())
        if (report["samples"], report["items"]) == (samples, n):
            return report
    report = fv.runs.evaluation_report(run, samples=samples, n=n, progress=fv.tracking.bar)
    file.write_text(json.dumps(report))
    return report


def cell(report: Mapping[str, Any]) -> Cell:
    """The cell of an evaluation."""
    found = report["log_likelihood"]
    return Cell(-found["mean"], found["se"], found["data_se"])


def all_epochs() -> dict[Key, Cell]:
    """The cells of the runs with all epochs, from their records."""
    files = {(name, 1): FULL / f"{estimator}-k1" / "evaluation.json" for name, estimator in ESTIMATORS.items()}
    files["IWAE", 1] = files["VAE", 1]
    return {key: cell(json.loads(file.read_text())) for key, file in files.items() if file.is_file()}


def recorded(run: fv.runs.Run, report: Mapping[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Writes the record of a run, and returns the metrics of the epochs that have a test bound.

    It has the configuration, the manifest, those metrics, and the evaluation without the numbers of single items.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "manifest.json"):
        (folder / name).write_bytes((run.path / name).read_bytes())
    short = {name: each for name, each in report.items() if name not in ("item_numbers", "log_weights")}
    for name, each in short.items():
        if isinstance(each, dict):
            short[name] = {inner: value for inner, value in each.items() if not inner.startswith("per_item")}
    (folder / "evaluation.json").write_text(json.dumps(short, indent=2) + "\n")
    epochs = fv.tracking.MetricsReader(run.path / "metrics.jsonl", kind="epoch")
    rows = [dict(row) for row in epochs if "test_bound" in row]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def drawn(curves: Mapping[Key, list[dict[str, Any]]], found: Mapping[Key, Cell], epochs: int) -> Figure:
    """The bounds along training, and the final NLL beside the published ones."""
    figure = Figure(figsize=(10.4, 4.6), layout="constrained")
    figure.suptitle(f"burda_vae: {epochs:,} epochs of Burda's recipe")
    left, right = figure.subplots(1, 2, width_ratios=[2, 1])
    for i, ((name, k), rows) in enumerate(curves.items()):
        colour = fv.figures.PALETTE[i]
        for field, label, style in (("train_bound", "training data", ":"), ("test_bound", "test data", "-")):
            epoch, bound = np.array([(row["epoch"] + 1, row[field]) for row in rows]).T
            left.plot(epoch, bound, style, color=colour, label=f"{name}, k = {k}: {label}")
        here = found[name, k]
        error = 1.96 * np.hypot(here.noise, here.data)
        right.errorbar(i, here.nll, error, fmt="o", color=colour, markersize=7, capsize=4)
        right.annotate(f"{here.nll:.2f}", (i, here.nll), (9, 0), textcoords="offset points", va="center")
        for value, marker in zip(PUBLISHED.get((name, k), ()), "Ds", strict=False):
            if value is not None:
                right.plot(i - 0.25, value, marker, color="0.3", mfc="white", markersize=7)
    first, last = (curves[next(iter(curves))][i]["epoch"] + 1 for i in (0, -1))
    for stage in range(1, 8):
        if first < (end := (3**stage - 1) / 2) < last:
            left.axvline(end, color="0.8", linewidth=0.8, zorder=0)
    left.set_xscale("log")
    left.set_xlim(first / 1.1, last * 1.1)
    left.xaxis.set_major_formatter(FuncFormatter(lambda epoch, _: f"{epoch:,.0f}"))
    left.set(xlabel="epoch (grey: the learning rate falls)", ylabel="training target [nats per example]")
    left.legend(frameon=False, fontsize="small", loc="lower right")
    right.plot([], [], "o", color="0.3", label="funcvae, with its 95% interval")
    right.plot([], [], "D", color="0.3", mfc="white", label="Burda et al. (2016)")
    right.plot([], [], "s", color="0.3", mfc="white", label="public replication")
    right.set_xticks(range(len(curves)), [f"{name}\nk = {k}" for name, k in curves])
    right.set_xlim(-0.6, len(curves) - 0.3)
    right.set_ylabel("test NLL [nats per example]")
    for ax in (left, right):
        ax.grid(color="0.92")
        ax.spines[["top", "right"]].set_visible(False)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower right", ncols=3, frameon=False)
    return figure


if __name__ == "__main__":
    try:
        cyclopts.run(main, result_action="return_value")
    except FuncvaeError as error:
        raise SystemExit(f"error: {error}") from None
