"""Compilation, the memory allocator and the precision of products. They change results by rounding only."""

import ctypes
import gc
import os
import re
import shutil
import sys
import sysconfig
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, wraps
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from funcvae import tree
from funcvae._support import checks
from funcvae._support.checks import Natural
from funcvae.tree import Tensors, Tree

__all__ = [
    "NO_COMPILER", "PRECISIONS", "Uncompiled", "Wrap", "available", "compiled", "keep_freed", "mark_static", "pays",
    "precision", "unchanged",
]  # fmt: skip

F = TypeVar("F", bound=Callable[..., Any])


class Wrap(Protocol):
    """A transformation of a function of tensors, such as `compiled`. The result takes the same arguments."""

    def __call__(self, f: F, /) -> F:
        """The wrapped function."""
        ...


def unchanged(f: F, /) -> F:
    """The `Wrap` that returns the function itself."""
    return f


PRECISIONS = ("highest", "high", "medium")
"""What `precision` takes, from the most accurate products of float32 matrices to the fastest."""


@contextmanager
def precision(name: str) -> Iterator[None]:
    """Sets the precision of float32 matrix products in a context, and restores the previous one at its end.

    "highest" is true float32. "high" lets a GPU use TensorFloat32 (10 bits of mantissa). "medium" allows bfloat16 (7
    bits), which CPUs with AMX use. A CPU without AMX still computes in float32, but with another library, which is
    twice as fast on AMD processors.

    Raises:
        BadValue: name is not one of PRECISIONS.

    Reference: torch.set_float32_matmul_precision.
    """
    checks.known("precision", name, PRECISIONS)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@cache  # once for each process
def keep_freed() -> None:
    """Makes glibc keep freed memory for the next tensors, until the process ends. Numbers do not change.

    A step frees megabytes to hundreds of megabytes, and the next step allocates them again. By default glibc returns
    them to the system each time, which must clear and map every page again: up to a third of a step's time on two
    cores. After this call, the memory of the process never shrinks. Without glibc it has no effect.

    Reference: mallopt(3), M_TRIM_THRESHOLD and M_MMAP_MAX.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        trim_threshold, mmap_max = -1, -4  # of malloc.h
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_max, 0)


NO_COMPILER = "no C++ compiler was found (install one, or set CXX)"
"""The reason in `Uncompiled`, and in other messages, on a machine without a C++ compiler."""


class Uncompiled(UserWarning):
    """Code runs without `torch.compile`: more slowly, with the same numbers up to rounding."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.reason}; running without torch.compile, which is slower"


def available() -> bool:
    """Whether this machine has what `torch.compile` needs for the CPU: a C++ compiler and Python's headers."""
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    return shutil.which(os.environ.get("CXX", "g++")) is not None and header.is_file()


@checks.arguments
def pays(steps: Natural, params: Tensors, decoded: Natural) -> bool:
    """Whether compiling the step of a run saves more time than it takes.

    The compiler takes about 1.3 s for each parameter tensor, with an empty cache. A compiled step saves about 0.1 ms
    for each, in overhead, and 5 ns for each decoded number, in passes over memory. Convolutions take most of a step
    on a CPU, and are no faster compiled. The rule measures nothing, so that a run repeats; these times are those of
    `tests/benchmarks/startup.py` and `step.py`.

    Args:
        steps: the number of steps of the run.
        params: the parameters of the model; those with more than two axes count as convolutions.
        decoded: the numbers that a step decodes: samples · batch · the size of a datum.

    Raises:
        BadType, BadValue: steps or decoded is not a whole number, 0 or more, or params has other leaves than tensors.
    """
    leaves = tree.leaves(params)
    if any(leaf.ndim > 2 and not leaf.is_cuda for leaf in leaves):
        return False
    return steps * (1e-4 * len(leaves) + 5e-9 * decoded) >= 1.3 * len(leaves)


