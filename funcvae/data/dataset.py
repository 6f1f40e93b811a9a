"""Loads data sets, given by name or path, as tensors."""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from funcvae import random
from funcvae._support import checks
from funcvae.data.named_sets import NAMED, name_at
from funcvae.data.readers import Arrays, read_folder, read_numpy
from funcvae.errors import BadData, BadValue, Missing, unknown
from funcvae.model import from_bytes

__all__ = ["Dataset", "load"]
_HOLD_OUT_SEED = 2**63  # no user's run can have this seed, so no key is used twice


class Dataset(NamedTuple):
    """A training and a test set in memory. Images are [n, C, H, W], as bytes or as floats in [0, 1].

    Bytes take a quarter of the memory of floats, so they are decoded batch by batch: recipes do so, and `fit` does with
    `observe=model.as_floats`.
    """

    name: str
    train: Tensor  # uint8 or float32 [n, ...]
    test: Tensor  # uint8 or float32 [m, ...]
    train_labels: Tensor | None  # int64 [n]
    test_labels: Tensor | None  # int64 [m]

    def decode(self, items: Tensor) -> Tensor:
        """Items of this data set as floats: see `model.from_bytes`."""
        return from_bytes(items)

    def sha256(self) -> str:
        """The SHA-256 of dtype, shape and bytes of train and test, decoded, in hexadecimal."""
        digest = hashlib.sha256()
        for items in (self.train, self.test):
            digest.update(f"{self.decode(items[:0]).dtype}{list(items.shape)}".encode())
            for part in items.split(1000):
                digest.update(self.decode(part).cpu().numpy().reshape(-1).data)
        return digest.hexdigest()


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
            - an `.npz` file: `train`, and optionally `test`, `train_labels`, `test_labels`.
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
        return _from_arrays(source, NAMED[name](root, download))
    if not source or not os.path.exists(path):  # False for a name that no file can have
        if os.path.basename(source) == source and not path.suffix:
            raise unknown("data", source, NAMED)
        raise Missing(f"{source} does not exist: give a folder of images, an .npy or an .npz file")
    return _from_arrays(source, read_folder(path, size) if path.is_dir() else read_numpy(path))


def _from_arrays(name: str, parts: Arrays) -> Dataset:
    """The data set of these arrays, with a test set held out if it is missing. Raises BadData if they do not match."""
    if "train" not in parts:
        raise BadData(f"{name} has no array 'train': it must hold the training data")
    items = {part: _items(f"{name}: {part}", parts[part]) for part in parts if not part.endswith("labels")}
    labels = {part: parts[f"{part}_labels"] for part in ("train", "test") if f"{part}_labels" in parts}
    for part, y in labels.items():
        if part not in items:
            raise BadData(f"{name} has {part}_labels, but no array '{part}'")
        n = len(items[part])
        if y.is_floating_point() or y.is_complex() or y.shape != (n,):
            got = f"{y.dtype} {list(y.shape)}"
            raise BadData(f"{name}: {part}_labels are {got}: they must be integers [{n}], one for each item")
    if "test" not in items:
        if (n := len(items["train"])) == 1:
            raise BadData(f"{name} has one item: it needs at least two, one of them for the test set")
        order = random.permutation(random.key(_HOLD_OUT_SEED), n)
        test, train = order.tensor_split([max(1, n // 10)])
        items, labels = ({"train": x["train"][train], "test": x["train"][test]} if x else {} for x in (items, labels))
    if items["train"].shape[1:] != items["test"].shape[1:]:
        shapes = " and ".join(str(list(x.shape[1:])) for x in items.values())
        raise BadData(f"{name}: train and test items have shapes {shapes}: they must be the same")
    labels = {part: y.long() for part, y in labels.items()}
    return Dataset(name, items["train"], items["test"], labels.get("train"), labels.get("test"))


def _items(where: str, x: Tensor) -> Tensor:
    """The values [n, ...]: uint8 unchanged, other numbers as float32."""
    if x.is_complex():
        raise BadData(f"{where} is {x.dtype}: it must hold real numbers")
    if x.ndim == 0 or x.numel() == 0:
        raise BadData(f"{where} has shape {list(x.shape)}: it must be [n, ...] with at least one item")
    if x.dtype == torch.uint8:
        return x.contiguous()
    items = x.float().contiguous()
    if not all(extreme.isfinite() for extreme in items.aminmax()):  # takes no memory; NaN if there is one
        finite = items.isfinite().reshape(len(items), -1).all(1)
        raise BadData(f"{where} item {finite.int().argmin()} is NaN or infinite: all numbers must be finite in float32")
    return items
