"""Shows a progress bar."""

from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from funcvae.train.settings import Log, Row

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(steps: int, made: int = 0) -> Iterator[Log]:
    """Shows a progress bar over training steps with the latest bound and test bound."""
    with tqdm(total=steps, initial=made, unit="step", dynamic_ncols=True, leave=None) as bar:  # a nested bar is cleared
        shown: dict[str, str] = {}

        def update(row: Row) -> None:
            name = "bound" if row["kind"] == "step" else "test_bound"
            if name in row:
                shown[name] = f"{row[name]:.2f}"
                bar.set_postfix(shown, refresh=False)
            bar.update(int(row["kind"] == "step"))

        yield update
