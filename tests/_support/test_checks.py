"""Checks of arguments: annotations define the allowed values, and an error states them in one line."""

import gc
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import numpy as np
import pytest
import torch
from torch import Tensor

from funcvae._support import checks
from funcvae._support.checks import Count, Finite, Floats, Fraction, Natural, Positive
from funcvae.errors import BadType, BadValue


class Point(NamedTuple):
    x: float


class Scheme(Protocol):
    def __call__(self, n: int) -> Tensor: ...


@checks.arguments
def example(
    *,
    count: Count = 1,
    natural: Natural = 0,
    maybe: Count | None = None,
    real: float = 0.0,
    positive: Positive = 1.0,
    finite: Finite = 0.0,
    fraction: Fraction = 0.5,
    flag: bool = False,
    text: str = "",
    path: str | Path = "",
    x: Annotated[Tensor, "B ..."] | None = None,
    eps: Annotated[Floats, "N B Z"] | None = None,
    one_of: Literal["rows", "samples"] = "rows",
    point: Point | None = None,
    scheme: Scheme = lambda n: torch.zeros(n),
    f: Callable[[int], int] = abs,
    several: Sequence[str] = (),
    named: Mapping[str, int] = {},
    anything: Any = None,
    number_or_function: float | Callable[[int], float] = 1.0,
) -> dict[str, Any]:
    return dict(locals())


WRONG = [
    ("count", 0, BadValue, "count is 0: it must be at least 1"),
    ("count", 1.5, BadType, "count is 1.5: it must be a whole number"),
    ("count", True, BadType, "count is True: it must be a whole number"),
    ("count", 2**64, BadValue, "count is about 2**64: it must be a whole number of 64 bits"),
    ("natural", -1, BadValue, "natural is -1: it must be at least 0"),
    ("maybe", 0, BadValue, "maybe is 0: it must be at least 1"),
    ("real", "1", BadType, "real is '1': it must be a number"),
    ("real", 10**400, BadValue, "real is about 2**1328: it must be a number that a float can hold"),
    ("positive", 0.0, BadValue, "positive is 0.0: it must be positive and finite"),
    ("positive", float("nan"), BadValue, "positive is nan: it must be positive and finite"),
    ("finite", float("inf"), BadValue, "finite is inf: it must be finite"),
    ("fraction", 1.5, BadValue, "fraction is 1.5: it must be between 0 and 1"),
    ("fraction", float("nan"), BadValue, "fraction is nan: it must be between 0 and 1"),
    ("flag", 1, BadType, "flag is 1: it must be True or False"),
    ("text", b"", BadType, "text is b'': it must be a string"),
    ("path", 3, BadType, "path is 3: it must be the path of a file or folder"),
    ("x", [1.0], BadType, "x is list (1.0): it must be a tensor [B, ...]"),
    ("x", torch.zeros(()), BadValue, "x has shape []: it must be a tensor [B, ...]"),
    ("eps", torch.zeros(2), BadValue, "eps has shape [2]: it must be a tensor [N, B, Z]"),
    ("eps", torch.zeros(1, 1, 1).int(), BadType, "eps is a torch.int32 tensor [1, 1, 1]: it must be floating-point"),
    ("one_of", "both", BadValue, "one_of is 'both': it must be one of 'rows', 'samples'"),
    ("one_of", [], BadValue, "one_of is list (): it must be one of 'rows', 'samples'"),
    ("point", (0.0,), BadType, "point is tuple (0.0): it must be a Point"),
    ("scheme", None, BadType, "scheme is None: it must be a function"),
    ("f", 3, BadType, "f is 3: it must be a function"),
    ("several", "abc", BadType, "several is 'abc': it must be a list or tuple"),
    ("named", [], BadType, "named is list (): it must be a dict"),
]


@pytest.mark.parametrize(("name", "value", "kind", "message"), WRONG)
def test_a_wrong_argument_is_an_error(name: str, value: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as raised:
        example(**{name: value})
    assert str(raised.value) == message


def test_numbers_of_numpy_and_torch_become_python_numbers() -> None:
    out = example(
        count=np.int64(3),
        real=np.float32(0.5),
        maybe=None,
        natural=torch.tensor(2),
        path=Path("a"),
        number_or_function="?",
        anything="?",
    )
    assert (out["count"], out["real"], out["maybe"], out["natural"]) == (3, 0.5, None, 2)
    assert {type(out[name]) for name in ("count", "natural")} == {int}
    assert type(out["real"]) is float
    assert out["number_or_function"] == "?"  # a union with a function is not checked


def test_an_unexpected_keyword_is_a_type_error_of_python() -> None:
    with pytest.raises(TypeError, match="unexpected keyword"):
        example(counts=3)  # type: ignore[call-arg]


def test_unchecked_removes_only_the_checks() -> None:
    @checks.arguments
    @torch.no_grad()
    def grad_mode(n: Count) -> bool:
        return torch.is_grad_enabled()

    assert checks.unchecked(example)(count=0)["count"] == 0
    assert checks.unchecked(abs) is abs
    assert not checks.unchecked(grad_mode)(0)
    with pytest.raises(BadValue):
        grad_mode(0)


def test_a_wrapper_around_a_checked_function_keeps_its_own_code():
    @wraps(example)
    def wrapper(**kwargs):
        return {**example(**kwargs), "count": 7}

    assert checks.unchecked(wrapper) is wrapper
    assert checks.unchecked(wrapper)(count=1)["count"] == 7


def test_a_checked_closure_is_freed_with_what_it_captures():
    class Captured:
        pass

    def make() -> weakref.ref[Captured]:
        captured = Captured()

        @checks.arguments
        def closure(n: Count) -> Captured:
            return captured

        closure(1)
        return weakref.ref(captured)

    alive = make()
    gc.collect()
    assert alive() is None


def test_nothing_is_checked_in_a_compiled_graph() -> None:
    @checks.arguments
    def scaled(x: Tensor, by: Count) -> Tensor:
        return x * by

    compiled = torch.compile(lambda x: scaled(x, 0), fullgraph=True, backend="eager")
    assert compiled(torch.ones(2)).tolist() == [0, 0]


def test_fields_of_a_dataclass_are_checked() -> None:
    @dataclass(frozen=True)
    class Settings:
        samples: Count = 1
        scale: float = 1.0

        def __post_init__(self) -> None:
            checks.fields(self)

    assert type(Settings(np.int32(2)).samples) is int
    with pytest.raises(BadValue, match="samples is 0: it must be at least 1"):
        Settings(0)
    with pytest.raises(BadType, match="scale is 'x': it must be a number"):
        Settings(scale="x")  # type: ignore[arg-type]
