"""Fixtures for the tests of trackers."""

import pytest

from tests.support.tracking import Server


@pytest.fixture
def server(tmp_path):
    pytest.importorskip("visdom", reason="visdom is not installed")
    server = Server(tmp_path)
    yield server
    server.process.kill()
    server.process.wait()
