"""Fixtures of the tests of data sets."""

import socket

import pytest


@pytest.fixture
def offline(monkeypatch):
    """No name resolves; returns the list of requested names."""
    asked = []

    def getaddrinfo(host, *_, **__):
        asked.append(host)
        raise socket.gaierror("no network\nin tests")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked
