"""Checks of arguments, made once, in the function that the user calls.

A public function states in its signature what it takes, and `@checks.arguments` checks every call against it:

    @checks.arguments
    def miwae(m: Count) -> Bound: ...

Nothing is checked again inside. Code that trusts its arguments calls the function without its check, `unchecked(f)`:
training steps, `vmap`ped functions and compiled graphs. A frozen dataclass calls `checks.fields(self)` in
`__post_init__`.

A check looks at types, shapes, dtypes and devices, never at a tensor's values. It returns the argument (a number as
a Python number), or raises BadType (wrong type) or BadValue (right type, wrong value) with a message of one line: what
was given, and what is allowed.
"""

import inspect
import math
import operator
import os
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import fields as dataclass_fields
from functools import cache, partial, reduce, wraps
from numbers import Real
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor

from funcvae.errors import BadType, BadValue, FuncvaeError, Missing, unknown

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
Check = Callable[[str, Any], Any]  # takes an argument's name and value; returns the value or raises


class Only(NamedTuple):
    """Marks a check that replaces the one of the annotated type, so that it can write the whole message."""

    check: Check

    def __repr__(self) -> str:
        return "checked"


def that(holds: Callable[[Any], bool], must: str, error: type[FuncvaeError] = BadValue) -> Check:
    """Makes the check that a condition holds; its error message ends in "it must be" and `must`."""

    def check(name: str, value: Any) -> Any:
        if not holds(value):
            raise error(f"{name} is {describe(value)}: it must be {must}")
        return value

    check.__qualname__ = must  # the API pages show it in signatures
    return check


def at_least(least: float) -> Check:
    """Makes the check that a number is not below `least`."""
    return that(lambda value: value >= least, f"at least {least}")


def within(low: float, high: float) -> Check:
    """Makes the check that a number lies between two others, both included."""
    return that(lambda value: low <= value <= high, f"between {low} and {high}")


def tensor(name: str, value: Any, axes: str = "") -> Tensor:
    """Checks that an object is a dense tensor with one axis for each word of `axes` ("..." for any number)."""
    words = axes.split()
    what = f"a tensor [{', '.join(words)}]" if axes else "a tensor"
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        got = f"a tensor of layout {value.layout}" if isinstance(value, Tensor) else describe(value)
        raise BadType(f"{name} is {got}: it must be {what}")
    if axes and (value.ndim < len(words) - 1 if "..." in words else value.ndim != len(words)):
        raise BadValue(f"{name} has shape {list(value.shape)}: it must be {what}")
    return value


def concrete(name: str, value: Any) -> Tensor:
    """Checks that an object is a tensor that is not on the `meta` device, which holds no values."""
    return not_on_meta(name, tensor(name, value))


def floats(name: str, value: Any, axes: str = "") -> Tensor:
    """Checks that an object is a tensor of a floating-point dtype."""
    return floating(name, tensor(name, value, axes))


def constant(name: str, value: float, like: Tensor) -> Tensor:
    """Makes a number a tensor of another's dtype and device, and checks that this does not make it 0 or infinite."""
    range_ = torch.finfo(like.dtype)
    if not range_.tiny <= value <= range_.max:
        raise BadValue(f"{name} is {value}: it is out of the range of {like.dtype}, the dtype of the network")
    return like.new_full((), value)


def whole(name: str, value: int) -> int:
    """Checks that an object is a whole number."""
    try:
        return operator.index(None if isinstance(value, bool) else value)  # type: ignore[arg-type]
    except (TypeError, RuntimeError):
        raise BadType(f"{name} is {describe(value)}: it must be a whole number") from None


def integer(name: str, value: int) -> int:
    """Checks that an object is a whole number of 64 bits."""
    return that(lambda v: -(2**63) <= v < 2**63, "a whole number of 64 bits")(name, whole(name, value))


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


def path(name: str, value: str | os.PathLike[str]) -> Path:
    """Checks that an object is the path of a file or folder, which need not exist."""
    if not isinstance(value, str | os.PathLike):
        raise BadType(f"{name} is {describe(value)}: it must be the path of a file or folder")
    return Path(value)


def instance(name: str, value: Any, kind: type) -> Any:
    """Checks that an object is of a class."""
    article = "an" if kind.__name__[0] in "AEIO" else "a"
    return that(lambda v: isinstance(v, kind), f"{article} {kind.__name__}", BadType)(name, value)


