"""Pickles and copies values made of closures by repeating the calls that made them."""

import copyreg
import inspect
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch

from funcvae.errors import BadType

P = ParamSpec("P")
T = TypeVar("T")


class _Call(NamedTuple):
    """The call of a factory, and its result."""

    factory: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any


def remembered(factory: Callable[P, T]) -> Callable[P, T]:
    """Decorates a factory: its results remember the call that made them.

    It must be the outermost decorator of a function at the top level of a module. The results must be functions, or of
    a type that `by_call` decorates.
    """

    @wraps(factory)
    def make(*args: P.args, **kwargs: P.kwargs) -> T:
        result = factory(*args, **kwargs)
        if torch.compiler.is_compiling():  # it is never pickled
            return result
        _closure(result).made = _Call(make, args, kwargs, result)
        return result

    return make


def by_call(kind: type[T]) -> type[T]:
    """Decorates a type: its values that remember their call pickle as that call, and others by their fields."""
    copyreg.pickle(kind, _reduced)
    return kind


def _closure(value: Any) -> Any:
    """The function of a value that its factory makes anew in each call."""
    return value if inspect.isfunction(value) else getattr(value, "init", None) or getattr(value, "estimate", None)


def call_of(value: Any) -> _Call | None:
    """The call that made a value, unless it was changed afterwards, as by `_replace`."""
    made = getattr(_closure(value), "made", None)
    return made if made is not None and made.result is value else None


def _reduced(value: Any) -> Any:
    """The function and the arguments from which pickle makes a value."""
    if (made := call_of(value)) is None:
        return value.__reduce_ex__(4)
    return _remade, (made.factory, *_mapped(_named, made.args, made.kwargs))


def _remade(factory: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
    args, kwargs = _mapped(lambda value: value.function if isinstance(value, _Function) else value, args, kwargs)
    return factory(*args, **kwargs)


def _mapped(change: Callable[[Any], Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    return tuple(map(change, args)), {name: change(value) for name, value in kwargs.items()}


def _named(value: Any) -> Any:
    """An argument; a function or class is wrapped if pickle cannot find it by its name."""
    return _Function(value) if "<" in getattr(value, "__qualname__", "") else value


class _Function:
    """A function or class that is not at the top level of a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __reduce__(self) -> Any:
        if inspect.isfunction(self.function) and call_of(self.function):
            return _reduced(self.function)
        if not any(name.endswith("cloudpickle") for name in sys.modules):  # it pickles such functions, too
            name = f"{self.function.__module__}.{self.function.__qualname__}"
            raise BadType(f"{name} cannot be pickled: define it by def or class at the top level of a module")
        return _Function, (self.function,)

    def __deepcopy__(self, memo: Any) -> "_Function":
        return self
