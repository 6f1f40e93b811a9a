"""Trackers: functions of a row (a flat dict of numbers) that `train.fit` calls as it goes.

They never change a result. `tensorboard` and `visdom` need the extras of their names, take rows with pictures too
(arrays [n, C, H, W] in [0, 1], named "x" and "x_hat"), and may fail in mid-run: a line says so, and the run goes on.
"""

import html
import json
import logging
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import numpy as np
from tqdm import tqdm

from funcvae import files
from funcvae.errors import BadData, Missing

LINE = 2**20
"""Bytes that a row may have."""

Row = dict[str, Any]
Tracker = Callable[[Row], None]
Point = tuple[float, float]


class Lines:
    """A file of rows, one JSON object a line: a tracker, each line whole when its call returns.

    Entered, it goes on after the first `kept` bytes of what is there, which end a line; the rest is cut off.
    """

    def __init__(self, path: Path, kept: int = 0) -> None:
        self._path, self._kept = path, kept

    def __enter__(self) -> Self:
        with files.writing(self._path):
            self._file = self._path.open("r+b" if self._kept else "wb", buffering=0)
            self._file.seek(self._file.truncate(self._kept))
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __call__(self, row: Row) -> None:
        """Writes a row."""
        line = memoryview(json.dumps(row, allow_nan=False).encode() + b"\n")
        with files.writing(self._path):
            while line:  # a disk that is filling up takes a part, and says why at the next
                line = line[self._file.write(line) :]

    def sync(self) -> int:
        """Sees every row onto the disk, and says how many bytes they are."""
        with files.writing(self._path):
            files.sync(self._file.fileno())
            return self._file.tell()


@dataclass(frozen=True)
class Rows:
    """The rows in a file that `Lines` wrote, or in its first `size` bytes; it can be gone through again and again.

    Going through it raises:
        Missing: there is no such file.
        BadData: the file is shorter, or a line in it is no row: an object with a whole number "step".
    """

    path: Path
    size: int | None = None

    def __iter__(self) -> Iterator[Row]:
        if not self.path.is_file():
            raise Missing(f"{self.path} is missing: no such file")
        there = self.path.stat().st_size
        size = there if self.size is None else self.size
        if there < size:
            raise BadData(f"{self.path} has lost rows: its checkpoint names {size:,} bytes, and it has {there:,}")
        with self.path.open("rb") as file:
            number = 0
            while file.tell() < size:
                number += 1
                line = file.readline(LINE)
                row = files.parse_json(line, f"{self.path}, line {number},")
                if type(row.get("step")) is not int or not line.endswith(b"\n"):
                    raise BadData(f"{self.path}, line {number}, is not a whole row: it must be an object with a step")
                yield row


def is_a_step(row: Row) -> bool:
    """Whether it is a step's row, not an epoch's, whose bound is a mean."""
    return "loss" in row


@contextmanager
def progress_bar(steps: int, made: int = 0) -> Iterator[Tracker]:
    """A progress bar over training steps that shows the last bound, and the test bound once there is one."""
    with tqdm(total=steps, initial=made, unit="step", dynamic_ncols=True, leave=None) as bar:  # gone if in another
        shown: dict[str, str] = {}

        def update(row: Row) -> None:
            name = "bound" if is_a_step(row) else "test_bound"
            if name in row:
                shown[name] = f"{row[name]:.2f}"
                bar.set_postfix(shown, refresh=False)
            bar.update(int(is_a_step(row)))

        yield update


