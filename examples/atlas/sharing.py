"""Divides computations among processes that share only a folder."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm.auto import tqdm


def share(tasks: Mapping[Path, Callable[[], dict[str, Any]]], title: str) -> None:
    """Computes the JSON files that do not exist yet, and skips those that another process computes now."""
    for path, compute in tqdm(tasks.items(), desc=title, unit="file"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(path.with_suffix(".lock"), blocking=False):
                if not path.is_file():
                    part = path.with_suffix(f".{os.getpid()}")
                    part.write_text(json.dumps(compute()))
                    part.replace(path)  # the file is complete or missing
        except Timeout:
            continue
