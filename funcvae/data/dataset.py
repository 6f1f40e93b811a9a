"""Loads data sets, given by name or path, as tensors."""

import hashlib
import os
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from funcvae import random
from funcvae._support import checks, examples
from funcvae._support.examples import Data
from funcvae._support.reprs import short_repr
from funcvae.data.named_sets import CLASSES, NAMED, name_at
from funcvae.data.readers import Arrays, map_numpy, read_folder, read_numpy
from funcvae.errors import BadData, BadValue, Missing, unknown
from funcvae.model import from_bytes
from funcvae.train import streaming

__all__ = ["Dataset", "FileRows", "load", "stream"]
_NUMBERS = 2**22  # decoded at a time to be hashed
_HOLD_OUT_SEED = 2**63  # no user's run can have this seed, so no key is used twice


class FileRows:
    """Rows of a mapped `.npy` file, in any order: a `funcvae.train.Source` that reads only requested rows.

    Bytes (uint8) stay bytes, and other numbers become float32, as `load` does.
    """

    def __init__(self, array: np.memmap, rows: Tensor) -> None:
        self.array, self.rows = array, rows.numpy()

    @property
    def shape(self) -> torch.Size:
        """The shape [n, ...] of all rows."""
        return torch.Size([len(self.rows), *self.array.shape[1:]])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: Any) -> Tensor:
        """The items at an array of indices or in a slice, or one item."""
        rows = self.rows[at]
        if rows.ndim == 0:
            return self[[at]][0]
        order = rows.argsort()
        x = streaming.read_rows(self.array, rows[order])[order.argsort()]
        x = torch.from_numpy(x.astype(x.dtype.newbyteorder("="), copy=False))
        return x if x.dtype == torch.uint8 else x.float()


@short_repr
class Dataset(NamedTuple):
    """A training and a test set. Images are [n, C, H, W], as bytes or as floats in [0, 1].

    Bytes take a quarter of the memory of floats, so they are decoded batch by batch: recipes do so, and `fit` does with
    `observe=model.as_floats`.
    """

    name: str
    train: Any
    """uint8 or float32 [n, ...]; or a dict of such tensors and of integers, int64; or a `funcvae.train.Source`."""
    test: Any
    """The test data, like `train`."""
    train_labels: Tensor | None
    """int64 [n]."""
    test_labels: Tensor | None
    """int64 [m]."""
    classes: tuple[str, ...] = ()
    """The name of each class, if the names are known. Labels are their positions."""

    def decode(self, items: Data) -> Any:
        """Items of this data set as floats: see `funcvae.model.from_bytes`."""
        return examples.each(from_bytes, items)

    def labelled(self) -> "Dataset":
        """The same data as dicts {"x": items, "y": labels}. Raises BadData if there are no labels."""
        if self.train_labels is None or self.test_labels is None:
            raise BadData(f"{self.name} has no labels for train and test: give class folders, or train_labels")
        train, test = {"x": self.train, "y": self.train_labels}, {"x": self.test, "y": self.test_labels}
        return self._replace(train=train, test=test)

    def sha256(self) -> str:
        """The SHA-256 of dtype, shape and bytes of train and test, decoded, in hexadecimal.

        The parts of a dict follow each other by name, 1000 items at a time. Data that are not in memory are read once;
        the result for files is kept.
        """
        parts = [x.source if isinstance(x, streaming.Stream) else x for x in (self.train, self.test)]
        return (_sha256_of_files if all(isinstance(x, FileRows) for x in parts) else _sha256)(*parts)


