"""Data that do not fit in memory: sources, of which training reads one batch at a time."""

import mmap
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from threading import Lock
from typing import Annotated, Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from funcvae._support import checks, examples
from funcvae._support.examples import Data
from funcvae.errors import BadData, BadType, FuncvaeError
from funcvae.train.state import TrainState, batches_from

__all__ = [
    "AHEAD", "Readable", "Source", "Stream", "blocks", "count", "first", "head", "mapped", "on_device", "opened",
    "read", "read_rows", "take", "training_batches",
]  # fmt: skip


class Source(Protocol):
    """Data [n, ...] that are read in batches: a memory-mapped array, an HDF5 data set, or any class like this one.

    A map-style `torch.utils.data.Dataset`, and a dict of sources of one length, are sources, too.
    """

    def __len__(self) -> int:
        """The number n of data."""
        ...

    def __getitem__(self, rows: Any, /) -> Any:
        """The data of the rows, int64 [B] in increasing order: an array or tensor [B, ...], or a dict of them."""
        ...


@dataclass(frozen=True)
class Stream:
    """A source whose batches are tensors. `opened` makes it."""

    name: str
    """The name of the argument, for error messages."""
    source: Any
    """A source, or a dict of sources."""
    count: int
    """The number of data."""
    first: Data
    """The first data."""

    def gather(self, rows: Tensor) -> Data:
        """The data of these rows, int64 [B] on the CPU, each at most once; as tensors on the CPU.

        Raises BadData if they cannot be read, differ from the first data in parts, shape or dtype, or are not finite,
        or if the source has changed its length.
        """
        increasing, order = rows.sort()
        return examples.take(self.checked(self.read(increasing), increasing), order.argsort())

    def read(self, rows: Tensor) -> Data:
        """The data of increasing rows, unchecked."""
        parts = examples.tensors(self.source)
        try:
            with _ONE_AT_A_TIME:
                for part, source in parts.items():
                    if (n := len(source)) != self.count:
                        name = examples.named(self.name, part)
                        raise BadData(f"{name} has {n:,} items: it had {self.count:,} when training began")
                found = {part: _tensors_at(source, rows.numpy()) for part, source in parts.items()}
        except FuncvaeError:
            raise
        except Exception as error:
            reason = checks.one_line(f"{type(error).__name__}: {error}")
            raise BadData(f"{self.name}: {_items(rows)} cannot be read: {reason}") from error
        return examples.whole(found)

    def checked(self, found: Data, rows: Tensor) -> Data:
        """Checks the data of increasing rows."""
        parts, like = examples.tensors(found), examples.tensors(self.first)
        if parts.keys() != like.keys():
            raise BadData(f"{self.name}: {_items(rows)} have the parts {[*parts]}: the first items have {[*like]}")
        for part, x in parts.items():
            name, must = examples.named(self.name, part), (len(rows), *like[part].shape[1:])
            if checks.tensor(name, x).shape != must or x.dtype != like[part].dtype:
                raise BadData(
                    f"{name}: {_items(rows)} are {checks.describe(x)}: they must be {like[part].dtype} {list(must)}"
                )
            if (item := examples.not_finite(x)) is not None:
                row = int(rows[item])
                raise BadData(f"{name}: item {row:,} is NaN or infinite: all numbers must be finite in float32")
        return found


def opened(name: str, value: Any) -> Data | Stream:
    """Checks that an object is data or a source of data. Makes a source a `Stream`, which reads its first items.

    Bytes (uint8) and booleans keep their dtype; other integers become int64, and other numbers float32.
    """
    if isinstance(value, Stream):
        return value
    parts = examples.tensors(value)
    if all(isinstance(part, Tensor) for part in parts.values()):
        return examples.checked(name, value)
    n = examples.same_length(name, {part: _length(examples.named(name, part), x) for part, x in parts.items()})
    if not n:
        raise BadData(f"{name} is empty: it must be [n, ...] with n >= 1")
    rows = torch.arange(min(n, _CHECKED))
    found = Stream(name, value, n, {}).read(rows)
    stream = Stream(name, value, n, examples.checked(name, found))
    stream.checked(found, rows)
    return stream


