"""How processes that were started together connect, and how an error is reported once."""

import gc
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
import torch.distributed as dist

from funcvae._support import checks
from funcvae.distributed.collectives import SINGLE, Processes, short_reason
from funcvae.errors import BadValue, FuncvaeError, Missing, ReportedElsewhere, Stopped

__all__ = ["PATIENCE", "process_group", "rank", "world_size"]

PATIENCE = 120.0
"""Seconds that a process waits for the others to connect."""


def world_size() -> int:
    """How many processes were started together: 1, except under torchrun or the like."""
    return _from_environment("WORLD_SIZE", 1) or 1


def rank() -> int:
    """The number of this process among them, from 0."""
    return _from_environment("RANK", 0) if world_size() > 1 else 0


@contextmanager
def process_group(device: str = "cpu", *, patience: float = PATIENCE) -> Iterator[Processes]:
    """The processes that were started together, connected; `SINGLE` where there is only one.

    One process reports an error that leaves this context: in those that would repeat it, or that fail because of it, it
    becomes a `ReportedElsewhere`.

    Args:
        device: "cpu"; or "cuda", for which each process takes the GPU of its own number on its machine; or "auto",
            which is that where there are any.
        patience: seconds to wait for the other processes.

    Raises:
        Missing: a process did not connect in time; or there is no GPU for this one.
        BadValue: the environment is not one that torchrun makes.
    """
    if not 0 < checks.number("patience", patience) <= _LONGEST:
        raise BadValue(f"patience is {patience}: it must be a number of seconds, above 0 and up to {_LONGEST:,}")
    on_cuda = checks.text("device", device) != "cpu" and torch.cuda.is_available()
    if world_size() == 1:
        yield SINGLE
        return
    store = _connect(patience, "cpu:gloo,cuda:nccl" if on_cuda else "gloo")
    processes = Processes(rank(), world_size(), store)
    try:
        if on_cuda:
            torch.cuda.set_device(_local_gpu())
        yield processes
    except (Stopped, ReportedElsewhere):
        raise
    except FuncvaeError as error:
        raise _reported_once(error, processes.rank, store) from None
    except Exception as error:
        with suppress(RuntimeError):  # the store may be gone
            store.set(f"failed/{processes.rank}", str(error))
        raise
    finally:
        dist.destroy_process_group()
        gc.collect()  # otherwise torch.distributed may be destroyed at exit while its threads run, and abort


def _connect(patience: float, backend: str) -> dist.Store:
    """Initialises torch.distributed once all processes are there; returns the store that they share."""
    this, size, wait = rank(), world_size(), timedelta(seconds=patience)
    if absent := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise BadValue(f"WORLD_SIZE is {size}, and {absent[0]} is not set: start all processes by torchrun")
    store: dist.Store | None = None
    try:
        if this:
            _wait_for_port(os.environ["MASTER_ADDR"], _from_environment("MASTER_PORT", 0), patience)
        store, *_ = next(dist.rendezvous("env://", this, size, timeout=wait))
        # Where torchrun starts all again it keeps its store, with what those before have left in it.
        store = dist.PrefixStore(f"attempt {_from_environment('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        store.set(f"here/{this}", f"{socket.gethostname()} {os.getpid()}")
        store.wait([f"here/{other}" for other in range(size)], wait)
        dist.init_process_group(backend, store=dist.PrefixStore("engine", store), rank=this, world_size=size,
                                timeout=timedelta(seconds=_TIMEOUT))  # fmt: skip
    except (RuntimeError, ValueError, OSError) as error:
        missing = [] if store is None else [str(r) for r in range(size) if not store.check([f"here/{r}"])]
        who = f"process {', '.join(missing)} of {size} has not come" if missing else "the processes have not met"
        where, reason = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}", short_reason(str(error))
        raise Missing(
            f"{who} within {patience:g} s at {where} ({reason}): see that all were started, that this address "
            "can be reached from every machine, and that nothing else uses the port; --patience waits longer"
        ) from None
    return store


def _wait_for_port(address: str, port: int, patience: float) -> None:
    """Waits until something listens there; torch.distributed's own error for it is a page long."""
    end = time.monotonic() + patience
    while True:
        try:
            socket.create_connection((address, port), timeout=patience).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def _reported_once(error: FuncvaeError, rank: int, store: dist.Store) -> FuncvaeError:
    """The error, or a ReportedElsewhere in place of it where the main process reports the same."""
    message = str(error)
    try:
        store.set(f"failed/{rank}", message)
        if rank == 0:
            return error
        store.wait(["failed/0"], timedelta(seconds=_SAME_ERROR))
        if store.get("failed/0").decode() == message:
            return ReportedElsewhere(message)
    except RuntimeError:  # the main process has reported nothing
        pass
    return error


def _local_gpu() -> int:
    """This process's GPU: the one of its number on its machine."""
    local, there = _from_environment("LOCAL_RANK", rank()), torch.cuda.device_count()
    if local >= there:
        raise Missing(
            f"there is no CUDA device for local rank {local}: this machine has {there}; start as many processes on it "
            "(--nproc-per-node), each of which sees them all, or use --device cpu"
        )
    return local


def _from_environment(name: str, default: int) -> int:
    given = os.environ.get(name, str(default))
    if not given.isdecimal() or len(given) > 9:
        raise BadValue(f"the environment's {name} is {checks.describe(given)}: torchrun sets it to a number")
    return int(given)


_LONGEST = 1_000_000  # seconds
_TIMEOUT = 1800.0  # seconds, of one exchange: the main process may load, draw or write while the others wait
_SAME_ERROR = 3.0  # seconds
