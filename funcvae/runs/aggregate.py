"""Collects the results of a sweep: a row for each cell, means over the seeds, a table and figures."""

import math
import shlex
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from funcvae import figures
from funcvae._support import checks
from funcvae._support.reprs import short_repr
from funcvae._support.tables import WIDTH, Block, Table, as_csv, as_frame, as_text, shown, unbroken
from funcvae.errors import BadData, BadValue, Missing
from funcvae.figures.sweep import OverSeeds
from funcvae.models import SYSTEMS, System
from funcvae.runs.config import Config
from funcvae.runs.folder import has_run
from funcvae.runs.grid import CELL, GRID, cell_id, expand_grid, read_cell, read_grid, target_of
from funcvae.runs.systems import find_system

__all__ = ["SweepResults", "TableRow", "collect"]

NETWORKS = ("encoder", "decoder")
COLUMNS = (
    "system", "estimator", "target", "samples", "seed", "status", "steps", "bound", "test_bound",
    *(f"{name}_{network}" for network in NETWORKS for name in ("variance", "low", "high", "trusted", "snr")),
    "params_sha256", "diverged", "folder",
)  # fmt: skip

TableRow = dict[str, Any]


@shown
@short_repr
class SweepResults(NamedTuple):
    """The results of a sweep so far; `print` shows them as a table."""

    cells: list[TableRow]
    """One row for each cell, in the grid's order, with the columns of `to_csv`; None for missing numbers."""
    groups: list[TableRow]
    """One row for each system, estimator and number of samples, over its "finished" seeds. "seeds" is their number.
    "bound", "test_bound" and, if measured, "log_variance_encoder" and "log_variance_decoder" each have the "mean", its
    standard error "se" and the ends "low" and "high" of its 95% interval by Student's t (None for one seed)."""

    @property
    def unfinished(self) -> list[TableRow]:
        """The cells without numbers: missing, begun or diverged."""
        return [cell for cell in self.cells if cell["status"] != "finished"]

    def to_dict(self) -> dict[str, Any]:
        """Cells and groups, for a JSON file."""
        return self._asdict()

    def to_csv(self) -> str:
        """The cells as comma-separated values under a line of names; missing numbers are empty.

        system, estimator, target, samples, seed: identify the cell; the bounds estimate the target.
        status: "finished"; "diverged" (numbers became NaN or infinite); "begun" (in use or stopped); or "missing".
        steps: number of steps before the last epoch ended, or the best one if the runs keep the best parameters.
        bound: mean over the training steps of that epoch, nats per example.
        test_bound: after that epoch, nats per example.
        variance_encoder, low_encoder, high_encoder, trusted_encoder, snr_encoder: total variance of the gradient at the
            end, its 95% interval, whether the interval is reliable, and the signal-to-noise ratio; the same for the
            decoder.
        params_sha256: of parameters and state.
        diverged: what was not finite, and at which step.
        folder: the run folder.
        """
        return as_csv(self.cells)

    def to_pandas(self) -> Any:
        """The cells as a pandas.DataFrame with the columns of `to_csv`. Raises Missing if pandas is not installed."""
        return as_frame(self.cells)

    @checks.arguments
    def table(self, *, wide: bool = False) -> str:
        """The groups, and a line for each unfinished cell, as text in 80 columns. `print` shows it.

        Args:
            wide: show also the target and the 95% interval of the test bound; lines are as long as it takes.
        """
        return as_text(self._blocks(wide), None if wide else WIDTH)

    def _blocks(self, wide: bool) -> list[Block]:
        measured = [name for name in NETWORKS if any(f"log_variance_{name}" in group for group in self.groups)]
        titles = ["system", "estimator", "target", "K", "seeds", "test bound", unbroken("± se"), "95% interval"]
        titles += [f"{network} variance" for network in measured]
        kept = [i for i, title in enumerate(titles) if wide or title not in ("target", "95% interval")]
        rows = [[_line(group, measured)[i] for i in kept] for group in self.groups]
        align = "<<<>" if wide else "<<>"
        blocks: list[Block] = [Table([titles[i] for i in kept], {"": rows}, align)]
        blocks += ["bounds: nats per example" + ("; variances: geometric means over the seeds" if measured else "")]
        for cell in self.unfinished:
            reason = f": {cell['diverged']}" if cell["diverged"] else ""
            blocks.append(f"{cell['status']}: {Path(cell['folder']).name}{reason}")
        return blocks

    def figures(self) -> dict[str, Figure]:
        """The figures of the available numbers, by file name; variances as geometric means."""
        diverged = sum(cell["status"] == "diverged" for cell in self.cells)
        omitted = f"\n(left out: {diverged} diverged)" if diverged else ""
        variances: dict[str, dict[str, OverSeeds]] = {}
        for network in NETWORKS:
            for system, lines in _panels(self, f"log_variance_{network}").items():
                variances[f"{system}, {network}"] = {label: line.map(np.exp) for label, line in lines.items()}
        made = {}
        if bounds := _panels(self, "test_bound"):
            title = f"Each estimator's own bound on the test data, at the end of training{omitted}"
            made["sweep_bound"] = figures.over_seeds(bounds, title=title)
        if variances:
            title = f"Variance of the gradient at the end of training, geometric means over the seeds{omitted}"
            unit = "total variance [nats²]"
            made["sweep_variance"] = figures.over_seeds(variances, ylabel=unit, yscale="log", title=title)
        return made


