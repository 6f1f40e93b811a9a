"""Fixtures for the training tests."""

import pytest
import torch

import funcvae as fv


@pytest.fixture(scope="module")
def points() -> torch.Tensor:
    return fv.random.normal(fv.random.key(7), (50, 2))
