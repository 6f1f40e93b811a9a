"""Connects processes that compute one result, exchanges tensors between them, and splits a training step."""

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
