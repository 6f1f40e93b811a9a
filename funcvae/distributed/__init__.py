"""Connects processes that compute one result, exchanges tensors between them, and splits a training step.

`SINGLE` stands for one process without others. `PATIENCE` is how many seconds a process waits for the others to
connect. A `Split`, `by_rows` or `by_samples`, maps (`GradientSettings`, wrap) to a `ShardedGradient`.
"""

from funcvae.distributed.collectives import SINGLE, Processes, Traffic, split_evenly
from funcvae.distributed.rendezvous import PATIENCE, process_group, rank, world_size
from funcvae.distributed.sharding import (
    Batch,
    GradientSettings,
    ShardedGradient,
    Split,
    StepDetails,
    by_rows,
    by_samples,
)

__all__ = [
    "PATIENCE", "SINGLE", "Batch", "GradientSettings", "Processes", "ShardedGradient", "Split", "StepDetails",
    "Traffic", "by_rows", "by_samples", "process_group", "rank", "split_evenly", "world_size",
]  # fmt: skip
