"""Writes the files of a run: metrics, samples and checkpoints during training, parameters and figures at the end."""

import platform
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from io import BytesIO
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from funcvae import evaluate, figures, random, tracking, tree
from funcvae._support import examples, files
from funcvae._support.progress import Progress, silent
from funcvae.distributions import Delta
from funcvae.errors import BadData, BadValue
from funcvae.figures import decoding, of_model, of_results
from funcvae.runs.config import Config
from funcvae.runs.folder import (
    CHECKPOINTS,
    FIGURES,
    METRICS,
    PARAMS,
    RESULT,
    SAMPLES,
    TIMES,
    Result,
    history_in,
    times_in,
    trained_for,
)  # fmt: skip
from funcvae.runs.prepare import Setup
from funcvae.runs.systems import resume_command
from funcvae.train import checkpoint
from funcvae.train.loop import NO_HISTORY, History
from funcvae.train.settings import Callbacks, Log, Row, per_example
from funcvae.train.state import TrainState

__all__ = ["LAST_FIGURE", "read_history", "recorder", "write_results"]

BEST = f"{CHECKPOINTS}/best.safetensors"  # the TrainState with the highest test bound, if the run keeps it
LAST_FIGURE = f"{FIGURES}/training.png"  # written last: a folder with this file is complete


