"""Converts the arguments of figures to numpy arrays and checks their shapes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from funcvae._support import checks
from funcvae.errors import BadType, BadValue

Floats = NDArray[np.float64]


def as_array(name: str, value: Any, axes: str, finite: bool = True) -> Floats:
    """The value as a non-empty float array with one axis for each word of `axes`; a number fixes that axis's size.

    Raises BadType or BadValue for another type or shape and, if `finite`, for NaN and infinite values.
    """
    array, sizes = as_numbers(name, value).astype(float), axes.split()
    fixed = [str(n) if size.isdigit() else size for n, size in zip(array.shape, sizes, strict=False)]
    if array.ndim != len(sizes) or fixed != sizes or not array.size:
        must = f"[{', '.join(sizes)}]" + " and not empty" * (array.size == 0)
        raise BadValue(f"{name} has shape {list(array.shape)}: it must be {must}")
    if finite and not np.isfinite(array).all():
        bad = np.sum(~np.isfinite(array))
        raise BadValue(f"{name} holds {bad} values that are NaN or infinite: all must be finite")
    return array


def as_numbers(name: str, value: Any, kinds: str = "biuf") -> NDArray[Any]:
    """The value as an array of any shape, of one of numpy's kinds of dtype: real numbers unless given."""
    try:
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu()
            value = value.float() if value.dtype == torch.bfloat16 else value
        array = np.asarray(value)
    except ValueError:
        raise BadValue(f"{name} has parts of different shapes: it must be one array") from None
    except (TypeError, RuntimeError) as error:
        raise BadType(f"{name} cannot be read as an array: {checks.one_line(str(error))}") from None
    if array.dtype.kind not in kinds:
        what = "real numbers" if "U" not in kinds else "real numbers or strings"
        raise BadType(f"{name} is {checks.describe(value)}: it must be an array of {what}")
    return array


def as_images(name: str, value: Any, axes: str) -> Floats:
    """Images [..., C, H, W], clipped to [0, 1]."""
    images = as_array(name, value, axes)
    if images.shape[-3] not in (1, 3):
        raise BadValue(f"{name} has shape {list(images.shape)}: it must have C = 1 or 3 channels, third from last")
    return images.clip(0, 1)


def words(name: str, value: Sequence[str], n: int | None = None) -> list[str]:
    """The value as a list of strings: n of them if given, else at least one."""
    found = [checks.text(f"an entry of {name}", word) for word in value]
    if not found or n not in (None, len(found)):
        raise BadValue(f"{name} has {len(found)} entries: it must have {'at least one' if n is None else n}")
    return found


def labelled(name: str, value: Sequence[Any], parts: Sequence[str]) -> list[list[Any]]:
    """The value as a list of at least one row, each a label with other parts."""
    must = f"({', '.join(parts)})"
    found = [list(checks.sequence(f"an entry of {name}", row)) for row in value]
    if not found or any(len(row) != len(parts) for row in found):
        raise BadValue(f"{name} must have at least one entry, and each must be {must}")
    for row in found:
        checks.text(f"a label in {name}", row[0])
    return found
