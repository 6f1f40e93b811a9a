"""Finds the layers of a module that draw random numbers in training mode, without running them."""

import dis
import inspect
from collections.abc import Iterator
from contextlib import suppress
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch.nn.functional as F
from torch import nn

from funcvae._support.keyed_draws import FUNCTIONS, METHODS

__all__ = ["draws"]


def draws(layer: nn.Module) -> bool:
    """Whether a layer, with the layers in it, draws random numbers in training mode.

    Its attribute `draws_in_forward` decides, if that is a bool. Otherwise these draw: dropout with p > 0, RReLU, layers
    of torch with a `dropout` above 0, and layers whose code in `forward` calls a random function of torch. The code is
    searched, and so are the methods and functions that it names.
    """
    declared = getattr(layer, "draws_in_forward", None)
    if isinstance(declared, bool):
        return declared
    rate = layer.p if isinstance(layer, nn.modules.dropout._DropoutNd) else getattr(layer, "dropout", 0)
    if isinstance(layer, nn.RReLU) or (isinstance(rate, float) and rate > 0):
        return True
    return _calls_random(layer.forward, layer, set()) or any(map(draws, layer.children()))


def _calls_random(called: Any, owner: Any, seen: set[CodeType]) -> bool:
    """Whether a function calls a random one; `owner` is its first argument, if it is a method."""
    if isinstance(called, MethodType):
        called, owner = called.__func__, called.__self__
    function = inspect.unwrap(called) if callable(called) else called
    if not isinstance(function, FunctionType) or _is_torchs(function) or function.__code__ in seen:
        return False
    codes = [function.__code__]
    for code in codes:  # which grows by the functions within
        codes += [each for each in code.co_consts if isinstance(each, CodeType)]
    seen.update(codes)
    names = _closure(function)
    if codes[0].co_argcount:
        names[codes[0].co_varnames[0]] = owner
    called = [each for code in codes for each in _loaded(code, names, function.__globals__)]
    if any("super" in code.co_names for code in codes):
        called += [vars(kind).get(function.__name__) for kind in type(owner).__mro__]
    with_rate = any("dropout_p" in _keywords(code) for code in codes)
    return any(
        _is_random(each)
        or (each is F.scaled_dot_product_attention and with_rate)
        or (isinstance(each, FunctionType | MethodType) and _calls_random(each, owner, seen))
        for each in called
    )


def _loaded(code: CodeType, names: dict[str, Any], globals_: dict[str, Any]) -> Iterator[Any]:
    """The known objects that the instructions load, and the names of random methods of unknown objects."""
    held: Any = None
    for at in dis.get_instructions(code):
        if at.opname.startswith(("LOAD_FAST", "LOAD_DEREF")):
            held = names.get(at.argval[-1] if isinstance(at.argval, tuple) else at.argval)
        elif at.opname.startswith("LOAD_GLOBAL"):
            held = globals_.get(at.argval)
        elif at.opname.startswith(("LOAD_ATTR", "LOAD_METHOD")):
            held = at.argval if held is None and at.argval in METHODS else _attribute(held, at.argval)
        else:
            held = None
        yield held


def _attribute(held: Any, name: str) -> Any:
    with suppress(Exception):  # a property may fail
        return getattr(held, name, None)
    return None


def _closure(function: FunctionType) -> dict[str, Any]:
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    found = {}
    for name, cell in cells:
        with suppress(ValueError):  # an empty cell
            found[name] = cell.cell_contents
    return found


def _keywords(code: CodeType) -> set[Any]:
    """The names of the keywords in the calls of a function."""
    return {word for const in code.co_consts if isinstance(const, tuple) for word in const}


def _is_random(held: Any) -> bool:
    with suppress(TypeError):  # what cannot be hashed
        return held in FUNCTIONS or held in METHODS
    return False


def _is_torchs(function: FunctionType) -> bool:
    return (function.__module__ or "").split(".")[0] == "torch"
