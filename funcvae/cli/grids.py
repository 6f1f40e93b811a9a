"""Commands that train a grid of runs and collect its results: `sweep` and `collect`."""

import os
import shlex
import signal
import sys
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

from tqdm import tqdm

from funcvae import distributed, runs
from funcvae._support import files
from funcvae.cli.options import Device, FigureOutput, Flag, Names, joined_names, progress_bar
from funcvae.cli.signals import stop_on_signal
from funcvae.errors import Stopped

__all__ = ["collect", "sweep"]

OUTPUT = FigureOutput()


def sweep(
    grid: Path,
    /,
    *,
    out: Path | None = None,
    download: Flag = False,
    device: Device = "auto",
    patience: float = distributed.PATIENCE,
) -> None:
    """Train every cell of a grid: each system with each estimator, number of samples and seed.

    The grid is a JSON object with lists "systems" (names, or FILE.py:NAME or package.module:NAME for your own),
    "estimators", "samples" and "seeds"; an object "settings" of options for all cells, named as in `funcvae train` but
    with _ in place of -; and "replicates", the number of draws to measure the gradient variance of each finished cell.
    Only the systems are required.

    A second call trains the missing cells. Several workers may share a folder, started by torchrun, as a Slurm array,
    or by hand; each takes cells that no other holds. A worker without a free cell waits, because another may die; a
    task of a Slurm array ends. Ctrl-C and SIGTERM stop a worker after the current step, with a checkpoint.
    Exit status 1: numbers of a cell became NaN or infinite.

    Args:
        grid: The file of the grid.
        out: Folder of the sweep. By default runs/NAME for NAME.json.
        download: Download named data sets that are missing.
        device: Where to compute; the grid's settings have priority.
        patience: Seconds that the processes of torchrun wait for each other at the start.
    """
    folder = out or Path("runs", grid.stem)
    with distributed.process_group(device, patience=patience, separate=True) as processes:  # for the checks only
        requested, share, resolved = runs.read_grid(grid), runs.worker_share(), runs.resolve_device(device)
        processes.require_equal(grid=requested.as_json(), out=str(folder), device=resolved)
        cells = runs.check_cells(requested, folder, device=resolved, download=download)
        processes.barrier()  # an error in one process ends all
    caught: list[int] = []
    stop_context = partial(stop_on_signal, caught, alone=distributed.world_size() == 1)
    try:
        with progress_bar("cell") as progress:
            number = count(1)

            def log(name: str, result: runs.CellResult) -> None:
                finished = "test bound {test_bound:.4f} nats per example after {steps:,} steps"
                text = "diverged: {diverged}" if "diverged" in result else finished
                text = f"{name}, {next(number)} of {len(cells)}: {text.format(**result)}"
                tqdm.write(text, file=sys.stdout)

            results = runs.train_grid(
                requested, folder, measure=runs.variance_report, share=share, device=resolved, download=download,
                cells=cells, wait="SLURM_ARRAY_TASK_ID" not in os.environ, stop_context=stop_context, log=log,
                progress=progress,
            )  # fmt: skip
    except Stopped as error:
        print(f"funcvae: {error}", file=sys.stderr)
        sys.exit(128 + (caught[0] if caught else signal.SIGTERM))
    print(folder)
    if len(results) < len(cells):
        print(f"{len(cells) - len(results)} of {len(cells)} cells are in use by other workers")
    else:
        own = [f"--system={name}" for name in requested.systems if ":" in name]
        print(f"next: {shlex.join(['funcvae', 'collect', str(folder), *own])}")
    diverged = [name for name, result in results.items() if "diverged" in result]
    if diverged and distributed.rank() == 0:  # on a failed process torchrun ends all others
        print(f"funcvae: {len(diverged)} of {len(results)} cells diverged: {', '.join(diverged)}", file=sys.stderr)
        sys.exit(1)


def collect(sweep: Path, /, *, system: Names | None = None, wide: Flag = False, output: FigureOutput = OUTPUT) -> None:
    """Collect the results of a sweep so far: a row for each cell, and means and intervals over the seeds.

    Prints a table, and writes table.csv (a row for each cell, also unfinished ones), table.json (with the means over
    seeds) and figures to the folder of the sweep, in place of those of an earlier call.

    Args:
        sweep: Folder of the sweep, finished or not.
        system: Own systems of the sweep, as FILE.py:NAME or package.module:NAME.
        wide: Print all columns of the table, even if they do not fit the terminal.
        output: CSV file NAME.csv, with NAME.json and figures next to it. By default SWEEP/table.csv.
    """
    output.check(".csv")
    output = replace(output, force=output.force or output.out is None)  # the folder's own table is never out of date
    results = runs.collect(sweep, systems=joined_names(system or []))
    print(results.table(wide=wide))
    path = output.write(output.out or sweep / "table.csv", results.to_csv().encode())
    output.write(path.with_suffix(".json"), files.as_json(results.to_dict()))
    for name, figure in results.figures().items():
        output.save(figure, path.parent / "figures" / name)
