"""The command line: trains systems, and evaluates, draws and verifies runs.

An error is one line on stderr. Exit status: 2 for an error, 128 plus its number for a signal, and 1 if a run is not
reproduced or a cell of a sweep diverged.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any

import tyro

from funcvae import __version__, distributed
from funcvae.cli.draw import interpolate, latent, reconstruct, sample
from funcvae.cli.grids import collect, sweep
from funcvae.cli.listing import list_
from funcvae.cli.measure import evaluate, variance
from funcvae.cli.options import join_model_options, model_help
from funcvae.cli.reproduce import replay, verify
from funcvae.cli.training import train
from funcvae.errors import BadValue, FuncvaeError, ProcessLost, ReportedElsewhere

__all__ = ["COMMANDS", "SHARED_COMMANDS", "main"]

_FUNCTIONS = (
    train, verify, replay, evaluate, variance, sweep, collect, sample, reconstruct, interpolate, latent, list_,
)  # fmt: skip
COMMANDS: dict[str, Callable[..., Any]] = {command.__name__.rstrip("_"): command for command in _FUNCTIONS}

SHARED_COMMANDS = {"train", "variance", "sweep"}
"""Commands that several processes can share."""


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    try:
        args = sys.argv[1:] if args is None else args
        with _main_process_prints(args):
            if takes_model := bool(args) and args[0] in ("train", "variance"):
                args = join_model_options(args)
            about, config = f"funcvae {__version__}", (tyro.conf.FlagCreatePairsOff,)
            try:
                tyro.extras.subcommand_cli_from_dict(
                    COMMANDS, prog="funcvae", description=about, args=args, config=config
                )
            except SystemExit:
                if takes_model and {"-h", "--help"} & set(args):
                    print(model_help(args))
                raise
    except KeyboardInterrupt:
        print("funcvae: stopped", file=sys.stderr)
        sys.exit(130)
    except ReportedElsewhere:
        sys.exit(2)
    except (FuncvaeError, OSError) as error:  # an OSError: a full disk, an unreadable folder
        rank = 0
        with suppress(BadValue):  # wrong variables in the environment
            rank = distributed.rank()
        process = f"process {rank}: " if rank and not isinstance(error, ProcessLost) else ""
        print(f"funcvae: error: {process}{error}", file=sys.stderr)
        sys.exit(2)


@contextmanager
def _main_process_prints(args: Sequence[str]) -> Iterator[None]:
    """Silences all processes but the first."""
    if distributed.world_size() > 1 and args and args[0] in COMMANDS.keys() - SHARED_COMMANDS:
        error = BadValue(f"funcvae {args[0]} runs in one process: start it without torchrun")
        raise error if distributed.rank() == 0 else ReportedElsewhere(str(error))
    if distributed.rank() == 0:
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield
