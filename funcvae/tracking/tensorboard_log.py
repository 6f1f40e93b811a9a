"""A tracker that writes TensorBoard event files."""

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from funcvae.tracking.metrics_file import Tracker, is_step
from funcvae.tracking.optional_packages import import_package, row_pictures, until_it_fails
from funcvae.train.settings import Row

__all__ = ["tensorboard"]


@contextmanager
def tensorboard(folder: Path, config: dict[str, Any], past: Iterable[Row] = ()) -> Iterator[Tracker]:
    """Writes rows as TensorBoard event files, for `tensorboard --logdir FOLDER`; a parent folder compares runs.

    Scalars against the number of steps: train/loss, train/bound and train/grad_norm for every step, and
    train/epoch_bound (a mean) and test/bound for every epoch. Images: images/x and images/x_hat. HParams: `config`,
    with the last test/bound.

    The first row creates the folder and the file. From then on, TensorBoard ignores that row's step and later steps in
    earlier files of the folder. The new file repeats the rows of these steps that are in `past`.

    Raises:
        Missing: tensorboard is not installed.
    """
    event_pb2 = import_package("tensorboard.compat.proto.event_pb2", extra="tensorboard")
    summary_pb2 = import_package("tensorboard.compat.proto.summary_pb2", extra="tensorboard")
    writer = import_package("torch.utils.tensorboard", extra="tensorboard")
    summary = import_package("torch.utils.tensorboard.summary", extra="tensorboard")

    # Records are written directly: a SummaryWriter takes 87 ms per epoch of 469 steps, not 9 ms, and its thread prints
    # a traceback when the disk is full.
    with ExitStack() as closing:
        file: Any = None

        def put(**event: Any) -> None:
            file.write(event_pb2.Event(wall_time=time.time(), **event).SerializeToString())

        def start(step: int) -> None:
            nonlocal file
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"events.out.tfevents.{time.time_ns()}"
            file = writer.RecordWriter(closing.enter_context(path.open("wb", buffering=0)))
            put(file_version="brain.Event:2")
            shown = {name: value if type(value) in (int, float, str) else str(value) for name, value in config.items()}
            experiment, session_start, _ = summary.hparams(shown, {"test/bound": 0.0})
            put(summary=experiment)
            put(summary=session_start)
            # After a START event TensorBoard ignores this step and later ones in earlier files.
            put(step=step, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))
            for row in past:
                if row["step"] >= step:
                    show(row)

        def write(row: Row) -> None:
            if file is None:
                start(row["step"])
            show(row)

        def show(row: Row) -> None:
            tags = {name: name for name in row if "/" in name}  # such as variance/elbo/encoder
            tags |= _STEP_TAGS if is_step(row) else _EPOCH_TAGS
            values = [summary_pb2.Summary.Value(tag=tags[name], simple_value=row[name]) for name in tags if name in row]
            for name, x in row_pictures(row).items():
                framed = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=1)
                values += summary.image(f"images/{name}", framed).value
            put(step=row["step"], summary=summary_pb2.Summary(value=values))

        yield until_it_fails(write, "tensorboard")


_STEP_TAGS = {"loss": "train/loss", "bound": "train/bound", "grad_norm": "train/grad_norm"}
_EPOCH_TAGS = {"bound": "train/epoch_bound", "test_bound": "test/bound"}
