"""Checks of arguments, made once: where a user's call comes in.

A public function states in its signature what it takes, and `@checks.arguments` holds every call to that:

    @checks.arguments
    def miwae(m: Count) -> Bound: ...

Inside, nothing is checked again. A caller that has checked its arguments takes the function itself, `unchecked(f)`,
and so do training steps, `vmap`ped functions and compiled graphs. A frozen dataclass calls `checks.fields(self)` in
`__post_init__`.

A check looks at types, shapes, dtypes and devices, never at a tensor's values. It returns the argument (numbers as
Python's own) or raises BadType (the wrong kind of object) or BadValue (the right kind, out of range) with a message of
one line: what was given, and what is allowed.
"""

import inspect
import math
import operator
import os
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields as dataclass_fields
from functools import cache, wraps
from numbers import Real
from pathlib import Path
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor

from funcvae.errors import BadType, BadValue, Missing

P = ParamSpec("P")
T = TypeVar("T")
Check = Callable[[str, Any], Any]
"""Takes an argument's name and value; returns the value or raises."""


def at_least(least: float) -> Check:
    """A check that a number is not below `least`."""

    def check(name: str, value: float) -> float:
        if not value >= least:
            raise BadValue(f"{name} is {describe(value)}: it must be at least {least}")
        return value

    return check


def within(low: float, high: float) -> Check:
    """A check that a number lies between two others, both included."""

    def check(name: str, value: float) -> float:
        if not low <= value <= high:
            raise BadValue(f"{name} is {describe(value)}: it must lie between {low} and {high}")
        return value

    return check


def is_positive(name: str, value: float) -> float:
    """A check that a number is positive and finite."""
    if not 0 < value < math.inf:
        raise BadValue(f"{name} is {value}: it must be positive and finite")
    return value


def is_finite(name: str, value: float) -> float:
    """A check that a number is finite."""
    if not math.isfinite(value):
        raise BadValue(f"{name} is {value}: it must be finite")
    return value


def floating(name: str, value: Tensor) -> Tensor:
    """A check that a tensor has a floating-point dtype."""
    if not value.is_floating_point():
        raise BadType(f"{name} is {value.dtype}: it must be floating-point")
    return value


def concrete(name: str, value: Tensor, axes: str = "", floating: bool = False) -> Tensor:
    """A check that a tensor holds values, unlike one on the `meta` device."""
    if tensor(name, value, axes, floating).is_meta:
        raise BadValue(f"{name} is on the meta device, which holds no values: make it on another device")
    return value


Count = Annotated[int, at_least(1)]
"""A whole number, 1 or more."""
Natural = Annotated[int, at_least(0)]
"""A whole number, 0 or more."""
Positive = Annotated[float, is_positive]
"""A positive, finite number."""
Finite = Annotated[float, is_finite]
"""A finite number."""
Fraction = Annotated[float, within(0, 1)]
"""A number between 0 and 1."""
Floats = Annotated[Tensor, floating]
"""A tensor of a floating-point dtype."""


def arguments(function: Callable[P, T]) -> Callable[P, T]:
    """A function whose arguments are checked against its annotations at every call.

    Annotations may be `int`, `float`, `bool`, `str`, `Path`, `Tensor`, a class, a protocol, `Callable`, `Sequence`,
    `Mapping`, any of these `| None`, and `Annotated[KIND, ...]` with further `Check`s, or with a tensor's axes, as in
    `Annotated[Tensor, "N B ..."]`. Anything else passes. Under `torch.compile` nothing is checked.

    Raises:
        BadType: an argument is of another kind.
        BadValue: a number is out of range, or a tensor has other axes.
    """
    signature = inspect.signature(function)

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        for name, check in _checks_of(function).items():
            if name in bound.arguments:
                bound.arguments[name] = check(name, bound.arguments[name])
        return function(*bound.args, **bound.kwargs)

    checked.unchecked = function  # type: ignore[attr-defined]
    return checked


def unchecked(function: Callable[P, T]) -> Callable[P, T]:
    """The function without the check of its arguments, if it has one."""
    return cast(Callable[P, T], getattr(function, "unchecked", function))


def fields(value: Any) -> None:
    """Checks the fields of a frozen dataclass against their annotations, and sets numbers to Python's own types."""
    checks = _checks_of(type(value))  # type: ignore[arg-type]
    for field in dataclass_fields(value):
        if field.name in checks:
            object.__setattr__(value, field.name, checks[field.name](field.name, getattr(value, field.name)))


@cache
def _checks_of(annotated: Any) -> dict[str, Check]:
    """The checks of a function's arguments, or of a class's fields, by name."""
    hints = get_type_hints(annotated, include_extras=True)
    hints.pop("return", None)
    found = {name: _check_of(hint) for name, hint in hints.items()}
    return {name: check for name, check in found.items() if check is not None}


