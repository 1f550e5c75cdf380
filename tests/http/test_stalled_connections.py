"""A client that stops in the middle of something is not waited for, wherever it stops."""

import asyncio
import re
import socket
from collections.abc import Iterator

import httpx2
import pytest
from fastapi import Request
from tests.http.malformed import POST, VALID
from tests.http.waiting import until

from mlserve import ModelServer, ServerSettings
from mlserve.testing import EchoHandler, running

pytestmark = pytest.mark.slow

HEALTH = b"GET /health HTTP/1.1\r\nHost: test\r\n\r\n"
BODY = b"Content-Length: 100000\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
SOON_S = 3.0


@pytest.fixture(scope="module")
def client() -> Iterator[httpx2.Client]:
    settings = ServerSettings(head_timeout_s=0.3, body_timeout_s=0.3)
    app = ModelServer(settings=settings).add("echo", EchoHandler).build()

    @app.post("/count")
    async def count(request: Request) -> int:
        return len(await request.body())

    @app.post("/slow")
    async def slow(request: Request) -> int:
        await asyncio.sleep(1.2)  # stands for a dependency that takes its time before the body
        return len(await request.body())

    with running(app) as client:
        yield client


def post(path: str) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: test\r\n".encode()


# What is sent, each part once the server has had time to deal with the one before, and how often
# the server answers before it closes.
STALLED = {
    "nothing": ([], []),
    "an empty line": ([b"\r\n"], []),
    "half a head": ([HEALTH[:9]], [408]),
    "half a head after an answer": ([HEALTH, HEALTH[:9]], [200, 408]),
    "an empty line after an answer": ([HEALTH, b"\r\n"], [200]),
    "half a body": ([POST + BODY, b"{"], [408]),
    "half a chunk": ([POST + CHUNKED, b"5\r\n{"], [408]),
    "half a body of an endpoint": ([post("/count") + BODY, b"{"], [408]),
    "half a body after an answer": ([VALID, POST + BODY, b"{"], [200, 408]),
    "half a body behind a request": ([VALID + POST + BODY + b"{"], [200, 408]),
    "half a body that nobody reads": ([post("/nothing") + BODY, b"{"], [404]),
    "half a chunk that nobody reads": ([post("/nothing") + CHUNKED, b"5\r\n{"], [404]),
    "half a body of a GET": ([b"GET /health HTTP/1.1\r\nHost: test\r\n" + BODY, b"{"], [200]),
}


IN_NO_REQUEST = ("nothing", "an empty line", "an empty line after an answer")


@pytest.fixture
def connections(client: httpx2.Client) -> Iterator[dict[str, socket.socket]]:
    address = client.base_url.host, client.base_url.port or 0
    opened = {name: socket.create_connection(address, SOON_S) for name in STALLED}
    for name, connection in opened.items():
        for part in STALLED[name][0]:
            connection.sendall(part)
            client.get("/health")  # the server has dealt with the part by now
    yield opened
    for connection in opened.values():
        connection.close()


def statuses_of(connection: socket.socket) -> list[int]:
    received = b""
    while piece := connection.recv(65_536):
        received += piece
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)]


def test_a_client_that_stalls_is_cut_wherever_it_does(
    connections: dict[str, socket.socket],
) -> None:
    statuses = {name: statuses_of(connection) for name, connection in connections.items()}

    assert statuses == {name: expected for name, (_, expected) in STALLED.items()}


def test_a_client_that_goes_on_in_drops_is_cut_as_well(
    client: httpx2.Client, connections: dict[str, socket.socket]
) -> None:
    left = dict(connections)

    def are_cut() -> bool:
        for name, connection in list(left.items()):
            try:
                connection.sendall(b"\r\n" if name in IN_NO_REQUEST else b"a")
            except OSError:
                del left[name]
        return not left

    until(are_cut, SOON_S)

    assert client.get("/health").status_code == 200


@pytest.mark.parametrize(("n_bytes", "asks_first"), [(10, True), (300_000, False)])
def test_a_body_that_the_server_itself_does_not_read_in_time_is_no_fault_of_the_client(
    client: httpx2.Client, n_bytes: int, asks_first: bool
) -> None:
    address = client.base_url.host, client.base_url.port or 0
    expect = b"Expect: 100-continue\r\n" if asks_first else b""
    head = post("/slow") + expect + b"Content-Length: %d\r\n\r\n" % n_bytes

    with socket.create_connection(address, SOON_S) as connection:
        connection.sendall(head)
        if asks_first:
            assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
        connection.sendall(b"x" * n_bytes)
        answer = connection.recv(1000)

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(str(n_bytes).encode())
