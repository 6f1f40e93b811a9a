"""Trains the cells of a grid by any number of workers, which share only a folder.

grid.json        the newest grid
cells/NAME/      a run's folder for each cell; its result.json is written last of all

A worker holds the lock of a cell's folder `.claim` from before it looks whether the run exists until the result is
written. The operating system releases the lock when the process ends. So no cell is trained twice, a cell whose worker
has died is taken up again, and workers need not communicate.
"""

import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path

from funcvae import data, estimators, noise, tracking
from funcvae._support import checks, files
from funcvae.distributed import rendezvous
from funcvae.errors import BadData, BadType, BadValue, InUse, NonFinite, Stopped
from funcvae.runs import environment, execute
from funcvae.runs.config import Config, check_config, differences
from funcvae.runs.folder import METRICS, PARAMS, Run, has_run, load, read_config
from funcvae.runs.grid import GRID, RESULT, CellResult, Grid, cell_id, cell_name, expand_grid, read_result
from funcvae.runs.prepare import prepare

__all__ = ["check_cells", "train_grid", "worker_share"]

CLAIM = ".claim"  # not the run's own lock; a run's folder may hold files whose names begin with a dot
_MAY_CHANGE = {"out", "data_dir", "checkpoint_every", "keep"}
"""Fields in which a cell may differ from the run that was begun: locations, and how often it is saved."""
POLL = 1.0  # seconds between two looks at cells that other workers hold


def train_grid(
    grid: Grid,
    folder: str | Path,
    *,
    measure: Callable[[Run, int], CellResult],
    share: tuple[int, int] = (0, 1),
    device: str = "cpu",
    download: bool = False,
    cells: Sequence[Config] | None = None,
    stop_context: Callable[[], execute.StopContext] = execute.never_stop,
    log: Callable[[str, CellResult], None] = lambda name, result: None,
) -> dict[str, CellResult]:
    """Trains the cells of a grid that are not finished, and returns when all are, whichever worker trained them.

    Other workers may do the same at the same time, on this machine or on others that see the folder. Each begins with
    its share and then takes the others. It returns to cells in use, and resumes those whose worker has died. Everything
    is checked before anything is written.

    Args:
        grid: what to train.
        folder: the sweep's; new, or one that an earlier start left, perhaps of a smaller grid.
        measure: reports the gradient variance of a finished run by a number of replicates, as `variance_report` does;
            called where the grid has `replicates`.
        share: (i, n): this is worker i of n.
        device: where to train, "cpu" or "cuda", unless the grid's settings say.
        download: fetch named data sets that are not there.
        cells: the grid's, where `check_cells` has returned them already.
        stop_context: makes a context manager, entered while there is work, of a function that tells whether to stop.
        log: called with each cell's name and result, once this worker knows of it.

    Returns:
        The result of every cell by its name, in the grid's order: "system", "estimator", "samples", "seed" and
        "target"; the last epoch's mean "bound" and "test_bound", nats per example; "steps" and "params_sha256"; and,
        with replicates, "replicates" and what `measure` returned, as "variance". A cell whose numbers became NaN or
        infinite has "diverged", which says how.

    Raises:
        BadValue: a cell cannot be trained as asked, or was begun otherwise; the message names it.
        Missing, BadData: the data are not there or not fit; a file in the folder is damaged.
        Stopped: it was asked to stop, and did, after a checkpoint.
    """
    folder = checks.path("folder", folder)
    i, n = share
    if not 0 <= checks.integer("share's first", i) < checks.integer("share's second", n, 1):
        raise BadValue(f"share is ({i}, {n}): of {n} workers the first is 0 and the last {n - 1}")
    cells = check_cells(grid, folder, device=device, download=download) if cells is None else cells
    _write_grid(grid, folder / GRID)
    first = i * len(cells) // n
    remaining, results = [*cells[first:], *cells[:first]], dict[str, CellResult]()
    with stop_context() as stop:
        while remaining:
            for cell in remaining:
                if stop():
                    raise _stopped(results, cells)
                try:
                    result = _finished_result(cell, grid) or _train_cell(cell, grid, measure, stop)
                except InUse:
                    continue
                except Stopped:
                    raise _stopped(results, cells) from None
                results[cell_name(cell)] = result
                log(cell_name(cell), result)
            remaining = [cell for cell in remaining if cell_name(cell) not in results]
            if remaining:
                time.sleep(POLL)
    return {name: results[name] for name in map(cell_name, cells)}


def worker_share() -> tuple[int, int]:
    """This worker's number and the number of workers: of torchrun, of a Slurm array, of both; (0, 1) without them.

    A worker's number only decides where it begins, so an array may have gaps.

    Raises:
        BadValue: the environment holds what neither sets.
    """
    rank, size = rendezvous.rank(), rendezvous.world_size()
    if rank >= size:
        raise BadValue(f"the environment's RANK is {rank}, and its WORLD_SIZE {size}: torchrun counts from 0")
    if "SLURM_ARRAY_TASK_ID" not in os.environ:
        return rank, size
    task, least, count = (_slurm_number(f"SLURM_ARRAY_TASK_{name}") for name in ("ID", "MIN", "COUNT"))
    if task < least or count < 1:
        raise BadValue(f"the environment has a Slurm array of {count} tasks from {least} on, and this is task {task}")
    return (task - least) % count * size + rank, count * size