@contextmanager
def tensorboard(folder: Path, config: dict[str, Any], past: Iterable[Row] = ()) -> Iterator[Tracker]:
    """Writes rows where `tensorboard --logdir FOLDER` finds them; a folder above shows its runs together.

    Scalars, over the number of steps made: train/loss, train/bound and train/grad_norm for every step, and an epoch's
    train/epoch_bound (its mean) and test/bound. Images: images/x and images/x_hat. HParams: `config`, with the last
    test/bound.

    The folder and the file are made with the first row: entering leaves the disk alone. Where there are rows past, in
    files of earlier writers, a new file says from which step on it is to be believed.

    Raises:
        Missing: tensorboard is not installed.
    """
    event_pb2 = _package("tensorboard.compat.proto.event_pb2", extra="tensorboard")
    summary_pb2 = _package("tensorboard.compat.proto.summary_pb2", extra="tensorboard")
    writer = _package("torch.utils.tensorboard", extra="tensorboard")
    summary = _package("torch.utils.tensorboard.summary", extra="tensorboard")

    # Records go straight to the file: a SummaryWriter takes ten times as long, and its thread prints a traceback when
    # the disk is full.
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
            # From that step on, what earlier files say is void, also what is past.
            put(step=step, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))
            for row in past:
                if row["step"] >= step:
                    show(row)

        def write(row: Row) -> None:
            if file is None:
                start(row["step"])
            show(row)

        def show(row: Row) -> None:
            tags = _STEP_TAGS if is_a_step(row) else _EPOCH_TAGS
            tags = {**tags, **{name: name for name in row if "/" in name}}  # a variance has a name that is a tag
            values = [summary_pb2.Summary.Value(tag=tags[name], simple_value=row[name]) for name in tags if name in row]
            for name, x in _pictures(row).items():
                framed = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=1)
                values += summary.image(f"images/{name}", framed).value
            put(step=row["step"], summary=summary_pb2.Summary(value=values))

        yield _while_it_works(write, "tensorboard")


@contextmanager
def visdom(server: str, env: str, config: dict[str, Any], past: Iterable[Row] = ()) -> Iterator[Tracker]:
    """Draws rows on a visdom server as they come, in an environment of their own.

    Windows: "loss" and "bound" over the number of steps made, where a training point is the mean of 50 steps and a
    curve has at most 1000 points; "x" and "x_hat", the last pictures given; "config". They are drawn at most once a
    second and at most 1% of the time, however slow the server is, and once more at the end.

    Args:
        server: its address, such as http://localhost:8097.
        env: the environment's name; a character that visdom could not keep becomes "_".
        config: shown as a table.
        past: rows of a run that goes on, to stand in the curves before what is to come.

    Raises:
        Missing: visdom is not installed, or no visdom server answers.
    """
    client = _connect(server, re.sub(r"[^\w.-]", "_", env), config)
    burst: list[tuple[float, ...]] = []  # (step, loss, bound) of the steps that are in no point yet
    curves: dict[str, dict[str, list[Point]]] = {"loss": {"train": []}, "bound": {"train": [], "test": []}}
    pictures: dict[str, np.ndarray] = {}
    due = 0.0

    def collect(row: Row) -> None:
        if is_a_step(row):
            burst.append((row["step"], row["loss"], row["bound"]))
            if len(burst) < _BURST:
                return
        if burst:
            step, loss, bound = np.mean(burst, axis=0)
            curves["loss"]["train"].append((step, loss))
            curves["bound"]["train"].append((step, bound))
            burst.clear()
        if "test_bound" in row:
            curves["bound"]["test"].append((row["step"], row["test_bound"]))
        pictures.update(_pictures(row))

    def track(row: Row) -> None:
        collect(row)
        if len(burst) == 0 and time.monotonic() >= due:
            draw()

    def draw() -> None:
        nonlocal due
        start = time.monotonic()
        for window, lines in curves.items():
            _draw_lines(client, window, lines)
        for window, x in pictures.items():
            _draw_images(client, window, x)
        pictures.clear()
        stop = time.monotonic()
        due = stop + max(_PAUSE, (stop - start) / _SHARE)

    for row in past:
        collect(row)
    tracker = _while_it_works(track, "visdom")
    try:
        yield tracker
    finally:
        due = 0.0
        tracker({})
        client.session.close()


_STEP_TAGS = {"loss": "train/loss", "bound": "train/bound", "grad_norm": "train/grad_norm"}
_EPOCH_TAGS = {"bound": "train/epoch_bound", "test_bound": "test/bound"}
_INSTALL = {
    "tensorboard": 'pip install "funcvae[tensorboard]"',
    # visdom 0.2.4 is built from source, by a setuptools that still has pkg_resources
    "visdom": 'pip install "setuptools<81" && pip install --no-build-isolation visdom "tornado<6.6"',
}
_UNITS = {"loss": "loss", "bound": "nats per example"}
_BURST = 50  # steps in a point
_POINTS = 1000  # in a curve
_PAUSE = 1.0  # seconds between two drawings, at least
_SHARE = 0.01  # of the time, at most, goes into drawing
_TIMEOUT = 5.0  # seconds to wait for an answer


