"""Commands that measure a run and write a report: `evaluate` and `variance`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from matplotlib.figure import Figure

from funcvae import distributed, figures, runs
from funcvae._support import checks, files
from funcvae.cli.options import Flat, LoadOptions, ModelOptions, RunPath, parse_model_options
from funcvae.errors import BadValue
from funcvae.figures import of_results
from funcvae.models import SYSTEMS
from funcvae.tracking import Progress
from funcvae.tracking.progress import Bar

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
        run: The run folder.
        samples: K of the log-likelihood L_K.
        n: Number of test items, chosen at random. None: 1,000, or all if there are fewer.
        chunk: Samples at a time.
        seed: Seed of the key for the choice of items, their observation and the noise.
        loading: How to load the run.
        out: JSON file. None: evaluation.json in the run folder (evaluation-2.json if its content would change).
    """
    _check_out(out)
    loaded = loading.load(run)
    with _progress_bar("sample") as progress:
        report = runs.evaluation_report(loaded, samples=samples, n=n, chunk=chunk, seed=seed, progress=progress)
    print(runs.evaluation_table(report))
    _write_report(loaded, "evaluation", report, lambda: runs.evaluation_figures(report), out)


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
    size: int | None = None,
    model: ModelOptions = (),
    target_se: float | None = None,
    loading: Annotated[LoadOptions, Flat] = DEFAULTS,
    out: str | None = None,
    patience: float = distributed.PATIENCE,
) -> None:
    """Compare the gradient variance of estimators at a run's parameters, or at an untrained system's.

    Prints a table, and writes variance.json and figures. Equal commands give equal bits, except for times. Processes
    started by torchrun share the replicates; the bits stay the same.

    Args:
        run: The run folder, or a system to measure untrained: its name, FILE.py:NAME or package.module:NAME.
        estimators: Names separated by commas, such as iwae,dreg,renyi:0.5; the first is the reference. None: the
            run's own, elbo_mc, stl, iwae and dreg, or, for discrete latents, score, arm and disarm.
        noise: Noise schemes separated by commas; each estimator is measured under all schemes that it allows.
        samples: Monte-Carlo samples K for each datum. None: the run's own.
        replicates: Independent draws of the noise.
        chunk: Replicates at a time; it changes rounding. None: chosen by the size of the model.
        seed: Seed of the key for the batch, its observation, the noise and the parameters of an untrained system.
        batch: Number of training data in the gradient. None: the run's batch size.
        size: For an untrained system: size to which the images of a folder are resized, as in `funcvae train`.
        model: For an untrained system: an option of its model, as in `funcvae train`; may be repeated.
        target_se: Add replicates, in stages, until the relative standard error of every ratio is below this.
        loading: How to load the run.
        out: JSON file. None: variance.json in the run folder (variance-2.json if its content would change).
        patience: Seconds that the processes of torchrun wait for each other at the start.
    """
    with distributed.process_group(loading.device, patience=patience) as processes:
        _check_out(out)
        measured = _run_or_system(run, loading, seed, size, model)
        with _progress_bar("replicate") as progress:
            found, report = runs.comparison_report(
                measured, names=None if estimators is None else runs.split_names(estimators),
                schemes=runs.split_names(noise), samples=samples, replicates=replicates, chunk=chunk, batch=batch,
                seed=seed, target_se=target_se, processes=processes, progress=progress,
            )  # fmt: skip
    if not processes.is_main:
        return
    system = measured.config.system.name
    state = "untrained" if measured.path.name.startswith(f"{system}-untrained") else f"as in {measured.path}"
    batch_text = f"{found.batch:,} of its training data, seed {seed}"
    print(f"{system}, {state}; {batch_text}; gradients of nats per example")
    print(found, *(f"left out: {reason}" for reason in report["left_out"]), sep="\n")
    _write_report(measured, "variance", report, lambda: of_results.of_comparison(found, name=system), out)


def _run_or_system(
    name: str, loading: LoadOptions, seed: int, size: int | None, model: Sequence[str]
) -> runs.Run:  # fmt: skip
    """The run in a folder, or a system with the initial parameters of this seed."""
    if Path(name).exists() or ("/" in name and ":" not in name):
        if size is not None:
            raise BadValue(f"--size is {size}: the images of a run keep the size of its training; leave --size out")
        if model:
            raise BadValue("--model: the model of a run keeps the options of its training; leave --model out")
        return loading.load(name)
    if ":" not in name:
        checks.known("system or run folder", name, SYSTEMS)
    device, data_dir = runs.resolve_device(loading.device), loading.data_dir or "data"
    options = parse_model_options(name, model) if model else None
    run = runs.initial_run(
        name, model=options, seed=seed, device=device, data=loading.data, data_dir=data_dir, size=size
    )
    return run._replace(path=Path(runs.new_run_folder(f"{run.path}-untrained")))


@contextmanager
def _progress_bar(unit: str) -> Iterator[Progress]:
    """Yields a function that shows the number of finished units, and their total."""
    bar = Bar(unit=unit, unit_scale=True, dynamic_ncols=True, leave=False, delay=0.5)
    try:
        yield bar
    finally:
        bar.close()


def _check_out(out: str | None) -> None:
    """Raises BadValue unless the path is None or suits a JSON file."""
    if out is not None and (Path(out).suffix != ".json" or Path(out).is_dir()):
        raise BadValue(f"--out is {out}: it must be the name of a JSON file, NAME.json")


def _write_report(
    run: runs.Run, kind: str, report: runs.Report, draw: Callable[[], dict[str, Figure]], out: str | None
) -> None:
    """Writes a report, then its figures; prints their paths. Keeps other reports, unless `out` names the file."""
    path = files.write_beside(Path(out or run.path / f"{kind}.json"), files.as_json(report), over=out is not None)
    print(path)
    suffix = path.stem.removeprefix(kind) if out is None else None
    for name, figure in draw().items():
        stem = f"{path.stem}_{name}" if suffix is None else f"{name}{suffix}"
        print(figures.save(figure, (run.path / "figures" if out is None else path.parent) / f"{stem}.png"))
