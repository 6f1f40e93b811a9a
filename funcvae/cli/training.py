"""The command that trains a system: `train`."""

import logging
import signal
import sys
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Literal

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from funcvae import compilation, distributed, runs, tracking
from funcvae.cli.options import Device, Flat, new_run_folder
from funcvae.cli.signals import stop_on_signal
from funcvae.errors import BadValue, Stopped

__all__ = ["TrainOptions", "train"]


def _flag(value: bool) -> PrimitiveConstructorSpec[bool | None]:
    """A flag that gives an option this value; without the flag the option is None."""
    return PrimitiveConstructorSpec(
        nargs=0,
        metavar="",
        instance_from_str=lambda words: value,
        is_instance=lambda default: default is None or isinstance(default, bool),
        str_from_instance=lambda default: ["False"],
    )


@dataclass(frozen=True, kw_only=True)
class TrainOptions(runs.Options):
    """The options of a run as the command line takes them."""

    system: tyro.conf.Positional[Annotated[str | None, tyro.conf.arg(metavar="SYSTEM")]] = None
    """One of `funcvae list systems`; gaussian2d_vae unless given."""
    out: str | None = None
    """Run folder, new or empty; a fresh one under runs/ unless given."""
    split: Annotated[str | None, tyro.conf.arg(metavar=f"{{{','.join(runs.SPLITS)}}}")] = None
    device: Device | None = None
    """Where to train; on CUDA where there is any, unless given."""
    precision: Annotated[str | None, tyro.conf.arg(metavar=f"{{{','.join(compilation.PRECISIONS)}}}")] = None
    compile: Annotated[bool | None, tyro.conf.arg(name="no-compile"), _flag(False)] = None
    """Train without torch.compile, as systems that gain nothing by it always do: the first step comes
    seconds earlier."""
    deterministic: Annotated[bool | None, _flag(True)] = None
    sample_each_step: Annotated[bool | None, _flag(True)] = None


DEFAULTS = TrainOptions()


def train(
    *,
    options: Annotated[TrainOptions, Flat] = DEFAULTS,
    download: bool = False,
    resume: str | None = None,
    track: tyro.conf.UseAppendAction[tuple[Literal["tensorboard", "visdom"], ...]] = (),
    visdom_server: str = "http://localhost:8097",
    patience: float = distributed.PATIENCE,
) -> None:
    """Train a named system, by its own recipe unless told otherwise, into a run folder; or go on with a run.

    Ctrl-C and SIGTERM stop it after the step, with a checkpoint; once more, at once. Started by torchrun, several
    processes train one model.

    Args:
        options: What to train, and where to keep it.
        download: Download a named data set that is not there.
        resume: Go on with the run in this folder from its newest checkpoint, to the bits of a run that was not stopped.
            Only --epochs, and how it is kept and shown, may be another than it began with. "auto": with the run in
            --out if there is one, else from the beginning, as a command that may be started again wants it.
        track: Also show the run, as it goes, in TensorBoard (in the run folder) or on a Visdom server; may be repeated.
        visdom_server: Where the Visdom server listens.
        patience: Seconds that the processes that torchrun started wait for one another at the beginning.
    """
    makers: dict[str, runs.MakeTracker] = {
        "tensorboard": tracking.tensorboard,
        "visdom": lambda run, config, past: tracking.visdom(visdom_server, run.name, config, past),
    }
    trackers = [makers[name] for name in dict.fromkeys(track)]
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it reports a missing CUDA as a warning
    caught: list[int] = []
    try:
        with distributed.process_group(options.device or "auto", patience=patience) as processes:
            stop_context = partial(stop_on_signal, caught, alone=processes.size == 1)
            folder = _folder_to_resume(resume, options.out, download, processes)
            if folder is not None:
                path = runs.resume(
                    folder, _resolved(options), trackers=trackers, stop_context=stop_context, processes=processes
                )
            else:
                path = runs.run(
                    _configured(options, processes), download=download, trackers=trackers, stop_context=stop_context,
                    processes=processes,
                )  # fmt: skip
    except Stopped as error:
        print(f"funcvae: {error}", file=sys.stderr)
        sys.exit(128 + (caught[0] if caught else signal.SIGTERM))
    print(path)


def _folder_to_resume(
    resume: str | None, out: str | None, download: bool, processes: distributed.Processes
) -> str | None:
    """The folder of the run to go on with; None to begin a run."""
    if resume == "auto":
        if out is None:
            raise BadValue("--resume auto goes on in --out, or begins there: give --out RUN")
        return processes.all_gather_object(out if runs.has_run(out) else None)[0]
    if resume is not None and (out is not None or download):
        raise BadValue("--resume RUN goes on in RUN, with data that are there: leave out --out and --download")
    return resume


def _resolved(options: runs.Options) -> runs.Options:
    """The options with the device that they mean here."""
    return options if options.device is None else replace(options, device=runs.resolve_device(options.device))


def _configured(options: runs.Options, processes: distributed.Processes) -> runs.Config:
    """The configuration of a new run: its step compiled where the recipe wants it and a compiler is available."""
    recipe = runs.recipe(options.system or "gaussian2d_vae")
    wanted = recipe.compile if options.compile is None else options.compile
    if wanted and not compilation.available():
        print(f"funcvae: {compilation.NO_COMPILER}; training without torch.compile", file=sys.stderr)
        wanted = False
    device = runs.resolve_device(options.device or "auto")
    out = processes.all_gather_object(options.out or new_run_folder(recipe.name))[0]
    return runs.with_defaults(replace(options, system=recipe.name, device=device, out=out, compile=wanted))
