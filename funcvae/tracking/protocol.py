"""The protocol of trackers, and what they share: names of charts, sheets of images, and what happens after an error."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from einops import rearrange
from numpy.typing import NDArray

from funcvae._support import checks
from funcvae._support.progress import notice
from funcvae.train.settings import Row

__all__ = ["Images", "Tracker", "UntilItFails", "by_tag", "sheet"]

Images = Mapping[str, NDArray[np.floating]]
"""Images by name, each an array [n, C, H, W] in [0, 1] with C = 1 or 3."""


class Tracker(Protocol):
    """Shows a run while it trains. It must not change its arguments."""

    def log(self, row: Row) -> None:
        """Takes a row of metrics."""

    def show(self, step: int, images: Images) -> None:
        """Takes images of the model after a number of steps."""


class UntilItFails:
    """A tracker whose first error is printed to stderr, and which ignores everything from then on."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self._name, self._tracker, self._failed = name, tracker, False

    def log(self, row: Row) -> None:
        """Takes a row of metrics."""
        self.attempt(self._tracker.log, row)

    def show(self, step: int, images: Images) -> None:
        """Takes images of the model after a number of steps."""
        self.attempt(self._tracker.show, step, images)

    def attempt(self, function: Callable[..., object], *args: Any) -> None:
        """Calls a function unless an earlier call has failed."""
        if self._failed:
            return
        try:
            function(*args)
        except Exception as error:  # packages raise anything
            self._failed = True
            reason = checks.one_line(str(error)) or type(error).__name__
            notice(f"{self._name} stopped; the run continues without it: {reason}")


def by_tag(row: Row) -> dict[str, float]:
    """The numbers of a row by the tag of their chart. Charts are sorted by tag, so those of the bound come first."""
    return {_TAGS.get(name, name): value for name, value in row.items() if name in _TAGS or "/" in name}


def sheet(images: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Images [n, C, H, W] as one image [H', W', 3] of bytes, eight in a row, each in a white frame."""
    columns = min(len(images), 8)
    framed = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=1)
    filled = np.pad(framed, ((0, -len(images) % columns), (0, 0), (0, 0), (0, 0)), constant_values=1)
    rows = rearrange(filled, "(i j) c h w -> (i h) (j w) c", j=columns)
    return np.rint(255 * np.broadcast_to(rows, (*rows.shape[:2], 3))).astype(np.uint8)


_TAGS = {
    "bound": "bound/train", "train_bound": "bound/train_epoch", "test_bound": "bound/test",
    "grad_norm": "grad_norm/train", "loss": "loss/train",
    "kl": "kl/train", "train_kl": "kl/train_epoch",
    "reconstruction": "reconstruction/train", "train_reconstruction": "reconstruction/train_epoch",
}  # fmt: skip
