"""Fixtures that several test files share."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def mnist_root() -> Path:
    """Where MNIST lies: $FUNCVAE_DATA, ./data, or a data folder near this checkout. Skips where it is nowhere."""
    near = [Path(os.environ.get("FUNCVAE_DATA", "data")), ROOT / "data", *ROOT.parent.glob("*/data")]
    for root in near:
        if (root / "MNIST" / "raw" / "train-images-idx3-ubyte").is_file():
            return root
    pytest.skip("MNIST is not here: set FUNCVAE_DATA to the folder that holds MNIST/raw")
