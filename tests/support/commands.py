"""Commands and small data sets that the tests of the command line share."""

from pathlib import Path

import pytest

import funcvae as fv
from funcvae import cli

GAUSSIAN = ["train", "--epochs", "1", "--batch", "1000", "--samples", "2"]


def refused(capsys, *args: str) -> str:
    """The one line that a mistake gets; status 2, no traceback, nothing written."""
    before = sorted(Path().rglob("*"))
    with pytest.raises(SystemExit) as exit_:
        cli.main(args)
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("funcvae: error: ")
    assert error.count("\n") == 1
    assert sorted(Path().rglob("*")) == before
    return error


DIGITS = [name for name, recipe in fv.models.RECIPES.items() if recipe.shape == (1, 28, 28)]


def trained(data_file, system="mnist_vae", out="run", *options):
    """A short run of a system on the file's images."""
    short = ["--batch", "20", "--epochs", "1", "--no-compile", "--out", out]
    cli.main(["train", system, "--data", str(data_file), *short, *options])
    return Path(out)
