"""Data with one batch axis: a tensor [n, ...], or a dict of such tensors."""

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor

from funcvae._support import checks
from funcvae.errors import BadType, BadValue

__all__ = [
    "ConcreteData", "Data", "checked", "count", "device", "each", "head", "joined", "named", "not_finite", "numel",
    "same_device", "same_length", "split", "take", "tensors", "whole",
]  # fmt: skip


def checked(name: str, value: Any) -> Any:
    """Checks that an object is data."""
    if not isinstance(value, dict):
        if not isinstance(value, Tensor):
            raise BadType(
                f"{name} is {checks.describe(value)}: it must be a tensor [n, ...], or a dict of such tensors"
            )
        return checks.tensor(name, value, "n ...")
    if not value:
        raise BadValue(f"{name} is an empty dict: it must hold tensors [n, ...]")
    same_length(name, {part: len(checks.tensor(named(name, part), x, "n ...")) for part, x in value.items()})
    return value


def same_length(name: str, lengths: dict[str, int]) -> int:
    """Checks that parts of data have one length, and returns it."""
    if len(set(lengths.values())) > 1:
        got = ", ".join(f"{part!r} has {n}" for part, n in lengths.items())
        raise BadValue(f"the parts of {name} differ in length: {got}; they must have one batch axis")
    return next(iter(lengths.values()))


def named(name: str, part: str) -> str:
    """The name of a part of data, for error messages; a single tensor has the part ""."""
    return f"{name}[{part!r}]" if part else name


def _concrete(name: str, value: Any) -> Any:
    for part, x in tensors(checked(name, value)).items():
        checks.not_on_meta(named(name, part), x)
    return value


Data = Annotated[Tensor | dict[str, Tensor], checks.Only(checked)]
"""A tensor [n, ...], or a dict of tensors with one batch axis."""
ConcreteData = Annotated[Tensor | dict[str, Tensor], checks.Only(_concrete)]
"""Data that are not on the `meta` device."""


def tensors(x: Data) -> dict[str, Tensor]:
    """The tensors by name; a single tensor has the name ""."""
    return x if isinstance(x, dict) else {"": x}


def whole(parts: dict[str, Any]) -> Any:
    """The inverse of `tensors`: a single part without a name, or the dict itself."""
    return parts[""] if parts.keys() == {""} else parts


def each(f: Callable[[Tensor], Any], x: Data) -> Any:
    """Applies a function to each tensor."""
    return f(x) if isinstance(x, Tensor) else {name: f(part) for name, part in x.items()}


def count(x: Data) -> int:
    """The number n of data."""
    return len(x) if isinstance(x, Tensor) else len(next(iter(x.values())))


def device(x: Data) -> torch.device:
    """The device of the first tensor."""
    return x.device if isinstance(x, Tensor) else next(iter(x.values())).device


def same_device(x: Data, **others: Tensor) -> None:
    """Checks that data and other tensors are on one device."""
    checks.same_device(**others, **{f"x {name}".strip(): part for name, part in tensors(x).items()})


def not_finite(x: Tensor) -> int | None:
    """The first item [...] of x [n, ...] that is NaN or infinite; None if all are finite, which takes no memory."""
    if not (x.is_floating_point() and x.numel()) or all(extreme.isfinite() for extreme in x.aminmax()):
        return None
    return int(x.isfinite().reshape(len(x), -1).all(1).int().argmin())


def numel(x: Data) -> int:
    """The number of numbers in all tensors."""
    return sum([part.numel() for part in tensors(x).values()])


def of_each(name: str, x: Data, n: int) -> Data:
    """x, which the function `name` made of n data; raises BadValue if it has another number of items."""
    if (got := count(x)) != n:
        raise BadValue(f"{name} returned {got} items for {n} data: it must keep their number")
    return x


def head(x: Data, n: int) -> Data:
    """The first n data."""
    return each(lambda part: part[:n], x)


def take(x: Data, rows: Tensor) -> Data:
    """The data of the given rows."""
    return each(lambda part: part.index_select(0, rows), x)


def joined(parts: Sequence[Data]) -> Data:
    """Joins data along the batch axis."""
    return whole({name: torch.cat([tensors(part)[name] for part in parts]) for name in tensors(parts[0])})


def split(x: Data, n: int) -> Iterator[Data]:
    """Parts of n successive data; the last may be shorter."""
    if isinstance(x, Tensor):
        yield from x.split(n)
    else:
        for parts in zip(*(part.split(n) for part in x.values()), strict=True):
            yield dict(zip(x, parts, strict=True))
