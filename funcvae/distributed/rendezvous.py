"""Connects processes that were started together, and lets only one of them report an error."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
import torch.distributed as dist

from funcvae._support import checks
from funcvae._support.checks import Positive
from funcvae.distributed.collectives import SINGLE, Processes, short_reason
from funcvae.errors import BadValue, FuncvaeError, Missing, ReportedElsewhere, Stopped

__all__ = ["PATIENCE", "process_group", "rank", "world_size"]

PATIENCE = 120.0
"""The number of seconds that a process waits for the others to connect."""


def world_size() -> int:
    """The number of processes that were started together: 1 without a launcher such as torchrun."""
    return _from_environment("WORLD_SIZE", 1) or 1


def rank() -> int:
    """The rank of this process among those that were started together, from 0."""
    return _from_environment("RANK", 0) if world_size() > 1 else 0


@checks.arguments
@contextmanager
def process_group(device: str = "cpu", *, patience: Positive = PATIENCE, separate: bool = False) -> Iterator[Processes]:
    """Connects the processes that were started together; yields `SINGLE` if there is only one.

    Only one process reports an error that leaves this context. Processes that would repeat it, or that fail because of
    it, raise `ReportedElsewhere` instead.

    Args:
        device: "cpu", "cuda" (each process uses the GPU with its local rank), or "auto" ("cuda" if available).
        patience: seconds to wait for the other processes.
        separate: whether processes that another launcher started, such as srun or mpirun, may work without connecting.

    Raises:
        Missing: a process did not connect in time, the processes cannot reach one another, or there is no GPU for this
            one.
        BadValue: the environment variables are not as torchrun sets them, or another launcher started several
            processes, which would all do the same work; or patience is too long.
    """
    checks.known("device", device, ("cpu", "cuda", "auto"))
    if patience > _LONGEST:
        raise BadValue(f"patience is {patience}: it must be at most {_LONGEST:,} seconds")
    if not separate and "WORLD_SIZE" not in os.environ:
        _check_alone()
    on_cuda = device != "cpu" and torch.cuda.is_available()
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


def _check_alone() -> None:
    """Raises BadValue if a launcher that does not set torchrun's variables has started several processes."""
    for name in _SIZES:
        size = os.environ.get(name, "1")
        if size.isdecimal() and int(size) > 1:
            raise BadValue(
                f"{name} is {size}: without torchrun {size} processes would all do the same work; start one process, "
                f"or torchrun on each machine, or unset {name} if each has different work"
            )


def _connect(patience: float, backend: str) -> dist.Store:
    """Initialises torch.distributed once all processes have connected; returns their common store."""
    # Default arguments in this module keep a group that exists when it is first imported, as torch.compile imports it.
    # The threads of the group would outlive it until the interpreter ends, and abort there.
    import torch.distributed.nn.functional  # noqa: F401

    this, size, wait = rank(), world_size(), timedelta(seconds=patience)
    if absent := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise BadValue(f"WORLD_SIZE is {size}, but {absent[0]} is not set: start all processes with torchrun")
    store: dist.Store | None = None
    start = time.monotonic()
    try:
        if this:
            _wait_for_port(os.environ["MASTER_ADDR"], _from_environment("MASTER_PORT", 0), patience)
        store, *_ = next(dist.rendezvous("env://", this, size, timeout=wait))
        # When torchrun restarts all processes, its store still has the keys of earlier attempts.
        store = dist.PrefixStore(f"attempt {_from_environment('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        store.set(f"here/{this}", f"{socket.gethostname()} {os.getpid()}")
        store.wait([f"here/{other}" for other in range(size)], wait)
        dist.init_process_group(backend, store=dist.PrefixStore("engine", store), rank=this, world_size=size,
                                timeout=timedelta(seconds=_TIMEOUT))  # fmt: skip
    except (RuntimeError, ValueError, OSError) as error:
        missing: list[str] | None = None
        if store is not None:
            with suppress(RuntimeError):  # the store may be gone
                missing = [str(rank) for rank in range(size) if not store.check([f"here/{rank}"])]
        where, reason = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}", short_reason(str(error))
        if missing == []:
            raise Missing(
                f"all processes are connected to {where}, but cannot send data to one another: {reason}; check the "
                "network interface, which GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME choose"
            ) from None
        who = f"process {', '.join(missing)} of {size} has" if missing else "the processes have"
        within = f" within {patience:g} s" if time.monotonic() >= start + patience else ""
        raise Missing(
            f"{who} not connected{within} at {where} ({reason}): check that all were started, that every machine can "
            "reach this address, and that nothing else uses the port, or increase patience"
        ) from None
    return store


def _wait_for_port(address: str, port: int, patience: float) -> None:
    """Waits until a process listens on the port; torch.distributed's own error would be a page long."""
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
    """Returns the error, or a ReportedElsewhere if the main process reports the same error."""
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
    """This process's GPU: the one with its local rank."""
    local, count = _from_environment("LOCAL_RANK", rank()), torch.cuda.device_count()
    if local >= count:
        raise Missing(
            f"no CUDA device for local rank {local}: this process sees {count}; start at most as many processes on "
            "this machine (--nproc-per-node), let each of them see all GPUs, or use --device cpu"
        )
    return local


def _from_environment(name: str, default: int) -> int:
    given = os.environ.get(name, str(default))
    if not given.isdecimal() or len(given) > 9:
        raise BadValue(f"environment variable {name} is {checks.describe(given)}: it must be a whole number")
    return int(given)


_SIZES = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "JSM_NAMESPACE_SIZE")
"""Variables in which srun, Open MPI, MPICH, MVAPICH and jsrun give the number of processes."""
_LONGEST = 1_000_000  # seconds
_TIMEOUT = 1800.0  # seconds for one collective: the main process may load, plot or write while the others wait
_SAME_ERROR = 3.0  # seconds to wait for the same error of the main process
