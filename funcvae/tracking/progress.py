"""A progress bar over training steps."""

from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from funcvae.tracking.metrics_file import Tracker, is_step
from funcvae.train.settings import Row

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(steps: int, made: int = 0) -> Iterator[Tracker]:
    """A progress bar over training steps that shows the last bound, and the test bound once there is one."""
    with tqdm(total=steps, initial=made, unit="step", dynamic_ncols=True, leave=None) as bar:  # gone if in another
        shown: dict[str, str] = {}

        def update(row: Row) -> None:
            name = "bound" if is_step(row) else "test_bound"
            if name in row:
                shown[name] = f"{row[name]:.2f}"
                bar.set_postfix(shown, refresh=False)
            bar.update(int(is_step(row)))

        yield update
