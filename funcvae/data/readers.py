"""Readers of untrusted files: NumPy arrays, folders of images, IDX files."""

import gzip
import math
import os
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

import numpy as np
import torch
from torch import Tensor

from funcvae._support import checks
from funcvae.errors import BadData, FuncvaeError, Missing

__all__ = ["ARCHIVE_RATIO", "IDX_LIMIT", "IMAGE_RATIO", "PARTS", "PIXEL_LIMIT", "UNPACKED_LIMIT", "Arrays"]

Arrays = dict[str, Tensor]
"""Arrays by name: "train" and, if they exist, "test", "train_labels", "test_labels". "train/x" is a part of "train"."""

PARTS = ("train", "test", "train_labels", "test_labels")
IDX_LIMIT = 3 * 2**24  # largest number of bytes of an unpacked IDX file. (MNIST's largest has 47 million.)

PIXEL_LIMIT = 2**24  # largest number of pixels of an image

UNPACKED_LIMIT, ARCHIVE_RATIO, IMAGE_RATIO = 2**26, 80, 100
"""An archive or a folder of images may take this many bytes of memory, or this ratio of them to its bytes on disk."""

_IMAGE_FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # PIL's other formats may run programs


def read_numpy(path: Path) -> Arrays:
    """The arrays of an .npy or .npz file."""
    if path.suffix not in (".npy", ".npz"):
        raise BadData(f"{path} cannot be read: give a folder of images, an .npy or an .npz file")
    with _reading(path, "file of numbers"), path.open("rb") as file:
        _check_numpy(file)
        loaded = np.load(file, allow_pickle=False)
        arrays = {"train": loaded} if isinstance(loaded, np.ndarray) else loaded
        found = {part: arrays[part] for part in arrays if _is_read(part)}
        # torch takes arrays in native byte order only
        return {part: torch.from_numpy(x.astype(x.dtype.newbyteorder("="), copy=False)) for part, x in found.items()}


def map_numpy(path: Path) -> np.memmap:
    """The array of an .npy file, mapped to memory: only its header is read."""
    if path.suffix != ".npy":
        unpack = f': write np.save("{path.stem}.npy", np.load("{path.name}")["train"])' if path.suffix == ".npz" else ""
        raise BadData(f"{path} cannot be read batch by batch, only an .npy file can{unpack}")
    with _reading(path, "file of numbers"):
        with path.open("rb") as file:
            _claimed(file, path.stat().st_size)
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not array.flags.c_contiguous:
        raise BadData(f"{path} is in Fortran order, item beside item: write np.save(path, np.ascontiguousarray(x))")
    return array


def _is_read(name: str) -> bool:
    return name in PARTS or name.startswith(("train/", "test/"))


