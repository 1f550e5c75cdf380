"""Offers to speak something else than HTTP/1.1, and the WebSockets of a user's own routes."""

import base64
import socket
import time
from collections.abc import Iterator

import httpx2
import pytest
from fastapi import WebSocket
from tests.http.bad_heads import HANDSHAKES
from tests.http.failures import Failures
from tests.http.waiting import until

from mlserve import ModelServer, ServerSettings
from mlserve.testing import EchoHandler, running

pytestmark = pytest.mark.slow

HEAD_TIMEOUT_S = 0.2
KEY = base64.b64encode(b"sixteen bytes 16")
HANDSHAKE = (
    b"GET %s HTTP/1.1\r\nHost: test\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: " + KEY + b"\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n"
)
PING = b"\x89\x80\x00\x00\x00\x00"
PONG = b"\x8a\x00"
TEXT = b"\x81\x82\x00\x00\x00\x00hi"


@pytest.fixture(scope="module")
def client(failures: Failures) -> Iterator[httpx2.Client]:
    settings = ServerSettings(head_timeout_s=HEAD_TIMEOUT_S, body_timeout_s=HEAD_TIMEOUT_S)
    app = ModelServer(settings=settings).add("echo", EchoHandler).build()

    @app.websocket("/echo")
    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(await websocket.receive_text())

    with running(app) as client:
        yield client


def connect(client: httpx2.Client) -> socket.socket:
    return socket.create_connection((client.base_url.host, client.base_url.port or 0), 5)


def read_all(connection: socket.socket) -> bytes:
    received = b""
    while piece := connection.recv(65_536):
        received += piece
    return received


def test_a_websocket_lives_on_when_heads_would_be_late(client: httpx2.Client) -> None:
    pongs = set()

    with connect(client) as connection:
        connection.sendall(HANDSHAKE % b"/echo")
        accepted = connection.recv(65_536)
        end = time.monotonic() + 2 * HEAD_TIMEOUT_S

        def is_over() -> bool:
            connection.sendall(PING)
            pongs.add(connection.recv(2))
            return time.monotonic() > end

        until(is_over)
        connection.sendall(TEXT)
        echoed = connection.recv(65_536)

    assert accepted.startswith(b"HTTP/1.1 101 ")
    assert pongs == {PONG}
    assert echoed[:1] in (b"\x81", b"\xc1")  # a text, compressed or not


def test_a_handshake_that_no_route_takes_is_refused(client: httpx2.Client) -> None:
    with connect(client) as connection:
        connection.sendall(HANDSHAKE % b"/v1/models/echo/predict")
        received = read_all(connection)

    assert received.startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize(
    "name", [name for name, (_, lines) in HANDSHAKES.items() if b"Upgrade: websocket" in lines]
)
def test_what_is_no_handshake_is_answered_and_leaves_no_open_connection(
    client: httpx2.Client, failures: Failures, name: str
) -> None:
    method, lines = HANDSHAKES[name]
    head = b"\r\n".join([b"%s /echo HTTP/1.1" % method.encode(), b"Host: test", *lines, b"", b""])

    with connect(client) as connection:
        connection.sendall(head)
        received = read_all(connection)

    assert received.startswith(b"HTTP/1.1 4")
    assert received.count(b"HTTP/1.1 ") == 1
    assert failures.seen() == []


def test_a_handshake_behind_a_request_that_runs_is_not_taken(client: httpx2.Client) -> None:
    body = b'{"text":"a"}'
    request = (
        b"POST /v1/models/echo/predict HTTP/1.1\r\nHost: test\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    )

    with connect(client) as connection:
        connection.sendall(request + HANDSHAKE % b"/echo")
        received = read_all(connection)

    assert received.startswith(b"HTTP/1.1 200 ")
    assert b" 101 " not in received
