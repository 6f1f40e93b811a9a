"""A tracker that draws on a visdom server."""

import html
import logging
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from funcvae.errors import Missing
from funcvae.tracking.optional_packages import import_package
from funcvae.tracking.protocol import Images, Tracker, UntilItFails, sheet
from funcvae.train.settings import Row

__all__ = ["visdom"]
_Point = tuple[float, float]


@contextmanager
def visdom(server: str, env: str, config: dict[str, Any], past: Iterable[Row] = ()) -> Iterator[Tracker]:
    """Draws a run on a visdom server, in a separate environment.

    Windows: "bound", "loss" and "variance" against the number of steps, where a training point is the mean of 50 steps;
    "reconstruction" and "kl", the means of epochs; the images, each with a slider over the steps; "config". A curve has
    at most 1000 points. Windows are redrawn at most once a second, in at most 1% of the time even if the server is
    slow, and once more at the end.

    Args:
        server: address of the server, such as http://localhost:8097.
        env: name of the environment; characters that visdom does not support become "_".
        config: settings of the run, shown as a table.
        past: earlier rows of a resumed run, drawn at the beginning of the curves.

    Raises:
        Missing: visdom is not installed, or no visdom server answers.
    """
    client = _connect(server, re.sub(r"[^\w.-]", "_", env))
    windows = _Windows(client, config, past)
    tracker = UntilItFails("visdom", windows)
    try:
        yield tracker
    finally:
        tracker.attempt(windows.draw)
        client.session.close()


class _Windows:
    def __init__(self, client: Any, config: dict[str, Any], past: Iterable[Row]) -> None:
        self._client, self._config = client, config
        self._burst: list[tuple[float, ...]] = []  # (step, bound, loss) of the steps since the last point
        self._curves: dict[str, dict[str, list[_Point]]] = {window: {} for window in _LABELS}
        self._images: list[tuple[str, int, NDArray[np.uint8]]] = []  # (window, step, image) to draw
        self._due = 0.0
        for row in past:
            self._collect(row)

    def log(self, row: Row) -> None:
        self._collect(row)
        if not self._burst and time.monotonic() >= self._due:
            self.draw()

    def show(self, step: int, images: Images) -> None:
        self._images += [(name, step, sheet(x)) for name, x in images.items()]

    def draw(self) -> None:
        start = time.monotonic()
        self._end_burst()
        for window, lines in self._curves.items():
            _draw_lines(self._client, window, lines)
        if self._config:
            _draw_table(self._client, "config", self._config)
            self._config = {}
        for window, step, x in self._images:
            _draw_image(self._client, window, step, x)
        self._images.clear()
        stop = time.monotonic()
        self._due = stop + max(_PAUSE, (stop - start) / _SHARE)

    def _collect(self, row: Row) -> None:
        step = row["step"]
        if row["kind"] == "step":
            self._burst.append((step, row["bound"], row["loss"]))
            if len(self._burst) == _BURST:
                self._end_burst()
        elif row["kind"] == "epoch":
            self._end_burst()
            if "test_bound" in row:
                self._add("bound", "test", step, row["test_bound"])
            for term in ("reconstruction", "kl"):
                if f"train_{term}" in row:
                    self._add(term, "mean of the epoch", step, row[f"train_{term}"])
        else:
            for name, value in row.items():
                if name.startswith("variance/"):
                    self._add("variance", name.removeprefix("variance/"), step, value)

    def _end_burst(self) -> None:
        if self._burst:
            step, bound, loss = np.mean(self._burst, axis=0)
            self._add("bound", "train", step, bound)
            self._add("loss", "train", step, loss)
            self._burst.clear()

    def _add(self, window: str, line: str, step: float, value: float) -> None:
        self._curves[window].setdefault(line, []).append((step, value))


_LABELS = dict.fromkeys(("bound", "reconstruction", "kl"), "nats per example")
_LABELS |= {"loss": "loss", "variance": "variance of the gradient"}
_BURST = 50  # steps averaged in a point
_POINTS = 1000  # maximum points in a curve
_PAUSE = 1.0  # minimum seconds between two drawings
_SHARE = 0.01  # maximum fraction of the time spent drawing
_TIMEOUT = 5.0  # seconds to wait for an answer
_WIDTH = 480  # of a window of images


def _connect(server: str, env: str) -> Any:
    """A visdom client that raises OSError within seconds if the server fails."""
    package = import_package("visdom", extra="visdom")
    logging.getLogger("visdom").setLevel(logging.ERROR)  # it reports each new session as a warning

    def post(url: str, data: Any = None) -> str:
        try:
            answer = client.session.post(url, data=data, timeout=_TIMEOUT)
            answer.raise_for_status()
        except OSError as error:  # the client prints a traceback for a requests error, but not for a plain OSError
            raise OSError(f"{server} does not answer ({type(error).__name__})") from None
        return answer.text

    try:
        url = urlsplit(server if "://" in server else f"http://{server}")
        host, port = f"{url.scheme}://{url.netloc.removesuffix(f':{url.port}')}", url.port or 8097
        at = {"server": host, "port": port, "base_url": url.path.rstrip("/") or "/"}
        client = package.Visdom(**at, env=env, send=False, use_incoming_socket=False)  # sends once `post` is set
        client._handle_post, client.send = post, True  # visdom allows overriding this method
        client.get_env_list()  # raises ValueError if the answer is not JSON
    except (OSError, ValueError):
        raise Missing(f"no visdom server answers at {server}: start one with `python -m visdom.server`") from None
    return client


def _draw_lines(client: Any, window: str, lines: dict[str, list[_Point]]) -> None:
    """Draws a window of lines, with at most `_POINTS` points each."""
    thinned = {name: points[:: -(len(points) // _POINTS + 1)][::-1] for name, points in lines.items() if points}
    if not thinned:
        return
    xy = np.full((max(map(len, thinned.values())), len(thinned), 2), np.nan)  # NaN: no point
    for i, points in enumerate(thinned.values()):
        xy[: len(points), i] = points
    opts = {"title": window, "xlabel": "training step", "ylabel": _LABELS[window], "legend": list(thinned)}
    opts |= {"ytype": "log" if window == "variance" else "linear"}
    marked = {name: {"mode": "lines+markers", "marker": {"size": 6}} for name in thinned if name != "train"}
    client.line(X=xy[..., 0], Y=xy[..., 1], win=window, opts=opts | {"traceopts": {"plotly": marked}})


def _draw_image(client: Any, window: str, step: int, x: NDArray[np.uint8]) -> None:
    """Adds an image [H, W, 3] to a window, which has a slider over its images."""
    height, width, _ = x.shape
    opts = {"title": window, "caption": f"step {step}", "store_history": True}
    opts |= {"width": _WIDTH, "height": _WIDTH * height / width + 60}
    client.image(x.transpose(2, 0, 1), win=window, opts=opts)


def _draw_table(client: Any, window: str, config: dict[str, Any]) -> None:
    """Draws a window of names and values."""
    cells = [f"<th>{name}&emsp;</th><td>{html.escape(str(value))}</td>" for name, value in config.items()]
    client.text(f"<table><tr>{'</tr><tr>'.join(cells)}</tr></table>", win=window, opts={"title": window})
