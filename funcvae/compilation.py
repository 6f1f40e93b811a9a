"""How a machine is used: compiled steps, kept memory, the precision of products. No number changes but by rounding."""

import ctypes
import os
import re
import shutil
import sys
import sysconfig
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, wraps
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from funcvae import tree
from funcvae._support import checks
from funcvae.errors import unknown
from funcvae.tree import Tree

__all__ = [
    "NO_COMPILER", "PRECISIONS", "Uncompiled", "Wrap", "available", "check_precision", "compiled", "keep_freed",
    "mark_static", "precision", "unchanged",
]  # fmt: skip

F = TypeVar("F", bound=Callable[..., Any])


class Wrap(Protocol):
    """What is done to a function of tensors, such as `compiled`; the result takes the same arguments."""

    def __call__(self, f: F, /) -> F:
        """The wrapped function."""
        ...


def unchanged(f: F, /) -> F:
    """The `Wrap` that leaves a function as it is."""
    return f


PRECISIONS = ("highest", "high", "medium")


@contextmanager
def precision(name: str) -> Iterator[None]:
    """Within it, float32 matrix products have this precision; afterwards what they had before.

    "highest" is true float32. "high" lets a GPU use TensorFloat32 (10 bits of mantissa). "medium" allows bfloat16 (7
    bits), which CPUs with AMX use; one without that computes in float32 all the same, but with another library, and on
    AMD's processors twice as fast.

    Raises:
        BadValue: there is no such precision.

    Reference: torch.set_float32_matmul_precision.
    """
    check_precision(name)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def check_precision(name: str) -> None:
    """Raises BadValue unless there is such a precision."""
    if checks.text("precision", name) not in PRECISIONS:
        raise unknown("precision", name, PRECISIONS)


@cache  # once is enough
def keep_freed() -> None:
    """Has the C library keep what is freed for the next tensor, in this process, from now on. It changes no number.

    A step frees some megabytes to hundreds of them, and asks for them again in the next one. glibc by itself returns
    them to the system each time, which clears and maps every page anew: up to a third of a step's time on two cores.
    The process then stays as large as it has been. Where there is no glibc nothing is done.

    Reference: mallopt(3), M_TRIM_THRESHOLD and M_MMAP_MAX.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_MMAP_MAX, 0)


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h

NO_COMPILER = "no C++ compiler was found (install one, or set CXX)"


class Uncompiled(UserWarning):
    """Something runs without `torch.compile`: the same numbers to rounding, more slowly."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.reason}; going on without torch.compile, more slowly"


def available() -> bool:
    """Whether this machine has what `torch.compile` needs for the CPU: a C++ compiler and Python's headers."""
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    return shutil.which(os.environ.get("CXX", "g++")) is not None and header.is_file()


def compiled(f: F, *, device: torch.device | str = "cpu") -> F:
    """f under `torch.compile`; f itself, with a warning, where there is no compiler.

    Each call of `compiled` has graphs of its own, one for each set of shapes. What f's closure and the modules' globals
    hold must not change any more: to look through all that at every call took a seventh of a small step's time, and so
    only the arguments are checked, and torch's global state. On CUDA a step is recorded as a CUDA graph.

    Args:
        f: a function, of trees of tensors.
        device: where they are.

    Warns:
        Uncompiled: there is no compiler, or (from a call) it cannot compile f.
    """
    checks.function("f", f)
    device = checks.device(device)
    if not available():
        warnings.warn(Uncompiled(NO_COMPILER), stacklevel=2)
        return f
    on_cuda = device.type == "cuda"

    def own(*args: Any, **kwargs: Any) -> Any:
        return f(*args, **kwargs)

    def kept(guards: Sequence[Any]) -> list[bool]:
        return [not _FIXED.match(guard.name) for guard in guards]

    def anew() -> Callable[..., Any]:
        # The compiler keeps its graphs by code object: this one is nobody else's.
        twin = types.FunctionType(own.__code__.replace(), own.__globals__, own.__name__, None, own.__closure__)
        options: dict[str, Any] = {"guard_filter_fn": kept, "triton.cudagraphs": on_cuda}
        return torch.compile(twin, fullgraph=True, dynamic=False, options=options)

    fast = anew()

    @wraps(f)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal fast
        try:
            out = fast(*args, **kwargs)
        except torch._dynamo.exc.FailOnRecompileLimitHit:  # eight sets of shapes: room for eight others
            fast = anew()
            out = fast(*args, **kwargs)
        except torch._dynamo.exc.TorchDynamoException as error:  # from tracing, before anything is run
            out = f(*args, **kwargs)  # if that fails too, its own words say it best
            fast = f
            warnings.warn(Uncompiled(f"the compiler cannot take this: {_reason(error)}"), stacklevel=2)
        return _copied(out, (args, kwargs)) if on_cuda else out

    return call  # type: ignore[return-value]


# The names of what does not change: globals, and the free variable `f` above.
_FIXED = re.compile(r"(G\[|(L\[')?f\b)")


def mark_static(buffers: Tree) -> None:
    """Says that a compiled function always gets these tensors: a CUDA graph writes in them, without copies."""
    for buffer in tree.leaves(buffers):
        if buffer.is_cuda:
            torch._dynamo.mark_static_address(buffer)


def _copied(out: Tree, args: Tree) -> Tree:
    """What a CUDA graph returned, out of the memory that it writes to at the next call, but for what lies in args."""
    given = {t.data_ptr() for t in tree.leaves(args) if isinstance(t, Tensor)}
    return tree.map(lambda t: t.clone() if isinstance(t, Tensor) and t.data_ptr() not in given else t, out)


def _reason(error: Exception) -> str:
    """What the compiler could not do, and where in the user's code."""
    told, _, code = str(error).partition("from user code:")
    first = next((line for line in told.splitlines() if line.strip()), type(error).__name__)
    places = _PLACE.findall(code)
    return checks.one_line(first) + (" ({}, line {}, in {})".format(*places[-1]) if places else "")


_PLACE = re.compile(r'File "(.*)", line (\d+), in (.*)')
