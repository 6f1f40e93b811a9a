"""Training every cell of a grid, by as many workers as there are, who share a folder and nothing else.

grid.json        what was asked for last
cells/NAME/      a run's folder for each cell, and in the end its result.json, written last of all

Whoever works on a cell holds the lock of its folder `.claim`, from before it looks whether the run has begun until the
result is there; the system lets go of the lock with the process. So no cell is trained twice, none is left by a worker
that died, and nobody has to be told anything.
"""

import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from funcvae import data, estimators, noise, tracking
from funcvae._support import checks, files
from funcvae.distributed import rendezvous
from funcvae.errors import BadData, BadType, BadValue, InUse, NonFinite, Stopped
from funcvae.runs import config as configs
from funcvae.runs import environment as manifests
from funcvae.runs import execute
from funcvae.runs.config import Config
from funcvae.runs.folder import METRICS, PARAMS, Run, has_run, load, read_config
from funcvae.runs.grid import GRID, RESULT, Grid, Result, cells, name_of, read_result, who
from funcvae.runs.prepare import prepare

CLAIM = ".claim"  # a run's own lock is another: its folder may hold what begins with a dot
_MAY_CHANGE = {"out", "data_dir", "checkpoint_every", "keep"}
"""What a cell may have been begun with otherwise: where things lie, and how often it is kept."""
POLL = 1.0  # seconds between two looks at cells that others work on


def train_grid(
    grid: Grid,
    folder: str | Path,
    *,
    measure: Callable[[Run, int], Result],
    share: tuple[int, int] = (0, 1),
    device: str = "cpu",
    download: bool = False,
    checked: Sequence[Config] | None = None,
    stopping: Callable[[], execute.Stopping] = execute.never,
    log: Callable[[str, Result], None] = lambda name, result: None,
) -> dict[str, Result]:
    """Trains the cells of a grid that are not finished, and returns when all are, whoever trained them.

    Other workers may do the same at the same time, on this machine or on others that see the folder. One begins with
    its share and goes round; cells in use are come back to, and gone on with where their worker has died. All that can
    be known to be wrong is found before anything is made.

    Args:
        grid: what to train.
        folder: the sweep's; new, or one that an earlier start left, perhaps of a smaller grid.
        measure: what says of a finished run, by so many replicates, how its gradient varies; asked where the grid has
            `replicates`. `reports.own_variance` does.
        share: (i, n): this is worker i of n.
        device: where to train, "cpu" or "cuda", unless the grid's settings say.
        download: fetch named data sets that are not there.
        checked: the cells, where `check_cells` has returned them already.
        stopping: makes a context manager, entered while there is work, of a function that says whether to stop.
        log: called with each cell's name and result, once this worker knows of it.

    Returns:
        The result of every cell by its name, in the grid's order: "system", "estimator", "samples", "seed" and
        "target"; the last epoch's mean "bound" and "test_bound", nats per example; "steps" and "params_sha256"; and,
        with replicates, "replicates" and what `measure` said, as "variance". A cell whose numbers became NaN or
        infinite has "diverged", which says how.

    Raises:
        BadValue: a cell cannot be trained as asked, or was begun otherwise; the message names it.
        Missing, BadData: the data are not there or not fit; a file in the folder is damaged.
        Stopped: it was asked to stop, and did, after a checkpoint.
    """
    folder = checks.path("folder", folder)
    i, n = share
    if not 0 <= checks.whole("share's first", i) < checks.whole("share's second", n, 1):
        raise BadValue(f"share is ({i}, {n}): of {n} workers the first is 0 and the last {n - 1}")
    all_ = check_cells(grid, folder, device=device, download=download) if checked is None else list(checked)
    _keep(grid, folder / GRID)
    first = i * len(all_) // n
    left, found = all_[first:] + all_[:first], dict[str, Result]()
    with stopping() as stop:
        while left:
            for cell in left:
                if stop():
                    raise _stopped(found, all_)
                try:
                    result = _finished(cell, grid) or _work(cell, grid, measure, stop)
                except InUse:
                    continue
                except Stopped:
                    raise _stopped(found, all_) from None
                found[name_of(cell)] = result
                log(name_of(cell), result)
            left = [cell for cell in left if name_of(cell) not in found]
            if left:
                time.sleep(POLL)
    return {name: found[name] for name in map(name_of, all_)}


def worker_share() -> tuple[int, int]:
    """Which worker this process is, and of how many: by torchrun, by a Slurm array, by both, or alone, (0, 1).

    A worker's number only says where it begins, so an array may have gaps.

    Raises:
        BadValue: the environment holds what neither sets.
    """
    rank, size = rendezvous.rank(), rendezvous.world_size()
    if rank >= size:
        raise BadValue(f"the environment's RANK is {rank}, and its WORLD_SIZE {size}: torchrun counts from 0")
    if "SLURM_ARRAY_TASK_ID" not in os.environ:
        return rank, size
    task, least, count = (_slurm(f"SLURM_ARRAY_TASK_{name}") for name in ("ID", "MIN", "COUNT"))
    if task < least or count < 1:
        raise BadValue(f"the environment has a Slurm array of {count} tasks from {least} on, and this is task {task}")
    return (task - least) % count * size + rank, count * size


