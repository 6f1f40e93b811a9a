"""Options that several commands share."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

import tyro

from funcvae import runs

__all__ = ["DataOptions", "Device", "Flat", "LoadOptions", "RunPath", "new_run_folder"]

RunPath = tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RUN")]]
Device = Literal["auto", "cpu", "cuda"]
Flat = tyro.conf.arg(name="")
"""Annotates a parameter whose fields are options of the command itself."""


@dataclass(frozen=True)
class DataOptions:
    """Where the data of a run are now."""

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
        return runs.load(run, device=runs.resolve_device(self.device), data=self.data, data_dir=self.data_dir)


def new_run_folder(system: str) -> str:
    """The path of a new folder: runs/SYSTEM-DATE-TIME, with a number if it exists already."""
    stem = Path("runs", f"{system}-{datetime.now():%Y%m%d-%H%M%S}")
    path, count = stem, 1
    while path.exists():
        count += 1
        path = stem.with_name(f"{stem.name}-{count}")
    return str(path)
