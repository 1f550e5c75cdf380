"""A logger whose filters raise: every request is answered as ever, malformed ones too."""

import logging
import socket
from collections.abc import Iterator

import httpx2
import pytest
from fastapi import FastAPI
from tests.http.answers import error_of
from tests.http.test_gate import crowded, server_with

from mlserve import ModelServer
from mlserve.testing import EchoHandler, running

pytestmark = pytest.mark.slow


def raising(record: logging.LogRecord) -> bool:
    raise OSError("no space left on device")


@pytest.fixture
def broken_loggers() -> Iterator[None]:
    """Break every logger of the package."""
    logging.getLogger("mlserve.access")
    loggers = [
        logger
        for name, logger in logging.root.manager.loggerDict.items()
        if name.startswith("mlserve") and isinstance(logger, logging.Logger)
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addFilter(raising)
        logger.setLevel(logging.DEBUG)
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.removeFilter(raising)
        logger.setLevel(level)


def app_that_breaks() -> FastAPI:
    app = ModelServer().add("echo", EchoHandler).build()

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError

    return app


@pytest.mark.usefixtures("broken_loggers")
def test_answers_and_unknown_errors_are_as_ever() -> None:
    with running(app_that_breaks(), timeout_s=15) as client:
        fine = client.post("/v1/models/echo/predict", json={"text": "a"})
        broken = client.get("/broken")

    assert fine.json() == {"text": "a"}
    error_of(broken, 500, "internal_error")


@pytest.mark.usefixtures("broken_loggers")
def test_what_is_no_http_is_refused_as_ever() -> None:
    with running(app_that_breaks(), timeout_s=15) as client, connected(client) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        received = connection.recv(65_536)

    assert received.startswith(b"HTTP/1.1 400 ")


@pytest.mark.usefixtures("broken_loggers")
def test_a_crowded_model_refuses_as_ever() -> None:
    with crowded(server_with()) as client:
        refused = client.post("/v1/models/m/predict", json="x")

    error_of(refused, 503, "queue_full")


def connected(client: httpx2.Client) -> socket.socket:
    return socket.create_connection((client.base_url.host, client.base_url.port or 0), 10)
