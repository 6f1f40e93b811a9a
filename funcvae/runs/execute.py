"""Training into a run's folder: from the beginning, or from where it stopped."""

import shlex
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from funcvae import compilation, data, figures, random, tracking, train, tree
from funcvae._support import files
from funcvae.distributed.processes import SINGLE, Processes
from funcvae.errors import BadData, BadValue, Missing, NonFinite, Stopped
from funcvae.figures import decoding, of_results
from funcvae.figures.decoding import POINTS_A_STEP
from funcvae.runs import config as configs
from funcvae.runs import environment as manifests
from funcvae.runs.config import Config
from funcvae.runs.folder import (  # fmt: skip
    CHECKPOINTS,
    CONFIG,
    FIGURES,
    MANIFEST,
    METRICS,
    PARAMS,
    SAMPLES,
    check_config,
    check_same,
    load_data,
    read_config,
    read_manifest,
)
from funcvae.runs.prepare import Setup, nearest, prepare
from funcvae.train import checkpoint
from funcvae.train.loop import History
from funcvae.train.settings import Row
from funcvae.train.state import TrainState

MakeTracker = Callable[[Path, dict[str, Any], Iterable[Row]], AbstractContextManager[tracking.Tracker]]
Stopping = AbstractContextManager[Callable[[], bool]]


def never() -> Stopping:
    """What lets a run go on to its end."""
    return nullcontext(lambda: False)


def run(
    config: Config,
    *,
    download: bool = False,
    trackers: Sequence[MakeTracker] = (),
    stopping: Callable[[], Stopping] = never,
    processes: Processes = SINGLE,
) -> Path:
    """Trains as configured and fills the run folder; returns its path.

    Everything that can be wrong with the input is found before the folder is made. Where several processes train one
    model, the first alone writes, tracks and shows.

    Args:
        config: what to train.
        download: fetch a named data set that is not there.
        trackers: each makes, from the run's folder, its configuration and the rows past, the context manager of a
            tracker, which is shown every row and, where the data are images, `x` and `x_hat` after every epoch.
        stopping: makes a context manager, entered while steps are made, of a function that says whether to stop.
        processes: who trains, from `distributed.process_group()`.

    Raises:
        Stopped: it was asked to stop, and did, after a checkpoint.
        ProcessLost, ReportedElsewhere: see `train.fit`.
        NonFinite: see `train.fit`; the message holds the line that replays the step.
    """
    out = Path(config.out)
    configs.check(config)
    if processes.is_main:
        _check_fresh(out)
    with manifests.numerics(config), ExitStack() as stack:
        setup = prepare(config, lambda config: _load(config, download, processes), processes)
        _agree(config, setup, processes)
        if not processes.is_main:
            _join_in(out, setup, setup.start, stopping, processes)
            return out
        shown = [stack.enter_context(tracker(out, configs.as_json(config), ())) for tracker in trackers]
        stack.enter_context(files.lock(out))
        _check_fresh(out)  # nobody came first
        files.sweep(out)
        files.write(out / CONFIG, files.as_json(configs.as_json(config)))
        files.write(out / MANIFEST, files.as_json(manifests.manifest(config, setup.dataset, processes.size)))
        try:
            _train(out, setup, setup.start, 0, shown, stopping, processes)
        except compilation.Uncompiled:
            if not (out / METRICS).stat().st_size:  # the first step: the folder is as good as new
                for name in (CONFIG, MANIFEST, METRICS):
                    (out / name).unlink()
            raise
    return out


