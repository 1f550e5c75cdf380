"""Who is warned that anybody may use the server."""

import logging
from collections.abc import Sequence
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, Security
from fastapi.security import APIKeyHeader

from mlserve import ModelServer, api_keys, rate_limit
from mlserve.http.guards.warning import is_loopback, warn_if_open
from mlserve.testing import EchoHandler

KEYS = Depends(api_keys(["a-good-key-of-a-client"]))


def require_key(key: Annotated[str | None, Security(APIKeyHeader(name="X-Key"))]) -> None:
    """Stands for a check of the user's own."""


def warnings_of(
    caplog: pytest.LogCaptureFixture,
    host: str,
    server: Sequence[Any] = (),
    model: Sequence[Any] = (),
) -> list[str]:
    made = ModelServer(dependencies=server).add("echo", EchoHandler, dependencies=model)
    made.build()
    caplog.clear()
    warn_if_open(host, made.registry)
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com", ""])  # noqa: S104 - no socket is bound
def test_an_open_server_in_the_network_is_warned_of(
    caplog: pytest.LogCaptureFixture, host: str
) -> None:
    for guards in ((), [Depends(rate_limit("1/minute"))]):
        (warning,) = warnings_of(caplog, host, guards)

        assert warning.startswith(f"ANYBODY WHO REACHES {host or 'this machine'} MAY USE")


@pytest.mark.parametrize(
    ("host", "server", "model"),
    [
        ("127.0.0.1", [], []),
        ("127.8.8.8", [], []),
        ("localhost", [], []),
        ("::1", [], []),
        ("0.0.0.0", [KEYS], []),  # noqa: S104 - no socket is bound
        ("0.0.0.0", [], [KEYS]),  # noqa: S104 - no socket is bound
        ("0.0.0.0", [Depends(require_key)], []),  # noqa: S104 - no socket is bound
    ],
)
def test_who_is_alone_or_asks_for_credentials_is_not(
    caplog: pytest.LogCaptureFixture, host: str, server: list[Any], model: list[Any]
) -> None:
    assert warnings_of(caplog, host, server, model) == []


def test_one_model_without_a_guard_is_enough(caplog: pytest.LogCaptureFixture) -> None:
    server = ModelServer().add("echo", EchoHandler, dependencies=[KEYS]).add("free", EchoHandler)
    server.build()

    warn_if_open("192.0.2.1", server.registry)

    assert "ANYBODY" in caplog.text


def test_the_guards_of_an_application_that_is_not_ours_count(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = ModelServer().add("echo", EchoHandler)
    server.install(FastAPI(dependencies=[KEYS]))

    warn_if_open("192.0.2.1", server.registry)
    warn_if_open("192.0.2.1", None)

    assert "ANYBODY" not in caplog.text


def test_what_says_nothing_is_no_loopback() -> None:
    assert not is_loopback("not an address")
