"""Requests sent ahead of their answers: each is answered in its turn, and few take memory."""

import gc
import socket
from collections.abc import Iterator

import httpx2
import pytest
from tests.http.malformed import POST
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from mlserve import ModelServer
from mlserve.testing import EchoHandler, running

pytestmark = pytest.mark.slow

HEALTH = b"GET /health HTTP/1.1\r\nHost: test\r\n\r\n"
N = 3_000


@pytest.fixture(scope="module")
def client() -> Iterator[httpx2.Client]:
    with running(ModelServer().add("echo", EchoHandler)) as client:
        yield client


@pytest.fixture
def connection(client: httpx2.Client) -> Iterator[socket.socket]:
    address = client.base_url.host, client.base_url.port or 0
    with socket.create_connection(address, 10) as connection:
        yield connection


def echo(text: str) -> bytes:
    body = b'{"text":"%s"}' % text.encode()
    return POST + b"Content-Length: %d\r\n\r\n%s" % (len(body), body)


def read_bodies(connection: socket.socket, n: int) -> list[bytes]:
    """Read until so many answers are there; every body ends with `}`."""
    received = b""
    while received.count(b"HTTP/1.1 200 ") < n or not received.endswith(b"}"):
        piece = connection.recv(1_000_000)
        assert piece, "The connection was closed."
        received += piece
    return [part.rpartition(b"\r\n")[2] for part in received.split(b"HTTP/1.1 ")[1:]]


def test_thousands_of_requests_sent_at_once_are_answered_in_their_order(
    connection: socket.socket,
) -> None:
    connection.sendall(b"".join(echo(str(number)) for number in range(N)))

    bodies = read_bodies(connection, N)

    assert bodies == [b'{"text":"%d"}' % number for number in range(N)]


def test_of_thousands_sent_at_once_few_wait_in_memory(connection: socket.socket) -> None:
    connection.sendall(echo("a") * N)
    assert connection.recv(100, socket.MSG_PEEK)

    waiting = [thing for thing in gc.get_objects() if isinstance(thing, RequestResponseCycle)]

    assert len(waiting) < 300
    assert len(read_bodies(connection, N)) == N


@pytest.mark.parametrize("n_ahead", [1, 150, N])
def test_a_request_that_comes_by_half_behind_others_is_read_to_its_end(
    connection: socket.socket, n_ahead: int
) -> None:
    last = echo("x" * 50_000)
    connection.sendall(echo("a") * n_ahead + last[:40])
    first = read_bodies(connection, n_ahead)
    connection.sendall(last[40:1000])
    connection.sendall(last[1000:])

    bodies = read_bodies(connection, 1)

    assert first == [b'{"text":"a"}'] * n_ahead
    assert bodies == [b'{"text":"%s"}' % (b"x" * 50_000)]


def test_large_bodies_behind_each_other_are_each_their_own(connection: socket.socket) -> None:
    texts = [str(number) * 100_000 for number in range(5)]
    connection.sendall(b"".join(echo(text) for text in texts))

    bodies = read_bodies(connection, 5)

    assert bodies == [b'{"text":"%s"}' % text.encode() for text in texts]
