"""The command that trains a system: `train`."""

import logging
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from funcvae import compilation, distributed, runs, tracking
from funcvae.cli.options import Device, Flat, ModelOptions, parse_model_options
from funcvae.cli.signals import stop_on_signal
from funcvae.errors import BadValue, Stopped
from funcvae.runs.folder import read_config

__all__ = ["TrainOptions", "train"]


def _flag(value: bool) -> PrimitiveConstructorSpec[bool | None]:
    """A flag that sets an option to this value; without the flag the option is None."""
    return PrimitiveConstructorSpec(
        nargs=0,
        metavar="",
        instance_from_str=lambda words: value,
        is_instance=lambda default: default is None or isinstance(default, bool),
        str_from_instance=lambda default: ["False"],
    )


@dataclass(frozen=True, kw_only=True)
class TrainOptions(runs.Options):
    """The options of a run on the command line."""

    system: tyro.conf.Positional[Annotated[str | None, tyro.conf.arg(metavar="SYSTEM")]] = None
    """One of `funcvae list systems`, or FILE.py:NAME or package.module:NAME for one of your own. None:
    gaussian2d_vae."""
    model: tyro.conf.Suppress[Mapping[str, Any] | None] = None
    lr: str | None = None
    out: str | None = None
    """Run folder, new or empty. None: a new one in runs/."""
    split: Annotated[str | None, tyro.conf.arg(metavar=f"{{{','.join(runs.SPLITS)}}}")] = None
    device: Device | None = None
    """Where to train. None: on CUDA if available."""
    precision: Annotated[str | None, tyro.conf.arg(metavar=f"{{{','.join(compilation.PRECISIONS)}}}")] = None
    compile: Annotated[bool | None, tyro.conf.arg(name="no-compile"), _flag(False)] = None
    """Train without torch.compile, which saves seconds before the first step. Systems that do not benefit never
    use it."""
    deterministic: Annotated[bool | None, _flag(True)] = None
    sample_each_step: Annotated[bool | None, _flag(True)] = None
    keep_best: Annotated[bool | None, _flag(True)] = None
    stream: Annotated[bool | None, _flag(True)] = None


DEFAULTS, DEFAULT_SYSTEM = TrainOptions(), "gaussian2d_vae"


def train(
    *,
    options: Annotated[TrainOptions, Flat] = DEFAULTS,
    model: ModelOptions = (),
    download: bool = False,
    resume: str | None = None,
    track: tyro.conf.UseAppendAction[tuple[Literal["tensorboard", "visdom"], ...]] = (),
    visdom_server: str = "http://localhost:8097",
    patience: float = distributed.PATIENCE,
) -> None:
    """Train a system, by default with its own recipe, into a run folder; or resume a run.

    Ctrl-C and SIGTERM stop it after the current step, with a checkpoint; a second signal stops it at once. Processes
    started by torchrun train one model together.

    Args:
        options: What to train, and where to store it.
        model: An option of the system's model, such as --model.latent 10; may be repeated. Items of a tuple are
            separated by commas. `funcvae train SYSTEM --help` lists them.
        download: Download a named data set that is missing.
        resume: Resume the run in this folder from its newest checkpoint. The bits are those of an uninterrupted run.
            Only --epochs and options of storage and display may change. "auto" resumes the run in --out if it exists,
            and otherwise starts it.
        track: Also show the run in TensorBoard (in the run folder) or on a Visdom server; may be repeated.
        visdom_server: Address of the Visdom server.
        patience: Seconds that the processes of torchrun wait for each other at the start.
    """
    makers: dict[str, runs.MakeTracker] = {
        "tensorboard": tracking.tensorboard,
        "visdom": lambda run, config, past: tracking.visdom(visdom_server, run.name, config, past),
    }
    trackers = [makers[name] for name in dict.fromkeys(track)]
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns of a missing CUDA
    caught: list[int] = []
    try:
        with distributed.process_group(options.device or "auto", patience=patience) as processes:
            stop_context = partial(stop_on_signal, caught, alone=processes.size == 1)
            folder = _folder_to_resume(resume, options.out, download, processes)
            if model:
                resumed = None if folder is None else read_config(Path(folder), options.system).system
                named = resumed or options.system or DEFAULT_SYSTEM
                options = replace(options, model=parse_model_options(named, model))
            if folder is not None:
                path = runs.resume(folder, options, trackers=trackers, stop_context=stop_context, processes=processes)
            else:
                path = runs.train(
                    **{"system": DEFAULT_SYSTEM} | options.specified(), download=download, trackers=trackers,
                    stop_context=stop_context, processes=processes,
                )  # fmt: skip
    except Stopped as error:
        print(f"funcvae: {error}", file=sys.stderr)
        sys.exit(128 + (caught[0] if caught else signal.SIGTERM))
    print(path)


def _folder_to_resume(
    resume: str | None, out: str | None, download: bool, processes: distributed.Processes
) -> str | None:
    """The folder of the run to resume; None to start a run."""
    if resume == "auto":
        if out is None:
            raise BadValue("--resume auto needs a run folder: give --out RUN")
        return processes.all_gather_object(out if runs.has_run(out) else None)[0]
    if resume is not None and (out is not None or download):
        raise BadValue("--resume RUN continues in RUN with existing data: remove --out and --download")
    return resume
