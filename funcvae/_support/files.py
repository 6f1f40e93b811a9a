"""Atomic writes of files, locks on folders, and JSON files."""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from filelock import FileLock, Timeout

from funcvae._support import checks
from funcvae.errors import BadData, BadType, BadValue, FuncvaeError, InUse, Missing, NotWritten

T = TypeVar("T")

JSON_LIMIT = 2**20  # the largest number of bytes of a JSON file; the files of a run are far smaller


def write(path: Path, content: bytes) -> Path:
    """Writes a file atomically, and creates its folder if necessary; raises NotWritten if that fails.

    The content goes to a temporary file in the same folder, which is synced and then renamed. Even after a power
    failure the file has either the old content or the new.
    """
    if not path.name:  # "." or "/"
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
    """Turns an OSError raised inside into a NotWritten that names the file."""
    try:
        yield
    except OSError as error:
        raise NotWritten(f"{path} cannot be written: {error.strerror or error}") from error


def write_beside(path: Path, content: bytes, *, over: bool) -> Path:
    """Writes a file. If one with other content exists, replaces it (`over`), or writes NAME-2, NAME-3, … instead."""
    stem, count = path.stem, 1
    while not over and path.exists() and path.read_bytes() != content:
        count += 1
        path = path.with_stem(f"{stem}-{count}")
    return write(path, content)


def sync(descriptor: int) -> None:
    """Flushes an open file to the disk."""
    os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Flushes a folder's entries to the disk, if the system supports it."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            sync(descriptor)
        finally:
            os.close(descriptor)


def remove_partial(folder: Path) -> None:
    """Removes the temporary files that a killed writer left in a folder. Only the holder of its lock may call this."""
    for partial in folder.rglob(f".*{_PARTIAL}"):
        partial.unlink(missing_ok=True)


@contextmanager
def lock(folder: Path, timeout: float = 0) -> Iterator[None]:
    """Locks a folder for one writing process, and creates it if necessary. The system frees the lock of a dead process.

    Raises:
        InUse: another process has held the lock for `timeout` seconds; -1 waits without end.
        BadValue: the folder cannot be created, or cannot be written in.
    """
    held = FileLock(folder / LOCK, timeout=timeout)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held.acquire()
    except Timeout:
        advice = "wait for it, or choose another folder"
        raise InUse(f"{folder} is in use: another process writes there; {advice}") from None
    except OSError as error:
        raise BadValue(f"{folder} cannot be created or written in: {error.strerror}") from None
    try:
        yield
    finally:
        held.release()


def in_use(folder: Path) -> bool:
    """Whether a process holds the lock of a folder. Where the system has no `flock`, it returns False."""
    with suppress(ImportError, OSError):
        import fcntl

        with (folder / LOCK).open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared, so that readers do not disturb one another
            except BlockingIOError:
                return True
    return False


def read(path: Path, *, limit: int) -> bytes:
    """A file's content. Raises Missing, or BadData if it is longer than `limit` bytes or cannot be read."""
    try:
        if not path.is_file():  # reading a pipe would block
            raise Missing(f"{path} is missing: no such file")
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except Missing:
        raise
    except OSError as error:
        raise BadData(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > limit:
        raise BadData(f"{path} exceeds the limit of {limit:,} bytes")
    return content


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises Missing, or BadData if it does not hold one."""
    return parse_json(read(path, limit=JSON_LIMIT), str(path))


def parse_json(content: bytes, where: str) -> dict[str, Any]:
    """Parses bytes as a JSON object. Raises BadData, with `where` as the name of the source, if they are not one."""
    try:
        parsed = json.loads(content.decode())
        if b"\\u" in content:
            json.dumps(parsed, ensure_ascii=False).encode()  # fails on an unpaired surrogate, which cannot be printed
    except (ValueError, RecursionError) as error:
        raise BadData(f"{where} is not JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise BadData(f"{where} does not hold a JSON object")
    return parsed


def typed(content: Any, kind: type[T], *, strict: bool = True) -> T:
    """Converts a JSON object to a dataclass or TypedDict. If not `strict`, also converts text, such as "3" to 3.

    Raises BadType or BadValue for a missing or wrong field.
    """
    try:
        return msgspec.convert(content, kind, strict=strict)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, FuncvaeError):  # from __post_init__
            raise error.__cause__ from None
        raise _in_our_words(str(error).replace("`", ""), content) from None


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Turns a BadType or BadValue raised inside into a BadData: the file is not `what`."""
    try:
        yield
    except (BadType, BadValue) as error:
        raise BadData(f"{path} is not {what}: {error}") from None


def _in_our_words(message: str, content: Any) -> BadType | BadValue:
    """Rewrites an error of msgspec, such as "Expected int >= 1 - at $.samples[0]", so that it also shows the value."""
    problem, _, place = message.partition(" - at ")
    expected, _, found = problem.partition(", got ")
    name = place.replace("$.", "").removeprefix("$")
    if "missing" in problem:  # "Object missing required field train - at $.data"
        return BadValue(".".join(filter(None, [name, problem.split()[-1]])) + " is missing")
    given = f"of type {found}"
    if not place.startswith("key"):  # "key in $.settings"
        for key in re.findall(r"\w+", name):
            content = content[key] if isinstance(content, Mapping) else content[int(key)]
        given = checks.describe(content)
    for word, plain in _PLAIN.items():
        expected = re.sub(word, plain, expected)
    return (BadType if found else BadValue)(f"{name or 'content'} is {given}: {expected}")


_PLAIN = {  # msgspec's words for types, in ours
    "^Expected": "it must be", r"\| null": "or None", r"\barray of length >= 1": "a list of at least one item",
    r"\barray\b": "a list", r"\bobject\b": "a dict", r"\bint\b": "a whole number", r"\bfloat\b": "a number",
    r"\bstr\b": "a string", r"\bbool\b": "True or False",
}  # fmt: skip


def as_json(content: Any) -> bytes:
    """The bytes of a JSON file with this content. Infinity and NaN become the strings "inf", "-inf" and "nan"."""
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


LOCK, _PARTIAL = ".lock", ".partial"


def _between(stage: str, path: Path) -> None:
    """Does nothing. A test replaces it, to kill the process between two stages of a write."""
