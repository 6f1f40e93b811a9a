"""Several processes that make one result, by `torch.distributed`: how they meet, what they send, how they end.

`torchrun` starts them (or whatever else sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT); `joined` has them meet,
with gloo between CPUs and NCCL between GPUs. All run the same program; the first alone speaks and writes. `ALONE` is a
process by itself.
"""

import gc
import os
import pickle
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from funcvae import checks, tree
from funcvae.errors import BadType, BadValue, Elsewhere, FuncvaeError, Lost, Missing, Stopped
from funcvae.tree import Tree

PATIENCE = 120.0
"""Seconds that those who have come wait for the others."""


@dataclass(frozen=True)
class Traffic:
    """What a process has sent so far."""

    messages: int = 0
    """To one other process each."""
    bytes: int = 0


class Processes:
    """Processes that make one result together. Each method is called by all of them, in the same order.

    Raises:
        Lost: (from every method) another process has ended, or does not answer.
        Elsewhere: (from every method) another process has said what is wrong.
    """

    def __init__(self, rank: int = 0, size: int = 1, store: dist.Store | None = None) -> None:
        rank, size = checks.whole("rank", rank), checks.whole("size", size, 1)
        if not 0 <= rank < size:
            raise BadValue(f"rank is {rank}: of {size} processes it lies between 0 and {size - 1}")
        if size > 1 and not isinstance(store, dist.Store):
            raise BadType("several processes meet by `processes.joined()`: there is no other way to make them")
        self.rank, self.size, self._store = rank, size, store
        self.sent = Traffic()

    @property
    def first(self) -> bool:
        """Whether this is the one that speaks and writes."""
        return self.rank == 0

    def share_of(self, n: int) -> range:
        """Which of n things are this process's."""
        return cut(n, self.size)[self.rank]

    def total_(self, flat: Tensor) -> Tensor:
        """The sum of all processes' tensors, of one shape, in place; the engine chooses the order."""
        if self.size == 1:
            return flat
        self._count(2 * (self.size - 1), 2 * flat.nbytes * (self.size - 1) // self.size)
        with self._engine():
            dist.all_reduce(flat)
        return flat

    def gathered(self, part: Tensor) -> Tensor:
        """All processes' tensors, of one shape, stacked: [size, ...]."""
        if self.size == 1:
            return part.unsqueeze(0)
        self._count(self.size - 1, part.nbytes * (self.size - 1))
        out = part.new_empty(self.size, *part.shape)
        with self._engine():
            dist.all_gather([*out], part.contiguous())
        return out

    def swapped(self, parts: Tensor) -> Tensor:
        """[size, ...], part r for process r -> [size, ...], part r from process r."""
        if self.size == 1:
            return parts
        self._count(self.size - 1, parts.nbytes * (self.size - 1) // self.size)
        out = torch.empty_like(parts)
        with self._engine():
            dist.all_to_all_single(out, parts.contiguous())
        return out

    def told(self, value: Any) -> list[Any]:
        """All processes' values, in order: something small that can be pickled."""
        if self.size == 1:
            return [value]
        content = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
        return [pickle.loads(part.numpy().tobytes()) for part in self._each(content)]

    def rows(self, part: Tensor, lengths: list[int] | None = None) -> Tensor:
        """All processes' tensors [n_r, ...], which differ in length alone, one after another: [n, ...].

        Args:
            part: this process's.
            lengths: n_r of every process, where they are known; else they are exchanged first.
        """
        return part if self.size == 1 else torch.cat(self._each(part, lengths))

    def _each(self, part: Tensor, lengths: list[int] | None = None) -> list[Tensor]:
        """Every process's tensor, which differ in length alone."""
        lengths = self.gathered(torch.tensor(len(part))).tolist() if lengths is None else lengths
        padded = part.new_zeros(max(lengths), *part.shape[1:])
        padded[: len(part)] = part
        return [row[:n] for row, n in zip(self.gathered(padded), lengths, strict=True)]

    def of_the_first(self, tree_: Tree) -> Tree:
        """The first process's tree of tensors, for all: the others' say what structure and shapes it has."""
        if self.size == 1:
            return tree_
        out = tree.map(torch.clone, tree_)
        with self._engine():
            for leaf in tree.leaves(out):
                dist.broadcast(leaf, 0)
        return out

    def agree(self, **facts: Any) -> None:
        """Raises BadValue, naming all that differs, unless these are the same in all processes."""
        for rank, theirs in enumerate(everyone := self.told(facts)):
            differing = [name for name in facts if theirs[name] != everyone[0][name]]
            if differing:
                pairs = ", ".join(
                    f"{name.replace('_', ' ')} is {_short(everyone[0][name])} in process 0 and {_short(theirs[name])} "
                    f"in process {rank}"
                    for name in differing
                )
                raise BadValue(f"{pairs}: start all with the same command, code and settings")

    def _count(self, messages: int, size: int) -> None:
        self.sent = replace(self.sent, messages=self.sent.messages + messages, bytes=self.sent.bytes + size)

    @contextmanager
    def _engine(self) -> Iterator[None]:
        """Turns what the engine says when a process is gone into words."""
        try:
            yield
        except RuntimeError as error:
            raise self._lost(str(error)) from None

    def _lost(self, reason: str) -> FuncvaeError:
        """The error for those that are left: who else is left, and has anyone said what is wrong?

        They write into the store by which they met, which under torchrun outlives them.
        """
        assert self._store is not None
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun ends those that are left, who are just about to
        try:
            self._store.set(f"left/{self.rank}", "")
            gone, start = list[int](), time.monotonic()
            while not gone and time.monotonic() < start + _ROLL_CALL:
                time.sleep(_GRACE)  # whoever has failed by itself says so first
                if any(self._store.check([f"failed/{rank}"]) for rank in range(self.size)):
                    return Elsewhere("another process has said what is wrong")
                silent = [rank for rank in range(self.size) if not self._store.check([f"left/{rank}"])]
                gone = [rank for rank in silent if self._ended(rank)]
            if self._store.add("told", 1) > 1:
                return Elsewhere("another process has said it")
        except RuntimeError:
            return Lost(f"process 0, by which the others had met, has ended, or cannot be reached: {_end(reason)}")
        which = ", ".join(map(str, gone or silent))
        if gone:
            several = "es" * (len(gone) > 1), "have" if len(gone) > 1 else "has"
            return Lost(
                f"process{several[0]} {which} {several[1]} ended without a word, killed perhaps: {_end(reason)}"
            )
        if silent:
            return Lost(f"no word from process {which} in {_ROLL_CALL:g} s, which may have ended: {_end(reason)}")
        return Lost(f"the processes cannot reach one another: {_end(reason)}")

    def _ended(self, rank: int) -> bool:
        """Whether a process is known to have ended: one of this machine."""
        assert self._store is not None
        host, _, number = self._store.get(f"here/{rank}").decode().rpartition(" ")
        try:
            if host == socket.gethostname():
                os.kill(int(number), 0)  # which does nothing to it
        except ProcessLookupError:
            return True
        return False


ALONE = Processes()
"""One process by itself."""


def cut(n: int, parts: int) -> list[range]:
    """range(n) in so many pieces, one after another, whose lengths differ by at most one (the longer come first)."""
    short, longer = divmod(checks.whole("n", n, 0), checks.whole("parts", parts, 1))
    starts = [i * short + min(i, longer) for i in range(parts + 1)]
    return [range(a, b) for a, b in pairwise(starts)]


def size() -> int:
    """How many processes were started with this one: 1 but under torchrun or the like."""
    return _from_environment("WORLD_SIZE", 1) or 1


def rank() -> int:
    """Which of them this one is."""
    return _from_environment("RANK", 0) if size() > 1 else 0


@contextmanager
def joined(device: str = "cpu", *, patience: float = PATIENCE) -> Iterator[Processes]:
    """The processes that were started together, all of them there; `ALONE` where this one is by itself.

    An error that leaves this context is one process's to tell: in those that would only repeat it, or that cannot go on
    for it, it becomes an `Elsewhere`.

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
    if size() == 1:
        yield ALONE
        return
    everyone = _meet(patience, "cpu:gloo,cuda:nccl" if on_cuda else "gloo")
    store = everyone._store
    assert store is not None
    try:
        if on_cuda:
            torch.cuda.set_device(_gpu())
        yield everyone
    except (Stopped, Elsewhere):
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
    me, all_, wait = rank(), size(), timedelta(seconds=patience)
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
            return Elsewhere(told)
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


def _end(reason: str) -> str:
    """The engine's last word, without what stands before it."""
    lines = [line for line in reason.splitlines() if line.strip()]
    return checks.line(lines[0].rpartition("] ")[2].split(". ")[0] if lines else "no reason given", 120)


def _short(value: Any) -> str:
    return checks.line(repr(value), 80)


_LONGEST = 1_000_000  # seconds
_TIMEOUT = 1800.0  # seconds, of one exchange: the first may still load, draw or write while the others wait
_ROLL_CALL = 25.0  # seconds for those that are left to say so; one of them may be in the midst of a step
_GRACE, _SAME_ERROR = 1.0, 3.0  # seconds
