"""Fixtures of the tests of the command line."""

from pathlib import Path

import numpy as np
import pytest

import funcvae as fv


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def digits(here) -> Path:
    """Forty images of the digits' shape, as a file."""
    x = fv.random.uniform(fv.random.key(0), (40, 1, 28, 28)).numpy()
    np.savez(here / "digits.npz", train=x[:30], test=x[30:], train_labels=np.arange(30) % 10, test_labels=np.arange(10))
    return here / "digits.npz"
