"""Collectives between processes, named as in `torch.distributed`, and the detection of lost processes.

`torchrun` starts the processes (or any launcher that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT).
`rendezvous.process_group` connects them, with gloo between CPUs and NCCL between GPUs. All of them run the same
program; only the main process, rank 0, prints and writes files. `SINGLE` is one process without others.
"""

import os
import pickle
import signal
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any

import torch
import torch.distributed as dist
from torch import Tensor

from funcvae import tree
from funcvae._support import checks
from funcvae._support.checks import Count, Natural, within
from funcvae.errors import BadType, BadValue, FuncvaeError, ProcessLost, ReportedElsewhere
from funcvae.tree import Tree

__all__ = ["SINGLE", "Processes", "Traffic", "split_evenly"]


@dataclass(frozen=True)
class Traffic:
    """How much a process has sent so far, except by `broadcast`."""

    messages: int = 0
    """The number of messages, each to one other process."""
    bytes: int = 0


class Processes:
    """Processes that compute one result together. All of them must call the same methods in the same order.

    Raises:
        ProcessLost: (from every method) another process has exited or does not respond.
        ReportedElsewhere: (from every method) another process has already reported the error.
    """

    @checks.arguments
    def __init__(self, rank: Natural = 0, size: Count = 1, store: dist.Store | None = None) -> None:
        if rank >= size:
            raise BadValue(f"rank is {rank}: with {size} processes it must lie between 0 and {size - 1}")
        if size > 1 and store is None:
            raise BadType("several processes need a store: use `distributed.process_group()`, which makes one")
        self.rank, self.size, self._store = rank, size, store
        self.sent = Traffic()

    def __repr__(self) -> str:
        return f"Processes(rank={self.rank}, size={self.size})"

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints and writes files: rank 0."""
        return self.rank == 0

    def share_of(self, n: int) -> range:
        """This process's part of range(n)."""
        return split_evenly(n, self.size)[self.rank]

    def all_reduce(self, flat: Tensor) -> Tensor:
        """The sum of all processes' tensors of one shape, in place. torch.distributed chooses the order of the sum."""
        if self.size == 1:
            return flat
        with self._sending(2 * (self.size - 1), 2 * flat.nbytes * (self.size - 1) // self.size):
            dist.all_reduce(flat)
        return flat

    def all_gather(self, part: Tensor) -> Tensor:
        """All processes' tensors of one shape, stacked: [size, ...]."""
        if self.size == 1:
            return part.unsqueeze(0)
        out = part.new_empty(self.size, *part.shape)
        with self._sending(self.size - 1, part.nbytes * (self.size - 1)):
            dist.all_gather([*out], part.contiguous())
        return out

    def all_to_all(self, parts: Tensor) -> Tensor:
        """Sends part r of [size, ...] to process r, and returns [size, ...] with part r from process r."""
        if self.size == 1:
            return parts
        out = torch.empty_like(parts)
        with self._sending(self.size - 1, parts.nbytes * (self.size - 1) // self.size):
            dist.all_to_all_single(out, parts.contiguous())
        return out

    def all_gather_object(self, value: Any) -> list[Any]:
        """All processes' values in the order of their ranks. They must be small and picklable."""
        if self.size == 1:
            return [value]
        content = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
        return [pickle.loads(part.numpy().tobytes()) for part in self.all_gather_parts(content)]

    def barrier(self) -> None:
        """Waits until all processes have reached this call; raises in all of them if one has failed."""
        self.all_gather_object(None)

    def all_gather_rows(self, part: Tensor, lengths: list[int] | None = None) -> Tensor:
        """All processes' tensors [n_r, ...], concatenated to [n, ...]; only their lengths may differ.

        Args:
            part: this process's tensor.
            lengths: n_r of every process, if known. Otherwise they are exchanged first.
        """
        return part if self.size == 1 else torch.cat(self.all_gather_parts(part, lengths))

    def all_gather_parts(self, part: Tensor, lengths: list[int] | None = None) -> list[Tensor]:
        """All processes' tensors [n_r, ...] in the order of their ranks: see `all_gather_rows`."""
        if self.size == 1:
            return [part]
        lengths = self.all_gather(torch.tensor(len(part))).tolist() if lengths is None else lengths
        padded = part.new_zeros(max(lengths), *part.shape[1:])
        padded[: len(part)] = part
        return [row[:n] for row, n in zip(self.all_gather(padded), lengths, strict=True)]

    def broadcast(self, tree_: Tree) -> Tree:
        """Returns the main process's tree of tensors in all processes. All must pass the same structure and shapes."""
        if self.size == 1:
            return tree_
        out = tree.map(torch.clone, tree_)
        with self._sending(0, 0):
            for leaf in tree.leaves(out):
                dist.broadcast(leaf, 0)
        return out

    def require_equal(self, **facts: Any) -> None:
        """Raises BadValue with the names that differ, unless these values are equal in all processes."""
        main, *others = self.all_gather_object(facts)
        for rank, theirs in enumerate(others, 1):
            pairs = [
                f"{name.replace('_', ' ')} is {checks.one_line(repr(main[name]), 80)} in process 0 and "
                f"{checks.one_line(repr(theirs[name]), 80)} in process {rank}"
                for name in facts
                if theirs[name] != main[name]
            ]
            if pairs:
                raise BadValue(f"{', '.join(pairs)}: start all processes with the same command, code and settings")

    @contextmanager
    def _sending(self, messages: int, size: int) -> Iterator[None]:
        """Counts what is sent, and turns an error of torch.distributed into one that names the lost process."""
        self.sent = Traffic(self.sent.messages + messages, self.sent.bytes + size)
        try:
            yield
        except RuntimeError as error:
            traceback.clear_frames(error.__traceback__)  # they would keep the process group and its threads
            raise self._failure(short_reason(str(error))) from None

    def _failure(self, reason: str) -> FuncvaeError:
        """Finds out which processes are lost, and returns the error to raise after a failed collective.

        The remaining processes register in their common store, which outlives them under torchrun. Only one of them
        reports the loss, or none if another process has already failed with its own error.
        """
        assert self._store is not None
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it to processes that are about to end anyway
        try:
            self._store.set(f"left/{self.rank}", "")
            gone, start = list[int](), time.monotonic()
            while not gone and time.monotonic() < start + _ROLL_CALL:
                time.sleep(_GRACE)  # a process with its own error reports first
                if any(self._store.check([f"failed/{rank}"]) for rank in range(self.size)):
                    return ReportedElsewhere("another process reports the error")
                silent = [rank for rank in range(self.size) if not self._store.check([f"left/{rank}"])]
                gone = [rank for rank in silent if self._has_ended(rank)]
            if self._store.add("reported", 1) > 1:
                return ReportedElsewhere("another process reports the loss")
        except RuntimeError:
            return ProcessLost(f"process 0, which holds the common store, has exited or cannot be reached: {reason}")
        which = ", ".join(map(str, gone or silent))
        if gone:
            return ProcessLost(
                f"process{'es' * (len(gone) > 1)} {which} exited unexpectedly (possibly killed): {reason}"
            )
        if silent:
            return ProcessLost(f"process {which} has not responded for {_ROLL_CALL:g} s and may have exited: {reason}")
        return ProcessLost(f"the processes cannot reach one another: {reason}")

    def _has_ended(self, rank: int) -> bool:
        """Whether a process of this machine has ended; False for a process of another machine."""
        assert self._store is not None
        host, _, number = self._store.get(f"here/{rank}").decode().rpartition(" ")
        try:
            if host == socket.gethostname():
                os.kill(int(number), 0)  # sends no signal, only checks that the process exists
        except ProcessLookupError:
            return True
        return False


SINGLE = Processes()
"""The only process of a computation, which exchanges nothing."""


@checks.arguments
def split_evenly(n: Natural, parts: Annotated[int, within(1, 2**24)]) -> list[range]:
    """Splits range(n) into consecutive pieces whose lengths differ by at most one; the longer ones come first."""
    shorter, longer = divmod(n, parts)
    starts = [i * shorter + min(i, longer) for i in range(parts + 1)]
    return [range(a, b) for a, b in pairwise(starts)]


def short_reason(error: str) -> str:
    """The reason in an error message of torch.distributed, without file names and advice."""
    lines = [line for line in error.splitlines() if line.strip()]
    if not lines:
        return "no reason given"
    sentences = lines[0].rpartition("] ")[2].split(". ")
    # gloo writes "[enforce fail at FILE] CONDITION. REASON".
    return checks.one_line(sentences[-1 if "[enforce fail" in lines[0] else 0], 120)


_ROLL_CALL = 25.0  # seconds for the remaining processes to register; one of them may still compute a step
_GRACE = 1.0  # seconds
