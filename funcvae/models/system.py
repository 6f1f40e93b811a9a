"""Systems: a model and the recipe of its training, under a name."""

import inspect
import math
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypedDict, Union, get_args, get_origin

import numpy as np

from funcvae._support import checks, files
from funcvae._support.examples import Data
from funcvae._support.reprs import short_repr
from funcvae.errors import BadData, BadType, BadValue, FuncvaeError, unknown
from funcvae.model import VAE
from funcvae.models.recipe import Recipe

__all__ = ["System"]

Name = Annotated[str, checks.that(re.compile(r"\w[\w.-]*").fullmatch, "a name of letters, digits, '_', '-' and '.'")]


@short_repr
@dataclass(frozen=True)
class System:
    """A model and the recipe of its training, under a name: what run folders and the command line work with.

    The keyword arguments of `model` are the options of the system. Each is a whole number, a number, a bool, a string
    or a tuple of them, and has a default; its annotation or default gives its type. Other arguments, such as functions,
    keep their defaults. If `train` is an argument, it gets the training data, whose mean may set an initial bias.

        def bird_vae(train: Tensor | None = None, latent: int = 10) -> fv.VAE: ...
    """

    name: Name
    about: str
    """A description of one line, for `funcvae list systems`."""
    model: Callable[..., VAE]
    """Makes the model from the training data (floats or bytes [n, ...]) and the options. If the data are a stream,
    `train` is its first 10,000 items. When a run is loaded, it is one item of zeros: the shapes of the parameters must
    not depend on its values."""
    recipe: Recipe

    def __post_init__(self) -> None:
        checks.fields(self)

    def build(self, train: Data | None = None, **options: Any) -> VAE:
        """Makes the model for these training data, with these options.

        Raises:
            BadData: the code of the model fails; the message has its line.
            BadType: it returns something else than a VAE.
        """
        if "train" in inspect.signature(self.model).parameters:
            options["train"] = train
        try:
            model = self.model(**options)
        except FuncvaeError:
            raise
        except Exception as error:
            _, *frames = traceback.extract_tb(error.__traceback__)
            line = f" in line {frames[0].lineno}" if frames else ""
            reason = f"{type(error).__name__}{line}: {checks.one_line(str(error))}"
            raise BadData(f"the model of {self.name} cannot be made: {reason}") from error
        if not isinstance(model, VAE):
            raise BadType(f"the model of {self.name} is {checks.describe(model)}: it must return a funcvae.VAE")
        return model

    def offset(self, **options: Any) -> float:
        """The offset of the recipe, for a model with these options."""
        return self.recipe.offset(**self.options(options))

    @property
    def defaults(self) -> dict[str, Any]:
        """The options of the model, with their defaults."""
        return self.options({})

    @checks.arguments
    def options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All options of the model: the given values, and the defaults of the others. Lists become tuples.

        Raises:
            BadValue: no such option; the message has the nearest one. Or a number is NaN or infinite.
            BadType: a value has the wrong type, or an option has no default.
        """
        return self._options(given)

    @checks.arguments
    def parse_options(self, given: Mapping[str, str]) -> dict[str, Any]:
        """The values of options given as text. The items of a tuple are separated by commas, as in "200,200".

        Raises: see `options`.
        """
        kinds = _kinds(self)
        values: dict[str, Any] = {name: None if text == "None" else text for name, text in given.items()}
        for name in values.keys() & kinds.keys():
            if values[name] is not None and _types(kinds[name][0]) & _SEQUENCES:
                values[name] = [item.strip() for item in values[name].split(",") if item.strip()]
        found = self._options(values, strict=False)
        return {name: found[name] for name in given}

    def _options(self, given: Mapping[str, Any], *, strict: bool = True) -> dict[str, Any]:
        kinds = _kinds(self)
        for name in given:
            if checks.text("a model option", name) not in kinds:
                raise unknown("model option", name, kinds) if kinds else BadValue(f"{self.name} has no model options")
        values = {name: default for name, (_, default) in kinds.items()} | dict(given)
        values = {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}
        types = TypedDict("types", {name: kind for name, (kind, _) in kinds.items()})  # type: ignore[misc]
        content = files.typed({"model": values}, TypedDict("content", {"model": types}), strict=strict)  # type: ignore
        for name, value in content["model"].items():
            if isinstance(value, float) and not math.isfinite(value):
                raise BadValue(f"model.{name} is {value}: it must be finite")
        return {name: _as_tuples(content["model"][name]) for name in kinds}


def _kinds(system: System) -> dict[str, tuple[Any, Any]]:
    """{name: (type, default)} for each option of a system's model."""
    try:
        parameters = inspect.signature(system.model, eval_str=True).parameters.values()
    except Exception as error:  # an annotation may be any expression
        reason = f"{type(error).__name__}: {checks.one_line(str(error))}"
        raise BadType(f"the arguments of the model of {system.name} cannot be read: {reason}") from None
    found = {}
    for each in parameters:
        if each.name == "train" or each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD):
            continue
        if each.default is each.empty:
            raise BadType(f"the model of {system.name} has an argument {each.name!r} without a default: give it one")
        kind = _type_of(each.default) if each.annotation is each.empty else each.annotation
        if _types(kind) <= _PLAIN:
            found[each.name] = kind, each.default
    return found


def _type_of(default: Any) -> Any:
    if isinstance(default, tuple | list) and default:
        return tuple[type(default[0]), ...]  # type: ignore[misc]
    return type(default)


def _types(kind: Any) -> set[Any]:
    """The types in an annotation, as in {tuple, int, ..., NoneType} of tuple[int, ...] | None."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _types(inner[0])
    outer = set() if origin in (Union, UnionType) else {origin or kind}
    return outer.union(*map(_types, inner)) if outer <= _SEQUENCES else outer


_SEQUENCES = {tuple, list, Sequence}
_PLAIN = _SEQUENCES | {int, float, bool, str, Literal, NoneType, ...}  # can be written as JSON


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, tuple | list) else value
