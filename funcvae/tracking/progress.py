"""A progress bar of any long computation."""

import warnings
from typing import Any

from tqdm import TqdmWarning

__all__ = ["Bar", "bar"]

with warnings.catch_warnings():
    warnings.simplefilter("ignore", TqdmWarning)  # in a notebook without ipywidgets it shows text
    from tqdm.auto import tqdm as tqdm_auto


class Bar:
    """A progress bar that is a function of (done, total): a widget in a notebook, text elsewhere.

    It starts a new bar when `done` is less than before, and ends it when `done` reaches `total`.

    Args:
        options: keyword arguments of `tqdm`.
    """

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._shown: Any = None

    def __call__(self, done: int, total: int) -> None:
        """Shows that `done` of `total` parts are finished."""
        if self._shown is not None and done < self._shown.n:
            self.close()
        if self._shown is None:
            self._shown = tqdm_auto(total=total, initial=done, **self._options)
        self._shown.total = total
        self._shown.update(done - self._shown.n)
        if done >= total:
            self.close()

    def __repr__(self) -> str:
        return "bar"

    def close(self) -> None:
        """Ends the bar that is shown, if any."""
        if self._shown is not None:
            self._shown.close()
            self._shown = None


bar = Bar()
"""Shows a progress bar, for the argument `progress` of any function: `progress=tracking.bar`."""
