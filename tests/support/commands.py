"""Commands and small data sets for the tests of the command line."""

from pathlib import Path

import numpy as np
import pytest

import funcvae as fv
from funcvae import cli

GAUSSIAN = ["train", "--epochs", "1", "--batch", "1000", "--samples", "2"]


def refused(capsys, *args: str) -> str:
    """The error of a refused command: one line and status 2, without a traceback or a written file."""
    before = sorted(Path().rglob("*"))
    with pytest.raises(SystemExit) as exit_:
        cli.main(args)
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("funcvae: error: ")
    assert error.count("\n") == 1
    assert sorted(Path().rglob("*")) == before
    return error


DIGITS = [name for name, system in fv.models.SYSTEMS.items() if system.recipe.shape == (1, 28, 28)]


def write_digits() -> None:
    """Writes forty images with the shape of digits to the current folder."""
    x = fv.random.uniform(fv.random.key(0), (40, 1, 28, 28)).numpy()
    np.savez("digits.npz", train=x[:30], test=x[30:], train_labels=np.arange(30) % 10, test_labels=np.arange(10))


def trained(data_file, system="mnist_vae", out="run", *options):
    """A short run of a system on the file's images."""
    short = ["--batch", "20", "--epochs", "1", "--no-compile", "--out", out]
    cli.main(["train", system, "--data", str(data_file), *short, *options])
    return Path(out)
