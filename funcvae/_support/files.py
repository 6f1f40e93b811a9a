"""Files that are there whole or not at all, whatever happens to the process; and what goes into JSON files."""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from funcvae.errors import BadData, BadValue, InUse, Missing, NotWritten

JSON_LIMIT = 2**20
"""Bytes: no JSON file of a run comes near it."""


def write(path: Path, content: bytes) -> Path:
    """Writes a file, by way of a temporary sibling that then takes its name; makes the folder if need be.

    The sibling is on the disk before it is renamed, and the folder's entry before this returns. So at every moment,
    a loss of power included, the name stands for the old content or for the new.

    Raises:
        NotWritten: it cannot be written; the old content stays.
    """
    if not path.name:  # as of "." or "/"
        raise NotWritten(f"{path} cannot be written: it is a folder")
    partial = path.with_name(f".{path.name}.{os.getpid()}{_PARTIAL}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                _between("opened", path)
                file.write(content)
                _between("written", path)
                sync(file.fileno())
            _between("synced", path)
            os.replace(partial, path)
            _between("renamed", path)
            sync_folder(path.parent)
            _between("whole", path)
        finally:
            partial.unlink(missing_ok=True)
    return path


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Makes what the system says against it, in here, a NotWritten that names the file."""
    try:
        yield
    except OSError as error:
        raise NotWritten(f"{path} cannot be written: {error.strerror or error}") from error


def write_beside(path: Path, content: bytes, *, over: bool) -> Path:
    """Writes a file of this name, or `over` one; else beside one that says otherwise, as NAME-2, NAME-3, …"""
    stem, count = path.stem, 1
    while not over and path.exists() and path.read_bytes() != content:
        count += 1
        path = path.with_stem(f"{stem}-{count}")
    return write(path, content)


def sync(descriptor: int) -> None:
    """Sees an open file's content onto the disk."""
    os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Sees a folder's entries onto the disk, where the system has a call for that."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def remove_partial(folder: Path) -> None:
    """Removes what a writer that was killed left half-written in a folder. Only for the holder of its lock."""
    for partial in folder.rglob(f".*{_PARTIAL}"):
        partial.unlink(missing_ok=True)


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Holds a folder, which is made if need be, for one process to write in; the system lets go of it with the process.

    Raises:
        InUse: another one holds it.
        BadValue: it cannot be made, or written in.
    """
    held = FileLock(folder / LOCK, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held.acquire()
    except Timeout:
        raise InUse(f"{folder} is in use: another process writes there; wait for it, or choose another --out") from None
    except OSError as error:
        raise BadValue(f"{folder} cannot be made, or written in: {error.strerror}") from None
    try:
        yield
    finally:
        held.release()


def read(path: Path, *, limit: int) -> bytes:
    """A file's content.

    Raises:
        Missing: there is no such file.
        BadData: it is longer than `limit` bytes, or cannot be read.
    """
    try:
        content = None
        if path.is_file():  # and no pipe, which would be waited for
            with path.open("rb") as file:
                content = file.read(limit + 1)
    except OSError as error:
        raise BadData(f"{path} cannot be read: {error.strerror}") from None
    if content is None:
        raise Missing(f"{path} is missing: no such file")
    if len(content) > limit:
        raise BadData(f"{path} exceeds the limit of {limit:,} bytes")
    return content


def tail(path: Path, size: int) -> bytes:
    """The last bytes of a file, at most `size`."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - size))
        return file.read(size)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        Missing: there is no such file.
        BadData: it is no JSON object.
    """
    return parse_json(read(path, limit=JSON_LIMIT), str(path))


def parse_json(content: bytes, where: str) -> dict[str, Any]:
    """The JSON object in some bytes; BadData, naming where they are from, if they are none."""
    try:
        parsed = json.loads(content.decode())
        if b"\\u" in content:
            json.dumps(parsed, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise BadData(f"{where} holds half a character, which no name or message can") from None
    except (ValueError, RecursionError) as error:
        raise BadData(f"{where} is not JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise BadData(f"{where} holds no JSON object")
    return parsed


def as_json(content: Any) -> bytes:
    """Dicts, lists, numbers and strings as a JSON file's bytes.

    JSON has no numbers that are not finite: they become the strings "inf", "-inf" and "nan".
    """
    return (json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _finite(value: Any) -> Any:
    match value:
        case dict():
            return {name: _finite(v) for name, v in value.items()}
        case list():
            return [_finite(v) for v in value]
        case float() if not math.isfinite(value):
            return str(value)
        case _:
            return value


LOCK = ".lock"
_PARTIAL = ".partial"


def _between(stage: str, path: Path) -> None:
    """Does nothing between two stages of a write: where a test kills the process."""
