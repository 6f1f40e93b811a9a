"""Shows the progress of training on stderr: a bar on a terminal, and otherwise a line for each epoch."""

import sys
import time
from threading import Event, Thread
from typing import Self

from tqdm import tqdm

from funcvae.train.settings import Row

__all__ = ["TrainingProgress", "duration", "speed"]


class TrainingProgress:
    """A context manager that shows how far a run is, from its rows.

    While the first step compiles, a clock runs. After the first seconds of a run that takes long, a line says how long.

    Args:
        name: the name of the run.
        steps, epochs: those of the whole run.
        made: the steps that were made before.
        compiling: whether the first step will be compiled.
        with_loss: also show the loss of the last batch.
        quiet: show nothing.
    """

    def __init__(
        self, name: str, steps: int, epochs: int, made: int = 0, *, compiling: bool = False, with_loss: bool = False,
        quiet: bool = False,
    ) -> None:  # fmt: skip
        self._name, self._steps, self._epochs, self._made, self._start = name, steps, epochs, made, made + 1
        self._names = {"loss": "loss"} if with_loss else {}
        self._names |= {"bound": "bound", "test_bound": "test"}
        self._shown: dict[str, str] = {}
        self._compiling, self._announced = compiling, False
        self._first_step = Event()
        self._quiet = quiet

    def __enter__(self) -> Self:
        self._began = self._stepping = time.monotonic()
        look = "step {n_fmt}/{total_fmt} |{bar}| {desc}"
        # A nested bar is cleared at its end. Without a terminal, `disable=None` shows no bar.
        self._bar = tqdm(
            total=self._steps, initial=self._made, bar_format=look, dynamic_ncols=True, leave=None,
            disable=self._quiet or None,
        )  # fmt: skip
        if self._compiling and not self._quiet:
            Thread(target=self._show_clock, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._first_step.set()
        self._bar.close()

    def stepped(self) -> None:
        """Counts a step that was made. The first one ends the clock of the compiler."""
        self._made += 1
        if not self._first_step.is_set():
            self._first_step.set()
            self._stepping = time.monotonic()
            if self._compiling and self._bar.disable:
                self._write(f"the first step took {duration(self._stepping - self._began)}, with its compilation")

    def log(self, row: Row) -> None:
        """Shows a row."""
        self._shown |= {text: f"{text} {_number(row[name])}" for name, text in self._names.items() if name in row}
        if row["kind"] == "step":
            self._describe(refresh=False)
            self._bar.update()
            self._announce_duration()
        elif row["kind"] == "epoch":
            self._describe(refresh=True)
            if self._bar.disable:
                bounds = {"train_bound": "bound", "test_bound": "test bound"}
                texts = [f"{text} {_number(row[name])}" for name, text in bounds.items() if name in row]
                if "loss" in self._shown:
                    texts.insert(0, f"last {self._shown['loss']}")
                place = f"epoch {row['epoch'] + 1:,}/{self._epochs:,}, step {row['step']:,}/{self._steps:,}"
                times = f"{duration(time.monotonic() - self._began)}, {duration(self._left())} left"
                self._write(", ".join([place, *texts, times]))

    def _describe(self, refresh: bool) -> None:
        texts = [*self._shown.values(), f"{duration(self._left())} left"]
        self._bar.set_description_str(", ".join(texts), refresh=refresh)

    def _left(self) -> float:
        """The estimated seconds to the last step. The first step, which may have been compiled, does not count."""
        counted = max(self._made - self._start, 1)
        return (time.monotonic() - self._stepping) / counted * (self._steps - self._made)

    def _announce_duration(self) -> None:
        seconds = time.monotonic() - self._stepping
        if self._announced or seconds < _MEASURED:
            return
        self._announced = True
        if self._left() > _LONG:
            rate = speed(self._made - self._start, seconds)
            self._write(f"at {rate}, training takes about {duration(self._left())}")

    def _show_clock(self) -> None:
        if self._bar.disable:
            self._write("compiling the step")
        while not self._first_step.wait(_TICK):
            passed = duration(time.monotonic() - self._began)
            self._bar.set_description_str(f"compiling the step: {passed}")

    def _write(self, text: str) -> None:
        if not self._quiet:
            tqdm.write(f"{self._name}: {text}", file=sys.stderr)


_MEASURED, _LONG = 5.0, 600.0  # seconds of training to measure before, and from which, a duration is announced
_TICK = 0.5  # seconds between two updates of the clock


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"


def speed(steps: int, seconds: float) -> str:
    """A speed such as 412 steps a second, or 0.52 steps a second."""
    rate = steps / seconds
    return f"{rate:,.0f} steps a second" if rate >= 10 else f"{rate:.2g} steps a second"


def duration(seconds: float) -> str:
    """A duration such as 12 s, 3 min 20 s or 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
