"""A run on disk: from a configuration to a folder with everything one wants to know of it afterwards, and back.

config.json         what was asked for, every default filled in
manifest.json       what it ran on: versions, machine, settings, the data's hash; and where it was resumed
metrics.jsonl       a row for every step and every epoch, and for every look at the variance that was asked for
checkpoints/        the newest few states of the training, from which it can go on
figures/*.png
samples.npy         of the model, after every step [steps, n, 2], where they were to be kept
params.safetensors  trained parameters and state, written last; byte-identical for equal runs

Every file is there whole or not at all, metrics.jsonl apart, whose last line may be cut off until the run goes on.

`train_grid` trains a grid of such runs, and `collect` makes a table of what came of them.
"""

from funcvae.runs.aggregate import Collected, collect
from funcvae.runs.config import SPLITS, Config, configure, recipe, resolve_device, split_names
from funcvae.runs.execute import MakeTracker, resume, run
from funcvae.runs.folder import Run, has_run, load, load_data, untrained
from funcvae.runs.grid import Grid, cells, parse_grid, read_grid
from funcvae.runs.report import (
    Report,
    comparison_report,
    evaluation_figures,
    evaluation_report,
    evaluation_table,
    own_variance,
)
from funcvae.runs.reproduce import TOLERANCE, Verdict, replay, verify
from funcvae.runs.workers import check_cells, train_grid, worker_share

__all__ = [
    "SPLITS",
    "TOLERANCE",
    "Collected",
    "Config",
    "Grid",
    "MakeTracker",
    "Report",
    "Run",
    "Verdict",
    "cells",
    "check_cells",
    "collect",
    "comparison_report",
    "configure",
    "evaluation_figures",
    "evaluation_report",
    "evaluation_table",
    "has_run",
    "load",
    "load_data",
    "own_variance",
    "parse_grid",
    "read_grid",
    "recipe",
    "replay",
    "resolve_device",
    "resume",
    "run",
    "split_names",
    "train_grid",
    "untrained",
    "verify",
    "worker_share",
]
