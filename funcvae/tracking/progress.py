"""A tracker that shows a progress bar."""

from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from funcvae.tracking.metrics_file import Tracker, is_step
from funcvae.train.settings import Row

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(steps: int, made: int = 0) -> Iterator[Tracker]:
    """Shows a progress bar over training steps with the latest bound and test bound."""
    with tqdm(total=steps, initial=made, unit="step", dynamic_ncols=True, leave=None) as bar:  # a nested bar is cleared
        shown: dict[str, str] = {}

        def update(row: Row) -> None:
            name = "bound" if is_step(row) else "test_bound"
            if name in row:
                shown[name] = f"{row[name]:.2f}"
                bar.set_postfix(shown, refresh=False)
            bar.update(int(is_step(row)))

        yield update
