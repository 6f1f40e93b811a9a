"""Runs on disk: trains configurations into run folders; loads, reproduces and evaluates them.

    config.json         the configuration, every default filled in
    manifest.json       the environment: versions, machine, settings, hashes of the data and of an own system's code;
                        and where the run was resumed
    metrics.jsonl       a row for every step, every epoch, and every requested measurement of the variance: see
                        `funcvae.train.Row`; byte-identical for equal runs
    times.jsonl         the seconds of training up to the end of each epoch, and up to each checkpoint within an epoch
    checkpoints/        the newest states of the training, from which it can be resumed
    figures/*.png
    samples.npy         samples of the model after every step [steps, n, 2], if requested
    params.safetensors  trained parameters and state, written at the end; byte-identical for equal runs
    result.json         how the run went, written at the end: see `Result`; or, as "diverged", what became NaN or
                        infinite

A file is either complete or missing. Only the last line of a .jsonl file may be incomplete until the run is resumed.

`train_grid` trains a grid of such runs, and `collect` makes a table of the results.
`summarize` and `runs_in` read what runs are and how they went, without their models.

A `Report` has numbers by name, and a `CellResult` those of one cell of a grid. `SPLITS` has the ways to split a step by
name. `verify` allows the relative difference `TOLERANCE` in another environment. `MakeTracker` and `StopContext` are
what `run` takes: (folder, hyper-parameters, rows so far) -> the context manager of a tracker, and the context manager
of a function that returns whether to stop.
"""

from funcvae.runs.aggregate import SweepResults, collect
from funcvae.runs.config import (
    SPLITS,
    Config,
    Options,
    configure,
    new_run_folder,
    resolve_device,
    split_names,
    with_defaults,
)
from funcvae.runs.execute import MakeTracker, StopContext, never_stop, resume, run, train
from funcvae.runs.folder import Result, Run, has_run, history_of, initial_run, load, load_data, read_result
from funcvae.runs.grid import CellResult, Grid, expand_grid, parse_grid, read_grid
from funcvae.runs.report import (
    Report,
    comparison_report,
    evaluation_figures,
    evaluation_report,
    evaluation_table,
    samples_report,
    samples_table,
    variance_report,
)
from funcvae.runs.reproduce import TOLERANCE, Verdict, replay, verify
from funcvae.runs.summary import Summary, runs_in, runs_table, side_by_side, summarize
from funcvae.runs.systems import find_system, systems_in
from funcvae.runs.workers import check_cells, train_grid, worker_share

__all__ = [
    "SPLITS", "TOLERANCE", "CellResult", "Config", "Grid", "MakeTracker", "Options", "Report", "Result", "Run",
    "StopContext", "Summary", "SweepResults", "Verdict", "check_cells", "collect", "comparison_report", "configure",
    "evaluation_figures", "evaluation_report", "evaluation_table", "expand_grid", "find_system", "has_run",
    "history_of", "initial_run", "load", "load_data", "never_stop", "new_run_folder", "parse_grid", "read_grid",
    "read_result", "replay", "resolve_device", "resume", "run", "runs_in", "runs_table", "samples_report",
    "samples_table", "side_by_side", "split_names", "summarize", "systems_in", "train", "train_grid",
    "variance_report", "verify", "with_defaults", "worker_share",
]  # fmt: skip