def resume(
    path: str | Path,
    given: Mapping[str, Any] | None = None,
    *,
    trackers: Sequence[MakeTracker] = (),
    stopping: Callable[[], Stopping] = never,
    processes: Processes = SINGLE,
) -> Path:
    """Goes on with the run in a folder from its newest checkpoint, to the bits of a run that was never stopped.

    A finished run is left as it is, unless it is to have more epochs.

    Args:
        path: the folder.
        given: fields of the configuration that are asked for now; those that decide the result must be the run's.
        trackers, stopping, processes: see `run`. There may be another number of them than before.

    Raises:
        BadValue: a given field may not change, or the run has more epochs than are asked for.
        BadData: the data are others now, or the folder's files are damaged or do not fit together.
        InUse: another process writes in the folder.
        Missing, Stopped, NonFinite, ProcessLost, ReportedElsewhere: see `run` and `load`.
    """
    path = Path(path)
    before = read_config(path)
    config = configs.changed(before, given or {}, path)
    configs.check(config)
    finished = False
    if processes.is_main and (path / MANIFEST).is_file():
        manifest = read_manifest(path)
        check_config(before, manifest, path)
        finished = _finished(path, config, manifest)
    if processes.all_gather_object(finished)[0]:
        _say(f"{path} is finished: to go on, give it more --epochs")
        return path
    with manifests.numerics(config), ExitStack() as stack:
        if processes.is_main:
            stack.enter_context(files.lock(path))
            files.sweep(path)
        setup = prepare(config, load_data, processes)
        _agree(config, setup, processes)
        if not processes.is_main:
            _join_in(path, setup, processes.broadcast(setup.start), stopping, processes)
            return path
        manifest = manifests.manifest(config, setup.dataset, processes.size)
        if there := (path / MANIFEST).is_file():  # else the run was killed before it had one, and it starts here
            manifest = read_manifest(path)
            check_same(setup.dataset, manifest["data_sha256"], path)
        ts, about, damaged = nearest(setup, path)
        step = int(ts.step)
        if damaged and step == 0:
            raise damaged[0]
        if (path / PARAMS).exists() and not checkpoint.in_folder(path / CHECKPOINTS):
            raise Missing(f"{path} has no checkpoints left to go on from: train it again")
        if step > setup.steps:
            raise BadValue(f"{path} has made {step:,} steps, more than the {setup.steps:,} of --epochs {config.epochs}")
        size = about["metrics_bytes"]
        past: Iterable[Row] = tracking.MetricsReader(path / METRICS, size) if size else ()
        shown = [stack.enter_context(tracker(path, configs.as_json(config), past)) for tracker in trackers]
        now = manifests.environment(config, processes.size)
        for error in damaged:
            _say(f"{error}; going on from step {step}")
        if step and (differing := manifests.differences(manifest, now)):
            _say(f"bits may differ from those of a run that was not stopped: {manifests.described(differing)}")
        if there and step:
            manifest.setdefault("resumed", []).append({"command": sys.argv, "step": step, **now})
        files.write(path / MANIFEST, files.as_json(manifest))
        if config != before:
            files.write(path / CONFIG, files.as_json(configs.as_json(config)))
        _train(path, setup, processes.broadcast(ts), size, shown, stopping, processes)
    return path


def _load(config: Config, download: bool, processes: Processes) -> data.Dataset:
    """A configuration's data, which the first process downloads, if anyone, before the others look."""
    if processes.is_main:
        dataset = data.load(config.data, root=config.data_dir, download=download)
    processes.barrier()
    return dataset if processes.is_main else data.load(config.data, root=config.data_dir)


def _agree(config: Config, setup: Setup, processes: Processes) -> None:
    """Raises BadValue unless all processes are to train the same; one alone need not find out what that is."""
    if processes.size > 1:
        processes.require_equal(**manifests.shared(config, setup.dataset))


def _join_in(out: Path, setup: Setup, ts: TrainState, stopping: Callable[[], Stopping], processes: Processes) -> None:
    """Does this process's part of the training that the first one keeps."""
    if int(ts.step) < setup.steps:
        with stopping() as stop:
            ts, _ = _fit(out, setup, ts, processes, stop)
    if int(ts.step) < setup.steps:
        raise Stopped(f"stopped after {int(ts.step):,} steps")