flag = that(lambda value: isinstance(value, bool), "True or False", BadType)
text = that(lambda value: isinstance(value, str), "a string", BadType)
mapping = that(lambda value: isinstance(value, Mapping), "a dict", BadType)
sequence = that(lambda v: isinstance(v, Sequence) and not isinstance(v, str | bytes), "a list or tuple", BadType)
function = that(callable, "a function", BadType)
is_positive = that(lambda value: 0 < value < math.inf, "positive and finite")
is_finite = that(math.isfinite, "finite")
not_on_meta = that(lambda t: not t.is_meta, "on another device than meta, which holds no values")
floating = that(torch.is_floating_point, "floating-point", BadType)
int32_or_int64 = that(lambda t: t.dtype in (torch.int32, torch.int64), "int32 or int64", BadType)
float32_or_float64 = that(lambda v: v is torch.float32 or v is torch.float64, "torch.float32 or torch.float64", BadType)

_BY_KIND: dict[Any, Check | None] = {
    int: integer, float: number, bool: flag, str: text, Path: path, Tensor: tensor, Sequence: sequence,
    list: sequence, tuple: sequence, Mapping: mapping, dict: mapping, Any: None,
}  # fmt: skip


Count = Annotated[int, at_least(1)]  # a whole number, 1 or more
Natural = Annotated[int, at_least(0)]  # a whole number, 0 or more
Positive = Annotated[float, is_positive]  # a positive, finite number
Finite = Annotated[float, is_finite]  # a finite number
Fraction = Annotated[float, within(0, 1)]  # a number between 0 and 1
Floats = Annotated[Tensor, floating]  # a tensor of a floating-point dtype
FloatsOrBytes = Annotated[
    Tensor, that(lambda t: t.is_floating_point() or t.dtype == torch.uint8, "floating-point or uint8", BadType)
]
"""A tensor of a floating-point dtype, or of bytes."""
Indices = Annotated[Tensor, int32_or_int64]  # a tensor of indices, int32 or int64
Dtype = Annotated[torch.dtype, Only(float32_or_float64)]  # torch.float32 or torch.float64


def arguments(function: Callable[P, T]) -> Callable[P, T]:
    """Decorates a function: every call checks its arguments against the annotations.

    Annotations may be `int`, `float`, `bool`, `str`, `Path`, `Tensor`, a class, a protocol, `Callable`, `Sequence`,
    `Mapping`, any of these `| None`, and `Annotated[KIND, ...]` with further `Check`s, or with a tensor's axes, as in
    `Annotated[Tensor, "N B ..."]`. Other annotations are not checked. Under `torch.compile` nothing is checked.

    Raises:
        BadType: an argument has the wrong type.
        BadValue: a number is out of range, or a tensor has the wrong number of axes.
    """
    parameters = inspect.signature(function).parameters.values()
    names = [each.name for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    checks = cache(partial(_checks_of, function))  # at the first call; it lives as long as the function

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        first = [_checked(checks(), name, value) for name, value in zip(names, args, strict=False)]
        named = {name: _checked(checks(), name, value) for name, value in kwargs.items()}
        return function(*first, *args[len(first) :], **named)  # type: ignore[arg-type]

    return readable(_with_original(checked, function))


def readable(function: F) -> F:
    """Decorates a function: `help` shows its arguments' types without the checks, and default functions by name."""
    signature = inspect.signature(function)
    shown = [
        each.replace(annotation=_without_checks(each.annotation), default=_named(each.default))
        for each in signature.parameters.values()
    ]
    function.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=shown, return_annotation=_without_checks(signature.return_annotation)
    )
    return function


def _without_checks(hint: Any) -> Any:
    """An annotation without the marks of `Annotated`."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _without_checks(inner[0])
    return reduce(operator.or_, map(_without_checks, inner)) if origin in (Union, types.UnionType) else hint


def _named(default: Any) -> Any:
    return _Default(default) if inspect.isfunction(default) else default


class _Default:
    """A function as the default of an argument, with a short repr."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<function {self.function.__name__}>"


def after(check: Callable[..., None]) -> Callable[[F], F]:
    """Makes a decorator: the function first calls `check` with its arguments, for what annotations cannot express."""

    def decorate(function: F) -> F:
        @wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            if not torch.compiler.is_compiling():
                check(*args, **kwargs)
            return function(*args, **kwargs)

        return _with_original(checked, function)

    return decorate


def unchecked(function: F) -> F:
    """Returns a function without the check of its arguments, or the function itself if it has no check."""
    checked, original = getattr(function, "unchecked", (None, None))
    return original if checked is function else function  # type: ignore[return-value]


def _with_original(checked: Any, original: Any) -> Any:
    # With its owner: `functools.wraps` copies the attribute to a user's own function around this one.
    checked.unchecked = (checked, original)
    return checked