def compiled(f: F, *, device: torch.device | str = "cpu", options: Mapping[str, Any] | None = None) -> F:
    """Compiles f with `torch.compile`; returns f itself, with a warning, if there is no compiler.

    Each call of `compiled` makes new graphs, one for each set of shapes. f's closure and the globals of its
    module must not change afterwards: a call guards only its arguments and torch's global state, because guards on the
    rest take a seventh of a small step's time. On CUDA, f is recorded as a CUDA graph.

    Args:
        options: further options of inductor, as for `torch.compile`.

    Warns:
        Uncompiled: there is no compiler, or (when the result is called) it cannot compile f.
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
        # The compiler keeps its graphs by code object, so each function gets a copy of the code object.
        twin = types.FunctionType(own.__code__.replace(), own.__globals__, own.__name__, None, own.__closure__)
        given: dict[str, Any] = {"guard_filter_fn": kept, "triton.cudagraphs": on_cuda, **(options or {})}
        # Trust the instruction sets that the processor reports: otherwise the compiler builds a program for each.
        # (With a g++ older than the processor, the compilation fails, and f runs uncompiled.)
        given["cpp.vec_isa_ok"] = True
        # Keep the order of the code, with the optimizer's updates last: they share kernels (10 instead of 17 for
        # burda_vae).
        given["reorder_for_peak_memory"] = False
        return torch.compile(twin, fullgraph=True, dynamic=False, options=given)

    with _few_collections():  # the first use imports the compiler
        fast = anew()
        _hash_ahead()
    around: Callable[[], AbstractContextManager[None]] = _few_collections  # of a call that compiles

    @wraps(f)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal fast, around
        try:
            with around():
                out = fast(*args, **kwargs)
            around = nullcontext
        except torch._dynamo.exc.FailOnRecompileLimitHit:  # after eight sets of shapes: discard the graphs
            with _few_collections():
                fast = anew()
                out = fast(*args, **kwargs)
        except torch._dynamo.exc.TorchDynamoException as error:  # from tracing, before f runs
            try:
                if not _was_interrupted(error):
                    raise
                out = fast(*args, **kwargs)
            except torch._dynamo.exc.TorchDynamoException as error:
                out = f(*args, **kwargs)  # if f fails too, its error is more helpful
                fast = f
                warnings.warn(Uncompiled(f"the compiler cannot compile this: {_reason(error)}"), stacklevel=2)
        return _copied(out, (args, kwargs)) if on_cuda else out

    return call  # type: ignore[return-value]


def _hash_ahead() -> None:
    """Starts hashing torch and Triton in a thread, if this torch can. The compiler's cache needs both after tracing."""
    from torch._inductor import codecache

    for name in ("torch_key", "triton_key"):
        getattr(getattr(codecache, name, None), "prefetch", lambda: None)()


@contextmanager
def _few_collections() -> Iterator[None]:
    """Runs Python's garbage collector less often: its full collections take about 0.8 s of a compilation."""
    before = gc.get_threshold()
    young, *older = before
    gc.set_threshold(young and max(young, 10_000), *map(max, older, (20, 1000)))
    try:
        yield
    finally:
        gc.set_threshold(*before)


# Guards on names that do not change: globals, and the free variable `f` above.
_FIXED = re.compile(r"(G\[|(L\[')?f\b)")


def mark_static(buffers: Tree) -> None:
    """Marks tensors that every call of a compiled function gets, so that a CUDA graph uses them without copies."""
    for buffer in tree.leaves(buffers):
        if buffer.is_cuda:
            torch._dynamo.mark_static_address(buffer)


def _copied(out: Tree, args: Tree) -> Tree:
    """Copies what a CUDA graph returned, which the next call overwrites, except for tensors that are also in args."""
    given = {t.data_ptr() for t in tree.leaves(args) if isinstance(t, Tensor)}
    return tree.map(lambda t: t.clone() if isinstance(t, Tensor) and t.data_ptr() not in given else t, out)


def _was_interrupted(error: Exception) -> bool:
    """Whether the C++ compiler failed, now or in an earlier process, in a way that an interruption explains.

    An interrupted compiler leaves cut-off files in its cache. Deletes those that the error names.
    """
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    text = str(error)
    named = {Path(name) for name in re.findall(re.escape(cache_dir()) + r"[\w/.]+\.(?:so|o|gch)\b", text)}
    cut_off = [path for path in named if path.is_file()]
    for path in cut_off:
        path.unlink()
    return bool(cut_off) or "CppCompileError" in text


def _reason(error: Exception) -> str:
    """What the compiler cannot compile, and where in the user's code."""
    text, _, code = str(error).partition("from user code:")
    lines = [line for line in text.splitlines() if line.strip() and not line.endswith("raised:")]
    raised = _RAISED.search(text)  # by the code, when the compiler traced it
    first = raised[1] if raised else lines[0] if lines else type(error).__name__
    places = _PLACE.findall(code)
    return checks.one_line(first) + (" ({}, line {}, in {})".format(*places[-1]) if places else "")


_RAISED = re.compile(r"(?:got|raised exception) \w+\(['\"](.*?)['\"]\)")
_PLACE = re.compile(r'File "(.*)", line (\d+), in (.*)')