def _check_of(hint: Any) -> Check | None:
    """The check that an annotation stands for; None where anything passes."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        kind, *further = inner
        axes = " ".join(mark for mark in further if isinstance(mark, str))
        first = (lambda name, value: tensor(name, value, axes)) if axes else _check_of(kind)
        return _in_turn([first, *(mark for mark in further if callable(mark))])
    if origin in (Union, types.UnionType):
        kinds = [_check_of(kind) for kind in inner if kind is not type(None)]
        if len(kinds) == 1 and kinds[0] is not None and len(inner) == 2:
            check = kinds[0]
            return lambda name, value: None if value is None else check(name, value)
        return path if set(inner) == {str, Path} else None
    if origin is Literal:
        return lambda name, value: _one_of(name, value, inner)
    if Callable in (hint, origin) or getattr(hint, "_is_protocol", False):
        return function
    kind = origin or hint
    if kind in _BY_KIND:
        return _BY_KIND[kind]
    return (lambda name, value: instance(name, value, kind)) if isinstance(kind, type) else None


def _in_turn(checks: Sequence[Check | None]) -> Check:
    """One check after another."""

    def check(name: str, value: Any) -> Any:
        for each in checks:
            value = value if each is None else each(name, value)
        return value

    return check


def instance(name: str, value: Any, kind: type) -> Any:
    """Checks that an object is of a class."""
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AEIO" else "a"
        raise BadType(f"{name} is {describe(value)}: it must be {article} {kind.__name__}")
    return value


def integer(name: str, value: int, least: int | None = None, most: float | None = None) -> int:
    """Checks that an object is a whole number of 64 bits."""
    try:
        value = operator.index(None if isinstance(value, bool) else value)  # type: ignore[arg-type]
    except (TypeError, RuntimeError):
        raise BadType(f"{name} is {describe(value)}: it must be a whole number") from None
    if most != math.inf and not -(2**63) <= value < 2**64:
        raise BadValue(f"{name} is {describe(value)}: it must fit in 64 bits")
    if least is not None and value < least:
        raise BadValue(f"{name} is {describe(value)}: it must be at least {least}")
    if most is not None and value > most:
        raise BadValue(f"{name} is {describe(value)}: it must be at most {most}")
    return value


def number(name: str, value: float) -> float:
    """Checks that an object is a real number; NaN and infinity are allowed."""
    if isinstance(value, Tensor | np.ndarray) and value.ndim == 0 and not getattr(value, "is_meta", False):
        value = value.item()
    if not isinstance(value, Real) or isinstance(value, bool):
        raise BadType(f"{name} is {describe(value)}: it must be a number")
    try:
        return value if isinstance(value, int) and -(2**53) < value < 2**53 else float(value)
    except OverflowError:
        raise BadValue(f"{name} is {describe(value)}: it must be a number that a float can hold") from None


def numbers(name: str, value: Iterable[float]) -> list[float]:
    """Checks that an object holds real numbers along one axis."""
    if isinstance(value, Tensor):
        concrete(name, value)
    if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__len__") or getattr(value, "ndim", 1) != 1:
        raise BadType(f"{name} is {describe(value)}: it must be a sequence of numbers, such as (0, 0.5, 1)")
    return [number(f"a number in {name}", each) for each in (value.tolist() if hasattr(value, "tolist") else value)]


def tensor(name: str, value: Any, axes: str = "", floating: bool = False) -> Tensor:
    """Checks that an object is a dense tensor, with one axis for each word of `axes` ("..." for any number of axes)."""
    words = axes.split()
    what = f"a tensor [{', '.join(words)}]" if axes else "a tensor"
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        got = f"a tensor of layout {value.layout}" if isinstance(value, Tensor) else describe(value)
        raise BadType(f"{name} is {got}: it must be {what}")
    if axes and (value.ndim < len(words) - 1 if "..." in words else value.ndim != len(words)):
        raise BadValue(f"{name} has shape {list(value.shape)}: it must be {what}")
    if floating and not value.is_floating_point():
        raise BadType(f"{name} is {value.dtype}: it must be floating-point")
    return value


def flag(name: str, value: bool) -> bool:
    """Checks that an object is True or False."""
    if not isinstance(value, bool):
        raise BadType(f"{name} is {describe(value)}: it must be True or False")
    return value


def text(name: str, value: str) -> str:
    """Checks that an object is a string."""
    if not isinstance(value, str):
        raise BadType(f"{name} is {describe(value)}: it must be a string")
    return value


def path(name: str, value: str | os.PathLike[str]) -> Path:
    """Checks that an object is the path of a file or folder, which need not exist."""
    if not isinstance(value, str | os.PathLike):
        raise BadType(f"{name} is {describe(value)}: it must be the path of a file or folder")
    return Path(value)


def function(name: str, value: Any, what: str = "a function") -> Any:
    """Checks that an object can be called."""
    if not callable(value):
        raise BadType(f"{name} is {describe(value)}: it must be {what}")
    return value


def sequence(name: str, value: Any) -> Any:
    """Checks that an object is a list, a tuple or the like, and no string."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise BadType(f"{name} is {describe(value)}: it must be a list or tuple")
    return value


