"""Checks of arguments, shared by all. They look at types, shapes, dtypes and devices, never at a tensor's values.

So they cost next to nothing, and pass through `vmap` and `torch.compile`. Each returns what it was given, or raises
BadType (the wrong kind of thing) or BadValue (the right kind, out of range) in one line.
"""

import math
import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from funcvae.errors import BadType, BadValue, Missing

MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**63
"""Bytes of memory that this machine has, where the system says."""


def describe(value: Any) -> str:
    """A value in a message: short, and on one line."""
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor {list(value.shape)}"
    if isinstance(value, int) and abs(value) >= 2**64:
        return f"about {'-' * (value < 0)}2**{value.bit_length() - 1}"
    if value is None or isinstance(value, int | float | complex | str | bytes | torch.dtype):
        return one_line(repr(value), 60)
    if isinstance(value, tuple | list) and len(value) <= 6:  # without those in it, for it may be in itself
        inner = (describe(v) if not isinstance(v, tuple | list) else type(v).__name__ for v in value)
        return one_line(f"{type(value).__name__} ({', '.join(inner)})", 120)
    return f"of type {type(value).__name__}"


def one_line(text: str, most: int = 300) -> str:
    """A text on one line, cut where it is long."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 2]} …"


def integer(name: str, value: int, least: int | None = None, most: float = 2**63 - 1) -> int:
    """A whole number, not below `least`."""
    if not isinstance(value, int):
        try:
            value = operator.index(value)
        except (TypeError, RuntimeError):
            raise BadType(f"{name} is {describe(value)}: it must be a whole number") from None
    elif isinstance(value, bool):
        raise BadType(f"{name} is {value}: it must be a whole number")
    if least is not None and value < least:
        raise BadValue(f"{name} is {describe(value)}: it must be at least {least}")
    if value > most:
        raise BadValue(f"{name} is {describe(value)}: it must be at most {most}")
    return value


def number(name: str, value: float) -> float:
    """A real number, NaN and infinity among them: what range is meant, the caller says."""
    if isinstance(value, float):
        return value
    if isinstance(value, Tensor | np.ndarray) and value.ndim == 0 and not getattr(value, "is_meta", False):
        value = value.item()
    if not isinstance(value, Real) or isinstance(value, bool):
        raise BadType(f"{name} is {describe(value)}: it must be a number")
    try:
        return value if isinstance(value, int) and -(2**53) < value < 2**53 else float(value)
    except OverflowError:
        raise BadValue(f"{name} is {describe(value)}: it must be a number that a float can hold") from None


def numbers(name: str, value: Iterable[float]) -> list[float]:
    """Several real numbers, from whatever holds them along one axis."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable) or not hasattr(value, "__len__"):
        raise BadType(f"{name} is {describe(value)}: it must be several numbers, as in (0, 0.5, 1)")
    if isinstance(value, Tensor):
        concrete(name, value)
    if getattr(value, "ndim", 1) != 1:
        raise BadValue(f"{name} is {describe(value)}: it must be numbers along one axis")
    return [number(f"a number in {name}", each) for each in (value.tolist() if hasattr(value, "tolist") else value)]


def shape(name: str, value: Sequence[int], itemsize: int = 4) -> tuple[int, ...]:
    """The shape of a tensor to be made, which must fit in memory."""
    if not isinstance(value, tuple | list):
        raise BadType(f"{name} is {describe(value)}: it must be a tuple of whole numbers, such as (2, 3)")
    sizes = tuple([integer(f"a size in {name}", size, 0) for size in value])
    fits(name, sizes, itemsize)
    return sizes


def fits(name: str, sizes: Sequence[int], itemsize: int = 4) -> None:
    """Raises BadValue unless a tensor of these sizes fits in this machine's memory."""
    if len(sizes) > _MOST_AXES or math.prod(sizes) * itemsize > MEMORY or any(size > _MOST_SIZE for size in sizes):
        many = f"{len(sizes)} axes" if len(sizes) > _MOST_AXES else f"a tensor [{', '.join(map(_short, sizes))}]"
        raise BadValue(f"{name} asks for {many}, more than the {MEMORY / 2**30:.0f} GiB of this machine can hold")


