"""Trains into a run folder, from the start or from the newest checkpoint."""

import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from funcvae import compilation, data, tracking
from funcvae._support import checks, files
from funcvae._support.progress import Progress, notice
from funcvae.distributed.collectives import SINGLE, Processes
from funcvae.errors import BadValue, Missing, NonFinite, Stopped
from funcvae.models import System
from funcvae.runs import environment, folder
from funcvae.runs.config import (
    Config,
    Options,
    check_available,
    check_names,
    config_sha256,
    new_run_folder,
    resolve_device,
    resumed,
    with_defaults,
)
from funcvae.runs.folder import (
    CHECKPOINTS,
    CONFIG,
    MANIFEST,
    METRICS,
    PARAMS,
    RESULT,
    load_data,
    read_config,
    read_manifest,
)  # fmt: skip
from funcvae.runs.prepare import Setup, newest_checkpoint, prepare
from funcvae.runs.recording import BEST, LAST_FIGURE, read_history, recorder, write_results
from funcvae.runs.systems import find_system, replay_command, resume_command
from funcvae.train import checkpoint, loop
from funcvae.train.loop import History
from funcvae.train.settings import Callbacks, Row
from funcvae.train.state import TrainState

__all__ = ["MakeTracker", "StopContext", "never_stop", "resume", "run", "train"]

MakeTracker = Callable[[Path, dict[str, Any], Iterable[Row]], AbstractContextManager[tracking.Tracker]]
"""(folder, hyper-parameters, rows so far) -> the context manager of a tracker. The first two hyper-parameters are the
learning rate in use and the estimator; the others are the fields of the configuration."""
StopContext = AbstractContextManager[Callable[[], bool]]
"""The context manager of a function that returns whether to stop."""
MakeStop = Callable[[], StopContext]


def never_stop() -> StopContext:
    """A `stop_context` that never stops the run."""
    return nullcontext(lambda: False)


@checks.readable
def train(
    system: System | str,
    *,
    download: bool = False,
    trackers: Sequence[MakeTracker] = (),
    stop_context: MakeStop = never_stop,
    processes: Processes = SINGLE,
    progress: Progress | None = None,
    **options: Any,
) -> Path:
    """Trains a system into a new run folder, as `funcvae train` does, and returns the path of the folder.

    Args:
        system: see `find_system`.
        download, trackers, stop_context, processes, progress: see `run`.
        options: fields of `Options`. By default `out` is a new folder in runs/, `device` is CUDA if available, and
            the step is compiled if that pays (`funcvae.compilation.pays`). Small steps run on one thread, unless
            OMP_NUM_THREADS is set (`funcvae.threads.of_step`).

    Raises: see `configure` and `run`.
    """
    check_names("option", options, Options)
    requested = Options(system=system, **options)
    system = find_system(system)
    device = resolve_device(requested.device or "auto")
    out = processes.all_gather_object(requested.out or new_run_folder(system.name))[0]
    config = with_defaults(replace(requested, system=system, device=device, out=out))
    return run(
        config, download=download, trackers=trackers, stop_context=stop_context, processes=processes, progress=progress
    )


@checks.arguments
def run(
    config: Config,
    *,
    download: bool = False,
    trackers: Sequence[MakeTracker] = (),
    stop_context: MakeStop = never_stop,
    processes: Processes = SINGLE,
    progress: Progress | None = None,
) -> Path:
    """Trains a configuration into its run folder, and returns the path of the folder.

    Checks the input before it creates the folder. If several processes train one model, only the first one writes,
    tracks and prints.

    Args:
        download: whether to download a named data set that is missing.
        trackers: see `MakeTracker`. Trackers receive every row and, after an epoch (at most 100 times in a run), the
            images "latent", a scatter of encoded test data, and, if the data are images, "x" and "x_hat".
        stop_context: makes a `StopContext`, which is entered during training. Its function is called after every step.
        processes: the processes that train, from `distributed.process_group()`.
        progress: called with the number of steps made, and that of all steps. By default, a bar on a terminal or a line
            for each epoch shows them on stderr.

    Raises:
        BadValue: the folder is not empty, or the parts of the configuration do not fit together.
        BadData: a data file is damaged, or the system cannot take the data.
        Missing: the data, the device or a compiler is not available.
        InUse: another process writes in the folder.
        Stopped: training stopped on request, after a checkpoint.
        ProcessLost, ReportedElsewhere: see `funcvae.train.fit`.
        NonFinite: see `funcvae.train.fit`; the message has the command that replays the step.
        OSError: a file cannot be written; see `write_results`.
    """
    check_available(config)
    out = Path(config.out)
    if processes.is_main:
        _check_new_folder(out, config.system)
    with environment.numerics(config), ExitStack() as stack:
        setup = prepare(config, lambda config: _load(config, download, processes), processes)
        config = setup.config
        stack.enter_context(setup.threads())
        data_sha256 = setup.dataset.sha256()
        _check_agreement(setup, data_sha256)
        if not processes.is_main:
            _train_without_writing(out, setup, setup.start, stop_context)
            return out
        tracks = [stack.enter_context(tracker(out, setup.hyperparameters, ())) for tracker in trackers]
        stack.enter_context(files.lock(out, timeout=_READERS))
        _check_new_folder(out, config.system)  # again, because another process may have started here
        files.remove_partial(out)
        tqdm.write(setup.plan(), file=sys.stderr)
        files.write(out / CONFIG, files.as_json(config.content()))
        manifest = environment.manifest(config, setup.dataset, data_sha256, processes.size)
        files.write(out / MANIFEST, files.as_json(manifest))
        try:
            _train(out, setup, setup.start, 0, tracks, stop_context, progress)
        except compilation.Uncompiled:
            if not (out / METRICS).stat().st_size:  # the first step cannot be compiled: leave an empty folder
                for name in (CONFIG, MANIFEST, METRICS, folder.TIMES):
                    (out / name).unlink()
            raise
    return out


@checks.arguments
def resume(
    path: str | Path,
    options: Options | None = None,
    *,
    system: System | str | None = None,
    trackers: Sequence[MakeTracker] = (),
    stop_context: MakeStop = never_stop,
    processes: Processes = SINGLE,
    progress: Progress | None = None,
) -> Path:
    """Resumes the run in a folder from its newest checkpoint. The result has the same bits as an uninterrupted run.

    A finished run is left unchanged unless `options` requests more epochs. Missing figures are drawn.

    Args:
        options: requested options; those that decide the result must be equal to the run's.
        system: the own system of the run, if `options` does not have it: see `load`. Its code must not have changed.
        trackers, stop_context, processes, progress: see `run`. The number of processes may change.

    Raises:
        BadValue: an option that must stay the same differs, or the run has more epochs than requested.
        BadData: the data or the code of the system have changed, or the files of the folder are damaged or do not match
            each other.
        InUse: another process writes in the folder.
        Missing, Stopped, NonFinite, ProcessLost, ReportedElsewhere: see `run` and `load`.
    """
    path, options = Path(path), Options() if options is None else options
    system = options.system if system is None else system
    before = read_config(path, system)
    config = resumed(before, replace(options, system=system), path)
    check_available(config)
    finished = False
    if processes.is_main and (path / MANIFEST).is_file():
        manifest = read_manifest(path)
        folder.check_same_system(before.system, manifest, path)
        finished = _is_finished(path, config, manifest)
    if processes.all_gather_object(finished)[0]:
        advice = "it ended early, or has all epochs" if config.early_stopping else "to continue it, request more epochs"
        notice(f"{path} is finished; {advice}")
        return path
    with environment.numerics(config), ExitStack() as stack:
        if processes.is_main:
            stack.enter_context(files.lock(path, timeout=_READERS))
            files.remove_partial(path)
        setup = prepare(config, load_data, processes)
        stack.enter_context(setup.threads())
        data_sha256 = setup.dataset.sha256()
        _check_agreement(setup, data_sha256)
        if not processes.is_main:
            _train_without_writing(path, setup, processes.broadcast(setup.start), stop_context)
            return path
        manifest = environment.manifest(config, setup.dataset, data_sha256, processes.size)
        if has_manifest := (path / MANIFEST).is_file():  # without one, the run was killed before its first step
            manifest = read_manifest(path)
            folder.check_same_data(setup.dataset.name, data_sha256, manifest["data_sha256"], path)
        ts, size, damaged = newest_checkpoint(setup, path)
        step = int(ts.step)
        if damaged and step == 0:
            raise damaged[0]
        if (path / PARAMS).exists() and not checkpoint.in_folder(path / CHECKPOINTS):
            raise Missing(f"{path} has no checkpoint to resume from: train it again")
        if step > setup.steps:
            raise BadValue(f"{path} has {step:,} steps, and epochs is {config.epochs}, which is {setup.steps:,} steps")
        past: Iterable[Row] = tracking.MetricsReader(path / METRICS, size) if size else ()
        tracks = [stack.enter_context(tracker(path, setup.hyperparameters, past)) for tracker in trackers]
        now = environment.describe(config, processes.size)
        for error in damaged:
            notice(f"{error}; resuming from step {step}")
        if step and (differing := environment.differences(manifest, now)):
            text = environment.difference_text(differing)
            notice(f"bits may differ from those of an uninterrupted run: {text}")
        tqdm.write(setup.plan(step), file=sys.stderr)
        if has_manifest and step:
            manifest.setdefault("resumed", []).append({"command": sys.argv, "step": step, **now})
        if config != before:  # config.json is written again, with the fields that this version has added
            manifest["config_sha256"] = config_sha256(config.content())
        files.write(path / MANIFEST, files.as_json(manifest))
        if config != before:
            files.write(path / CONFIG, files.as_json(config.content()))
        for name in (PARAMS, RESULT):  # of fewer epochs
            (path / name).unlink(missing_ok=True)
        _train(path, setup, processes.broadcast(ts), size, tracks, stop_context, progress)
    return path


def _load(config: Config, download: bool, processes: Processes) -> data.Dataset:
    """Loads the data of a configuration. The first process downloads them before the others load."""
    if processes.is_main:
        dataset = folder.read_data(config, download=download)
    processes.barrier()
    return dataset if processes.is_main else folder.read_data(config)


def _check_agreement(setup: Setup, data_sha256: str) -> None:
    """Raises BadValue unless all processes train the same model on the same data."""
    if setup.task.processes.size > 1:
        setup.task.processes.require_equal(**environment.shared_facts(setup.config, data_sha256))


def _train(
    out: Path, setup: Setup, ts: TrainState, metrics_bytes: int, trackers: Sequence[tracking.Tracker], stop: MakeStop,
    progress: Progress | None,
) -> None:  # fmt: skip
    """Trains from a TrainState to the end of the run and writes the results. Keeps `metrics_bytes` bytes of metrics."""
    steps = int(ts.step)
    history = read_history(out / METRICS, metrics_bytes, steps, steps // setup.task.steps_per_epoch)
    setup.task.processes.all_gather_object(history.test_bound)  # which may end training early in all processes
    try:
        with recorder(out, setup, steps, metrics_bytes, trackers, progress) as callbacks:
            ts, history = _fit(out, setup, ts, callbacks, stop, history)
    except NonFinite as error:
        files.write(out / RESULT, files.as_json({"diverged": str(error)}))
        command = replay_command(out, setup.config.system, error.step)
        with_command = NonFinite(f"{error}; to see that step: {command}")
        with_command.step = error.step
        raise with_command from None
    write_results(out, setup, ts, history)


def _train_without_writing(out: Path, setup: Setup, ts: TrainState, stop: MakeStop) -> None:
    # `save_every` decides when to check the parameters; all processes must check at the same steps.
    test_bound = setup.task.processes.all_gather_object(None)[0]
    callbacks = Callbacks(save_every=setup.config.checkpoint_every, until=setup.config.until)
    _fit(out, setup, ts, callbacks, stop, loop.NO_HISTORY._replace(test_bound=test_bound))


def _fit(
    out: Path, setup: Setup, ts: TrainState, callbacks: Callbacks, stop_context: MakeStop, history: History
) -> tuple[TrainState, History]:
    if int(ts.step) == setup.steps:
        return ts, history
    epochs = setup.config.epochs - int(ts.step) // setup.task.steps_per_epoch
    with stop_context() as stop:
        try:
            ts, history = loop.fit_task(
                ts, setup.task, test=setup.test, test_every=setup.config.test_every, epochs=epochs,
                callbacks=replace(callbacks, stop=stop), history=history,
            )  # fmt: skip
        except compilation.Uncompiled:
            if stop():  # a signal that ended this run's processes one by one ended the compiler, too
                raise _stopped(out, setup, ts) from None
            raise
        # A single process may stop after its last step. Several would have to agree on that, so they do not.
        ended = setup.config.until is not None and setup.config.until(history.test_bound)
        if (int(ts.step) < setup.steps and not ended) or (setup.task.processes.size == 1 and stop()):
            raise _stopped(out, setup, ts)
    return ts, history


def _stopped(out: Path, setup: Setup, ts: TrainState) -> Stopped:
    command = resume_command(out, setup.config.system)
    return Stopped(f"stopped after {int(ts.step):,} of {setup.steps:,} steps; to continue: {command}")


def _check_new_folder(out: Path, system: System) -> None:
    """Raises BadValue unless the folder is new or holds only hidden files, which a killed process may leave."""
    if out.exists() and (not out.is_dir() or any(not path.name.startswith(".") for path in out.iterdir())):
        resumed = f", or resume its run: {resume_command(out, system)}" if folder.has_run(out) else ""
        raise BadValue(f"{out} exists and is not an empty folder: choose another folder{resumed}")


def _is_finished(path: Path, config: Config, manifest: environment.Manifest) -> bool:
    """Whether the run in a folder has all its steps, or ended early; its parameters; and the figures."""
    steps = config.steps(manifest["data"]["train"])
    stored = checkpoint.in_folder(path / CHECKPOINTS)
    made = max(stored, default=0)
    ended = made == steps or (config.until is not None and config.until(folder.history_in(path / METRICS).test_bound))
    source = path / BEST if config.keep_best else stored.get(made)
    has_params = ended and source is not None and checkpoint.has_params(source, path / PARAMS)
    return has_params and (path / LAST_FIGURE).is_file()


_READERS = 0.5  # seconds to wait for commands that look whether the folder is locked
