"""Trains the cells of a grid with any number of workers, which share only a folder.

grid.json        the newest grid
cells/NAME/      the run folder of each cell; its cell.json is written last

A worker locks the folder `.claim` of a cell before it looks for the run, and holds the lock until it has written the
result. The operating system releases the lock when the process ends. So no cell is trained twice, another worker
continues the cell of a dead one, and workers need not communicate.
"""

import os
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from pathlib import Path

from funcvae import data, tracking
from funcvae._support import checks, files
from funcvae._support.progress import Progress, silent
from funcvae.distributed import rendezvous
from funcvae.errors import BadData, BadType, BadValue, InUse, NonFinite, Stopped
from funcvae.runs import environment, execute
from funcvae.runs.config import Config, check_available, differences
from funcvae.runs.folder import (
    MANIFEST,
    METRICS,
    PARAMS,
    Run,
    check_same_system,
    has_run,
    load,
    read_config,
    read_data,
    read_manifest,
)
from funcvae.runs.grid import CELL, GRID, CellResult, Grid, cell_id, cell_name, expand_grid, read_cell, target_of
from funcvae.runs.prepare import prepare
from funcvae.runs.recording import LAST_FIGURE

__all__ = ["check_cells", "train_grid", "worker_share"]

CLAIM = ".claim"  # separate from the run's own lock; hidden, because a new run folder may hold only hidden files
_MAY_CHANGE = {"out", "data_dir", "checkpoint_every", "keep"}
"""Fields of a cell that may differ from its unfinished run: locations, and how often to save."""
POLL = 1.0  # seconds between two attempts to take cells that other workers hold


@checks.arguments
def train_grid(
    grid: Grid,
    folder: str | Path,
    *,
    measure: Callable[[Run, int], CellResult],
    share: tuple[int, int] = (0, 1),
    device: str = "cpu",
    download: bool = False,
    cells: Sequence[Config] | None = None,
    wait: bool = True,
    stop_context: Callable[[], execute.StopContext] = execute.never_stop,
    log: Callable[[str, CellResult], None] = lambda name, result: None,
    progress: Progress = silent,
) -> dict[str, CellResult]:
    """Trains the unfinished cells of a grid, and returns when all cells are finished, by this worker or others.

    Other workers may run at the same time, on any machine that can access the folder. Each worker starts with its share
    and then trains other cells. It waits for cells in use, and resumes those of dead workers; without `wait` it returns
    when no cell is free. All cells are checked before the first file is written.

    Args:
        folder: the folder of the sweep: a new one, or that of an earlier call, whose grid may have been smaller.
        measure: reports the gradient variance of a finished run from a number of replicates, like `variance_report`;
            called if the grid has `replicates`.
        share: (i, n) for worker i of n, counted from 0.
        device: where to train, "cpu" or "cuda"; the grid's settings have priority.
        download: whether to download named data sets that are missing.
        cells: the result of `check_cells`, if it was called before.
        wait: whether to wait for cells that other workers hold.
        stop_context: makes an `execute.StopContext`, which is entered during training.
        log: called with the name and the result of each cell when it is finished.
        progress: called with the number of finished cells, and that of all cells.

    Returns:
        The result of every finished cell by name, in the grid's order: "system", "estimator", "samples", "seed" and
        "target"; the last epoch's mean "bound" and "test_bound" in nats per example; "steps" and "params_sha256"; and,
        with replicates, "replicates" and the value of `measure` as "variance". If numbers became NaN or infinite, the
        result has a message "diverged" instead.

    Raises:
        BadValue: share is not (i, n) with 0 <= i < n; or a cell cannot be trained on its data, or its run has other
            settings; the message names the cell.
        Missing: the data, the device or a compiler is not available.
        BadData: a file in the folder is damaged.
        Stopped: training stopped on request, after a checkpoint.
    """
    i, n = (checks.integer("a number in share", each) for each in share)
    if not 0 <= i < n:
        raise BadValue(f"share is ({i}, {n}): worker i of n needs 0 <= i < n")
    cells = check_cells(grid, folder, device=device, download=download) if cells is None else cells
    path, content = Path(folder, GRID), files.as_json(grid.as_json())
    if not path.is_file() or path.read_bytes() != content:  # all workers write the same bytes
        files.write(path, content)
    first = i * len(cells) // n
    remaining, results = [*cells[first:], *cells[:first]], dict[str, CellResult]()
    progress(0, len(cells))
    with stop_context() as stop:
        while remaining:
            for cell in remaining:
                try:
                    if stop():
                        raise Stopped
                    result = _finished_result(cell, grid) or _train_cell(cell, grid, measure, stop)
                except InUse:
                    continue
                except Stopped:
                    done = f"stopped with {len(results)} of {len(cells)} cells finished"
                    raise Stopped(f"{done}; start the sweep again to continue") from None
                results[cell_name(cell)] = result
                log(cell_name(cell), result)
                progress(len(results), len(cells))
            before, remaining = len(remaining), [cell for cell in remaining if cell_name(cell) not in results]
            if remaining and wait:
                time.sleep(POLL)
            elif len(remaining) == before:  # none was free
                break
    return {name: results[name] for name in map(cell_name, cells) if name in results}


