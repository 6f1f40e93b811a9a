"""What every figure does with its arguments first: check their shapes, and turn them into floats."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.mathtext import MathTextParser
from numpy.typing import ArrayLike, NDArray

from funcvae._support import checks
from funcvae.errors import BadType, BadValue

Floats = NDArray[np.float64]


def as_array(name: str, value: ArrayLike, axes: str, finite: bool = True) -> Floats:
    """The value as floats, with one axis for each word of `axes`; a number in it fixes that axis's size."""
    array, sizes = floats(name, value), axes.split()
    fixed = [n if size.isdigit() else size for n, size in zip(array.shape, sizes, strict=False)]
    if array.ndim != len(sizes) or list(map(str, fixed)) != sizes or not array.size:
        raise BadValue(f"{name} must be [{', '.join(sizes)}], got {list(array.shape)}")
    if finite and not np.isfinite(array).all():
        raise BadValue(f"{name} must be finite, got {np.sum(~np.isfinite(array))} values that are not")
    if (np.isfinite(array) & (np.abs(array) > _MOST)).any():
        raise BadValue(f"{name} has values beyond ±{_MOST:g}: a figure cannot show them")
    return array


def floats(name: str, value: ArrayLike) -> Floats:
    """The value as floats, whatever its shape."""
    raw = as_is(name, value)
    if raw.dtype.kind not in "biuf":
        raise BadType(f"{name} must be real numbers, got {checks.describe(value)}")
    return raw.astype(float)


def as_is(name: str, value: Any) -> NDArray[Any]:
    """The value as an array of whatever it holds."""
    if isinstance(value, torch.Tensor):
        value = checks.concrete(name, value).detach().cpu()
        value = value.float() if value.dtype == torch.bfloat16 else value
    elif not (isinstance(value, Sequence) or hasattr(value, "__array__")) or isinstance(value, str | bytes):
        raise BadType(f"{name} must be an array, got {checks.describe(value)}")
    try:
        return np.asarray(value)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise BadType(f"{name} must be an array: {checks.one_line(str(error))}") from None


def flags(name: str, value: ArrayLike) -> NDArray[np.bool_]:
    """The value as true and false."""
    raw = as_is(name, value)
    if raw.dtype.kind not in "biuf":
        raise BadType(f"{name} must be true or false, got {checks.describe(value)}")
    return raw.astype(bool)


def words(name: str, value: Sequence[str], n: int | None = None) -> list[str]:
    """Several words, n of them if it is given, that matplotlib can draw."""
    if not isinstance(value, Iterable) or isinstance(value, bytes) or getattr(value, "ndim", 1) != 1:
        raise BadType(f"{name} must be words, got {checks.describe(value)}")
    value = list(value)  # of a string, its letters
    if not value or (n is not None and len(value) != n):
        raise BadValue(f"{name} must be {'one word or more' if n is None else f'{n} words'}, got {len(value)}")
    for word in value:
        text(**{name: word})
    return value


def text(**texts: str) -> None:
    """Raises unless matplotlib can draw these: no lone surrogates, no broken mathematics, not endless."""
    for name, value in texts.items():
        checks.text(name, value)
        if len(value) > _LONGEST:
            raise BadValue(f"{name} has {len(value):,} letters: it must have at most {_LONGEST:,}")
        if any("\ud800" <= letter <= "\udfff" or letter == "\0" for letter in value):
            raise BadValue(f"{name} is {checks.describe(value)}: it has letters that no font can draw")
        if (dollars := value.replace(r"\$", "").count("$")) and dollars % 2 == 0:
            try:
                MathTextParser("agg").parse(value)
            except ValueError:
                raise BadValue(f"{name} is {checks.describe(value)}: what stands between its $ is no formula") from None


_MOST = 1e100  # of what is drawn: axes overflow beyond it
_LONGEST = 1000


def as_images(name: str, value: ArrayLike, axes: str) -> Floats:
    """Images [..., C, H, W] clipped to [0, 1]."""
    images = as_array(name, value, axes)
    if images.shape[-3] not in (1, 3):
        raise BadValue(f"{name} must have C = 1 or 3 channels, third from last, got {list(images.shape)}")
    return images.clip(0, 1)
