"""Writing a file so that it is there whole or not at all."""

import os
from pathlib import Path


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
