"""Writes the files of a run: metrics, samples and checkpoints during training, parameters and figures at the end."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from matplotlib.figure import Figure

from funcvae import figures, random, tracking, tree
from funcvae._support import examples, files
from funcvae.errors import BadData
from funcvae.figures import decoding, of_results
from funcvae.runs.folder import CHECKPOINTS, FIGURES, METRICS, PARAMS, SAMPLES, history_in
from funcvae.runs.prepare import Setup
from funcvae.runs.systems import resume_command
from funcvae.train import checkpoint
from funcvae.train.loop import NO_HISTORY, History
from funcvae.train.settings import Callbacks, Row
from funcvae.train.state import TrainState

__all__ = ["LAST_FIGURE", "read_history", "recorder", "write_results"]

BEST = f"{CHECKPOINTS}/best.safetensors"  # the TrainState with the highest test bound, if the run keeps it
LAST_FIGURE = f"{FIGURES}/training.png"  # written last: a folder with this file is complete


@contextmanager
def recorder(
    folder: Path, setup: Setup, steps: int, metrics_bytes: int, trackers: Sequence[tracking.Tracker]
) -> Iterator[Callbacks]:
    """Callbacks that write metrics, samples and checkpoints, and pass rows and images to trackers.

    `steps` were trained before; their metrics have `metrics_bytes` bytes, and the rest of the file is cut off. Trackers
    receive every row and, if the data are images, "x" and "x_hat" after every epoch.
    """
    config, model, per_epoch = setup.config, setup.task.model, setup.task.steps_per_epoch
    measured: dict[int, Row] = {}
    digests: dict[int, str] = {}
    with ExitStack() as stack:
        metrics = stack.enter_context(tracking.MetricsWriter(folder / METRICS, metrics_bytes))
        samples = stack.enter_context(_sample_file(folder, steps)) if config.sample_each_step else None
        bar = stack.enter_context(tracking.progress_bar(setup.steps, steps))
        tracks: list[tracking.Tracker] = [metrics, bar, *trackers]

        def log(row: Row) -> None:
            after = row["step"] + 1 if tracking.is_step(row) else row["step"]  # the rows of steps count from 0
            if "test_bound" in row:
                row = {**row, "params_sha256": digests.pop(after)}
            for track in tracks:
                track(row)
            if after in measured:
                log(measured.pop(after))

        def watch(step: int, ts: TrainState) -> None:
            trained = model, ts.params, ts.state
            if setup.monitor and step % config.variance_every == 0:
                measured[step] = {"epoch": (step - 1) // per_epoch, "step": step, **setup.monitor(*trained, step)}
            if samples:
                key = random.fold_in(setup.draw_key, step)
                samples.write(decoding.samples(*trained, key, POINTS_A_STEP).cpu().numpy().tobytes())
            if step % per_epoch == 0:
                digests[step] = tree.sha256({"params": ts.params, "state": ts.state})
                if trackers and model.modelled(setup.test_observed).ndim == 4:
                    key, x = random.fold_in(setup.draw_key, step), examples.head(setup.test_observed, TRACKED)
                    x_hat = decoding.reconstructed(*trained, x, key)
                    images = {
                        "x": setup.recipe.pixels(model.modelled(x)).cpu(),
                        "x_hat": setup.recipe.pixels(x_hat).cpu(),
                    }
                    for track in trackers:
                        track({"epoch": step // per_epoch - 1, "step": step, **images})

        def save(ts: TrainState) -> None:
            about = {"metrics_bytes": metrics.sync()}
            if samples:
                samples.flush()
                files.sync(samples.fileno())
            checkpoint.save(checkpoint.path_of(folder / CHECKPOINTS, int(ts.step)), ts, about)
            checkpoint.prune(folder / CHECKPOINTS, config.keep)

        def keep(ts: TrainState) -> None:
            checkpoint.save(folder / BEST, ts, {})

        best = keep if config.keep_best else None
        yield Callbacks(log, watch, save, config.checkpoint_every, until=config.until, best=best)


def write_results(folder: Path, setup: Setup, ts: TrainState, history: History) -> None:
    """Writes the parameters, the samples and then the figures. The figure of the training is the last file.

    If only figures cannot be written, the message of the OSError has the command that draws them.
    """
    config, task = setup.config, setup.task
    if config.keep_best:
        ts = checkpoint.load(folder / BEST, ts)[0]
    trained = task.model, ts.params, ts.state
    (folder / LAST_FIGURE).unlink(missing_ok=True)  # of fewer epochs
    checkpoint.save_params(folder / PARAMS, ts.params, ts.state)
    try:
        made: dict[str, Figure] = {}
        if config.sample_each_step:
            points = np.fromfile(folder / _RAW, np.float32).reshape(-1, *_POINTS)
            content = BytesIO()
            np.save(content, points)
            files.write(folder / SAMPLES, content.getvalue())
            (folder / _RAW).unlink()
            made["evolution"] = of_results.evolution(points, setup.dataset, name=config.system.name)
        made |= of_results.of_run(*trained, config.system, setup.dataset, setup.test_observed, setup.figure_key)
        target = task.estimator_at(ts.step).claims_under(task.settings.noise).target
        made["training"] = of_results.training(history, name=target, title=f"Training of {config.system.name}")
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


POINTS_A_STEP, TRACKED = 1000, 32  # the number of points to sample after each step, and of test images for the trackers

_POINTS = (POINTS_A_STEP, 2)
_RAW = ".samples.f32"  # the samples of all steps, until the run is complete


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
