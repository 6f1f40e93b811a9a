"""Fixtures of the tests of runs."""

from pathlib import Path

import pytest

from tests.support.sweeps import write_points


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder with twelve points for training and five for testing."""
    monkeypatch.chdir(tmp_path)
    write_points()
    return tmp_path
