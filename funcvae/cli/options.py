"""What several commands take."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

import tyro

RunPath = tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RUN")]]
Device = Literal["auto", "cpu", "cuda"]


def fresh(system: str) -> str:
    """A folder that is not there yet: runs/SYSTEM-DATE-TIME, with a number where two start in one second."""
    stem = Path("runs", f"{system}-{datetime.now():%Y%m%d-%H%M%S}")
    path, count = stem, 1
    while path.exists():
        count += 1
        path = stem.with_name(f"{stem.name}-{count}")
    return str(path)
