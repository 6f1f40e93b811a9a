"""`metrics.jsonl`: rows of numbers, one JSON object a line."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from funcvae._support import files
from funcvae.errors import BadData, Missing
from funcvae.train.settings import Row

__all__ = ["LINE_LIMIT", "MetricsReader", "MetricsWriter", "Tracker", "is_step"]

LINE_LIMIT = 2**20
"""The greatest number of bytes in a row."""

Tracker = Callable[[Row], None]
"""Called with each row, as training goes."""


class MetricsWriter:
    """A file of rows, one JSON object a line: a tracker, each line whole when its call returns.

    Entered, it goes on after the first `kept` bytes of what is there, which end a line; the rest is cut off.
    """

    def __init__(self, path: Path, kept: int = 0) -> None:
        self._path, self._kept = path, kept

    def __enter__(self) -> Self:
        with files.writing(self._path):
            self._file = self._path.open("r+b" if self._kept else "wb", buffering=0)
            self._file.seek(self._file.truncate(self._kept))
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __call__(self, row: Row) -> None:
        """Writes a row."""
        line = memoryview(json.dumps(row, allow_nan=False).encode() + b"\n")
        with files.writing(self._path):
            while line:  # a disk that is filling up takes a part, and says why at the next
                line = line[self._file.write(line) :]

    def sync(self) -> int:
        """Sees every row onto the disk, and says how many bytes they are."""
        with files.writing(self._path):
            files.sync(self._file.fileno())
            return self._file.tell()


@dataclass(frozen=True)
class MetricsReader:
    """The rows in a file that `MetricsWriter` wrote, or in its first `size` bytes; it can be iterated many times.

    Going through it raises:
        Missing: there is no such file.
        BadData: the file is shorter, or a line in it is no row: an object with a whole number "step".
    """

    path: Path
    size: int | None = None

    def __iter__(self) -> Iterator[Row]:
        if not self.path.is_file():
            raise Missing(f"{self.path} is missing: no such file")
        there = self.path.stat().st_size
        size = there if self.size is None else self.size
        if there < size:
            raise BadData(f"{self.path} has lost rows: its checkpoint names {size:,} bytes, and it has {there:,}")
        with self.path.open("rb") as file:
            number = 0
            while file.tell() < size:
                number += 1
                line = file.readline(LINE_LIMIT)
                row = files.parse_json(line, f"{self.path}, line {number},")
                if type(row.get("step")) is not int or not line.endswith(b"\n"):
                    raise BadData(f"{self.path}, line {number}, is not a whole row: it must be an object with a step")
                yield row


def is_step(row: Row) -> bool:
    """Whether it is a step's row, not an epoch's, whose bound is a mean."""
    return "loss" in row
