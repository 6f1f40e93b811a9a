"""Writing a file so that it is there whole or not at all, and what goes into JSON files."""

import json
import math
import os
from pathlib import Path
from typing import Any


def write(path: Path, content: bytes) -> Path:
    """Writes a file, by way of a temporary sibling that then takes its name; makes the folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def write_beside(path: Path, content: bytes, *, over: bool) -> Path:
    """Writes a file of this name, or `over` one; else beside one that says otherwise, as NAME-2, NAME-3, …"""
    stem, count = path.stem, 1
    while not over and path.exists() and path.read_bytes() != content:
        count += 1
        path = path.with_stem(f"{stem}-{count}")
    return write(path, content)


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
