"""When to end training, and which parameters to keep."""

import signal
from collections.abc import Callable
from types import FrameType
from typing import Annotated, Any

import numpy as np
import torch

from funcvae import tree
from funcvae._support import checks
from funcvae._support.checks import Count, Finite, at_least
from funcvae.errors import BadValue
from funcvae.train.state import TrainState

__all__ = ["Interrupt", "KeepBest", "Until", "early_stopping", "interrupt", "keep_best"]

Until = Callable[[np.ndarray], bool]
"""Maps the test bounds of all epochs so far [epochs], NaN where it was not computed, to whether training ends there."""


@checks.arguments
def early_stopping(patience: Count, min_delta: Annotated[Finite, at_least(0)] = 0.0) -> Until:
    """Ends training when the test bound has not improved for `patience` epochs, for the argument `until` of `fit`.

    `fit` refuses it for an estimator that changes with the step, because then the bounds cannot be compared.

    The decision depends on the test bounds alone, so a resumed run ends after the same epoch.

    Args:
        patience: the number of epochs without an improvement.
        min_delta: the least increase in nats per example that counts as an improvement.
    """

    def until(test_bounds: np.ndarray) -> bool:
        best, best_epoch, last = -np.inf, 0, 0
        for epoch, bound in enumerate(test_bounds, 1):
            if bound > best + min_delta:
                best, best_epoch = bound, epoch
            last = last if np.isnan(bound) else epoch
        return last - best_epoch >= patience

    return until


class KeepBest:
    """Keeps the TrainState with the highest test bound: see `keep_best`."""

    def __init__(self) -> None:
        self._ts: TrainState | None = None

    def __call__(self, ts: TrainState) -> None:
        """Keeps a copy of a TrainState."""
        self._ts = tree.map(torch.clone, ts)

    def __repr__(self) -> str:
        return f"KeepBest({'' if self._ts is None else f'step={int(self._ts.step)}'})"

    @property
    def ts(self) -> TrainState:
        """The TrainState after the best epoch. Raises BadValue if it was never called."""
        if self._ts is None:
            raise BadValue("no best TrainState yet: no call of fit with best= has raised the highest test bound")
        return self._ts


def keep_best() -> KeepBest:
    """Keeps the TrainState with the highest test bound, for the argument `best` of `fit`.

    best = fv.train.keep_best()
    ts, history = fv.train.fit(..., test=test, best=best)
    best.ts.params
    """
    return KeepBest()


class Interrupt:
    """A request to stop by Ctrl-C, or by the interrupt of a notebook: see `interrupt`."""

    def __init__(self) -> None:
        self.requested = False
        self._before: Any = None

    def __call__(self) -> bool:
        """Whether training was interrupted."""
        return self.requested

    def __enter__(self) -> "Interrupt":
        self.requested = False
        try:
            self._before = signal.signal(signal.SIGINT, self._request)
        except ValueError:  # only the main thread receives signals
            self._before = None
        return self

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def __repr__(self) -> str:
        return f"Interrupt(requested={self.requested})"

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, self._before)  # a second interrupt is immediate


def interrupt() -> Interrupt:
    """Lets Ctrl-C, or the interrupt of a notebook, end `fit` after the current step, which returns what was reached.

        ts, history = fv.train.fit(..., stop=fv.train.interrupt())

    A second interrupt raises KeyboardInterrupt at once. The handler is in place while `fit` runs. In a thread other
    than the main one, which receives no signals, it has no effect.
    """
    return Interrupt()