def _slurm_number(name: str) -> int:
    value = os.environ.get(name, "")
    if not value.isdecimal():
        raise BadValue(f"the environment's {name} is {checks.describe(value)}: sbatch --array sets it to a number")
    return int(value)


def check_cells(grid: Grid, folder: str | Path, *, device: str = "cpu", download: bool = False) -> list[Config]:
    """The cells of a grid. Raises what `train_grid` raises where a cell that is not finished cannot be trained."""
    cells = expand_grid(grid, folder, device=device)
    unfinished = [cell for cell in cells if _finished_result(cell, grid) is None]
    loaded: dict[tuple[str, str], data.Dataset] = {}

    def load_once(cell: Config) -> data.Dataset:
        source = cell.data, cell.data_dir
        if source not in loaded:
            with _download_lock(Path(cell.data_dir)) if download else nullcontext():
                loaded[source] = data.load(cell.data, root=cell.data_dir, download=download)
        return loaded[source]

    for cell in unfinished:
        _check_same_run(cell)
    # One seed of each, because nothing here depends on it.
    for cell in {(cell.system, cell.estimator, cell.samples): cell for cell in reversed(unfinished)}.values():
        try:
            check_config(cell)
            with environment.numerics(cell):
                prepare(cell, load_once)
        except (BadValue, BadType, BadData) as error:
            raise BadValue(f"{cell_name(cell)}: {error}") from None
    return cells


@contextmanager
def _download_lock(folder: Path) -> Iterator[None]:
    """Waits until no other worker downloads into a folder, and holds its lock."""
    while True:
        try:
            with files.lock(folder):
                yield
                return
        except InUse:
            time.sleep(POLL)


def _check_same_run(cell: Config, may_change: Collection[str] = _MAY_CHANGE) -> None:
    """Raises BadValue if the run in a cell's folder has another configuration."""
    if not has_run(cell.out):
        return
    if pairs := differences(read_config(Path(cell.out)), asdict(cell), may_change):
        raise BadValue(
            f"{cell.out} was begun otherwise: {pairs}; put that back, or choose another folder for the sweep"
        )


def _write_grid(grid: Grid, path: Path) -> None:
    """Writes the grid unless the file holds it: every worker writes the same bytes."""
    content = files.as_json(grid.as_json())
    if not path.is_file() or path.read_bytes() != content:
        files.write(path, content)


def _finished_result(cell: Config, grid: Grid) -> CellResult | None:
    """The result of a cell; None unless it is finished and has the grid's number of replicates."""
    result = read_result(cell)
    if result is None:
        return None
    _check_same_run(cell, {*_MAY_CHANGE, "device", "compile"})  # this may be another machine
    return result if "diverged" in result or grid.replicates in (None, result.get("replicates")) else None


def _train_cell(
    cell: Config, grid: Grid, measure: Callable[[Run, int], CellResult], stop: Callable[[], bool]
) -> CellResult:
    """Trains a cell to its end, measures it, and writes its result.

    Raises:
        InUse: another worker has it.
    """
    path = Path(cell.out)
    with files.lock(path / CLAIM):
        if (result := _finished_result(cell, grid)) is not None:  # another worker has just finished it
            return result
        _check_same_run(cell)
        claims = estimators.parse(cell.estimator).claims_under(noise.parse(cell.noise))
        result = {**cell_id(cell), "target": claims.target}
        try:
            if not has_run(path):
                execute.run(cell, stop_context=lambda: nullcontext(stop))
            elif not (path / PARAMS).is_file():
                execute.resume(path, stop_context=lambda: nullcontext(stop))
            result |= _last_epoch(path)
            if grid.replicates is not None:
                result["replicates"] = grid.replicates
                result["variance"] = measure(load(path, device=cell.device), grid.replicates)
        except NonFinite as error:
            result["diverged"] = str(error)
        files.write(path / RESULT, files.as_json(result))
        return result


def _last_epoch(path: Path) -> CellResult:
    """The numbers of the last epoch."""
    last = None
    for row in tracking.MetricsReader(path / METRICS):
        last = row if "test_bound" in row else last
    fields = {"steps": "step", "bound": "bound", "test_bound": "test_bound", "params_sha256": "params_sha256"}
    if last is None or not last.keys() >= set(fields.values()):
        raise BadData(f"{path / METRICS} has no row of a whole epoch")
    return {name: last[field] for name, field in fields.items()}


def _stopped(results: dict[str, CellResult], cells: Sequence[Config]) -> Stopped:
    return Stopped(f"stopped, with {len(results)} of {len(cells)} cells finished; the same command goes on")
