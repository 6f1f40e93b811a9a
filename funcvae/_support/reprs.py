"""Short reprs of values that hold tensors, functions and trees: one to a few lines, whatever their size."""

import textwrap
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from funcvae import tree
from funcvae._support import tables
from funcvae._support.checks import one_line
from funcvae._support.pickling import call_of

__all__ = ["short_repr"]

T = TypeVar("T")

_LINE = 100  # characters
_FIELD = 66
_ALL = 4  # the most numbers of a tensor to show


def short_repr(kind: type[T]) -> type[T]:
    """Decorates a NamedTuple or dataclass: its repr has tensors by dtype and shape, and trees by their size.

    Fields that have their default are left out. A value that remembers the call that made it is shown as that call,
    such as `adam(0.001)`.
    """
    kind.__repr__ = _repr  # type: ignore[method-assign]
    return kind


def _repr(value: Any) -> str:
    line, (name, parts) = _line(value), _name_and_parts(value)
    if len(line) <= _LINE:
        return line
    whole = ", ".join(map(tables.unbroken, parts)) + ","
    lines = textwrap.wrap(whole, _LINE, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)
    return "\n".join([f"{name}(", *lines, ")"]).replace("\N{NO-BREAK SPACE}", " ")


def _line(value: Any) -> str:
    name, parts = _name_and_parts(value)
    return f"{name}({', '.join(parts)})"


def _name_and_parts(value: Any) -> tuple[str, list[str]]:
    if call := call_of(value):
        return call.factory.__name__.lstrip("_"), [*map(_brief, call.args), *_named(call.kwargs)]
    return type(value).__name__, _named(_fields(value))


def _named(values: Mapping[str, Any]) -> list[str]:
    return [f"{name}={_brief(each)}" for name, each in values.items()]


def _brief(value: Any) -> str:
    """A field of a value, on a part of a line; without the empty parts of a dict."""
    if _is_record(value) and not hasattr(value, "name"):
        text = _line(value)
    elif isinstance(value, Mapping):
        text = f"{{{', '.join(_entry(name, each) for name, each in value.items() if not _is_empty(each))}}}"
    elif isinstance(value, list | tuple) and not _is_record(value) and len(value) <= _ALL:
        text = f"[{', '.join(map(_item, value))}]"
    else:
        text = _item(value)
    return one_line(text, _FIELD)


def _entry(name: Any, value: Any) -> str:
    """An item of a dict; only its name if the value is neither a number, nor a text, nor made of tensors."""
    simple = value is None or isinstance(value, Mapping | Tensor | np.ndarray | float | int | str)
    return f"{name}: {_item(value)}" if simple else str(name)


def _item(value: Any) -> str:
    """A value within a field, in a few words."""
    if isinstance(value, Tensor | np.ndarray):
        return _array(value)
    if isinstance(value, float | np.floating):
        return f"{value:.6g}"
    if isinstance(value, str | Path):
        return repr(str(value))
    if value is None or isinstance(value, int | np.integer | torch.dtype | torch.device):
        return str(value)
    if call_of(value):
        return _line(value)
    if isinstance(name := getattr(value, "name", getattr(value, "__name__", None)), str):
        return name
    if isinstance(value, Mapping | list | tuple):
        leaves = [leaf for leaf in tree.leaves(value) if isinstance(leaf, Tensor)]
        return f"{sum(leaf.numel() for leaf in leaves):,} numbers" if leaves else f"{len(value)} items"
    kind = type(value).__name__
    return f"{kind} {list(value.shape)}" if hasattr(value, "shape") else f"{kind}(…)"


def _array(x: Tensor | np.ndarray) -> str:
    """Dtype and shape; all numbers of a small array, and the first and the last of a series."""
    text = f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
    if x.ndim > 1 or 0 in x.shape:
        return text
    try:
        numbers = (x if x.ndim == 0 or len(x) <= _ALL else x[:: len(x) - 1]).tolist()
    except (RuntimeError, NotImplementedError):  # on the device "meta" and under vmap a tensor has no values
        return text
    if x.ndim == 0:
        return _item(numbers)
    shown = [_item(number) for number in numbers]
    return f"[{', '.join(shown)}]" if len(x) <= _ALL else f"{text}: {shown[0]} … {shown[1]}"


def _is_empty(value: Any) -> bool:
    return isinstance(value, Mapping) and not value


def _is_record(value: Any) -> bool:
    return is_dataclass(value) or hasattr(value, "_fields")


def _fields(value: Any) -> dict[str, Any]:
    """The public fields of a NamedTuple or dataclass that differ from their defaults."""
    if is_dataclass(value):
        defaults = {each.name: each.default for each in fields(value)}
    else:
        defaults = {name: value._field_defaults.get(name, MISSING) for name in value._fields}
    found = {name: getattr(value, name) for name in defaults if not name.startswith("_")}
    return {name: each for name, each in found.items() if not _is_default(each, defaults[name])}


def _is_default(value: Any, default: Any) -> bool:
    return value is default or (isinstance(value, int | float | str | tuple | frozenset) and value == default)
