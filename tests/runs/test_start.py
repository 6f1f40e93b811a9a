"""What a run does with its data before its first step: it hashes them once, and makes no copy of them."""

from contextlib import nullcontext, suppress

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from funcvae import data, runs
from funcvae.errors import Stopped
from funcvae.tree import leaves


class Largest(TorchDispatchMode):
    """Records the largest number of bytes that an operation allocates for its results."""

    nbytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {x.untyped_storage().data_ptr() for x in leaves(args) if isinstance(x, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for x in leaves(out):
            if isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() not in given:
                self.nbytes = max(self.nbytes, x.untyped_storage().nbytes())
        return out


def first_step(start, **options):
    """Trains, or resumes, for one step."""
    with suppress(Stopped):
        start(stop_context=lambda: nullcontext(lambda: True), **options)


@pytest.fixture
def hashed(monkeypatch):
    """The data sets that were hashed."""
    found, sha256 = [], data.Dataset.sha256

    def counted(dataset):
        found.append(dataset)
        return sha256(dataset)

    monkeypatch.setattr(data.Dataset, "sha256", counted)
    return found


def test_data_are_hashed_once(here, hashed):
    first_step(runs.train, system="gaussian2d_vae", data="points.npz", out="run", epochs=2, batch=4, compile=False)
    assert len(hashed) == 1
    first_step(lambda **options: runs.resume("run", **options))
    assert len(hashed) == 2


@pytest.mark.parametrize("system", ["mnist_vae", "burda_vae"])
def test_the_start_makes_no_copy_of_the_data(tmp_path, system):
    x = np.random.default_rng(0).integers(0, 256, (80_000, 784), dtype=np.uint8).reshape(-1, 1, 28, 28)
    np.save(tmp_path / "x.npy", x)
    with Largest() as allocated:
        first_step(
            runs.train, system=system, data=str(tmp_path / "x.npy"), out=str(tmp_path / "run"), epochs=1, compile=False
        )
    assert 0.01 * x.nbytes < allocated.nbytes < 0.4 * x.nbytes
