"""Trackers: functions of a row (a flat dict of numbers) that `train.fit` calls as it goes.

They never change a result.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

Row = dict[str, Any]
Tracker = Callable[[Row], None]


@contextmanager
def jsonl(path: Path) -> Iterator[Tracker]:
    """Writes rows to a file, one JSON object a line, each line whole when the call returns."""
    with path.open("w", encoding="utf-8") as file:

        def write(row: Row) -> None:
            file.write(json.dumps(row, allow_nan=False) + "\n")
            file.flush()

        yield write


@contextmanager
def progress_bar(steps: int) -> Iterator[Tracker]:
    """A progress bar over training steps that shows the last bound, and the test bound once there is one."""
    with tqdm(total=steps, unit="step", dynamic_ncols=True) as bar:
        shown: dict[str, str] = {}

        def update(row: Row) -> None:
            a_step = "loss" in row  # else an epoch's row, whose bound is a mean
            name = "bound" if a_step else "test_bound"
            if name in row:
                shown[name] = f"{row[name]:.2f}"
                bar.set_postfix(shown, refresh=False)
            bar.update(int(a_step))

        yield update