def _slurm(name: str) -> int:
    given = os.environ.get(name, "")
    if not given.isdecimal():
        raise BadValue(f"the environment's {name} is {checks.shown(given)}: sbatch --array sets it to a number")
    return int(given)


def check_cells(grid: Grid, folder: str | Path, *, device: str = "cpu", download: bool = False) -> list[Config]:
    """The cells of a grid, if those that are not finished can be trained: raises what `sweep` does where one cannot."""
    all_ = cells(grid, folder, device=device)
    todo = [cell for cell in all_ if _finished(cell, grid) is None]
    loaded: dict[tuple[str, str], data.Dataset] = {}

    def load_once(cell: Config) -> data.Dataset:
        where = cell.data, cell.data_dir
        if where not in loaded:
            with _one_downloads(Path(cell.data_dir)) if download else nullcontext():
                loaded[where] = data.load(cell.data, root=cell.data_dir, download=download)
        return loaded[where]

    for cell in todo:
        _check_begun(cell)
    # Seeds apart, for nothing depends on them.
    for cell in {(cell.system, cell.estimator, cell.samples): cell for cell in reversed(todo)}.values():
        try:
            configs.check(cell)
            with manifests.numerics(cell):
                prepare(cell, load_once)
        except (BadValue, BadType, BadData) as error:
            raise BadValue(f"{name_of(cell)}: {error}") from None
    return all_


@contextmanager
def _one_downloads(folder: Path) -> Iterator[None]:
    """Waits until no other worker downloads into a folder."""
    while True:
        try:
            with files.lock(folder):
                yield
                return
        except InUse:
            time.sleep(POLL)


def _check_begun(cell: Config, may_change: Collection[str] = _MAY_CHANGE) -> None:
    """Raises BadValue if the run in a cell's folder is another than is asked for now."""
    if not has_run(cell.out):
        return
    if pairs := configs.differences(read_config(Path(cell.out)), configs.as_json(cell), may_change):
        raise BadValue(
            f"{cell.out} was begun otherwise: {pairs}; put that back, or choose another folder for the sweep"
        )


def _keep(grid: Grid, path: Path) -> None:
    """Writes down what is asked for, unless that is what is there: the same bytes by every worker."""
    content = files.as_json(grid.as_json())
    if not path.is_file() or path.read_bytes() != content:
        files.write(path, content)


def _finished(cell: Config, grid: Grid) -> Result | None:
    """The result of a cell that has all that is asked for."""
    result = read_result(cell)
    if result is None:
        return None
    _check_begun(cell, {*_MAY_CHANGE, "device", "compile"})  # it may be another machine that asks now
    return result if "diverged" in result or grid.replicates in (None, result.get("replicates")) else None


def _work(cell: Config, grid: Grid, measure: Callable[[Run, int], Result], stop: Callable[[], bool]) -> Result:
    """Brings a cell to its end.

    Raises:
        InUse: another worker has it.
    """
    path = Path(cell.out)
    with files.lock(path / CLAIM):
        if (result := _finished(cell, grid)) is not None:  # another has just let go of it
            return result
        _check_begun(cell)
        claims = estimators.parse(cell.estimator).claims_under(noise.parse(cell.noise))
        result = {**who(cell), "target": claims.target}
        try:
            if not has_run(path):
                execute.run(cell, stopping=lambda: nullcontext(stop))
            elif not (path / PARAMS).is_file():
                execute.resume(path, {}, stopping=lambda: nullcontext(stop))
            result |= _trained(path)
            if grid.replicates is not None:
                result["replicates"] = grid.replicates
                result["variance"] = measure(load(path, device=cell.device), grid.replicates)
        except NonFinite as error:
            result["diverged"] = str(error)
        files.write(path / RESULT, files.as_json(result))
        return result


def _trained(path: Path) -> Result:
    """What the last epoch came to."""
    last = None
    for row in tracking.MetricsReader(path / METRICS):
        last = row if "test_bound" in row else last
    names = {"steps": "step", "bound": "bound", "test_bound": "test_bound", "params_sha256": "params_sha256"}
    if last is None or not last.keys() >= set(names.values()):
        raise BadData(f"{path / METRICS} has no row of a whole epoch")
    return {name: last[there] for name, there in names.items()}


def _stopped(found: dict[str, Result], all_: Sequence[Config]) -> Stopped:
    return Stopped(f"stopped, with {len(found)} of {len(all_)} cells finished; the same command goes on")