def _check_numpy(file: IO[bytes]) -> None:
    """Raises ValueError if the arrays of an .npy or .npz file exceed the file or the memory; rewinds the file."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if not zipfile.is_zipfile(file):
        file.seek(0)
        _check_room(_claimed(file, size))
    else:
        with zipfile.ZipFile(file) as archive:
            unpacked = 0
            for member in archive.infolist():
                if _is_read(name := member.filename.removesuffix(".npy")):  # np.load takes either name
                    with archive.open(member) as array:
                        unpacked += _claimed(array, member.file_size, whole=8 if "/" in name else 4)
        if unpacked > max(UNPACKED_LIMIT, ARCHIVE_RATIO * size):
            raise ValueError(f"unpacked it takes {unpacked:,} bytes, far more than on disk: save it with np.savez")
        _check_room(unpacked)
    file.seek(0)


def _claimed(file: IO[bytes], size: int, whole: int = 4) -> int:
    """The bytes that an array takes in memory; ValueError if the file is shorter.

    Numbers take four bytes or more, integers `whole` bytes or more, and those of uint8 one.
    """
    from numpy.lib import format

    read = {(1, 0): format.read_array_header_1_0, (2, 0): format.read_array_header_2_0}[format.read_magic(file)]
    shape, _, dtype = read(file)
    count, left = math.prod(shape), size - file.tell()
    if count * dtype.itemsize > left:
        raise ValueError(f"its header claims {count:,} items of {dtype.itemsize} bytes, but {left:,} bytes follow")
    return count * (1 if dtype == "uint8" else max(whole if dtype.kind in "iu" else 4, dtype.itemsize))


def _check_room(size: int) -> None:
    """Raises ValueError unless the memory holds this many bytes twice: numbers are converted, and images joined."""
    if 2 * size > checks.MEMORY:
        needed, available = (f"{n / 2**30:,.1f}" for n in (2 * size, checks.MEMORY))
        raise ValueError(f"loading takes {needed} GiB, and this machine has {available}")


def read_folder(folder: Path, size: int | None = None) -> tuple[Arrays, tuple[str, ...]]:
    """The images of a folder, or of its subfolders train and test, uint8 [n, C, H, W], and the names of its classes.

    `load` describes `size`.
    """
    folders = {part: folder / part for part in ("train", "test")}
    if not all(path.is_dir() for path in folders.values()):
        folders = {"train": folder}
    elif _subfolders(folders["train"]) != _subfolders(folders["test"]):
        raise BadData(f"{folder / 'test'} and {folder / 'train'} have different class folders: they must be the same")
    files = {part: _image_files(path) for part, path in folders.items()}
    images = _read_images([path for found in files.values() for path, _ in found], size)
    arrays = dict(zip(files, images.split([len(found) for found in files.values()]), strict=True))
    if classes := _subfolders(folders["train"]):
        arrays |= {f"{part}_labels": torch.tensor([label for _, label in found]) for part, found in files.items()}
    return arrays, tuple(classes)


def _subfolders(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _image_files(folder: Path) -> list[tuple[str, int]]:
    """The image files of a folder with their class numbers, which are 0 if it has no class folders."""
    from torchvision.datasets.folder import is_image_file, make_dataset

    if classes := {name: i for i, name in enumerate(_subfolders(folder))}:
        files = make_dataset(folder, classes, is_valid_file=is_image_file, allow_empty=True)
    else:
        files = [(str(path), 0) for path in sorted(folder.iterdir()) if is_image_file(path.name)]
    if not files:
        raise Missing(f"{folder} holds no images: it must have image files, or one folder of them for each class")
    return files


def _read_images(paths: list[str], size: int | None) -> Tensor:
    """Images as uint8 [n, C, H, W], with one channel if all are grey."""
    from PIL import Image
    from torchvision.transforms import functional

    images: list[Tensor] = []
    allowed = max(UNPACKED_LIMIT, IMAGE_RATIO * sum(os.stat(path).st_size for path in paths if os.path.isfile(path)))
    for path in paths:
        with _reading(path, "8-bit image"), Image.open(path, formats=_IMAGE_FORMATS) as image:
            pixels, mode = image.width * image.height, "L" if image.mode in ("1", "L", "LA") else "RGB"
            if pixels > PIXEL_LIMIT:
                raise ValueError(f"it has {pixels:,} pixels: at most {PIXEL_LIMIT:,} are allowed")
            if size and pixels * (size / min(image.size)) ** 2 > PIXEL_LIMIT:
                raise ValueError(f"resized, it has more than {PIXEL_LIMIT:,} pixels: choose a smaller size")
            unpacked = len(mode) * (size**2 if size else pixels) * len(paths)  # all have one size
            if unpacked > allowed and size is None:
                raise ValueError(f"all take {unpacked:,} bytes, far more than on disk: use an .npy file")
            _check_room(unpacked)
            if image.mode.startswith(("I", "F")):  # more than 8 bits, which PIL would clip at 255
                raise TypeError(f"its pixels are of PIL's mode {image.mode}")
            found: Image.Image = image.convert(mode)
            if size:
                found = functional.center_crop(functional.resize(found, size), [size, size])
            images.append(functional.pil_to_tensor(found))
        here, first = ("{2}×{1}".format(*images[i].shape) for i in (-1, 0))
        if here != first:
            what = f"{path} has {here} pixels, {paths[0]} has {first}"
            raise BadData(f"{what}: to resize all images, set size, as in --size 64")
    channels = max(len(image) for image in images)
    return torch.stack([image.expand(channels, -1, -1) for image in images])  # a grey image has R = G = B


def read_idx(path: Path) -> Tensor:
    """The images [n, 1, H, W] or labels [n] of an IDX file, gzipped or not."""
    from torchvision.datasets.mnist import read_image_file, read_label_file

    with _reading(path, "IDX file"), TemporaryDirectory() as folder:
        plain = path
        if path.suffix == ".gz":  # torchvision reads a path, uncompressed
            plain = Path(folder) / path.stem
            with gzip.open(path) as file:
                plain.write_bytes(file.read(IDX_LIMIT + 1))
        if plain.stat().st_size > IDX_LIMIT:
            raise ValueError(f"it has more than {IDX_LIMIT:,} bytes")
        return read_image_file(plain)[:, None] if "images" in path.name else read_label_file(plain)


@contextmanager
def failing_as(kind: type[FuncvaeError], message: str) -> Iterator[None]:
    """Turns any error inside into one of this kind, in one line. Ignores warnings, which corrupt bytes may cause."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split()).split(". ")[0]  # the first sentence
        raise kind(f"{message} ({reason.rstrip(':')})") from error


def _reading(path: str | Path, kind: str) -> AbstractContextManager[None]:
    if Path(path).exists() and not Path(path).is_file():  # reading a pipe would block
        raise BadData(f"{path} is not a file: it must be a complete {kind}")
    return failing_as(BadData, f"{path} cannot be read: it must be a complete {kind}")
