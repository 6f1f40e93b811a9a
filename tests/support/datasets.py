"""Small files in the formats of the data sets, and checks of the errors of `load`."""

import gzip
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from funcvae import data
from funcvae.errors import FuncvaeError


def idx(array):
    """The bytes of an IDX file: magic number, counts (big-endian), values."""
    return struct.pack(f">{1 + array.ndim}i", 0x800 + array.ndim, *array.shape) + array.tobytes()


def digits(n, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
    images[0, 0, :2] = 0, 255
    return images, rng.integers(0, 10, n, dtype=np.uint8)


def write_idx(folder, *, zipped=False, train=12, test=5):
    """Writes the four files of MNIST's layout and returns their arrays."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for part, n in (("train", train), ("t10k", test)):
        arrays[f"{part}-images-idx3-ubyte"], arrays[f"{part}-labels-idx1-ubyte"] = digits(n, seed=n)
    for name, array in arrays.items():
        content = gzip.compress(idx(array)) if zipped else idx(array)
        (folder / (f"{name}.gz" if zipped else name)).write_bytes(content)
    return list(arrays.values())


def assert_digits(dataset, arrays):
    images, labels, test_images, test_labels = (torch.from_numpy(a) for a in arrays)
    assert torch.equal(dataset.train, images[:, None])
    assert torch.equal(dataset.test, test_images[:, None])
    assert torch.equal(dataset.train_labels, labels.long())
    assert torch.equal(dataset.test_labels, test_labels.long())
    assert dataset.train.min() == 0
    assert dataset.train.max() == 255


def write_image(path, shape, value=0, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.full(shape, value, dtype=np.uint8))
    (image.convert(mode) if mode else image).save(path)


def refused(error, source, *fragments, **options):
    """Asserts that load raises this error with one line that contains every fragment; returns the line."""
    with pytest.raises(error) as info:
        data.load(str(source), **options)
    message = str(info.value)
    assert isinstance(info.value, FuncvaeError)
    assert "\n" not in message
    for fragment in fragments:
        assert str(fragment) in message
    return message


# Limits: the sizes that a file declares are checked before memory is allocated.


def npy_of(shape: str, descr: str = "<f4", content: bytes = bytes(96)) -> bytes:
    head = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + content