def mapping(name: str, value: Any) -> Any:
    """Checks that an object is a dict or the like."""
    if not isinstance(value, Mapping):
        raise BadType(f"{name} is {describe(value)}: it must be a dict")
    return value


_BY_KIND: dict[Any, Check | None] = {
    int: integer, float: number, bool: flag, str: text, Path: path, Tensor: tensor, Sequence: sequence,
    list: sequence, tuple: sequence, Mapping: mapping, dict: mapping, Iterable: None, object: None, Any: None,
}  # fmt: skip


def _one_of(name: str, value: Any, allowed: tuple[Any, ...]) -> Any:
    """Checks that an object is one of those that a Literal lists."""
    if value not in allowed:
        raise BadValue(f"{name} is {describe(value)}: it must be one of {', '.join(map(repr, allowed))}")
    return value


def shape(name: str, value: Sequence[int], itemsize: int = 4) -> tuple[int, ...]:
    """Checks the shape of a tensor to be made, which must fit in memory."""
    sizes = tuple(_in_turn([integer, at_least(0)])(f"a size in {name}", size) for size in sequence(name, value))
    fits(name, sizes, itemsize)
    return sizes


def fits(name: str, sizes: Sequence[int], itemsize: int = 4) -> None:
    """Checks that a tensor of these sizes fits in this machine's memory."""
    if len(sizes) > _MOST_AXES or math.prod(sizes) * itemsize > MEMORY:
        many = f"{len(sizes)} axes" if len(sizes) > _MOST_AXES else f"a tensor [{', '.join(map(describe, sizes))}]"
        raise BadValue(f"{name} asks for {many}, more than the {MEMORY / 2**30:.0f} GiB of this machine can hold")


def same_device(**tensors: Tensor) -> None:
    """Checks that all tensors are on one device."""
    if len({value.device for value in tensors.values()}) > 1:
        where = " and ".join(f"{name} on {value.device}" for name, value in tensors.items())
        raise BadValue(f"{where}: they must be on one device")


def broadcast(first: str, a: Tensor, second: str, b: Tensor) -> None:
    """Checks that two tensors are on one device and that their shapes broadcast (a number on the CPU suits all)."""
    if a.device != b.device and not any(t.ndim == 0 and t.device.type == "cpu" for t in (a, b)):
        same_device(**{first: a, second: b})
    if any(m != n and 1 not in (m, n) for m, n in zip(reversed(a.shape), reversed(b.shape), strict=False)):
        raise BadValue(f"{first} has shape {list(a.shape)} and {second} {list(b.shape)}: these do not match")


def device(value: torch.device | str) -> torch.device:
    """Checks that a device is available."""
    try:
        torch.empty(0, device=value)
        return torch.device(value)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise Missing(f"device {describe(value)} is not available: {one_line(str(error))}") from None


def dtype(name: str, value: torch.dtype) -> torch.dtype:
    """Checks that a dtype is torch.float32 or torch.float64."""
    if value is not torch.float32 and value is not torch.float64:
        raise BadType(f"{name} is {describe(value)}: it must be torch.float32 or torch.float64")
    return value


def describe(value: Any) -> str:
    """A value in a message: short, and on one line."""
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor {list(value.shape)}"
    if isinstance(value, int) and abs(value) >= 2**64:
        return f"about {'-' * (value < 0)}2**{value.bit_length() - 1}"
    if value is None or isinstance(value, int | float | complex | str | bytes | torch.dtype):
        return one_line(repr(value), 60)
    if isinstance(value, tuple | list) and len(value) <= 6:  # an inner one by its type: a list may contain itself
        inner = (describe(v) if not isinstance(v, tuple | list) else type(v).__name__ for v in value)
        return one_line(f"{type(value).__name__} ({', '.join(inner)})", 120)
    return f"of type {type(value).__name__}"


def one_line(text: str, most: int = 300) -> str:
    """A text on one line, cut to `most` characters."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 2]} …"


MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**63
"""Bytes of memory of this machine, where the system reports them."""
_MOST_AXES = 64  # of a tensor
