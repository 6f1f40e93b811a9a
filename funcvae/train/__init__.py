"""Training: the step, the loop over epochs, one step by itself, and checkpoints."""

from funcvae.model import Observe, as_is
from funcvae.train.loop import History, fit, test_bound
from funcvae.train.replaying import Replay, replay
from funcvae.train.settings import Log, Row, Save, Scale, Watch, per_example, summed
from funcvae.train.state import Metrics, RunKeys, TrainState, batches, init, run_keys, step_keys
from funcvae.train.step import Step, Update, make_step

__all__ = [
    "History",
    "Log",
    "Metrics",
    "Observe",
    "Replay",
    "Row",
    "RunKeys",
    "Save",
    "Scale",
    "Step",
    "TrainState",
    "Update",
    "Watch",
    "as_is",
    "batches",
    "fit",
    "init",
    "make_step",
    "per_example",
    "replay",
    "run_keys",
    "step_keys",
    "summed",
    "test_bound",
]
