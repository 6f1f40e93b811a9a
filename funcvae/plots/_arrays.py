"""What every figure does with its arguments first: check their shapes, and turn them into floats."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from funcvae.errors import BadValue

Floats = NDArray[np.float64]


def as_array(name: str, value: ArrayLike, axes: str, finite: bool = True) -> Floats:
    """The value as floats, with one axis for each word of `axes`; a number in it fixes that axis's size."""
    array, sizes = np.asarray(value, dtype=float), axes.split()
    fixed = [n if size.isdigit() else size for n, size in zip(array.shape, sizes, strict=False)]
    if array.ndim != len(sizes) or list(map(str, fixed)) != sizes or not array.size:
        raise BadValue(f"{name} must be [{', '.join(sizes)}], got {list(array.shape)}")
    if finite and not np.isfinite(array).all():
        raise BadValue(f"{name} must be finite, got {np.sum(~np.isfinite(array))} values that are not")
    return array


def as_images(name: str, value: ArrayLike, axes: str) -> Floats:
    """Images [..., C, H, W] clipped to [0, 1]."""
    images = as_array(name, value, axes)
    if images.shape[-3] not in (1, 3):
        raise BadValue(f"{name} must have C = 1 or 3 channels, third from last, got {list(images.shape)}")
    return images.clip(0, 1)