def _pictures(row: Row) -> dict[str, np.ndarray]:
    """The pictures in a row."""
    arrays = {name: np.nan_to_num(np.asarray(row[name])) for name in ("x", "x_hat") if name in row}
    return {name: np.clip(array, 0, 1) for name, array in arrays.items()}


def _package(name: str, *, extra: str) -> Any:
    """An optional package's module, or an error with the line that installs it."""
    try:
        return import_module(name)
    except ImportError as error:
        raise Missing(f"{extra} cannot be imported ({error}): {_INSTALL[extra]}") from None


def _while_it_works(track: Tracker, name: str) -> Tracker:
    """The tracker up to its first OSError, which becomes a line on stderr; rows after that go nowhere."""
    works = True

    def tracker(row: Row) -> None:
        nonlocal works
        if works:
            try:
                track(row)
            except OSError as error:
                works = False
                tqdm.write(f"funcvae: {name} stopped, the run goes on without it: {error}", file=sys.stderr)

    return tracker


def _connect(server: str, env: str, config: dict[str, Any]) -> Any:
    """A visdom client that raises OSError, within seconds, when the server is gone; the config is on show already."""
    package = _package("visdom", extra="visdom")
    logging.getLogger("visdom").setLevel(logging.ERROR)  # it reports each new session as a warning

    def post(url: str, data: Any = None) -> str:
        try:
            answer = client.session.post(url, data=data, timeout=_TIMEOUT)
            answer.raise_for_status()
        except OSError as error:  # as a plain OSError: the client would print a traceback of a requests error
            raise OSError(f"{server} does not answer ({type(error).__name__})") from None
        return answer.text

    cells = [f"<th>{name}&emsp;</th><td>{html.escape(str(value))}</td>" for name, value in config.items()]
    table = f"<table><tr>{'</tr><tr>'.join(cells)}</tr></table>"
    try:
        url = urlsplit(server if "://" in server else f"http://{server}")
        client = package.Visdom(
            server=f"{url.scheme}://{url.netloc.removesuffix(f':{url.port}')}",
            port=url.port or 8097,
            base_url=url.path.rstrip("/") or "/",
            env=env,
            send=False,  # till `post` is in place
            use_incoming_socket=False,
        )
        client._handle_post, client.send = post, True  # visdom offers this method for overriding
        if client.text(table, win="config", opts={"title": "config"}) != "config":
            raise OSError("that is no visdom server")
    except (OSError, ValueError):
        hint = "start one with `python -m visdom.server`"
        raise Missing(f"no visdom server answers at {server}: {hint}") from None
    return client


def _draw_lines(client: Any, window: str, lines: dict[str, list[Point]]) -> None:
    """Draws a window of lines, thinned to what a screen can show."""
    thinned = {name: points[:: -(len(points) // _POINTS + 1)][::-1] for name, points in lines.items() if points}
    if not thinned:
        return
    xy = np.full((max(map(len, thinned.values())), len(thinned), 2), np.nan)  # NaN: no point
    for i, points in enumerate(thinned.values()):
        xy[: len(points), i] = points
    opts = {
        "title": window,
        "xlabel": "steps made",
        "ylabel": _UNITS[window],
        "legend": list(thinned),
        "traceopts": {"plotly": {"test": {"mode": "lines+markers", "marker": {"size": 6}}}},
    }
    client.line(X=xy[..., 0], Y=xy[..., 1], win=window, opts=opts)


def _draw_images(client: Any, window: str, x: np.ndarray) -> None:
    """Draws a window of pictures, eight in a row, as large as a window of lines and as high as it takes."""
    n, _, height, width = x.shape
    columns = min(n, 8)
    wide = 480
    high = wide * -(-n // columns) * (height + 4) / columns / (width + 4)  # visdom's padding is 2 on each side
    client.images(x, nrow=8, win=window, opts={"title": window, "width": wide, "height": high + 20})
