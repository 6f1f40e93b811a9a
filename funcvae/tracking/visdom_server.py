"""A tracker that draws metrics and images on a visdom server."""

import html
import logging
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from funcvae.errors import Missing
from funcvae.tracking.metrics_file import Tracker, is_step
from funcvae.tracking.optional_packages import import_package, row_pictures, until_it_fails
from funcvae.train.settings import Row

__all__ = ["visdom"]
_Point = tuple[float, float]


@contextmanager
def visdom(server: str, env: str, config: dict[str, Any], past: Iterable[Row] = ()) -> Iterator[Tracker]:
    """Draws rows on a visdom server during training, in a separate environment.

    Windows: "loss" and "bound" against the number of steps, where a training point is the mean of 50 steps and a curve
    has at most 1000 points; "x" and "x_hat", the latest images; "config". The windows are redrawn at most once a
    second, in at most 1% of the time even if the server is slow, and once more at the end.

    Args:
        server: address of the server, such as http://localhost:8097.
        env: name of the environment; characters that visdom does not support become "_".
        config: settings of the run, shown as a table.
        past: earlier rows of a resumed run, drawn at the beginning of the curves.

    Raises:
        Missing: visdom is not installed, or no visdom server answers.
    """
    client = _connect(server, re.sub(r"[^\w.-]", "_", env), config)
    burst: list[tuple[float, ...]] = []  # (step, loss, bound) of the steps since the last point
    curves: dict[str, dict[str, list[_Point]]] = {"loss": {"train": []}, "bound": {"train": [], "test": []}}
    pictures: dict[str, np.ndarray] = {}
    due = 0.0

    def collect(row: Row) -> None:
        if is_step(row):
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
        pictures.update(row_pictures(row))

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
    tracker = until_it_fails(track, "visdom")
    try:
        yield tracker
    finally:
        due = 0.0
        tracker({})
        client.session.close()


_UNITS = {"loss": "loss", "bound": "nats per example"}
_BURST = 50  # steps averaged in a point
_POINTS = 1000  # maximum points in a curve
_PAUSE = 1.0  # minimum seconds between two drawings
_SHARE = 0.01  # maximum fraction of the time spent drawing
_TIMEOUT = 5.0  # seconds to wait for an answer


def _connect(server: str, env: str, config: dict[str, Any]) -> Any:
    """A visdom client that raises OSError within seconds if the server fails; it has already drawn the config."""
    package = import_package("visdom", extra="visdom")
    logging.getLogger("visdom").setLevel(logging.ERROR)  # it reports each new session as a warning

    def post(url: str, data: Any = None) -> str:
        try:
            answer = client.session.post(url, data=data, timeout=_TIMEOUT)
            answer.raise_for_status()
        except OSError as error:  # the client prints a traceback for a requests error, but not for a plain OSError
            raise OSError(f"{server} does not answer ({type(error).__name__})") from None
        return answer.text

    cells = [f"<th>{name}&emsp;</th><td>{html.escape(str(value))}</td>" for name, value in config.items()]
    table = f"<table><tr>{'</tr><tr>'.join(cells)}</tr></table>"
    try:
        url = urlsplit(server if "://" in server else f"http://{server}")
        host, port = f"{url.scheme}://{url.netloc.removesuffix(f':{url.port}')}", url.port or 8097
        at = {"server": host, "port": port, "base_url": url.path.rstrip("/") or "/"}
        client = package.Visdom(**at, env=env, send=False, use_incoming_socket=False)  # sends once `post` is set
        client._handle_post, client.send = post, True  # visdom allows overriding this method
        if client.text(table, win="config", opts={"title": "config"}) != "config":
            raise OSError("not a visdom server")
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
    opts: dict[str, Any] = {
        "title": window,
        "xlabel": "training step",
        "ylabel": _UNITS[window],
        "legend": list(thinned),
    }
    opts["traceopts"] = {"plotly": {"test": {"mode": "lines+markers", "marker": {"size": 6}}}}
    client.line(X=xy[..., 0], Y=xy[..., 1], win=window, opts=opts)


def _draw_images(client: Any, window: str, x: np.ndarray) -> None:
    """Draws a window of images, eight in a row, as wide as a window of lines."""
    n, _, height, width = x.shape
    columns = min(n, 8)
    wide = 480
    high = wide * -(-n // columns) * (height + 4) / columns / (width + 4)  # visdom's padding is 2 on each side
    client.images(x, nrow=8, win=window, opts={"title": window, "width": wide, "height": high + 20})
