"""Commands that measure a run and write a report: `evaluate` and `variance`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from matplotlib.figure import Figure
from tqdm import tqdm

from funcvae import distributed, figures, runs
from funcvae._support import files
from funcvae.cli.options import Flat, LoadOptions, RunPath, new_run_folder
from funcvae.errors import BadValue, unknown
from funcvae.evaluate import Progress
from funcvae.figures import of_results
from funcvae.models import RECIPES

__all__ = ["evaluate", "variance"]

DEFAULTS = LoadOptions()


def evaluate(
    run: RunPath,
    /,
    *,
    samples: int = 5000,
    n: int | None = None,
    chunk: int = 100,
    seed: int = 0,
    loading: Annotated[LoadOptions, Flat] = DEFAULTS,
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
        loading: How to load the run.
        out: JSON file; evaluation.json in the run's folder unless given (evaluation-2.json where that says otherwise).
    """
    _check_out(out)
    loaded = loading.load(run)
    with _progress_bar("sample") as progress:
        report = runs.evaluation_report(loaded, samples=samples, n=n, chunk=chunk, seed=seed, progress=progress)
    print(runs.evaluation_table(report))
    _write_report(loaded, "evaluation", report, runs.evaluation_figures(report), out)


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
    loading: Annotated[LoadOptions, Flat] = DEFAULTS,
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
        loading: How to load the run.
        out: JSON file; variance.json in the run's folder unless given (variance-2.json where that says otherwise).
        patience: Seconds that the processes that torchrun started wait for one another at the beginning.
    """
    with distributed.process_group(loading.device, patience=patience) as processes:
        _check_out(out)
        measured = _run_or_system(run, loading, seed)
        with _progress_bar("replicate") as progress:
            found, report = runs.comparison_report(
                measured, names=None if estimators is None else runs.split_names(estimators),
                schemes=runs.split_names(noise), samples=samples, replicates=replicates, chunk=chunk, batch=batch,
                seed=seed, target_se=target_se, processes=processes, progress=progress,
            )  # fmt: skip
    if not processes.is_main:
        return
    system = measured.config.system
    state = "untrained" if measured.path.name.startswith(f"{run}-untrained") else f"as in {measured.path}"
    batch_text = f"{found.batch:,} of its training data, seed {seed}"
    print(f"{system}, {state}; {batch_text}; gradients of nats per example")
    print(found)
    for reason in report["left_out"]:
        print(f"left out: {reason}")
    _write_report(measured, "variance", report, of_results.of_comparison(found, name=system), out)


def _run_or_system(name: str, loading: LoadOptions, seed: int) -> runs.Run:
    """The run in a folder, or a named system with the parameters that training with this seed starts from."""
    if Path(name).exists() or "/" in name:
        return loading.load(name)
    if name not in RECIPES:
        raise unknown("system, and no run's folder,", name, RECIPES)
    device, data_dir = runs.resolve_device(loading.device), loading.data_dir or "data"
    run = runs.initial_run(name, seed=seed, device=device, data=loading.data, data_dir=data_dir)
    return run._replace(path=Path(new_run_folder(f"{name}-untrained")))


@contextmanager
def _progress_bar(unit: str) -> Iterator[Progress]:
    """Yields a function that takes the number of units done and of all, and shows them until the end."""
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


def _write_report(run: runs.Run, kind: str, report: runs.Report, drawn: dict[str, Figure], out: str | None) -> None:
    """Writes a report and its figures, beside earlier ones unless `out` names its file, and prints their paths."""
    path = files.write_beside(Path(out or run.path / f"{kind}.json"), files.as_json(report), over=out is not None)
    print(path)
    suffix = path.stem.removeprefix(kind) if out is None else None
    for name, figure in drawn.items():
        stem = f"{path.stem}_{name}" if suffix is None else f"{name}{suffix}"
        print(figures.save(figure, (run.path / "figures" if out is None else path.parent) / f"{stem}.png"))