def fields(value: Any) -> None:
    """Checks the fields of a frozen dataclass against their annotations, and converts numbers to Python numbers."""
    checks = checks_of_class(type(value))  # type: ignore[arg-type]
    for field in dataclass_fields(value):
        object.__setattr__(value, field.name, _checked(checks, field.name, getattr(value, field.name)))


def _checks_of(annotated: Any) -> dict[str, Check]:
    """The checks of a function's arguments, or of a class's fields, by name."""
    hints = get_type_hints(annotated, include_extras=True)
    hints.pop("return", None)
    found = {name: _check_of(hint) for name, hint in hints.items()}
    return {name: check for name, check in found.items() if check is not None}


checks_of_class = cache(_checks_of)


def _checked(checks: dict[str, Check], name: str, value: Any) -> Any:
    return checks[name](name, value) if name in checks else value


def _check_of(hint: Any) -> Check | None:
    """The check for an annotation; None if every value passes."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        kind, *further = inner
        if isinstance(further[0], Only):
            return further[0].check
        axes = " ".join(mark for mark in further if isinstance(mark, str))
        first = (lambda name, value: tensor(name, value, axes)) if axes else _check_of(kind)
        functions = [each for each in (first, *further) if inspect.isfunction(each)]  # not another library's metadata
        return _in_turn(functions)
    if origin in (Union, types.UnionType):
        kinds = set(inner) - {type(None)}
        check = path if kinds == {str, Path} else _check_of(kinds.pop()) if len(kinds) == 1 else None
        if check is None or type(None) not in inner:
            return check
        return lambda name, value: None if value is None else check(name, value)
    if origin is Literal:
        return that(lambda value: isinstance(value, str) and value in inner, f"one of {', '.join(map(repr, inner))}")
    if Callable in (hint, origin) or getattr(hint, "_is_protocol", False):
        return function
    kind = origin or hint
    if kind in _BY_KIND:
        return _BY_KIND[kind]
    return (lambda name, value: instance(name, value, kind)) if isinstance(kind, type) else None


def _in_turn(checks: Sequence[Check]) -> Check:
    """Makes one check from several, each of which gets the result of the one before."""

    def check(name: str, value: Any) -> Any:
        for each in checks:
            value = each(name, value)
        return value

    return check


def known(kind: str, name: str, names: Collection[str]) -> str:
    """Checks that a name is one of several; the error shows the nearest of them."""
    if text(kind, name) not in names:
        raise unknown(kind, name, names)
    return name


def sizes(name: str, value: Sequence[int]) -> tuple[int, ...]:
    """Checks that a list or tuple holds the sizes of axes."""
    found = tuple(at_least(0)(f"a size in {name}", whole(f"a size in {name}", size)) for size in sequence(name, value))
    return that(lambda sizes: math.prod(max(1, size) for size in sizes) < 2**62, "smaller")(name, found)


def fits(name: str, sizes: Sequence[int], itemsize: int = 4) -> None:
    """Checks that a tensor of these sizes fits in this machine's memory."""
    if torch.compiler.is_compiling():
        return
    if math.prod(max(1, size) for size in sizes) * itemsize > MEMORY:
        what = f"a tensor [{', '.join(map(describe, sizes))}]"
        raise BadValue(f"{name} requires {what}, but this machine has {MEMORY / 2**30:.0f} GiB of memory")


def same_device(**tensors: Tensor) -> None:
    """Checks that all tensors are on one device."""
    if len({value.device for value in tensors.values()}) > 1:
        where = " and ".join(f"{name} on {value.device}" for name, value in tensors.items())
        raise BadValue(f"{where}: they must be on one device")


def device(value: torch.device | str) -> torch.device:
    """Checks that a device is available."""
    try:
        torch.empty(0, device=value)
        return torch.device(value)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise Missing(f"device {describe(value)} is not available: {one_line(str(error))}") from None


def describe(value: Any) -> str:
    """Describes a value for a message, briefly and on one line."""
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor {list(value.shape)}"
    if isinstance(value, int) and abs(value) >= 2**64:
        return f"about {'-' * (value < 0)}2**{value.bit_length() - 1}"
    if value is None or isinstance(value, int | float | complex | str | bytes | torch.dtype):
        return one_line(repr(value), 60)
    if isinstance(value, tuple | list) and len(value) <= 6:  # an inner list is shown by its type: it may contain itself
        inner = (describe(v) if not isinstance(v, tuple | list) else type(v).__name__ for v in value)
        return one_line(f"{type(value).__name__} ({', '.join(inner)})", 120)
    return f"the function {value.__name__}" if inspect.isfunction(value) else f"of type {type(value).__name__}"


def one_line(text: str, most: int = 300) -> str:
    """Puts a text on one line, cut to `most` characters."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 2]} …"


MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**63
"""Bytes of memory of this machine, where the system reports them."""