Readable = Annotated[Any, checks.Only(opened)]
"""Data, or a source of them, which the check makes a `Stream`."""


def count(x: Data | Stream) -> int:
    """The number n of data."""
    return x.count if isinstance(x, Stream) else examples.count(x)


def first(x: Data | Stream) -> Data:
    """The first data of a stream, or all data that are in memory."""
    return x.first if isinstance(x, Stream) else x


def take(x: Data | Stream, rows: Tensor) -> Data:
    """The data of these rows, on the device of x."""
    if not isinstance(x, Stream):
        return examples.take(x, rows.to(examples.device(x)))
    return examples.each(lambda part: part.to(examples.device(x.first)), x.gather(rows.cpu()))


def head(x: Data | Stream, n: int) -> Data:
    """The first n data, or all if there are fewer."""
    return take(x, torch.arange(min(n, x.count))) if isinstance(x, Stream) else examples.head(x, n)


def on_device(x: Data | Stream, device: torch.device) -> Data | Stream:
    """The data on a device, or a stream to it."""
    moved = examples.each(lambda part: part.to(device), first(x))
    return replace(x, first=moved) if isinstance(x, Stream) else moved


def blocks(x: Data | Stream, size: int) -> Iterator[Data]:
    """All data in blocks of `size`."""
    if isinstance(x, Stream):
        yield from map(x.gather, torch.arange(x.count).split(size))
    else:
        yield from examples.split(x, size)


def read(
    x: Data | Stream, batches: Iterable[tuple[Tensor, Tensor]], step: int | None = None
) -> Generator[tuple[Tensor, Tensor, Data]]:
    """Adds their data [B, ...] to batches (rows [B], keys). A thread reads a stream ahead, until the generator closes.

    Args:
        step: the number of the first batch, which errors name.
    """
    if not isinstance(x, Stream):
        for rows, keys in batches:
            yield rows, keys, examples.take(x, rows)
        return
    device, stream, made = examples.device(x.first), x, 0

    def gather(rows: Tensor) -> Data:
        found = stream.gather(rows.cpu())
        return examples.each(Tensor.pin_memory, found) if device.type == "cuda" else found

    thread = ThreadPoolExecutor(1, "funcvae-reader")
    reads = ((rows, keys, thread.submit(gather, rows)) for rows, keys in batches)
    try:
        pending = deque(islice(reads, 1 + AHEAD))
        while pending:
            rows, keys, future = pending.popleft()
            try:
                data = future.result()
            except FuncvaeError as error:
                raise BadData(f"{error}{'' if step is None else f' (step {step + made:,})'}") from error
            # A copy of pinned memory does not wait.
            yield rows, keys.to(device), examples.each(lambda part: part.to(device, non_blocking=True), data)
            made += 1
            pending.extend(islice(reads, 1))
    finally:
        thread.shutdown(cancel_futures=True)


def training_batches(
    ts: TrainState, x: Data | Stream, batch: int, steps: int | None = None
) -> Generator[tuple[Tensor, Tensor, Data]]:
    """The batches of a run from the next step of `ts` on, of which there are `steps`."""
    if isinstance(x, Stream):
        ts = ts._replace(key=ts.key.cpu())  # the same rows, without waiting for the device in every step
    return read(x, islice(batches_from(ts, count(x), batch), steps), int(ts.step))


@checks.arguments
def mapped(dataset: Dataset[Any], f: Callable[[Any], Any]) -> Dataset[Any]:
    """The map-style Dataset of f(item), for instance with dicts in place of tuples: {"x": item[0], "y": item[1]}."""
    return _Mapped(dataset, f)


class _Mapped(Dataset[Any]):
    def __init__(self, dataset: Dataset[Any], f: Callable[[Any], Any]) -> None:
        self.dataset, self.f = dataset, f

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, i: int) -> Any:
        return self.f(self.dataset[i])


