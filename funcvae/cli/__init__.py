"""The command line: trains systems, and evaluates, draws, compares and verifies runs.

An error is one line on stderr. Exit status: 2 for an error, 128 plus its number for a signal, and 1 if a run is not
reproduced or a cell of a sweep diverged.

This module imports nothing heavy, and the module of a command is imported when the command is used, so help and
mistyped commands answer at once.
"""

import logging
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout, suppress
from io import TextIOWrapper
from typing import Any

from funcvae import __version__, threads
from funcvae.errors import BadValue, FuncvaeError, ProcessLost, ReportedElsewhere, unknown

__all__ = ["COMMANDS", "SHARED_COMMANDS", "main"]

COMMANDS = {
    "train": ("training:train", "Train a system into a run folder, or resume a run."),
    "show": ("showing:show", "Show what a run is and how it went, or set several runs side by side."),
    "evaluate": ("measure:evaluate", "Evaluate a model on test data: log-likelihood, bounds, KLs, active units."),
    "variance": ("measure:variance", "Compare the gradient variance of estimators on a run or an untrained system."),
    "sample": ("draw:sample", "Draw samples of a model."),
    "reconstruct": ("draw:reconstruct", "Draw test images and their reconstructions."),
    "interpolate": ("draw:interpolate", "Decode the line between the latents of two test items."),
    "latent": ("draw:latent", "Draw the latent space: a scatter, a grid, or traversals."),
    "verify": ("reproduce:verify", "Reproduce the first steps of a run, and compare them bit by bit."),
    "replay": ("reproduce:replay", "Reproduce one step of a run, and describe its inputs and results."),
    "sweep": ("grids:sweep", "Train a grid of systems, estimators, numbers of samples and seeds."),
    "collect": ("grids:collect", "Collect the results of a sweep: a table with means and intervals over seeds."),
    "list": ("listing:list_", "List systems, estimators, noise schemes, data sets, or the runs in a folder."),
}
"""For each command, its function in this package, and its line in the help."""

SHARED_COMMANDS = {"train", "variance", "sweep"}
"""Commands that several processes can share."""

_OPTIONS = ("--help", "-h", "--version", "--install-completion")
"""The options of `funcvae` itself."""

_EXAMPLES = """\
Examples:
  funcvae train gaussian2d_vae                 train a small system
  funcvae variance mnist_vae                   compare estimators on an untrained system
  funcvae show RUN                             see how a run went
"""


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    is_program = args is None
    try:
        if is_program:  # during the imports, Ctrl-C ends the process without a traceback
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            threads.limit_spinning()
            if isinstance(sys.stdout, TextIOWrapper):
                sys.stdout.reconfigure(errors="replace")  # for an encoding that lacks "±" or "k̂"
        _run(list(sys.argv[1:] if args is None else args), is_program)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("funcvae: stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # which Python flushes when it exits
        sys.exit(141)
    except ReportedElsewhere:
        sys.exit(2)
    except (FuncvaeError, OSError) as error:  # an OSError: a full disk, an unreadable folder
        message = _with_option(str(error), sys.argv[1:] if args is None else args)
        print(f"funcvae: error: {_process(error)}{message}", file=sys.stderr)
        sys.exit(2)


def _run(args: list[str], is_program: bool) -> None:
    """Parses the arguments and calls the command, or prints help or the version."""
    from cyclopts import App, CycloptsError, Parameter

    name = args[0] if args and not args[0].startswith("-") else None
    if name is not None and name not in COMMANDS:
        raise unknown("command", name, COMMANDS)
    if args and name is None and args[0] not in _OPTIONS:  # here, because the parser would import every command
        raise unknown("option", args[0], _OPTIONS)
    asks_help = bool({"-h", "--help"} & set(args))
    app = App(
        name="funcvae", version=__version__, help_format="plaintext", result_action="return_value",
        default_parameter=Parameter(negative="", allow_repeating=True), help_epilogue=_EXAMPLES,
        help="The variance of Monte-Carlo gradient estimators in variational autoencoders.",
    )  # fmt: skip
    for i, (command, (place, about)) in enumerate(COMMANDS.items()):
        look: dict[str, Any] = {"help": about, "help_epilogue": "", "help_format": "markdown", "sort_key": i}
        app.command(f"funcvae.cli.{place}", name=command, **look)
    app.register_install_completion_command(help="Install completion for bash, zsh or fish.")
    try:
        call, bound, _ = app.parse_args(args, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        raise BadValue(_one_line(error, name, args[1:])) from None
    if is_program:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns of a missing CUDA
    with _main_process_prints(name) if name and not asks_help else nullcontext():
        call(*bound.args, **bound.kwargs)
    if asks_help and name in _TAKES_MODEL:
        print(_system_help(args))


_TAKES_MODEL = ("train", "variance")


def _system_help(args: Sequence[str]) -> str:
    """Describes the options of the system that is named in the arguments."""
    from funcvae.cli.options import system_help

    return system_help(args[1:])


def _one_line(error: Exception, command: str | None, words: Sequence[str]) -> str:
    """The message of an error of the parser, as one line that ends with what to do; `words` follow the command."""
    from cyclopts import UnknownOptionError

    from funcvae._support import checks

    if isinstance(error, UnknownOptionError):
        names = [name for argument in error.argument_collection if argument.parse for name in argument.names]
        if command in _TAKES_MODEL:
            from funcvae.cli.options import model_options

            for word in words:
                with suppress(FuncvaeError):
                    names += model_options(word)
        wanted = str(unknown("option", error.token.keyword or error.token.value, names))
        if "did you mean" in wanted:
            return wanted
    text = checks.one_line(str(error)).removesuffix(".")
    if unused := re.fullmatch(r"Unused Tokens: \[(.*?)[,\]].*", text):
        text = f"unexpected argument {unused[1]}"
    text = text[0].lower() + text[1:]
    return text if "id you mean" in text else f"{text}; see funcvae {command + ' ' if command else ''}--help"


def _with_option(message: str, args: Sequence[str]) -> str:
    """A message such as "target_se is 0.0: …", with the name of the option if that was given."""
    name, _, rest = message.partition(" ")
    option = f"--{name.replace('_', '-')}"
    given = {arg.partition("=")[0] for arg in args}
    return f"{option} {rest}" if option in given else message


@contextmanager
def _main_process_prints(command: str) -> Iterator[None]:
    """Silences all processes but the first."""
    from funcvae import distributed

    if distributed.world_size() > 1 and command not in SHARED_COMMANDS:
        error = BadValue(f"funcvae {command} runs in one process: start it without torchrun")
        raise error if distributed.rank() == 0 else ReportedElsewhere(str(error))
    if distributed.rank() == 0:
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def _process(error: Exception) -> str:
    """Names the process that reports an error, if it is not the first one of several."""
    if "WORLD_SIZE" not in os.environ or isinstance(error, ProcessLost):
        return ""
    from funcvae import distributed

    with suppress(BadValue):  # wrong variables in the environment
        return f"process {rank}: " if (rank := distributed.rank()) else ""
    return ""
