"""Training: the step, the loop over epochs, one step by itself, and checkpoints.

A `Row` of the log has numbers by name, with their "kind" ("step", "epoch" or "variance"), "epoch" and "step"; bounds
are in nats per example. `Callbacks` has a `Log`, which gets each row; a `Watch`, which gets the number of steps and the
new state, whose buffers the next step overwrites; a `Save`, which gets the state to save; and an `Until`, which maps
the test bounds [epochs], NaN where not computed, to whether training ends. `NO_CALLBACKS` does nothing. A `Step` takes
(state, keys [2, 2], x [B, ...]) and returns (state, metrics). An `Update` maps (gradient, opt_state, params) to
(params, opt_state). A `Scale` maps the batch size to the factor of the loss.
"""

from funcvae.train.loop import History, fit, fit_task, test_bound
from funcvae.train.replaying import Replay, replay, replay_task
from funcvae.train.settings import (
    NO_CALLBACKS,
    Callbacks,
    Log,
    Row,
    Save,
    Scale,
    StepSettings,
    Watch,
    per_example,
    summed,
)
from funcvae.train.state import Metrics, RunKeys, TrainState, batches, init, run_keys, step_keys
from funcvae.train.step import Step, Update, make_step
from funcvae.train.stopping import Interrupt, KeepBest, Until, early_stopping, interrupt, keep_best
from funcvae.train.streaming import Source, mapped
from funcvae.train.task import Task

__all__ = [
    "NO_CALLBACKS", "Callbacks", "History", "Interrupt", "KeepBest", "Log", "Metrics", "Replay", "Row",
    "RunKeys", "Save", "Scale", "Source", "Step", "StepSettings", "Task", "TrainState", "Until", "Update",
    "Watch", "batches", "early_stopping", "fit", "fit_task", "init", "interrupt", "keep_best", "make_step",
    "mapped", "per_example", "replay", "replay_task", "run_keys", "step_keys", "summed", "test_bound",
]  # fmt: skip
