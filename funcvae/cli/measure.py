"""Commands that measure a run, and write a report of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from tqdm import tqdm

from funcvae import distributed, figures, runs
from funcvae._support import files
from funcvae.cli.options import Device, RunPath, fresh
from funcvae.errors import BadValue, unknown
from funcvae.figures import of_results
from funcvae.models import RECIPES
from funcvae.variance.results import Comparison


def evaluate(
    run: RunPath,
    /,
    *,
    samples: int = 5000,
    n: int | None = None,
    chunk: int = 100,
    seed: int = 0,
    data: str | None = None,
    data_dir: str | None = None,
    device: Device = "auto",
    out: str | None = None,
) -> None:
    """Evaluate a trained model on test data: log-likelihood with its errors, bounds, KLs, active units.

    Prints a table, and writes evaluation.json and figures.

    Args:
        run: The run's folder.
        samples: K of the log-likelihood L_K.
        n: How many test items, drawn by the seed; 1,000, or all where there are fewer, unless given.
        chunk: Samples at a time.
        seed: Seed of the key for choice, observation and noise.
        data: The data's file or folder, if it has moved since training.
        data_dir: Where named data sets are kept now; where they were in training unless given.
        device: Where to compute.
        out: JSON file; evaluation.json in the run's folder unless given (evaluation-2.json where that says otherwise).
    """
    _check_out(out)
    at = runs.load(run, device=runs.resolve_device(device), data=data, data_dir=data_dir)
    with _bar("sample") as progress:
        report = runs.evaluation_report(at, samples=samples, n=n, chunk=chunk, seed=seed, progress=progress)
    print(runs.evaluation_table(report))
    _write_report(at, "evaluation", report, runs.evaluation_figures(report), out)


def variance(
    run: RunPath,
    /,
    *,
    estimators: str | None = None,
    noise: str = "iid",
    samples: int | None = None,
    replicates: int = 1000,
    chunk: int | None = None,
    seed: int = 0,
    batch: int | None = None,
    target_se: float | None = None,
    data: str | None = None,
    data_dir: str | None = None,
    device: Device = "auto",
    out: str | None = None,
    patience: float = distributed.PATIENCE,
) -> None:
    """Compare the gradient variance of estimators at a run's parameters, or at an untrained system's.

    Prints a table, and writes variance.json and figures. The numbers repeat to the bit, but for times; started by
    torchrun, several processes share the replicates, and the bits are the same.

    Args:
        run: The run's folder, or the name of a system, to be taken as the seed starts it.
        estimators: Names with commas between them, as iwae,dreg,renyi:0.5; others are held against the first. The run's
            own, elbo_mc, stl, iwae and dreg unless given.
        noise: Noise schemes with commas between them; each estimator is taken under all that it allows.
        samples: Monte-Carlo samples K for each datum; the run's own number unless given.
        replicates: Independent draws of the noise.
        chunk: Replicates at a time; by the model's size unless given. Another number changes rounding.
        seed: Seed of the key for the batch, its observation and the noise (and for an untrained system's parameters).
        batch: How many training data the gradient is of; the run's own number unless given.
        target_se: Go on, in stages, until every ratio's relative standard error is below this.
        data: The data's file or folder, if it has moved since training.
        data_dir: Where named data sets are kept now; where they were in training unless given.
        device: Where to compute.
        out: JSON file; variance.json in the run's folder unless given (variance-2.json where that says otherwise).
        patience: Seconds that the processes that torchrun started wait for one another at the beginning.
    """
    with distributed.process_group(device, patience=patience) as everyone:
        _check_out(out)
        at, found, report = _compared(
            run, everyone, estimators=estimators, noise=noise, samples=samples, replicates=replicates, chunk=chunk,
            seed=seed, batch=batch, target_se=target_se, data=data, data_dir=data_dir, device=device,
        )  # fmt: skip
    if not everyone.is_main:
        return
    state = "untrained" if at.path.name.startswith(f"{run}-untrained") else f"as in {at.path}"
    data_ = f"{found.batch:,} of its training data, seed {seed}"
    print(f"{at.config.system}, {state}; {data_}; gradients of nats per example")
    print(found)
    for why in report["left_out"]:
        print(f"left out: {why}")
    figures = of_results.of_comparison(found, name=at.config.system)
    _write_report(at, "variance", report, figures, out)


def _compared(
    run: str, everyone: distributed.Processes, *, estimators: str | None, noise: str, seed: int, data: str | None,
    data_dir: str | None, device: str, **settings: Any,
) -> tuple[runs.Run, Comparison, runs.Report]:  # fmt: skip
    """The run, or the untrained system, that is meant, and what the lab found there."""
    where = runs.resolve_device(device)
    if not Path(run).exists() and run not in RECIPES and "/" not in run:
        raise unknown("system, and no run's folder,", run, RECIPES)
    if run in RECIPES and not Path(run).exists():
        at = runs.untrained(run, seed=seed, device=where, data=data, data_dir=data_dir or "data")
        at = at._replace(path=Path(fresh(f"{run}-untrained")))
    else:
        at = runs.load(run, device=where, data=data, data_dir=data_dir)
    with _bar("replicate") as progress:
        found, report = runs.comparison_report(
            at,
            names=runs.split_names(estimators) if estimators is not None else None,
            schemes=runs.split_names(noise),
            seed=seed,
            processes=everyone,
            progress=progress,
            **settings,
        )
    return at, found, report


@contextmanager
def _bar(unit: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar that is told what is done, and of how much; it is gone at the end."""
    with tqdm(total=1, unit=unit, unit_scale=True, dynamic_ncols=True, leave=False, delay=0.5) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress


def _check_out(out: str | None) -> None:
    """Raises BadValue unless a JSON file may have this name."""
    if out is None:
        return
    if Path(out).is_dir():
        raise BadValue(f"--out {out} is a folder: give the name of a JSON file")
    if Path(out).suffix != ".json":
        raise BadValue(f"--out {out}: give the name of a JSON file, NAME.json")


def _write_report(at: runs.Run, kind: str, report: runs.Report, drawn: dict[str, Figure], out: str | None) -> None:
    """Writes a report and its figures, beside earlier ones unless `out` names its file, and prints where."""
    path = files.write_beside(Path(out or at.path / f"{kind}.json"), files.as_json(report), over=out is not None)
    print(path)
    suffix = path.stem.removeprefix(kind) if out is None else None
    for name, figure in drawn.items():
        stem = f"{path.stem}_{name}" if suffix is None else f"{name}{suffix}"
        print(figures.save(figure, (at.path / "figures" if out is None else path.parent) / f"{stem}.png"))