@contextmanager
def recorder(
    folder: Path, setup: Setup, steps: int, metrics_bytes: int, trackers: Sequence[tracking.Tracker],
    progress: Progress | None,
) -> Iterator[Callbacks]:  # fmt: skip
    """Callbacks that write metrics, samples and checkpoints, and pass rows and images to trackers.

    `steps` were trained before; their metrics have `metrics_bytes` bytes, and the rest of the file is cut off. Trackers
    receive every row and, after epochs, images: see `execute.run`, also for `progress`.
    """
    config, per_epoch, settings = setup.config, setup.task.steps_per_epoch, setup.task.settings
    measured: dict[int, Row] = {}
    now = setup.start
    with ExitStack() as stack:
        metrics = stack.enter_context(tracking.MetricsWriter(folder / METRICS, metrics_bytes))
        samples = stack.enter_context(_sample_file(folder, steps)) if config.sample_each_step else None
        display = tracking.TrainingProgress(
            folder.name, setup.steps, config.epochs, steps, compiling=settings.compile and steps < setup.steps,
            with_loss=(settings.scale, settings.offset) != (per_example, 0.0), quiet=progress is not None,
        )  # fmt: skip
        shown = stack.enter_context(display)
        clock = stack.enter_context(_clock(folder / TIMES, steps))
        logs: list[Log] = [metrics.log, shown.log, *(tracker.log for tracker in trackers)]

        def log(row: Row) -> None:
            epoch, ended = row["epoch"], row["kind"] == "epoch"
            after = row["step"] + (row["kind"] == "step")  # the rows of steps count from 0
            if ended:  # the next step, which overwrites `now`, is not made yet
                row = {**row, "params_sha256": tree.sha256({"params": now.params, "state": now.state})}
            for each in logs:
                each(row)
            if ended:
                clock(after, epoch)
                due = (epoch + 1) % -(-config.epochs // MOST_TRACKED) == 0 or epoch + 1 == config.epochs
                if trackers and due:
                    images = _images(setup, now)
                    for tracker in trackers:
                        tracker.show(after, images)
            if after in measured:
                log(measured.pop(after))

        def watch(step: int, ts: TrainState) -> None:
            nonlocal now
            now, trained = ts, (setup.task.model, ts.params, ts.state)
            shown.stepped()
            if setup.monitor and step % config.variance_every == 0:
                where = {"kind": "variance", "epoch": (step - 1) // per_epoch, "step": step}
                measured[step] = where | setup.monitor(*trained, step)
            if samples:
                key = random.fold_in(setup.draw_key, step)
                samples.write(decoding.samples(*trained, key, POINTS_A_STEP).cpu().numpy().tobytes())

        def save(ts: TrainState) -> None:
            about = {"metrics_bytes": metrics.sync()}
            if samples:
                samples.flush()
                files.sync(samples.fileno())
            step = int(ts.step)
            checkpoint.save(checkpoint.path_of(folder / CHECKPOINTS, step), ts, about)
            checkpoint.prune(folder / CHECKPOINTS, config.keep)
            if step % per_epoch:
                clock(step, step // per_epoch)

        def keep(ts: TrainState) -> None:
            checkpoint.save(folder / BEST, ts, {})

        best = keep if config.keep_best else None
        yield Callbacks(
            log, watch, save, config.checkpoint_every, until=config.until, best=best, progress=progress or silent
        )


def write_results(folder: Path, setup: Setup, ts: TrainState, history: History) -> None:
    """Writes the parameters, the result, the samples and then the figures. The figure of the training is the last file.

    If only figures cannot be written, the message of the OSError has the command that draws them.
    """
    config, task = setup.config, setup.task
    if config.keep_best:
        ts = checkpoint.load(folder / BEST, ts)[0]
    trained = task.model, ts.params, ts.state
    (folder / LAST_FIGURE).unlink(missing_ok=True)  # of fewer epochs
    checkpoint.save_params(folder / PARAMS, ts.params, ts.state)
    files.write(folder / RESULT, files.as_json(_result(folder, config, history, _active_units(setup, ts))))
    try:
        made: dict[str, Figure] = {}
        if config.sample_each_step:
            points = np.fromfile(folder / _RAW, np.float32).reshape(-1, *_POINTS)
            content = BytesIO()
            np.save(content, points)
            files.write(folder / SAMPLES, content.getvalue())
            (folder / _RAW).unlink()
            made["evolution"] = of_results.evolution(points, setup.dataset, name=config.system.name)
            frames = of_results.evolution_frames(points, setup.dataset, name=config.system.name)
            figures.save_gif(frames, folder / FIGURES / "evolution.gif", size=400, seconds=6, back=False)
        if setup.monitor:
            rows = list(tracking.MetricsReader(folder / METRICS, kind="variance"))
            if drawn := of_results.variance_along_training(rows, name=config.system.name):
                made["variance"] = drawn
        name = trained_for(config.system.name, int(ts.step), task.steps_per_epoch)
        made |= of_results.of_run(
            *trained, config.system, setup.dataset, setup.test_observed, setup.figure_key, name=name
        )
        target = task.estimator_at(ts.step).claims_under(task.settings.noise).target
        title = f"Training of {config.system.name}"
        per_epoch = task.steps_per_epoch
        made["training"] = of_results.training(history, steps_per_epoch=per_epoch, name=target, title=title)
        for name, figure in made.items():
            figures.save(figure, folder / FIGURES / f"{name}.png")
    except OSError as error:
        command = resume_command(folder, setup.config.system)
        raise OSError(f"{error}: the run is finished, but figures are missing; to draw them: {command}") from None


def read_history(path: Path, size: int, steps: int, epochs: int) -> History:
    """The history in the first `size` bytes of metrics. Raises BadData for another number of steps or epochs."""
    history = history_in(path, size) if size else NO_HISTORY
    made, tested = len(history.loss), len(history.test_bound)
    if (made, tested) != (steps, epochs):
        raise BadData(f"{path} has {made:,} steps, but its checkpoint has {steps:,}: the files do not match")
    return history


POINTS_A_STEP = 1000  # the number of points to sample after each step
MOST_TRACKED = 100  # the largest number of epochs whose images the trackers show
_SHOWN, _ENCODED = 32, 1000  # the numbers of test items that they show, and to encode
_DPI = 60  # of a figure that they show

_POINTS = (POINTS_A_STEP, 2)
_RAW = ".samples.f32"  # the samples of all steps, until the run is complete


@contextmanager
def _clock(path: Path, steps: int) -> Iterator[Callable[[int, int], None]]:
    """A function of step and epoch that writes the seconds of training so far, after those of the first steps."""
    kept = list(takewhile(lambda row: row["step"] <= steps, times_in(path)))
    size = sum(map(len, path.read_bytes().splitlines(keepends=True)[: len(kept)])) if kept else 0
    start = time.monotonic() - (kept[-1]["seconds"] if kept else 0)
    with tracking.MetricsWriter(path, size) as times:

        def write(step: int, epoch: int) -> None:
            times.log({"step": step, "epoch": epoch, "seconds": round(time.monotonic() - start, 3)})

        yield write


def _active_units(setup: Setup, ts: TrainState) -> int | None:
    """The number of latents that the model uses, if that is defined and known: see `Result`."""
    model, x = setup.task.model, examples.head(setup.test_observed, _ENCODED)
    q, _ = model.encode(ts.params, ts.state, examples.head(x, 1))
    if isinstance(q, Delta) or not hasattr(q, "mean"):  # posteriors of own systems may lack what training does not use
        return None
    with suppress(BadData):  # a single test item, or an infinite latent mean
        return evaluate.active_units(model, ts.params, ts.state, x).number
    return None


def _result(folder: Path, config: Config, history: History, active_units: int | None) -> Result:
    last = max(tracking.MetricsReader(folder / METRICS, kind="epoch"), key=lambda row: row["step"])
    best = int(np.nanargmax(history.test_bound)) if config.keep_best else None
    seconds = times[-1]["seconds"] if (times := times_in(folder / TIMES)) else None
    return {
        "system": config.system.name,
        "estimator": config.estimator,
        "epochs": len(history.test_bound),
        "steps": len(history.loss),
        "test_bound": last["test_bound"],
        "train_bound": last["train_bound"],
        "reconstruction": last.get("train_reconstruction"),
        "kl": last.get("train_kl"),
        "active_units": active_units,
        "best_epoch": best,
        "best_test_bound": None if best is None else float(history.test_bound[best]),
        "seconds": seconds,
        "steps_per_second": round(len(history.loss) / seconds, 3) if seconds else None,
        "host": platform.node(),
    }


def _images(setup: Setup, ts: TrainState) -> dict[str, NDArray[np.floating]]:
    """Images for the trackers: a scatter of encoded test items; and test images and their reconstructions."""
    model, x = setup.task.model, setup.test_observed
    trained, few = (model, ts.params, ts.state), examples.head(x, _SHOWN)
    images = dict[str, NDArray[np.floating]]()
    name = trained_for(setup.config.system.name, int(ts.step), setup.task.steps_per_epoch)
    encoded, labels = examples.head(x, _ENCODED), setup.dataset.test_labels
    if labels is not None:
        labels = labels[: examples.count(encoded)]
    with suppress(BadValue):  # a latent mean may be infinite
        figure = of_model.latent_scatter(*trained, encoded, labels, classes=setup.dataset.classes, name=name)
        images["latent"] = _rasterised(figure)
    if model.modelled(few).ndim == 4:
        x_hat = decoding.reconstructed(*trained, few, random.fold_in(setup.draw_key, int(ts.step)))
        for name, shown in {"x": model.modelled(few), "x_hat": x_hat}.items():
            images[name] = np.nan_to_num(setup.recipe.pixels(shown).cpu().numpy()).clip(0, 1)
    return images


def _rasterised(figure: Figure) -> NDArray[np.floating]:
    """A figure as a small image [1, 3, H, W]."""
    canvas = FigureCanvasAgg(figure)
    figure.dpi = _DPI
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[None, ..., :3].transpose(0, 3, 1, 2) / 255


@contextmanager
def _sample_file(folder: Path, steps: int) -> Iterator[BinaryIO]:
    """The file of samples, opened for writing after those of the first steps."""
    raw, size = folder / _RAW, steps * 4 * POINTS_A_STEP * 2
    if steps and not raw.is_file() and (folder / SAMPLES).is_file():  # the run was complete
        files.write(raw, _read_samples(folder / SAMPLES, steps))
    if steps and not (raw.is_file() and raw.stat().st_size >= size):
        raise BadData(f"{raw} lacks the samples of some steps: train the run again")
    if steps and not np.isfinite(np.fromfile(raw, np.float32, size // 4)).all():  # figures need finite ones
        raise BadData(f"{raw} is damaged: it holds NaN or infinite samples; train the run again")
    with raw.open("r+b" if steps else "wb") as file:
        file.seek(file.truncate(size))
        yield file


def _read_samples(path: Path, steps: int) -> bytes:
    """The samples of the first steps in the file of a finished run. Raises BadData if it does not hold them."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            points = np.lib.format.open_memmap(path, mode="r")  # reads no pickles, allocates nothing
        if points.dtype == np.float32 and points.ndim == 3 and len(points) >= steps and points.shape[1:] == _POINTS:
            return points[:steps].tobytes()
    except Exception:  # damaged bytes may raise anything
        pass
    raise BadData(f"{path} does not hold the samples of {steps:,} steps: train the run again")
