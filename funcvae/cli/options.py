"""Options that several commands share."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from funcvae import runs
from funcvae._support.tables import table
from funcvae.errors import BadValue, FuncvaeError
from funcvae.models import System

__all__ = [
    "DataOptions", "Device", "Flat", "LoadOptions", "ModelOptions", "RunPath", "join_model_options", "model_help",
    "parse_model_options",
]  # fmt: skip

RunPath = tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RUN")]]
Device = Literal["auto", "cpu", "cuda"]
Flat = tyro.conf.arg(name="")
"""Annotates a parameter whose fields are options of the command itself."""
ModelOptions = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(name="model.NAME", metavar="VALUE", help_behavior_hint="")
]
"""Options of a model as NAME=VALUE, see `join_model_options`."""


def join_model_options(args: Sequence[str]) -> list[str]:
    """The arguments with --model.NAME NAME=VALUE for each --model.NAME VALUE or --model.NAME=VALUE."""
    joined, rest = [], iter(args)
    for word in rest:
        if not word.startswith("--model."):
            joined.append(word)
            continue
        name, equals, value = word.removeprefix("--model.").partition("=")
        if not equals and (value := next(rest, "--")).startswith("--"):
            raise BadValue(f"{word} needs a value")
        joined.append(f"--model.NAME={name.replace('-', '_')}={value}")
    return joined


def parse_model_options(system: System | str, words: Sequence[str]) -> dict[str, Any]:
    """The values of NAME=VALUE for the model of a system."""
    pairs = (word.partition("=") for word in words)
    return runs.find_system(system).parse_options({name: value for name, _, value in pairs})


def model_help(args: Sequence[str]) -> str:
    """Describes the model options of the system that is named in the arguments; empty if none is."""
    for word in args[1:]:
        with suppress(FuncvaeError):
            system = runs.find_system(word)
            rows = [(f"  --model.{name.replace('_', '-')}", *_type_and_default(value))
                    for name, value in system.defaults.items()]  # fmt: skip
            return f"model options of {system.name}:\n{table(rows, align='<') if rows else '  none'}"
    return ""


def _type_and_default(value: Any) -> tuple[str, str]:
    """How help shows a model option with this default."""
    items = value if isinstance(value, tuple) else (value,)
    kind = "VALUE" if items in ((), (None,)) else type(items[0]).__name__.upper()
    text = ",".join(map(str, items)) or "''"
    return kind + ",..." * isinstance(value, tuple), f"(default: {text})"


@dataclass(frozen=True)
class DataOptions:
    """What the folder of a run lacks."""

    system: str | None = None
    """The run's system, if it is your own: FILE.py:NAME or package.module:NAME."""

    data: str | None = None
    """File or folder of the data, if they have moved since training."""
    data_dir: str | None = None
    """Folder of named data sets, if it has moved since training."""


@dataclass(frozen=True)
class LoadOptions(DataOptions):
    """How to load a run."""

    device: Device = "auto"
    """Where to compute."""

    def load(self, run: str) -> runs.Run:
        """The run in a folder."""
        device = runs.resolve_device(self.device)
        return runs.load(run, system=self.system, device=device, data=self.data, data_dir=self.data_dir)
