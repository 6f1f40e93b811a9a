"""How processes that were started together find one another, and how their errors end."""

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
from funcvae.distributed.processes import SINGLE, Processes, _end
from funcvae.errors import BadValue, FuncvaeError, Missing, ReportedElsewhere, Stopped

PATIENCE = 120.0
"""Seconds that those who have come wait for the others."""


def world_size() -> int:
    """How many processes were started with this one: 1 but under torchrun or the like."""
    return _from_environment("WORLD_SIZE", 1) or 1


def rank() -> int:
    """Which of them this one is."""
    return _from_environment("RANK", 0) if world_size() > 1 else 0


@contextmanager
def process_group(device: str = "cpu", *, patience: float = PATIENCE) -> Iterator[Processes]:
    """The processes that were started together, all of them there; `SINGLE` where this one is by itself.

    An error that leaves this context is one process's to tell: in those that would only repeat it, or that cannot go on
    for it, it becomes an `ReportedElsewhere`.

    Args:
        device: "cpu"; or "cuda", for which each process takes the GPU of its own number on its machine; or "auto",
            which is that where there are any.
        patience: seconds to wait for those that have not come.

    Raises:
        Missing: some have not come; or this one has no GPU.
        BadValue: the environment is not one that torchrun makes.
    """
    if not 0 < checks.number("patience", patience) <= _LONGEST:
        raise BadValue(f"patience is {patience}: it must be a number of seconds, above 0 and up to {_LONGEST:,}")
    on_cuda = checks.text("device", device) != "cpu" and torch.cuda.is_available()
    if world_size() == 1:
        yield SINGLE
        return
    everyone = _meet(patience, "cpu:gloo,cuda:nccl" if on_cuda else "gloo")
    store = everyone._store
    assert store is not None
    try:
        if on_cuda:
            torch.cuda.set_device(_gpu())
        yield everyone
    except (Stopped, ReportedElsewhere):
        raise
    except FuncvaeError as error:
        raise _one_voice(error, everyone.rank, store) from None
    except Exception as error:
        with suppress(RuntimeError):  # the store may be gone
            store.set(f"failed/{everyone.rank}", str(error))
        raise
    finally:
        dist.destroy_process_group()
        gc.collect()  # else the engine may be taken apart while its threads run, at the interpreter's end, and abort


def _meet(patience: float, backend: str) -> Processes:
    me, all_, wait = rank(), world_size(), timedelta(seconds=patience)
    if absent := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise BadValue(f"WORLD_SIZE is {all_}, and {absent[0]} is not set: start all processes by torchrun")
    store: dist.Store | None = None
    try:
        if me:
            _reach(os.environ["MASTER_ADDR"], _from_environment("MASTER_PORT", 0), patience)
        store, *_ = next(dist.rendezvous("env://", me, all_, timeout=wait))
        # Where torchrun starts all again it keeps its store, with what those before have left in it.
        store = dist.PrefixStore(f"attempt {_from_environment('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        store.set(f"here/{me}", f"{socket.gethostname()} {os.getpid()}")
        store.wait([f"here/{other}" for other in range(all_)], wait)
        dist.init_process_group(backend, store=dist.PrefixStore("engine", store), rank=me, world_size=all_,
                                timeout=timedelta(seconds=_TIMEOUT))  # fmt: skip
    except (RuntimeError, ValueError, OSError) as error:
        missing = [] if store is None else [str(r) for r in range(all_) if not store.check([f"here/{r}"])]
        who = f"process {', '.join(missing)} of {all_} has not come" if missing else "the processes have not met"
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise Missing(
            f"{who} within {patience:g} s at {where} ({_end(str(error))}): see that all were started, that this "
            "address can be reached from every machine, and that nothing else uses the port; --patience waits longer"
        ) from None
    return Processes(me, all_, store)


def _reach(address: str, port: int, patience: float) -> None:
    """Waits until something listens there: the engine's own words for it are a page long."""
    end = time.monotonic() + patience
    while True:
        try:
            socket.create_connection((address, port), timeout=patience).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def _one_voice(error: FuncvaeError, rank: int, store: dist.Store) -> FuncvaeError:
    """The error, if it is this process's to tell: where the first one says the same it is not."""
    told = str(error)
    try:
        store.set(f"failed/{rank}", told)
        if rank == 0:
            return error
        store.wait(["failed/0"], timedelta(seconds=_SAME_ERROR))
        if store.get("failed/0").decode() == told:
            return ReportedElsewhere(told)
    except RuntimeError:  # the first has said nothing
        pass
    return error


def _gpu() -> int:
    """This process's GPU: the one of its number on its machine."""
    local, there = _from_environment("LOCAL_RANK", rank()), torch.cuda.device_count()
    if local >= there:
        raise Missing(
            f"there is no CUDA device for local rank {local}: this machine has {there}; start as many processes on it "
            "(--nproc-per-node), each of which sees them all, or use --device cpu"
        )
    return local


def _from_environment(name: str, otherwise: int) -> int:
    given = os.environ.get(name, str(otherwise))
    if not given.isdecimal() or len(given) > 9:
        raise BadValue(f"the environment's {name} is {checks.shown(given)}: torchrun sets it to a number")
    return int(given)


_LONGEST = 1_000_000  # seconds


_TIMEOUT = 1800.0  # seconds, of one exchange: the first may still load, draw or write while the others wait


_SAME_ERROR = 3.0  # seconds
