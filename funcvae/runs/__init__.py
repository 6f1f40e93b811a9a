"""A run on disk: from a configuration to a folder with everything one wants to know of it afterwards, and back.

config.json         what was asked for, every default filled in
manifest.json       what it ran on: versions, machine, settings, the data's hash; and where it was resumed
metrics.jsonl       a row for every step and every epoch, and for every look at the variance that was asked for
checkpoints/        the newest few states of the training, from which it can go on
figures/*.png
samples.npy         of the model, after every step [steps, n, 2], where they were to be kept
params.safetensors  trained parameters and state, written last; byte-identical for equal runs

Every file is there whole or not at all, metrics.jsonl apart, whose last line may be cut off until the run goes on.

`sweep` trains a grid of such runs, and `collect` makes a table of what came of them.
"""

from funcvae.runs.again import TOLERANCE, Verdict, replay, verify
from funcvae.runs.collect import Collected, collect
from funcvae.runs.config import SPLITS, Config, configure, device, names, recipe
from funcvae.runs.folder import Run, begun, load, load_data, untrained
from funcvae.runs.grid import Grid, cells, parse_grid, read_grid
from funcvae.runs.sweep import check_cells, own_share, sweep
from funcvae.runs.training import MakeTracker, resume, run

__all__ = [
    "SPLITS",
    "TOLERANCE",
    "Collected",
    "Config",
    "Grid",
    "MakeTracker",
    "Run",
    "Verdict",
    "begun",
    "cells",
    "check_cells",
    "collect",
    "configure",
    "device",
    "load",
    "load_data",
    "names",
    "own_share",
    "parse_grid",
    "read_grid",
    "recipe",
    "replay",
    "resume",
    "run",
    "sweep",
    "untrained",
    "verify",
]
