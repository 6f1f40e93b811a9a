"""The command that trains a system: `train`."""

import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

from cyclopts import Group, Parameter

from funcvae import distributed, runs, tracking
from funcvae.cli.options import Device, Flag, ModelOptions, parse_model_options, whole_number
from funcvae.cli.signals import stop_on_signal
from funcvae.errors import BadValue, Stopped
from funcvae.runs.folder import read_config

__all__ = ["TrainOptions", "train"]

_GROUPS = {
    "Data": ("What to train on.", "data data_dir stream size"),
    "Gradient": ("Estimator, noise and samples.", "estimator samples noise chunk"),
    "Optimization": (
        "How long, and with which steps.",
        "epochs batch optimizer lr clip test_every early_stopping keep_best seed",
    ),
    "Storage": ("Where the run is stored, and what is kept.", "out checkpoint_every keep sample_each_step"),
    "Variance": ("Measure the gradient's variance during training.", "variance_every variance_of variance_replicates"),
    "Machine": ("Device, speed and reproducibility.", "device precision compile deterministic shards split"),
}
"""Groups of options in the help: a description, and the names of the options."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TrainOptions(runs.Options):
    """The options of a run on the command line."""

    system: Annotated[str | None, Parameter(parse=False)] = None
    model: Annotated[Mapping[str, Any] | None, Parameter(parse=False)] = None
    lr: str | None = None
    split: Literal["rows", "samples"] | None = None
    out: str | None = None
    """Run folder, new or empty. By default a new one in runs/."""
    device: Device | None = None
    """Where to train. By default on CUDA if available."""
    precision: Literal["highest", "high", "medium"] | None = None
    compile: Annotated[bool | None, Parameter(negative="--no-compile")] = None
    """Whether to train under torch.compile. By default if that saves more time than it takes, judged by the number and
    the size of the steps."""


def _grouped(hints: dict[str, Any]) -> dict[str, Any]:
    """The annotations of the options, with their groups; those of numbers also refuse 2.5 for a whole number."""
    shown = {}
    for title, (about, names) in _GROUPS.items():
        group = Group(title, sort_key=list(_GROUPS).index(title), help=about)
        for name in names.split():
            whole = Parameter(converter=whole_number) if int in get_args(hints[name]) else Parameter()
            shown[name] = Annotated[hints[name], whole, Parameter(group=group)]
    return hints | shown


TrainOptions.__annotations__ = _grouped(get_type_hints(TrainOptions, include_extras=True))

DEFAULTS, DEFAULT_SYSTEM = TrainOptions(), "gaussian2d_vae"


def train(
    system: str | None = None,
    /,
    *,
    options: TrainOptions = DEFAULTS,
    model: ModelOptions = None,
    download: Flag = False,
    resume: str | None = None,
    track: Annotated[tuple[Literal["tensorboard", "visdom", "wandb"], ...], Parameter(show_default=False)] = (),
    visdom_server: str | None = None,
    patience: float = distributed.PATIENCE,
) -> None:
    """Train a system, by default with its own recipe, into a run folder; or resume a run.

    Ctrl-C and SIGTERM stop it after the current step, with a checkpoint; a second signal stops it at once. Processes
    started by torchrun train one model together.

    Args:
        system: One of `funcvae list systems`, or FILE.py:NAME or package.module:NAME for one of your own. By default
            gaussian2d_vae.
        options: What to train, and where to store it.
        model: Options of the system's model, such as --model.latent 10.
        download: Download a named data set that is missing.
        resume: Resume the run in this folder from its newest checkpoint. The bits are those of an uninterrupted run.
            Only --epochs and options of storage and display may change. "auto" resumes the run in --out if it exists,
            and otherwise starts it.
        track: Also show the run in TensorBoard (in the run folder), on a Visdom server or in W&B; may be repeated.
        visdom_server: Address of the Visdom server. By default http://localhost:8097.
        patience: Seconds that the processes of torchrun wait for each other at the start.
    """
    if visdom_server is not None and "visdom" not in track:
        raise BadValue(f"--visdom-server is {visdom_server}: give --track visdom, too")
    server = visdom_server or "http://localhost:8097"
    makers: dict[str, runs.MakeTracker] = {
        "tensorboard": tracking.tensorboard,
        "visdom": lambda run, config, past: tracking.visdom(server, run.name, config, past),
        "wandb": tracking.wandb,
    }
    trackers = [makers[name] for name in dict.fromkeys(track)]
    options = replace(options, system=system)
    caught: list[int] = []
    try:
        with distributed.process_group(options.device or "auto", patience=patience) as processes:
            stop_context = partial(stop_on_signal, caught, alone=processes.size == 1)
            folder = _folder_to_resume(resume, options.out, download, processes)
            if model:
                resumed = None if folder is None else read_config(Path(folder), options.system).system
                named = resumed or options.system or DEFAULT_SYSTEM
                options = replace(options, model=parse_model_options(named, model))
            shared: dict[str, Any] = {"trackers": trackers, "stop_context": stop_context, "processes": processes}
            if folder is not None:
                path = runs.resume(folder, options, **shared)
            else:
                path = runs.train(**{"system": DEFAULT_SYSTEM} | options.specified(), download=download, **shared)
    except Stopped as error:
        print(f"funcvae: {error}", file=sys.stderr)
        sys.exit(128 + (caught[0] if caught else signal.SIGTERM))
    if processes.is_main:
        print(*_conclusion(runs.summarize(path), runs.read_result(path)), sep="\n")


def _conclusion(run: runs.Summary, result: runs.Result) -> list[str]:
    """How a run went, its figures, and the commands to go on; and advice if no latent is active."""
    found = run.results
    names = {"test_bound": "test bound", "train_bound": "training bound"}
    texts = [f"{text} {found[name]:.4f}" for name, text in names.items() if name in found]
    terms = f" ({run.terms})" if run.terms else ""
    seconds = found.get("seconds")
    speed = f" in {tracking.duration(seconds)}, {tracking.speed(run.steps, seconds)}" if seconds else ""
    best = ""
    if run.settings["keep_best"]:
        best = f"; kept the parameters of epoch {found['best_epoch']}, test bound {found['best_test_bound']:.4f}"
    lines = [
        f"{', '.join(texts)}{terms}; nats per example",
        f"trained {run.steps:,} steps{speed}{best}",
        f"figures: {run.path / 'figures'} ({', '.join(dict.fromkeys(Path(name).stem for name in run.figures))})",
        *(f"next: {command}" for command in run.commands if command.split()[1] in ("evaluate", "variance")),
    ]
    if result["active_units"] == 0:
        lines.append(_COLLAPSE_HINT)
    return lines


_COLLAPSE_HINT = (
    "hint: no latent is active: q(z|x) is nearly the same for all test items (posterior collapse). Train for longer, "
    "or give the KL less weight, as --estimator beta_elbo:0.01 does, or the reconstruction more, as --model.alpha 784 "
    "does in mnist_bn_vae"
)


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
