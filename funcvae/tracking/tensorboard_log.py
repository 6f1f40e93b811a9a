"""A tracker that writes TensorBoard event files."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from funcvae.tracking.optional_packages import import_package
from funcvae.tracking.protocol import Images, Tracker, UntilItFails, by_tag, sheet
from funcvae.train.settings import Row

__all__ = ["tensorboard"]


@contextmanager
def tensorboard(folder: Path, config: dict[str, Any], past: Iterable[Row] = ()) -> Iterator[Tracker]:
    """Writes event files, for `tensorboard --logdir FOLDER`; a parent folder compares runs.

    Scalars against the number of steps, by their names in a row: bound/train, bound/train_epoch (a mean) and
    bound/test; grad_norm/train, loss/train, kl/… and reconstruction/…; variance/NAME/NETWORK. "Custom scalars" has
    training and test, and all estimators, in one chart. HParams: `config`, with the last bound/test. Images: images/….

    The first row creates the folder and the file. From then on, TensorBoard ignores that row's step and later steps in
    earlier files of the folder. The new file repeats the rows of these steps that are in `past`.

    Raises:
        Missing: tensorboard is not installed.
    """
    events = _EventFile(folder, config, past)
    try:
        yield UntilItFails("tensorboard", events)
    finally:
        events.close()


class _EventFile:
    """Writes records directly.

    A SummaryWriter takes 87 ms per epoch of 469 steps, not 9 ms, and its thread prints a traceback when the disk is
    full.
    """

    def __init__(self, folder: Path, config: dict[str, Any], past: Iterable[Row]) -> None:
        self._event = import_package("tensorboard.compat.proto.event_pb2", extra="tensorboard")
        self._proto = import_package("tensorboard.compat.proto.summary_pb2", extra="tensorboard")
        self._records = import_package("torch.utils.tensorboard", extra="tensorboard")
        self._make = import_package("torch.utils.tensorboard.summary", extra="tensorboard")
        self._folder, self._config, self._past = folder, config, past
        self._file: Any = None

    def log(self, row: Row) -> None:
        values = [self._proto.Summary.Value(tag=tag, simple_value=value) for tag, value in by_tag(row).items()]
        self._add(row["step"], values)

    def show(self, step: int, images: Images) -> None:
        sheets = {name: sheet(x) for name, x in images.items()}
        made = [self._make.image(f"images/{name}", x, dataformats="HWC") for name, x in sheets.items()]
        self._add(step, [value for summary in made for value in summary.value])

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _add(self, step: int, values: list[Any]) -> None:
        if self._file is None:
            self._start(step)
        self._put(step=step, summary=self._proto.Summary(value=values))

    def _start(self, step: int) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file = (self._folder / f"events.out.tfevents.{time.time_ns()}").open("wb", buffering=0)
        self._writer = self._records.RecordWriter(self._file)
        self._put(file_version="brain.Event:2")
        shown = {name: x if type(x) in (int, float, str) else str(x) for name, x in self._config.items()}
        experiment, session_start, _ = self._make.hparams(shown, {"bound/test": 0.0})
        for summary in (experiment, session_start, self._make.custom_scalars(_CHARTS)):
            self._put(summary=summary)
        # After a START event TensorBoard ignores this step and later ones in earlier files.
        self._put(step=step, session_log=self._event.SessionLog(status=self._event.SessionLog.START))
        for row in self._past:
            if row["step"] >= step:
                self.log(row)

    def _put(self, **event: Any) -> None:
        self._writer.write(self._event.Event(wall_time=time.time(), **event).SerializeToString())


_CHARTS = {
    "training": {
        name: ["Multiline", [f"{name}/train_epoch", f"{name}/test"]] for name in ("bound", "reconstruction", "kl")
    },
    "variance of the gradient": {net: ["Multiline", [f"variance/.*/{net}"]] for net in ("encoder", "decoder")},
}
"""The layout of "Custom scalars": charts with the tags, or patterns of tags, of their lines."""