@checks.arguments
def collect(folder: str | Path, *, systems: Sequence[System | str] = ()) -> SweepResults:
    """Reads the results of a sweep so far. Writes nothing.

    Args:
        systems: the own systems of the sweep, or their FILE.py:NAME or package.module:NAME.

    Raises:
        BadValue: an own system of the sweep is missing in `systems`.
        Missing: the folder has no sweep.
        BadData: a file of the sweep is damaged.
    """
    path = Path(folder, GRID)
    if not path.is_file():
        raise Missing(f"{folder} is not the folder of a sweep: it has no {GRID}")
    grid, known = read_grid(path), SYSTEMS | {system.name: system for system in map(find_system, systems)}
    if missing := [spec for spec in grid.systems if spec.rpartition(":")[2] not in known]:
        options = " ".join(f"--system {shlex.quote(spec)}" for spec in missing)
        raise BadValue(f"{folder} has runs of your own systems, whose code is not in the folder: give {options}")
    rows = [_row(cell) for cell in expand_grid(grid, folder, systems=known)]
    groups: dict[tuple[Any, ...], list[TableRow]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in _GROUP), []).append(row)
    return SweepResults(rows, [_group(dict(zip(_GROUP, key, strict=True)), rows) for key, rows in groups.items()])


def mean_interval(values: Sequence[float]) -> dict[str, float | None]:
    """Mean, its standard error, and the ends of its 95% interval by Student's t with n - 1 degrees of freedom.

        mean ± t_{0.975, n-1} s / n^½,    s² = sum_i (x_i - mean)² / (n - 1)

    For a single value the error and the interval are None.
    """
    from scipy import stats  # slow to import, and rarely used

    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return {"mean": mean, "se": None, "low": None, "high": None}
    se = float(np.std(values, ddof=1)) / math.sqrt(n)
    low, high = map(float, stats.t.interval(0.95, n - 1, mean, se))
    return {"mean": mean, "se": se, "low": low, "high": high}


_GROUP = ("system", "estimator", "target", "samples")


def _row(cell: Config) -> TableRow:
    row = dict.fromkeys(COLUMNS) | cell_id(cell) | {"folder": cell.out}
    row["target"] = target_of(cell.estimator, cell.noise)
    result = read_cell(cell)
    if result is None:
        return row | {"status": "begun" if has_run(cell.out) else "missing"}
    if "diverged" in result:
        return row | {"status": "diverged", "diverged": str(result["diverged"])}
    try:
        row |= {"status": "finished", "steps": int(result["steps"]), "params_sha256": str(result["params_sha256"])}
        row |= {name: float(result[name]) for name in ("bound", "test_bound")}
        for network, found in result.get("variance", {}).items():
            if network in NETWORKS:
                row |= {f"{name}_{network}": float(found[name]) for name in ("variance", "low", "high", "snr")}
                row[f"trusted_{network}"] = bool(found["trusted"])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        message = f"{type(error).__name__}, {error}"
        raise BadData(f"{Path(cell.out, CELL)} is not the result of a cell: {message}") from None
    return row


def _group(key: TableRow, rows: Sequence[TableRow]) -> TableRow:
    done = [row for row in rows if row["status"] == "finished"]
    group = {**key, "seeds": len(done)}
    group |= {name: mean_interval([row[name] for row in done]) for name in ("bound", "test_bound") if done}
    for network in NETWORKS:
        values = [row[f"variance_{network}"] for row in done]
        if values and all(value is not None and 0 < value < math.inf for value in values):
            group[f"log_variance_{network}"] = mean_interval(np.log(values).tolist())
    return group


def _panels(results: SweepResults, name: str) -> dict[str, dict[str, OverSeeds]]:
    """{system: {estimator: one quantity over the numbers of samples}}."""
    panels: dict[str, dict[str, list[TableRow]]] = {}
    for group in results.groups:
        if name in group:
            label = f"{group['estimator']} ({group['target']})"
            panels.setdefault(group["system"], {}).setdefault(label, []).append(group)
    return {
        system: {label: _line_of(results, name, groups) for label, groups in lines.items()}
        for system, lines in panels.items()
    }


def _line_of(results: SweepResults, name: str, groups: Sequence[TableRow]) -> OverSeeds:
    groups = sorted(groups, key=lambda group: group["samples"])
    column, scale = name.removeprefix("log_"), np.log if name.startswith("log_") else np.asarray
    each = []
    for group in groups:
        rows = [row for row in results.cells if row["status"] == "finished" and all(row[n] == group[n] for n in _GROUP)]
        each.append(scale([row[column] for row in rows]))
    padded = np.array(list(zip_longest(*each, fillvalue=math.nan))).T
    ends = [[group[name][end] for group in groups] for end in ("mean", "low", "high")]
    mean, low, high = np.array(ends, float)  # NaN for None
    return OverSeeds([group["samples"] for group in groups], mean, low, high, padded)


def _line(group: TableRow, networks: Sequence[str]) -> list[str]:
    bound = group.get("test_bound") or dict.fromkeys(("mean", "se", "low", "high"))
    interval = "" if bound["low"] is None else unbroken(f"[{bound['low']:.4f}, {bound['high']:.4f}]")
    cells = [group["system"], group["estimator"], group["target"], str(group["samples"]), str(group["seeds"])]
    cells += ["" if bound[name] is None else f"{bound[name]:.4f}" for name in ("mean", "se")] + [interval]
    for network in networks:
        found = group.get(f"log_variance_{network}")
        cells.append(f"{math.exp(found['mean']):.3g}" if found else "")
    return cells
