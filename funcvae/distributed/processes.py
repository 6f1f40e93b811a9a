"""Several processes that make one result, by `torch.distributed`: how they meet, what they send, how they end.

`torchrun` starts them (or whatever else sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT); `joined` has them meet,
with gloo between CPUs and NCCL between GPUs. All run the same program; the first alone speaks and writes. `SINGLE` is a
process by itself.
"""

import os
import pickle
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from funcvae import tree
from funcvae._support import checks
from funcvae.errors import BadType, BadValue, FuncvaeError, ProcessLost, ReportedElsewhere
from funcvae.tree import Tree


@dataclass(frozen=True)
class Traffic:
    """What a process has sent so far."""

    messages: int = 0
    """To one other process each."""
    bytes: int = 0


class Processes:
    """Processes that make one result together. Each method is called by all of them, in the same order.

    Raises:
        ProcessLost: (from every method) another process has ended, or does not answer.
        ReportedElsewhere: (from every method) another process has said what is wrong.
    """

    def __init__(self, rank: int = 0, size: int = 1, store: dist.Store | None = None) -> None:
        rank, size = checks.whole("rank", rank), checks.whole("size", size, 1)
        if not 0 <= rank < size:
            raise BadValue(f"rank is {rank}: of {size} processes it lies between 0 and {size - 1}")
        if size > 1 and not isinstance(store, dist.Store):
            raise BadType("several processes meet by `distributed.process_group()`: there is no other way to make them")
        self.rank, self.size, self._store = rank, size, store
        self.sent = Traffic()

    @property
    def is_main(self) -> bool:
        """Whether this is the one that speaks and writes."""
        return self.rank == 0

    def share_of(self, n: int) -> range:
        """Which of n things are this process's."""
        return cut(n, self.size)[self.rank]

    def all_reduce(self, flat: Tensor) -> Tensor:
        """The sum of all processes' tensors, of one shape, in place; the engine chooses the order."""
        if self.size == 1:
            return flat
        self._count(2 * (self.size - 1), 2 * flat.nbytes * (self.size - 1) // self.size)
        with self._engine():
            dist.all_reduce(flat)
        return flat

    def all_gather(self, part: Tensor) -> Tensor:
        """All processes' tensors, of one shape, stacked: [size, ...]."""
        if self.size == 1:
            return part.unsqueeze(0)
        self._count(self.size - 1, part.nbytes * (self.size - 1))
        out = part.new_empty(self.size, *part.shape)
        with self._engine():
            dist.all_gather([*out], part.contiguous())
        return out

    def all_to_all(self, parts: Tensor) -> Tensor:
        """[size, ...], part r for process r -> [size, ...], part r from process r."""
        if self.size == 1:
            return parts
        self._count(self.size - 1, parts.nbytes * (self.size - 1) // self.size)
        out = torch.empty_like(parts)
        with self._engine():
            dist.all_to_all_single(out, parts.contiguous())
        return out

    def all_gather_object(self, value: Any) -> list[Any]:
        """All processes' values, in order: something small that can be pickled."""
        if self.size == 1:
            return [value]
        content = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
        return [pickle.loads(part.numpy().tobytes()) for part in self._each(content)]

    def barrier(self) -> None:
        """Waits until all processes are here; an error that one has raised ends the others, too."""
        self.all_gather_object(None)

    def all_gather_rows(self, part: Tensor, lengths: list[int] | None = None) -> Tensor:
        """All processes' tensors [n_r, ...], which differ in length alone, one after another: [n, ...].

        Args:
            part: this process's.
            lengths: n_r of every process, where they are known; else they are exchanged first.
        """
        return part if self.size == 1 else torch.cat(self._each(part, lengths))

    def _each(self, part: Tensor, lengths: list[int] | None = None) -> list[Tensor]:
        """Every process's tensor, which differ in length alone."""
        lengths = self.all_gather(torch.tensor(len(part))).tolist() if lengths is None else lengths
        padded = part.new_zeros(max(lengths), *part.shape[1:])
        padded[: len(part)] = part
        return [row[:n] for row, n in zip(self.all_gather(padded), lengths, strict=True)]

    def broadcast(self, tree_: Tree) -> Tree:
        """The first process's tree of tensors, for all: the others' say what structure and shapes it has."""
        if self.size == 1:
            return tree_
        out = tree.map(torch.clone, tree_)
        with self._engine():
            for leaf in tree.leaves(out):
                dist.broadcast(leaf, 0)
        return out

    def require_equal(self, **facts: Any) -> None:
        """Raises BadValue, naming all that differs, unless these are the same in all processes."""
        for rank, theirs in enumerate(everyone := self.all_gather_object(facts)):
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
                    return ReportedElsewhere("another process has said what is wrong")
                silent = [rank for rank in range(self.size) if not self._store.check([f"left/{rank}"])]
                gone = [rank for rank in silent if self._ended(rank)]
            if self._store.add("told", 1) > 1:
                return ReportedElsewhere("another process has said it")
        except RuntimeError:
            return ProcessLost(
                f"process 0, by which the others had met, has ended, or cannot be reached: {_end(reason)}"
            )
        which = ", ".join(map(str, gone or silent))
        if gone:
            several = "es" * (len(gone) > 1), "have" if len(gone) > 1 else "has"
            return ProcessLost(
                f"process{several[0]} {which} {several[1]} ended without a word, killed perhaps: {_end(reason)}"
            )
        if silent:
            return ProcessLost(
                f"no word from process {which} in {_ROLL_CALL:g} s, which may have ended: {_end(reason)}"
            )
        return ProcessLost(f"the processes cannot reach one another: {_end(reason)}")

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


SINGLE = Processes()
"""One process by itself."""


def cut(n: int, parts: int) -> list[range]:
    """range(n) in so many pieces, one after another, whose lengths differ by at most one (the longer come first)."""
    short, longer = divmod(checks.whole("n", n, 0), checks.whole("parts", parts, 1))
    starts = [i * short + min(i, longer) for i in range(parts + 1)]
    return [range(a, b) for a, b in pairwise(starts)]


def _end(reason: str) -> str:
    """The engine's last word, without what stands before it."""
    lines = [line for line in reason.splitlines() if line.strip()]
    return checks.line(lines[0].rpartition("] ")[2].split(". ")[0] if lines else "no reason given", 120)


def _short(value: Any) -> str:
    return checks.line(repr(value), 80)


_ROLL_CALL = 25.0  # seconds for those that are left to say so; one of them may be in the midst of a step


_GRACE = 1.0  # seconds
