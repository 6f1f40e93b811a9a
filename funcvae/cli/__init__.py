"""The command line: train a system, then look at what it learned.

A user's mistake is one line on stderr and exit status 2; a run that was stopped by a signal has its number and 128, and
one that is not what it was has 1.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from funcvae import __version__
from funcvae.cli.judging import evaluate, variance
from funcvae.cli.listing import list_
from funcvae.cli.looking import interpolate, latent, reconstruct, sample
from funcvae.cli.training import replay, train, verify
from funcvae.errors import FuncvaeError

COMMANDS: dict[str, Callable[..., Any]] = {
    "train": train,
    "verify": verify,
    "replay": replay,
    "evaluate": evaluate,
    "variance": variance,
    "sample": sample,
    "reconstruct": reconstruct,
    "interpolate": interpolate,
    "latent": latent,
    "list": list_,
}


def main(args: Sequence[str] | None = None) -> None:
    """The console script."""
    try:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="funcvae",
            description=f"funcvae {__version__}",
            args=args,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except KeyboardInterrupt:
        print("funcvae: stopped", file=sys.stderr)
        sys.exit(130)
    except (FuncvaeError, OSError) as error:  # an OSError: a full disk, a folder that may not be read
        print(f"funcvae: error: {error}", file=sys.stderr)
        sys.exit(2)
