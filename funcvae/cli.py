"""The command line: `funcvae train`, `funcvae list`. A user's mistake is one line on stderr and exit status 2."""

import logging
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal

import tyro

from funcvae import __version__, data, estimators, runs
from funcvae.errors import FuncvaeError
from funcvae.models import RECIPES


def train(
    system: tyro.conf.Positional[str] = "gaussian2d_vae",
    /,
    *,
    data: str | None = None,
    data_dir: str = "data",
    download: bool = False,
    epochs: int | None = None,
    batch: int | None = None,
    samples: int | None = None,
    estimator: str | None = None,
    lr: float | None = None,
    seed: int = 0,
    out: str | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Literal["highest", "high", "medium"] = "highest",
    no_compile: bool = False,
) -> None:
    """Train a named system, by its own recipe unless told otherwise, into a run folder.

    Args:
        system: One of `funcvae list systems`.
        data: A name in `funcvae list data`, a folder of images, FILE.npy or FILE.npz; the recipe's unless given.
        data_dir: Where named data sets are kept.
        download: Download a named data set that is not there.
        epochs: Passes over the training data; the recipe's number unless given.
        batch: Batch size; the recipe's unless given.
        samples: Monte-Carlo samples N for each datum; the recipe's unless given.
        estimator: NAME or NAME:ARGUMENT, one of `funcvae list estimators`; the recipe's unless given.
        lr: Learning rate; the recipe's rate or schedule unless given.
        seed: The key's seed: the same seed gives the same bits.
        out: Run folder, new or empty; a fresh one under runs/ unless given.
        device: Where to train.
        precision: Precision of float32 matrix products (torch.set_float32_matmul_precision).
        no_compile: Train without torch.compile.
    """
    recipe = runs.recipe(system)
    wanted = recipe.compile and not no_compile
    if wanted and not runs.can_compile():
        print("funcvae: no C++ compiler found, training without torch.compile", file=sys.stderr)
        wanted = False
    config = runs.Config(
        system=system,
        data=data or recipe.data,
        data_dir=data_dir,
        epochs=recipe.epochs if epochs is None else epochs,
        batch=recipe.batch if batch is None else batch,
        samples=recipe.samples if samples is None else samples,
        estimator=estimator or recipe.estimator,
        lr=lr,
        seed=seed,
        device=runs.device(device),
        precision=precision,
        compile=wanted,
        out=out or _fresh(system),
    )
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it reports a missing CUDA as a warning
    print(runs.run(config, download=download))


def list_(what: tyro.conf.Positional[Literal["systems", "estimators", "data"]] = "systems", /) -> None:
    """List the named systems, estimators or data sets.

    Args:
        what: What to list.
    """
    rows = {
        "systems": {name: recipe.about for name, recipe in RECIPES.items()},
        "estimators": {name: (factory.__doc__ or "").splitlines()[0] for name, factory in estimators.TABLE.items()},
        "data": {name: loader.__doc__ or "" for name, loader in data.NAMED.items()},
    }[what]
    width = max(map(len, rows))
    for name, about in rows.items():
        print(f"{name:{width}}  {about}".rstrip())


def main(args: Sequence[str] | None = None) -> None:
    """The console script."""
    commands = {"train": train, "list": list_}
    try:
        tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="funcvae",
            description=f"funcvae {__version__}",
            args=args,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except (FuncvaeError, OSError) as error:  # an OSError: a full disk, a folder that may not be read
        print(f"funcvae: error: {error}", file=sys.stderr)
        sys.exit(2)


def _fresh(system: str) -> str:
    """A folder that is not there yet: runs/SYSTEM-DATE-TIME, with a number where two start in one second."""
    stem = Path("runs", f"{system}-{datetime.now():%Y%m%d-%H%M%S}")
    path, count = stem, 1
    while path.exists():
        count += 1
        path = stem.with_name(f"{stem.name}-{count}")
    return str(path)
