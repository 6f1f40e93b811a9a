"""Reads and writes `metrics.jsonl`: rows of numbers, one JSON object per line."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path
from typing import Self

from funcvae._support import files
from funcvae.errors import BadData, Missing
from funcvae.train.settings import Row

__all__ = ["LINE_LIMIT", "MetricsReader", "MetricsWriter", "renamed"]

LINE_LIMIT = 2**20  # maximum number of bytes in a row


class MetricsWriter:
    """Writes each row to a file as a JSON object on one line, complete when the call returns.

    As a context manager, it keeps the first `kept` bytes of the file, which must end a line, and cuts off the rest.
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

    def log(self, row: Row) -> None:
        """Writes a row."""
        line = memoryview(json.dumps(row, allow_nan=False).encode() + b"\n")
        with files.writing(self._path):
            while line:  # a disk that is almost full writes only a part, and the next write raises
                line = line[self._file.write(line) :]

    def sync(self) -> int:
        """Flushes all rows to disk and returns their number of bytes."""
        with files.writing(self._path):
            files.sync(self._file.fileno())
            return self._file.tell()


@dataclass(frozen=True)
class MetricsReader:
    """The rows of a file that `MetricsWriter` wrote, or of its first `size` bytes; it can be iterated many times.

    Rows of earlier versions get the present names. With `kind`, only rows of that kind are returned; the others are not
    parsed, because a long run has millions of them.

    Iteration raises:
        Missing: the file does not exist.
        BadData: the file is shorter than `size`, or a line is not a JSON object with an integer "step".
    """

    path: Path
    size: int | None = None
    kind: str | None = None

    def __iter__(self) -> Iterator[Row]:
        if not self.path.is_file():
            raise Missing(f"{self.path} is missing: no such file")
        actual = self.path.stat().st_size
        size = actual if self.size is None else self.size
        if actual < size:
            raise BadData(f"{self.path} has lost rows: it has {actual:,} bytes, but its checkpoint records {size:,}")
        wanted = f'"kind": "{self.kind}"'.encode()
        with self.path.open("rb") as file:
            for number in takewhile(lambda _: file.tell() < size, count(1)):
                line, where = file.readline(LINE_LIMIT), f"{self.path}, line {number},"
                if self.kind and b'"kind"' in line and wanted not in line:
                    continue
                row = files.parse_json(line, where)
                if type(row.get("step")) is not int or not line.endswith(b"\n"):
                    raise BadData(f"{where} is not a complete row: it must be an object with an integer step")
                row = renamed(row)
                if self.kind in (None, row["kind"]):
                    yield row


def renamed(row: Row) -> Row:
    """A row with the present names; version 0.8 and earlier had others."""
    if "kind" in row:
        return row
    kind = "step" if "loss" in row else "epoch" if "bound" in row else "variance"
    names = {"bound": "train_bound"} if kind == "epoch" else {}
    return {"kind": kind, **{names.get(name, name): value for name, value in row.items()}}