def worker_share() -> tuple[int, int]:
    """This worker's number and the number of workers, from torchrun and the Slurm array; (0, 1) without them.

    The number only decides with which cell a worker starts, so an array may have gaps.

    Raises:
        BadValue: the environment variables are inconsistent.
    """
    rank, size = rendezvous.rank(), rendezvous.world_size()
    if rank >= size:
        raise BadValue(f"environment variable RANK is {rank}: it must be below WORLD_SIZE, which is {size}")
    if "SLURM_ARRAY_TASK_ID" not in os.environ:
        return rank, size
    task, least = _slurm_number("SLURM_ARRAY_TASK_ID"), _slurm_number("SLURM_ARRAY_TASK_MIN")
    count = _slurm_number("SLURM_ARRAY_TASK_COUNT", task + 1)
    if task < least or count < 1:
        raise BadValue(f"SLURM_ARRAY_TASK_ID is {task}: the array has {count} tasks and starts at {least}")
    return (task - least) % count * size + rank, count * size


def _slurm_number(name: str, default: int = 0) -> int:
    value = os.environ.get(name, str(default))
    if not value.isdecimal():
        got = f"environment variable {name} is {checks.describe(value)}"
        raise BadValue(f"{got}: it must be a number, as sbatch sets it")
    return int(value)


@checks.arguments
def check_cells(grid: Grid, folder: str | Path, *, device: str = "cpu", download: bool = False) -> list[Config]:
    """Checks that all unfinished cells of a grid can be trained, and returns all cells.

    Args, Raises: see `train_grid`.
    """
    cells = expand_grid(grid, folder, device=device)
    unfinished = [cell for cell in cells if _finished_result(cell, grid) is None]
    loaded: dict[tuple[str, str, int | None], data.Dataset] = {}

    def load_once(cell: Config) -> data.Dataset:
        source = cell.data, cell.data_dir, cell.size
        if source not in loaded:
            with files.lock(Path(cell.data_dir), timeout=-1) if download else nullcontext():
                loaded[source] = read_data(cell, download=download)
        return loaded[source]

    for cell in unfinished:
        _check_same_run(cell)
    # The checks do not depend on the seed, so one seed of each combination is enough.
    for cell in {(cell.system.name, cell.estimator, cell.samples): cell for cell in reversed(unfinished)}.values():
        try:
            check_available(cell)
            with environment.numerics(cell):
                prepare(cell, load_once)
        except (BadValue, BadType, BadData) as error:
            raise BadValue(f"{cell_name(cell)}: {error}") from None
    return cells


def _check_same_run(cell: Config, may_change: Collection[str] = _MAY_CHANGE) -> None:
    """Raises BadValue if the run in a cell's folder has another configuration, BadData if its system's code changed."""
    path = Path(cell.out)
    if has_run(path) and (pairs := differences(read_config(path, cell.system), cell, may_change)):
        advice = "restore them, or choose another folder for the sweep"
        raise BadValue(f"{cell.out} has a run with other settings: {pairs}; {advice}")
    if (path / MANIFEST).is_file():
        check_same_system(cell.system, read_manifest(path), path)


def _finished_result(cell: Config, grid: Grid) -> CellResult | None:
    """The result of a cell; None unless it is finished and has the grid's number of replicates."""
    result = read_cell(cell)
    if result is not None:
        _check_same_run(cell, {*_MAY_CHANGE, "device", "compile"})  # another machine may have trained it
        if "diverged" in result or grid.replicates in (None, result.get("replicates")):
            return result
    return None


def _train_cell(
    cell: Config, grid: Grid, measure: Callable[[Run, int], CellResult], stop: Callable[[], bool]
) -> CellResult:
    """Trains a cell to its end, measures it, and writes its result. Raises InUse if another worker holds the cell."""
    path = Path(cell.out)
    with files.lock(path / CLAIM):
        if (result := _finished_result(cell, grid)) is not None:  # another worker has just finished it
            return result
        _check_same_run(cell)
        result = {**cell_id(cell), "target": target_of(cell.estimator, cell.noise)}
        try:
            if not has_run(path):
                execute.run(cell, stop_context=lambda: nullcontext(stop))
            elif not ((path / PARAMS).is_file() and (path / LAST_FIGURE).is_file()):
                execute.resume(path, system=cell.system, stop_context=lambda: nullcontext(stop))
            result |= _result_epoch(cell)
            if grid.replicates is not None:
                result["replicates"] = grid.replicates
                result["variance"] = measure(load(path, system=cell.system, device=cell.device), grid.replicates)
        except NonFinite as error:
            result["diverged"] = str(error)
        files.write(path / CELL, files.as_json(result))
        return result


def _result_epoch(cell: Config) -> CellResult:
    """The numbers of the epoch whose parameters the run has: the last, or the best."""
    path, found = Path(cell.out, METRICS), None
    fields = {"steps": "step", "bound": "train_bound", "test_bound": "test_bound", "params_sha256": "params_sha256"}
    for row in tracking.MetricsReader(path, kind="epoch"):
        if row.keys() >= set(fields.values()):
            better = found is None or not cell.keep_best or row["test_bound"] > found["test_bound"]
            found = row if better else found
    if found is None:
        raise BadData(f"{path} has no row of a complete epoch")
    return {name: found[field] for name, field in fields.items()}
