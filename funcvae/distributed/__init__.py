"""Several processes that make one result: how they meet, what they exchange, and how a step's work is shared."""

from funcvae.distributed.processes import SINGLE, Processes, Traffic, cut
from funcvae.distributed.rendezvous import PATIENCE, process_group, rank, world_size
from funcvae.distributed.sharding import Split, by_rows, by_samples

__all__ = [
    "PATIENCE",
    "SINGLE",
    "Processes",
    "Split",
    "Traffic",
    "by_rows",
    "by_samples",
    "cut",
    "process_group",
    "rank",
    "world_size",
]
