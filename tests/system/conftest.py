"""Fixtures of the tests of the command line."""

import shutil
from contextlib import chdir
from functools import cache
from pathlib import Path

import pytest

from funcvae import cli
from tests.support.commands import GAUSSIAN, trained, write_digits
from tests.support.figures import without_figures


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def digits(here) -> Path:
    """Forty images of the digits' shape, as a file."""
    write_digits()
    return here / "digits.npz"


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Copies a finished run of a system on `digits`, without figures, into the current folder.

    Each system is trained once.
    """

    @cache
    def run_of(system: str) -> Path:
        with chdir(tmp_path_factory.mktemp(system)), without_figures():
            write_digits()
            if system == "gaussian2d_vae":
                cli.main([*GAUSSIAN, "--out", "run"])
            else:
                trained("digits.npz", system)
            return Path("run").absolute()

    def copied(system: str = "mnist_vae") -> Path:
        return shutil.copytree(run_of(system), Path("run"))

    return copied
