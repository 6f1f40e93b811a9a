"""Commands that measure a run and write a report: `evaluate` and `variance`."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from funcvae import distributed, runs
from funcvae._support import checks, files
from funcvae._support.progress import notice
from funcvae._support.tables import WIDTH, as_text
from funcvae.cli.options import (
    FigureOutput,
    Flag,
    Int,
    LoadOptions,
    ModelOptions,
    Names,
    joined_names,
    parse_model_options,
    progress_bar,
    whole_numbers,
)
from funcvae.errors import BadValue
from funcvae.figures import of_results
from funcvae.models import SYSTEMS

__all__ = ["evaluate", "variance"]

LOADING, OUTPUT = LoadOptions(), FigureOutput()


def evaluate(
    run: Path,
    /,
    *,
    samples: Int = 5000,
    n: Int | None = None,
    chunk: Int = 100,
    seed: Int = 0,
    wide: Flag = False,
    loading: LoadOptions = LOADING,
    output: FigureOutput = OUTPUT,
) -> None:
    """Evaluate a trained model on test data: log-likelihood with its errors, bounds, KLs, active units.

    Prints a table, and writes evaluation.json and figures.

    Args:
        run: The run folder.
        samples: K of the log-likelihood L_K.
        n: Number of test items, chosen at random. By default 1,000, or all if there are fewer.
        chunk: Most samples at a time.
        seed: Seed of the key for the choice of items, their observation and the noise.
        wide: Print all columns of the table, even if they do not fit the terminal.
        loading: How to load the run.
        output: The JSON file. By default evaluation.json in the run folder.
    """
    output.check(".json")
    loaded = loading.load(run)
    if samples > 500 and (n is None or n > 100):
        notice(f"{samples:,} samples of each test item; for a quick look: --samples 500 --n 100")
    with progress_bar("sample") as progress:
        report = runs.evaluation_report(loaded, samples=samples, n=n, chunk=chunk, seed=seed, progress=progress)
    print(as_text([f"evaluation of {loaded.path}"], None if wide else WIDTH))
    print(runs.evaluation_table(report, wide=wide))
    _write_report(loaded, "evaluation", report, runs.evaluation_figures(report), output)


def variance(
    run: Path,
    /,
    *,
    estimators: Names | None = None,
    noise: Names | None = None,
    samples: Names | None = None,
    replicates: Int = 1000,
    chunk: Int | None = None,
    seed: Int = 0,
    batch: Int | None = None,
    size: Int | None = None,
    model: ModelOptions = None,
    target_se: float | None = None,
    wide: Flag = False,
    loading: LoadOptions = LOADING,
    output: FigureOutput = OUTPUT,
    patience: float = distributed.PATIENCE,
) -> None:
    """Compare the gradient variance of estimators at a run's parameters, or at an untrained system's.

    Prints a table, writes variance.json and figures, and ends with advice: which estimator to train with. Equal
    commands give equal bits, except for times. Processes started by torchrun share the replicates; the bits stay the
    same.

    Args:
        run: The run folder, or a system to measure untrained: its name, FILE.py:NAME or package.module:NAME.
        estimators: Such as iwae dreg renyi:0.5, or iwae,dreg; the first is the reference. By default the run's own,
            elbo_mc, stl, iwae and dreg, or, for discrete latents, score, arm and disarm.
        noise: Noise schemes, by default iid; each estimator is measured under all schemes that it allows.
        samples: Monte-Carlo samples K for each datum. By default the run's own. Several numbers, such as 1,4,16,64,
            give a table and a figure of variance and SNR against K.
        replicates: Independent draws of the noise.
        chunk: Replicates at a time; it changes rounding. By default chosen by the size of the model.
        seed: Seed of the key for the batch, its observation, the noise and the parameters of an untrained system.
        batch: Number of training data in the gradient. By default the run's batch size.
        size: For an untrained system: size to which the images of a folder are resized, as in `funcvae train`.
        model: For an untrained system: options of its model.
        target_se: Add replicates, in stages, until the relative standard error of every ratio is below this.
        wide: Print all columns of the table, even if they do not fit the terminal.
        loading: How to load the run, or the system's data.
        output: The JSON file. By default variance.json in the run folder.
        patience: Seconds that the processes of torchrun wait for each other at the start.
    """
    with distributed.process_group(loading.device, patience=patience) as processes:
        output.check(".json")
        ks = whole_numbers("--samples", samples or [])
        measured = _run_or_system(str(run), loading, seed, size, model)
        if len(ks) > 1 and target_se is not None:
            raise BadValue("--target-se works with one number of samples: leave it out, or give one of --samples")
        settings: dict[str, Any] = {
            "names": joined_names(estimators) if estimators else None, "schemes": joined_names(noise or ["iid"]),
            "replicates": replicates, "chunk": chunk, "batch": batch, "seed": seed, "processes": processes,
        }  # fmt: skip
        system = measured.config.system.name
        with progress_bar("replicate") as progress:
            if len(ks) > 1:
                found, report = runs.samples_report(measured, ks, **settings, progress=progress)
            else:
                one, report = runs.comparison_report(
                    measured, samples=ks[0] if ks else None, target_se=target_se, **settings, progress=progress
                )
                found = [one]
    if not processes.is_main:
        return
    if len(ks) > 1:
        text = runs.samples_table(found, wide=wide)
        made = {"variance_samples": of_results.of_samples(found, name=system)}
    else:
        text = found[0].table(wide=wide) + "\nmore columns: --wide" * (not wide)
        made = of_results.of_comparison(found[0], name=system)
    of = f"{measured.title}, as in {measured.path}" if measured.all_steps else measured.title
    head = f"{of}; {found[0].batch:,} of its training data, seed {seed}; gradients of nats per example"
    print(as_text([head], None if wide else WIDTH))
    print(text)
    left_out = report["left_out"]
    for reason in left_out:
        at = f" at K = {', '.join(map(str, left_out[reason]))}" if isinstance(left_out, dict) else ""
        print(f"left out{at}: {reason}")
    _write_report(measured, "variance", report, made, output)
    for each in found:
        at = f"at K = {each.samples}, " if len(found) > 1 else ""
        print(as_text([f"advice: {at}{each.advice()}"], None if wide else WIDTH))


def _run_or_system(
    name: str, loading: LoadOptions, seed: int, size: int | None, model: dict[str, str] | None
) -> runs.Run:
    """The run in a folder, or a system with the initial parameters of this seed."""
    if Path(name).exists() or ("/" in name and ":" not in name):
        if size is not None:
            raise BadValue(f"--size is {size}: the images of a run keep the size of its training; leave --size out")
        if model:
            raise BadValue("--model: the model of a run keeps the options of its training; leave --model out")
        return loading.load(Path(name))
    if ":" not in name:
        checks.known("system or run folder", name, SYSTEMS)
    if loading.checkpoint is not None or loading.system is not None:
        raise BadValue(
            f"--checkpoint and --system are for a run folder, and {name} is an untrained system: leave them out"
        )
    device, data_dir = runs.resolve_device(loading.device), loading.data_dir or "data"
    options = parse_model_options(name, model) if model else None
    run = runs.initial_run(
        name, model=options, seed=seed, device=device, data=loading.data, data_dir=data_dir, size=size
    )
    return run._replace(path=Path(runs.new_run_folder(f"{run.path}-untrained")))


def _write_report(run: runs.Run, kind: str, report: runs.Report, made: dict[str, Figure], output: FigureOutput) -> None:
    """Writes a report, then its figures, whose names have the same number if the report got one; prints the paths."""
    path = output.write(output.out or run.path / f"{kind}.json", files.as_json(report))
    for name, figure in made.items():
        if output.out is None:
            output.save(figure, run.path / "figures" / f"{name}{path.stem.removeprefix(kind)}")
        else:
            output.save(figure, path.with_name(f"{path.stem}_{name}"))