def read_rows(source: Any, rows: np.ndarray) -> Any:
    """The data of increasing rows of a source that takes arrays of indices.

    A file that is mapped for reading is read without the map: mapped pages, of which a row may bring a megabyte, count
    as memory of the process, and one beyond the end of a file that became shorter would kill it.
    """
    mapped: mmap.mmap | None = getattr(source, "_mmap", None)
    if not (
        isinstance(source, np.memmap) and mapped and source.filename and source.mode == "r"
        and source.flags.c_contiguous and source.size and hasattr(os, "preadv")
    ):  # fmt: skip
        return source[rows]
    # The offset of a part of a mapped array is that of the whole.
    begin = source.offset - source.offset % mmap.ALLOCATIONGRANULARITY
    begin += source.ctypes.data - np.frombuffer(mapped, np.uint8).ctypes.data
    found, size = np.empty((len(rows), *source.shape[1:]), source.dtype), source[:1].nbytes
    with open(source.filename, "rb") as file:
        if file.seek(0, os.SEEK_END) != mapped.size():
            raise BadData(f"{source.filename} is another file now, or has another size")
        for row, item in zip(rows.tolist(), found.reshape(-1).view(np.uint8).reshape(-1, size), strict=True):
            if os.preadv(file.fileno(), [item.data], begin + row * size) != size:
                raise BadData(f"{source.filename} has become shorter")
    return found


def _tensors_at(source: Any, rows: np.ndarray) -> Any:
    """The data of increasing rows, a tensor or a dict of tensors: what the source returns, or a Dataset's items."""
    if not isinstance(source, Dataset):
        found = read_rows(source, rows)
        return {part: _tensor(x) for part, x in found.items()} if isinstance(found, Mapping) else _tensor(found)
    indices = rows.tolist()
    items = source.__getitems__(indices) if hasattr(source, "__getitems__") else [source[i] for i in indices]
    if isinstance(items[0], tuple | list):
        raise BadType(
            "an item of the Dataset is a tuple: it must be a tensor, an array or a dict of them, as in "
            'train.mapped(dataset, lambda item: {"x": item[0], "y": item[1]})'
        )
    if isinstance(items[0], dict):
        return {part: torch.stack([_tensor(item[part]) for item in items]) for part in items[0]}
    return torch.stack([_tensor(item) for item in items])


def _tensor(values: Any) -> Tensor:
    """Values as a tensor on the CPU, of the dtypes that `opened` describes."""
    if not isinstance(values, Tensor):
        array = np.asarray(values)
        array = array.astype(array.dtype.newbyteorder("="), copy=not array.flags.writeable)
        values = torch.from_numpy(array)
    x = values.detach().cpu()
    if x.is_complex():
        raise BadData(f"the items are {x.dtype}: they must be real numbers")
    if x.dtype in (torch.uint8, torch.bool):
        return x
    return x.float() if x.is_floating_point() else x.long()


def _items(rows: Tensor) -> str:
    return f"items {int(rows[0]):,} to {int(rows[-1]):,}"


def _length(name: str, value: Any) -> int:
    """The length of a source; raises BadType for anything else."""
    got = f"{name} is {checks.describe(value)}"
    if isinstance(value, DataLoader):
        raise BadType(
            f"{name} is a DataLoader, but training draws its batches itself, from a key. Write instead:\n"
            f"    source = fv.train.mapped(loader.dataset, lambda item: item[0])  # or the dataset, without labels\n"
            f"    observe = lambda key, x: ...  # random transforms of a batch, drawn from the key\n"
            f"    fv.train.fit(ts, model, estimator, opt, source, batch={value.batch_size}, observe=observe)"
        )
    if isinstance(value, IterableDataset) or hasattr(value, "__next__"):
        raise BadType(
            f"{got}, which can only be read in its own order: give something with len(source) and source[rows], such "
            "as a map-style Dataset or a memory-mapped array"
        )
    refused = isinstance(value, str | bytes | list | tuple | Mapping | type)
    try:
        if not refused and hasattr(value, "__getitem__"):
            return len(value)
    except TypeError:
        pass
    raise BadType(
        f"{got}: it must be a tensor [n, ...], a dict of such tensors, or a source with len(source) and source[rows], "
        "such as a memory-mapped array or a map-style Dataset"
    )


_ONE_AT_A_TIME = Lock()
"""Held while a source is read: the training and the test source may share a file that only one thread may read."""
AHEAD = 2
"""The number of batches that are read ahead."""
_CHECKED = 32  # the number of items that are read and checked at the start
