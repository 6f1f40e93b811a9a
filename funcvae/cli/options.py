"""Options that several commands share."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter, Token
from matplotlib.figure import Figure

from funcvae import figures, runs
from funcvae._support import files
from funcvae._support.tables import table
from funcvae.errors import BadValue, FuncvaeError, Missing
from funcvae.models import System
from funcvae.tracking.progress import Bar

__all__ = [
    "DataOptions", "Device", "FigureOutput", "Flag", "Int", "LoadOptions", "ModelOptions", "Names", "OutputOptions",
    "joined_names", "model_options", "parse_model_options", "progress_bar", "system_help", "whole_number",
    "whole_numbers",
]  # fmt: skip


def whole_number(type_: Any, tokens: Sequence[Token]) -> int:
    """Converts an argument to an int; 2.5 is an error, not 2."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f"{tokens[0].value} is not a whole number") from None


Int = Annotated[int, Parameter(converter=whole_number)]
Names = Annotated[list[str], Parameter(consume_multiple=True, metavar="NAME...")]
"""Names separated by spaces or commas, see `joined_names`."""
Flag = Annotated[bool, Parameter(show_default=False)]
Device = Literal["auto", "cpu", "cuda"]
ModelOptions = Annotated[dict[str, str] | None, Parameter(name="model", show=False)]
"""Options of a system's model as text, from --model.NAME VALUE; `system_help` describes them."""

LOADING = Group("Loading", sort_key=1, help="How to find and load the model and its data.")
OUTPUT = Group(
    "Output",
    sort_key=2,
    help="An existing file is kept, and the new one is written beside it as NAME-2, unless --force is given.",
)


def progress_bar(unit: str) -> AbstractContextManager[Bar]:
    """A bar that shows the number of finished units on a terminal, as `progress` of a function."""
    return closing(Bar(unit=unit, unit_scale=True, dynamic_ncols=True, leave=False, disable=None))


def joined_names(names: Sequence[str]) -> list[str]:
    """The names in arguments that separate them by spaces or commas."""
    return runs.split_names(",".join(names))


def whole_numbers(option: str, words: Sequence[str]) -> list[int]:
    """The numbers in arguments that separate them by spaces or commas."""
    try:
        return [int(word) for word in joined_names(words)]
    except ValueError:
        raise BadValue(f"{option} is {' '.join(words)}: it must be whole numbers, such as 1,4,16") from None


def parse_model_options(system: System | str, given: dict[str, str]) -> dict[str, Any]:
    """The values of options of a system's model, given as text."""
    return runs.find_system(system).parse_options({name.replace("-", "_"): text for name, text in given.items()})


def model_options(system: System | str) -> list[str]:
    """The options of a system's model, such as "--model.latent"."""
    return [f"--model.{name.replace('_', '-')}" for name in runs.find_system(system).defaults]


def system_help(words: Sequence[str]) -> str:
    """Describes the defaults and the model options of the system that the first word names."""
    if not words or words[0].startswith("-") or Path(words[0]).is_dir():
        return "Name a system to see its defaults and its options --model.NAME VALUE."
    try:
        system = runs.find_system(words[0])
    except FuncvaeError as error:
        return f"The defaults are not shown: {error}"
    config = runs.configure(system, data=system.recipe.data or "DATA", out="OUT")
    shown = ("data", "epochs", "batch", "samples", "estimator")
    defaults = ", ".join(f"--{name} {getattr(config, name)}" for name in shown)
    values = zip(model_options(system), system.defaults.values(), strict=True)
    rows = [(f"  {option}", *_type_and_default(value)) for option, value in values]
    model = table(rows, align="<") if rows else "  none"
    return f"Defaults of {system.name}:\n  {defaults}\nModel options of {system.name}:\n{model}"


def _type_and_default(value: Any) -> tuple[str, str]:
    """How help shows a model option with this default."""
    items = value if isinstance(value, tuple) else (value,)
    kind = "VALUE" if items in ((), (None,)) else type(items[0]).__name__.upper()
    text = ",".join(map(str, items)) or "''"
    return kind + ",..." * isinstance(value, tuple), f"[default: {text}]"


@Parameter(name="*", group=LOADING)
@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """What the folder of a run lacks."""

    system: str | None = None
    """The run's system, if it is your own: FILE.py:NAME or package.module:NAME."""
    data: str | None = None
    """File or folder of the data. By default where the run found them."""
    data_dir: str | None = None
    """Folder of named data sets. By default where the run found them."""


@Parameter(name="*", group=LOADING)
@dataclass(frozen=True, kw_only=True)
class LoadOptions(DataOptions):
    """How to load a run."""

    checkpoint: Int | None = None
    """Load the parameters after this step. By default those of the finished run, or else the newest."""
    device: Device = "auto"
    """Where to compute."""

    def load(self, run: Path) -> runs.Run:
        """The run in a folder."""
        device = runs.resolve_device(self.device)
        return runs.load(
            run, checkpoint=self.checkpoint, system=self.system, device=device, data=self.data, data_dir=self.data_dir
        )


@Parameter(name="*", group=OUTPUT)
@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Where to write the results. Files never replace others by default: see `OUTPUT`."""

    out: Path | None = None
    """The file to write. By default in the run folder."""
    force: Flag = False
    """Replace existing files."""

    def check(self, *endings: str) -> None:
        """Raises BadValue unless `out` ends in one of these, and Missing if its folder does not exist."""
        if self.out is None:
            return
        path = self.out
        if path.suffix.lower() not in endings or path.is_dir():
            allowed = " or ".join(f"NAME{ending}" for ending in endings)
            raise BadValue(f"--out is {self.out}: it must be the name of a file, {allowed}")
        if not path.parent.is_dir():
            raise Missing(f"--out is {self.out}: there is no folder {path.parent}")

    def write(self, path: Path, content: bytes) -> Path:
        """Writes a file, and prints and returns its path."""
        path = files.write_beside(path, content, over=self.force)
        print(path)
        return path


@Parameter(name="*", group=OUTPUT)
@dataclass(frozen=True, kw_only=True)
class FigureOutput(OutputOptions):
    """Where to write results with figures, and their format."""

    format: Literal["png", "pdf", "svg"] | None = None
    """Format of figures that --out does not name. By default png."""

    def check(self, *endings: str) -> None:
        """Raises as in `OutputOptions`, and BadValue if both `out` and `format` give the format of a figure."""
        super().check(*endings)
        if self.format and self.out and self.out.suffix.lower() in figures.ENDINGS:
            raise BadValue(f"--format is {self.format}: --out {self.out} has the format of the figure; leave one out")

    def save(self, figure: Figure, path: Path) -> Path:
        """Saves a figure, and prints and returns its path. A path without an ending gets that of the format."""
        if path.suffix.lower() not in figures.ENDINGS:
            path = path.with_name(f"{path.name}.{self.format or 'png'}")
        path = figures.save(figure, path, over=self.force)
        print(path)
        return path
