"""Conversion of JSON objects to typed values. tests/system/test_faults.py tests atomic writes and locks."""

from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
from msgspec import Meta

from funcvae._support import checks, files
from funcvae._support.checks import Count
from funcvae.errors import BadType, BadValue


@dataclass(frozen=True)
class Inner:
    shape: tuple[Annotated[int, Meta(ge=1)], ...] = ()


@dataclass(frozen=True)
class Outer:
    n: Count
    rate: float | None = None
    inner: Inner = Inner()
    names: Annotated[tuple[str, ...], Meta(min_length=1)] = ("a",)
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        checks.fields(self)


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        ([], BadType, "content is list (): it must be a dict"),
        ({}, BadValue, "n is missing"),
        ({"n": 0}, BadValue, "n is 0: it must be at least 1"),
        ({"n": True}, BadType, "n is True: it must be a whole number"),
        ({"n": 1.0}, BadType, "n is 1.0: it must be a whole number"),
        ({"n": 10**30}, BadValue, "n is about 2**99: it must be a whole number of 64 bits"),
        ({"n": 1, "rate": "1"}, BadType, "rate is '1': it must be a number or None"),
        ({"n": 1, "inner": {"shape": [2, 0]}}, BadValue, "inner.shape[1] is 0: it must be a whole number >= 1"),
        ({"n": 1, "names": []}, BadValue, "names is list (): it must be a list of at least one item"),
        ({"n": 1, "names": "a"}, BadType, "names is 'a': it must be a list"),
        ({"n": 1, "settings": {3: 4}}, BadType, "key in settings is of type int: it must be a string"),
    ],
)
def test_wrong_content_is_an_error(content, kind, message):
    with pytest.raises(kind) as raised:
        files.typed(content, Outer)
    assert str(raised.value) == message


def test_correct_content_becomes_a_dataclass():
    content = {"n": 3, "rate": 1, "inner": {"shape": [2]}, "names": ["b"], "settings": {"x": [1]}}
    assert files.typed(content, Outer) == Outer(3, 1.0, Inner((2,)), ("b",), {"x": [1]})