def tensor(name: str, value: Any, axes: str = "", floating: bool = False) -> Tensor:
    """A tensor with one axis for each word of `axes`, if any are given, "..." for any more of them."""
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        what = f"a tensor [{', '.join(axes.split())}]" if axes else "a tensor"
        got = f"a tensor of layout {value.layout}" if isinstance(value, Tensor) else describe(value)
        raise BadType(f"{name} is {got}: it must be {what}")
    if axes:
        words = axes.split()
        if value.ndim < len(words) - 1 if "..." in words else value.ndim != len(words):
            raise BadValue(f"{name} has shape {list(value.shape)}: it must be [{', '.join(words)}]")
    if floating and not value.is_floating_point():
        raise BadType(f"{name} is {value.dtype}: it must be floating-point")
    return value


def concrete(name: str, value: Any, axes: str = "", floating: bool = False) -> Tensor:
    """A tensor that holds values, unlike one on the `meta` device."""
    if tensor(name, value, axes, floating).is_meta:
        raise BadValue(f"{name} is on the meta device, which holds no values: make it on another")
    return value


def same_device(**tensors: Tensor) -> None:
    """Raises BadValue unless all tensors are on one device."""
    devices = {name: value.device for name, value in tensors.items()}
    if len(set(devices.values())) > 1:
        where = " and ".join(f"{name} on {device}" for name, device in devices.items())
        raise BadValue(f"{where}: they must be on one device")


def broadcast(first: str, a: Tensor, second: str, b: Tensor) -> None:
    """Raises BadValue unless two tensors are on one device, and their shapes broadcast against each other.

    A number that lies on the CPU suits all devices.
    """
    if a.device != b.device and not any(t.ndim == 0 and t.device.type == "cpu" for t in (a, b)):
        same_device(**{first: a, second: b})
    if a.shape != b.shape and any(
        m != n and m != 1 and n != 1 for m, n in zip(reversed(a.shape), reversed(b.shape), strict=False)
    ):
        raise BadValue(f"{first} has shape {list(a.shape)} and {second} {list(b.shape)}: these do not match")


def device(value: torch.device | str) -> torch.device:
    """A device that is there."""
    try:
        torch.empty(0, device=value)
        return torch.device(value)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise Missing(f"device {describe(value)} is not there: {one_line(str(error))}") from None


def dtype(name: str, value: torch.dtype) -> torch.dtype:
    """torch.float32 or torch.float64."""
    if value is not torch.float32 and value is not torch.float64:
        raise BadType(f"{name} is {describe(value)}: it must be torch.float32 or torch.float64")
    return value


def function(name: str, value: Callable[..., Any], what: str = "a function") -> Callable[..., Any]:
    """Something that can be called."""
    if not callable(value):
        raise BadType(f"{name} is {describe(value)}: it must be {what}")
    return value


def flag(name: str, value: bool) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise BadType(f"{name} is {describe(value)}: it must be True or False")
    return value


def path(name: str, value: str | os.PathLike[str]) -> Path:
    """The path of a file or folder, which need not be there."""
    if not isinstance(value, str | os.PathLike):
        raise BadType(f"{name} is {describe(value)}: it must be the path of a file or folder")
    try:
        encoded = os.fsencode(value)
    except UnicodeEncodeError:  # half a character
        encoded = b"\0"
    if b"\0" in encoded or len(encoded) > 4000 or any(len(part) > 255 for part in encoded.split(b"/")):
        raise BadValue(f"{name} is {describe(str(value))}: no file can have such a name")
    return Path(value)


def text(name: str, value: str) -> str:
    """A string."""
    if not isinstance(value, str):
        raise BadType(f"{name} is {describe(value)}: it must be a string")
    return value


_MOST_AXES = 64  # of a tensor
_MOST_SIZE = 2**62


def _short(size: int) -> str:
    return f"{size:,}" if size < 10**15 else f"2**{size.bit_length() - 1}"
