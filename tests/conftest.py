"""Shared fixtures, and one thread for each process that runs tests.

Several OpenMP threads that wait for each other on busy cores make the suite many times slower: see `funcvae.threads`.
The variables take effect only before torch is imported. Processes that tests start inherit them.
"""

import os

from funcvae import cli, threads

threads.limit_spinning()

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

from functools import cache
from pathlib import Path

import hypothesis
import numpy as np
import pytest

import funcvae as fv
from funcvae.data.named_sets import folder_in
from tests.support.compiling import use_aot_eager
from tests.support.figures import without_figures

hypothesis.settings.register_profile("reproducible", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("reproducible")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def mnist_root() -> Path:
    """The folder of MNIST: $FUNCVAE_DATA, ./data, or a data folder near this checkout. Skips if there is no MNIST."""
    near = [Path(os.environ.get("FUNCVAE_DATA", "data")), ROOT / "data", *ROOT.parent.glob("*/data")]
    for root in near:
        if ((folder := folder_in(root, "mnist")) / "train-images-idx3-ubyte").is_file():
            return folder.parents[1]
    pytest.skip("MNIST was not found: set FUNCVAE_DATA to the folder that holds MNIST/raw")


@pytest.fixture(params=["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def backend(request, monkeypatch):
    """Compiles with aot_eager in the quick tests, and with inductor in the slow ones."""
    if request.param == "aot_eager":
        use_aot_eager(monkeypatch)
    return request.param


@pytest.fixture
def no_figures():
    """Runs and commands draw no figures."""
    with without_figures():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a test module's runs."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def run_of(folder):
    """A function that makes a short run of a system of digits, without figures."""
    x = fv.random.uniform(fv.random.key(0), (60, 1, 28, 28)).numpy()
    np.savez(folder / "digits.npz", train=x[:40], test=x[40:])

    @cache
    def run(system):
        command = ["train", system, "--data", str(folder / "digits.npz"), "--out", str(folder / system)]
        with without_figures():
            cli.main([*command, "--epochs", "1", "--batch", "20", "--no-compile"])
        return folder / system

    return run