def _sha256(*both: Any) -> str:
    digest = hashlib.sha256()
    for items in (streaming.opened("items", x) for x in both):
        first = streaming.first(items)
        for name, x in sorted(examples.tensors(first).items()):
            shape = [streaming.count(items), *x.shape[1:]]
            digest.update(f"{name}{from_bytes(x[:0]).dtype}{shape}".encode())
        few = max(1, _NUMBERS // max(1, examples.numel(examples.head(first, 1))))  # items may be large
        for block in streaming.blocks(items, 1000 if isinstance(first, dict) else min(1000, few)):
            for _, x in sorted(examples.tensors(block).items()):
                for piece in x.split(few):
                    digest.update(from_bytes(piece).cpu().numpy().reshape(-1).data)
    return digest.hexdigest()


_sha256_of_files = lru_cache(maxsize=8)(_sha256)


def load(source: str, *, root: str | Path = "data", download: bool = False, size: int | None = None) -> Dataset:
    """Loads a data set, given by name or path, as tensors.

    Bytes (uint8) stay bytes, which stand for multiples of 1/255; other numbers keep their value, in float32. If there
    is no test set, holds out a tenth (at least one item), chosen by a permutation of a fixed key.

    Untrusted files are safe: no code in them runs, and sizes in headers are checked before memory is allocated. Limits
    are `IDX_LIMIT` for IDX files, `PIXEL_LIMIT` for images, and the machine's memory. An archive or a folder of images
    may unpack to `UNPACKED_LIMIT`, or to `ARCHIVE_RATIO` or `IMAGE_RATIO` times its size if that is more.

    Args:
        source: a name in `NAMED` (`./NAME` for a path of the same name); or
            - a folder of images. If all are grey they have one channel; otherwise all are converted to RGB, as
              torchvision's `ImageFolder` does. Subfolders `train` and `test`, if both exist, are the split; others are
              classes, numbered by name;
            - a folder of torchvision's files, such as MNIST or MNIST/raw;
            - an `.npy` file: an array [n, ...];
            - an `.npz` file: `train`, and optionally `test`, `train_labels`, `test_labels`. Arrays `train/x`, `train/y`
              and so on are the parts of a dict, in which integers other than bytes become int64.
        root: the folder of torchvision's data sets, in its layout: `root/MNIST/raw`, `root/FashionMNIST/raw`,
            `root/cifar-10-batches-py`. It may also be one of these. Fashion-MNIST is also read from the folder of
            Debian's package.
        download: whether torchvision may download missing files to `root`.
        size: resizes each image of a folder: its shorter side to this many pixels, of which the square in the centre is
            kept, as torchvision's `Resize(size)` and `CenterCrop(size)` do. If None, all must have the same size.

    Raises:
        BadValue: no such name; the message has the nearest one. Or size is below 1, or is given for other sources.
        Missing: the files, or the package that provides them, are missing, or the download failed.
        BadData: a file is corrupt, there are no items, numbers are NaN or infinite, or counts or shapes do not match.
    """
    checks.flag("download", download)
    root = Path(os.path.expanduser(checks.path("root", root)))
    path = Path(os.path.expanduser(checks.path("source", source)))
    name, root = (source, root) if source in NAMED else (name_at(path), path)
    if size is not None:
        checks.at_least(1)("size", checks.whole("size", size))
        if name or path.is_file():
            raise BadValue(f"size is {size}: only a folder of images can be resized, and {source} is not one")
    if name:
        return _from_arrays(source, NAMED[name](root, download), CLASSES.get(name, ()))
    if not source or not os.path.exists(path):  # False for a name that no file can have
        if os.path.basename(source) == source and not path.suffix:
            raise BadValue(f"{unknown('data', source, NAMED)}, or give an existing folder of images, .npy or .npz file")
        raise Missing(f"{source} does not exist: give a folder of images, an .npy or an .npz file")
    if path.is_dir():
        return _from_arrays(source, *read_folder(path, size))
    return _from_arrays(source, read_numpy(path))


def stream(source: str | Path) -> Dataset:
    """A data set that stays in an `.npy` file [n, ...], of which only the header is read now.

    `train` and `test` are sources for `funcvae.train.fit`, with the numbers that `load` would give: the same rows are
    held out, bytes stay bytes, and other numbers become float32. `test[:100]` is a tensor of the first items.

    Raises:
        Missing: the file does not exist.
        BadData: it is not an `.npy` file of real numbers, its header claims more than the file holds, or it has fewer
            than two items.
    """
    path = Path(os.path.expanduser(checks.path("source", source)))
    if not source or not os.path.exists(path):
        raise Missing(f"{source} does not exist: give an .npy file")
    array, name = map_numpy(path), str(source)
    if array.dtype.kind not in "biuf":
        raise BadData(f"{name} is {array.dtype}: it must hold real numbers")
    if array.ndim == 0 or not array.size:
        raise BadData(f"{name} has shape {list(array.shape)}: it must be [n, ...] with at least one item")
    test, train = _held_out(name, len(array))
    return Dataset(name, FileRows(array, train), FileRows(array, test), None, None)


def _held_out(name: str, n: int) -> tuple[Tensor, Tensor]:
    """The rows of the test and of the training set."""
    if n == 1:
        raise BadData(f"{name} has one item: it needs at least two, one of them for the test set")
    test, train = random.permutation(random.key(_HOLD_OUT_SEED), n).tensor_split([max(1, n // 10)])
    return test, train


def _from_arrays(name: str, arrays: Arrays, classes: tuple[str, ...] = ()) -> Dataset:
    """The data set of these arrays, with a test set held out if it is missing. Raises BadData if they do not match."""
    items = {part: found for part in ("train", "test") if (found := _part(name, part, arrays)) is not None}
    if "train" not in items:
        raise BadData(f"{name} has no array 'train': it must hold the training data")
    labels = {part: arrays[f"{part}_labels"] for part in ("train", "test") if f"{part}_labels" in arrays}
    for part, y in labels.items():
        if part not in items:
            raise BadData(f"{name} has {part}_labels, but no array '{part}'")
        n = examples.count(items[part])
        if y.is_floating_point() or y.is_complex() or y.shape != (n,):
            got = f"{y.dtype} {list(y.shape)}"
            raise BadData(f"{name}: {part}_labels are {got}: they must be integers [{n}], one for each item")
    if "test" not in items:
        test, train = _held_out(name, examples.count(items["train"]))
        whole = items["train"]
        for x in examples.tensors(whole).values():
            _reorder(x, torch.cat([test, train]))
        items = {
            "train": examples.each(lambda x: x[len(test) :], whole),
            "test": examples.head(whole, len(test)),
        }
        labels = {"train": labels["train"][train], "test": labels["train"][test]} if labels else {}
    shapes = [{part: list(x.shape[1:]) for part, x in examples.tensors(x).items()} for x in items.values()]
    if shapes[0] != shapes[1]:
        both = " and ".join(str(examples.whole(shape)) for shape in shapes)
        raise BadData(f"{name}: train and test items have shapes {both}: they must be the same")
    labels = {part: y.long() for part, y in labels.items()}
    return Dataset(name, items["train"], items["test"], labels.get("train"), labels.get("test"), classes)


def _reorder(x: Tensor, order: Tensor) -> None:
    """Puts the rows of a contiguous tensor in another order, in place: a copy would double the memory."""
    for columns in x.view(len(x), -1).tensor_split(16, dim=1):
        columns.copy_(columns.index_select(0, order))


def _part(name: str, part: str, arrays: Arrays) -> Data | None:
    """The training or the test set: an array, or a dict of the arrays PART/NAME; None if there is neither."""
    inner = {key.partition("/")[2]: x for key, x in arrays.items() if key.startswith(f"{part}/")}
    if part in arrays:
        if inner:
            raise BadData(f"{name} has arrays {part!r} and '{part}/{next(iter(inner))}': it must have one or the other")
        return _items(f"{name}: {part}", arrays[part])
    if not inner:
        return None
    found = {key: _items(f"{name}: {part}/{key}", x, torch.int64) for key, x in inner.items()}
    try:
        return examples.checked(f"{name}: {part}", found)
    except BadValue as error:
        raise BadData(str(error)) from None


def _items(where: str, x: Tensor, integers: torch.dtype = torch.float32) -> Tensor:
    """The values [n, ...]: uint8 unchanged, other integers as the given dtype, and other numbers as float32."""
    if x.is_complex():
        raise BadData(f"{where} is {x.dtype}: it must hold real numbers")
    if x.ndim == 0 or x.numel() == 0:
        raise BadData(f"{where} has shape {list(x.shape)}: it must be [n, ...] with at least one item")
    if x.dtype == torch.uint8:
        return x.contiguous()
    items = x.to(torch.float32 if x.is_floating_point() else integers).contiguous()
    if (item := examples.not_finite(items)) is not None:
        raise BadData(f"{where} item {item} is NaN or infinite: all numbers must be finite in float32")
    return items