def _fit(
    out: Path, setup: Setup, ts: TrainState, processes: Processes, stop: Callable[[], bool], **kept: Any
) -> tuple[TrainState, History]:
    """`train.fit` as the run is configured, to its end."""
    try:
        return train.fit(
            ts,
            setup.model,
            setup.estimator,
            setup.opt,
            setup.train,
            test=setup.test,
            epochs=setup.config.epochs - int(ts.step) // setup.steps_per_epoch,
            **setup.settings,
            save_every=setup.config.checkpoint_every,
            stop=stop,
            processes=processes,
            **kept,
        )
    except NonFinite as error:
        told = NonFinite(f"{error}; to see that step: funcvae replay {shlex.quote(str(out))} {error.step}")
        told.step = error.step
        raise told from None


def _train(
    out: Path,
    setup: Setup,
    ts: TrainState,
    size: int,
    shown: Sequence[tracking.Tracker],
    stopping: Callable[[], Stopping],
    processes: Processes,
) -> None:
    """Trains on from a TrainState, after the first `size` bytes of metrics, and fills the folder."""
    config, model, made, per_epoch = setup.config, setup.model, int(ts.step), setup.steps_per_epoch
    history = _history(out / METRICS, size, made, made // per_epoch)
    measured: dict[int, Row] = {}
    digests: dict[int, str] = {}
    stopped = False

    with ExitStack() as stack:
        lines = stack.enter_context(tracking.MetricsWriter(out / METRICS, size))
        samples = stack.enter_context(_samples(out, made)) if config.sample_each_step else None
        bar = stack.enter_context(tracking.progress_bar(setup.steps, made))
        tracks: list[tracking.Tracker] = [lines, bar, *shown]

        def log(row: Row) -> None:
            after = row["step"] + 1 if tracking.is_step(row) else row["step"]  # a step's row counts from 0
            if "test_bound" in row:
                row = {**row, "params_sha256": digests.pop(after)}
            for track in tracks:
                track(row)
            if after in measured:
                log(measured.pop(after))

        def watch(step: int, ts: TrainState) -> None:
            trained = model, ts.params, ts.state
            if setup.follow and step % config.variance_every == 0:
                measured[step] = {"epoch": (step - 1) // per_epoch, "step": step, **setup.follow(*trained, step)}
            if samples:
                key = random.fold_in(setup.step_key, step)
                samples.write(decoding.samples(*trained, key, POINTS_A_STEP).cpu().numpy().tobytes())
            if step % per_epoch == 0:
                digests[step] = tree.sha256({"params": ts.params, "state": ts.state})
                if shown and setup.seen.ndim == 4:
                    key, x = random.fold_in(setup.step_key, step), setup.seen[: decoding.TRACKED]
                    x_hat = decoding.reconstructed(*trained, x, key)
                    row = {"x": setup.recipe.pixels(x).cpu(), "x_hat": setup.recipe.pixels(x_hat).cpu()}
                    for track in shown:
                        track({"epoch": step // per_epoch - 1, "step": step, **row})

        def save(ts: TrainState) -> None:
            about = {"metrics_bytes": lines.sync()}
            if samples:
                samples.flush()
                files.sync(samples.fileno())
            checkpoint.save(checkpoint.path_of(out / CHECKPOINTS, int(ts.step)), ts, about)
            checkpoint.prune(out / CHECKPOINTS, config.keep)

        if made < setup.steps:
            stop = stack.enter_context(stopping())
            ts, history = _fit(out, setup, ts, processes, stop, history=history, log=log, watch=watch, save=save)
            # After the last step, too, one alone leaves at once; several have not asked one another.
            stopped = int(ts.step) < setup.steps or (processes.size == 1 and stop())
    if stopped:
        again = f"funcvae train --resume {shlex.quote(str(out))}"
        raise Stopped(f"stopped after {int(ts.step):,} of {setup.steps:,} steps; to go on: {again}")
    _finish(out, setup, ts, history)


def _finish(out: Path, setup: Setup, ts: TrainState, history: History) -> None:
    """Writes what there is at the end of a run, and the parameters last: once they are there, all is."""
    config, model = setup.config, setup.model
    made = of_results.of_run(model, ts.params, ts.state, setup.recipe, setup.dataset, setup.seen, setup.figure_key)
    target = setup.estimator.claims_under(setup.scheme).target
    made["training"] = of_results.training(history, name=target, title=f"Training of {config.system}")
    if config.sample_each_step:
        kept = np.fromfile(out / _RAW, np.float32).reshape(-1, *_POINTS)
        array = BytesIO()
        np.save(array, kept)
        files.write(out / SAMPLES, array.getvalue())
        made["evolution"] = of_results.evolution(kept, setup.dataset, name=config.system)
    for name, figure in made.items():
        figures.save(figure, out / FIGURES / f"{name}.png")
    (out / _RAW).unlink(missing_ok=True)  # samples.npy has them now
    checkpoint.save_params(out / PARAMS, ts.params, ts.state)


_POINTS = (POINTS_A_STEP, 2)
_RAW = ".samples.f32"  # samples of every step, one after another, as long as there may be more


@contextmanager
def _samples(out: Path, made: int) -> Iterator[Any]:
    """The file that takes samples, after those of the steps made."""
    raw, size = out / _RAW, made * 4 * POINTS_A_STEP * 2
    if made and not raw.is_file() and (out / SAMPLES).is_file():  # a run that had come to its end
        files.write(raw, _kept(out / SAMPLES, made))
    if made and not (raw.is_file() and raw.stat().st_size >= size):
        raise BadData(f"{raw} has lost the samples of some steps: train it again")
    if made and not np.isfinite(np.fromfile(raw, np.float32, size // 4)).all():  # they could not be drawn at the end
        raise BadData(f"{raw} is damaged, for it holds samples that are NaN or infinite: train it again")
    with raw.open("r+b" if made else "wb") as file:
        file.seek(file.truncate(size))
        yield file


def _kept(path: Path, steps: int) -> bytes:
    """The samples in a file that has those of so many steps; BadData if it has not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kept = np.lib.format.open_memmap(path, mode="r")  # opens no pickles, and takes no memory for mere claims
        if kept.dtype == np.float32 and kept.ndim == 3 and len(kept) >= steps and kept.shape[1:] == _POINTS:
            return kept[:steps].tobytes()
    except Exception:  # whatever damaged bytes may cause
        pass
    raise BadData(f"{path} does not hold the samples of {steps:,} steps: train it again")


def _history(path: Path, size: int, steps: int, epochs: int) -> History:
    """What the rows in the first `size` bytes of a file tell of a run's steps and epochs.

    Raises:
        BadData: they are not those of so many steps and epochs.
    """
    made: list[tuple[float, float, float]] = []
    test_bounds: list[float] = []
    for row in tracking.MetricsReader(path, size) if size else ():
        try:
            if tracking.is_step(row):
                made.append((float(row["loss"]), float(row["bound"]), float(row["grad_norm"])))
            elif "test_bound" in row:
                test_bounds.append(float(row["test_bound"]))
        except (KeyError, TypeError, ValueError, OverflowError):
            raise BadData(f"{path} has a row that is none of a run's, at step {row['step']}") from None
    if (len(made), len(test_bounds)) != (steps, epochs):
        raise BadData(f"{path} has rows of {len(made):,} steps, and its checkpoint is of {steps:,}: they do not agree")
    loss, bound, grad_norm = np.array(made, np.float64).reshape(-1, 3).T
    return History(loss, bound, grad_norm, np.array(test_bounds))


def _check_fresh(out: Path) -> None:
    """Raises BadValue unless a new run may have this folder: it holds nothing, or what one killed at once has left."""
    if out.exists() and (not out.is_dir() or any(not path.name.startswith(".") for path in out.iterdir())):
        raise BadValue(f"{out} exists and is not an empty folder: choose another --out, or go on by --resume {out}")


def _finished(path: Path, config: Config, manifest: Mapping[str, Any]) -> bool:
    """Whether the run in a folder has all its steps, and all that is written at its end."""
    steps = config.epochs * -(-manifest["data"]["train"] // config.batch)
    last = checkpoint.in_folder(path / CHECKPOINTS).get(steps)
    return last is not None and checkpoint.has_params(last, path / PARAMS)


def _say(line: str) -> None:
    """A line on stderr, above a progress bar."""
    tqdm.write(f"funcvae: {line}", file=sys.stderr)
