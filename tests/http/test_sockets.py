"""Requests as bytes on a real socket: slow, half, lying and huge bodies, kept-alive connections."""

import json
import logging
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from tests.http.waiting import until

from mlserve import Limits, ModelHandler, ModelServer, ServerSettings
from mlserve.testing import running

pytestmark = pytest.mark.slow

LIMIT = 10_000


class Length(ModelHandler[str, int]):
    def infer(self, inputs: list[str]) -> list[int]:
        return [len(text) for text in inputs]


@pytest.fixture(scope="module")
def client() -> Iterator[httpx2.Client]:
    settings = ServerSettings(body_timeout_s=0.3)
    server = ModelServer(settings=settings)
    server.add("m", Length, limits=Limits(max_body_bytes=LIMIT))
    with running(server) as client:
        yield client


@pytest.fixture
def connection(client: httpx2.Client) -> Iterator[socket.socket]:
    address = client.base_url.host, client.base_url.port or 0
    with socket.create_connection(address, 10) as connection:
        yield connection


def head(*lines: str, path: str = "/v1/models/m/predict", method: str = "POST") -> bytes:
    start = (f"{method} {path} HTTP/1.1", "Host: test", "Content-Type: application/json")
    return "\r\n".join((*start, *lines, "", "")).encode()


def read_answer(connection: socket.socket) -> tuple[int, dict[str, str], Any]:
    """Read one answer, and no byte more."""
    file = connection.makefile("rb", buffering=0)
    status = int(file.readline().split()[1])
    headers: dict[str, str] = {}
    while (line := file.readline()) not in (b"\r\n", b""):
        name, _, value = line.decode().partition(":")
        headers[name.lower()] = value.strip()
    body = b""
    while len(body) < int(headers["content-length"]):
        body += file.read(int(headers["content-length"]) - len(body))
    return status, headers, json.loads(body)


def test_a_body_announced_as_huge_is_refused_before_it_is_sent(connection: socket.socket) -> None:
    connection.sendall(head("Content-Length: 1000000000"))

    status, headers, body = read_answer(connection)

    assert (status, body["error"]["code"]) == (413, "body_too_large")
    assert headers["connection"] == "close"
    assert connection.recv(1) == b""


def test_a_chunked_body_is_refused_at_the_limit(connection: socket.socket) -> None:
    connection.sendall(head("Transfer-Encoding: chunked"))
    piece = b"x" * 1000
    for _ in range(LIMIT // 1000 + 1):
        connection.sendall(b"3e8\r\n" + piece + b"\r\n")

    status, _, body = read_answer(connection)

    assert (status, body["error"]["code"]) == (413, "body_too_large")


def test_a_body_in_many_tiny_chunks_is_taken(connection: socket.socket) -> None:
    body = json.dumps("x" * 5000).encode()
    connection.sendall(head("Transfer-Encoding: chunked"))
    connection.sendall(b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n")

    assert read_answer(connection)[::2] == (200, 5000)


@pytest.mark.parametrize("line", ["Content-Length: 100", "Transfer-Encoding: chunked"])
def test_a_body_that_does_not_arrive_is_a_timeout(connection: socket.socket, line: str) -> None:
    connection.sendall(head(line))

    status, headers, body = read_answer(connection)

    assert (status, body["error"]["code"]) == (408, "request_timeout")
    assert headers["connection"] == "close"


def test_a_client_that_leaves_amid_its_body_troubles_nobody(
    client: httpx2.Client, connection: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    connection.sendall(head("Content-Length: 100", "X-Request-Id: leaver") + b'"abc')
    connection.close()
    until(lambda: "leaver" in caplog.text)
    answer = client.post("/v1/models/m/predict", json="abc")

    assert answer.json() == 3
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    assert '"code": "client_closed_request"' in caplog.text


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        (head("Content-Length: 4").replace(b"application/json", b"text/plain") + b"abcd", 415),
        (head("Content-Length: 4", path="/v1/models/x/predict") + b"abcd", 404),
        (head("Content-Length: 4", path="/nowhere") + b"abcd", 404),
        (head("Content-Length: 4", method="PUT") + b"abcd", 405),
        (head("Content-Length: 4") + b"abcd", 400),
        (head("Content-Length: 4", "X-Request-Timeout: x") + b"abcd", 400),
    ],
)
def test_a_connection_is_usable_after_a_refusal(
    connection: socket.socket, wrong: bytes, status: int
) -> None:
    connection.sendall(wrong)
    refused, _, _ = read_answer(connection)
    connection.sendall(head("Content-Length: 5") + b'"abc"')

    assert refused == status
    assert read_answer(connection)[::2] == (200, 3)


def test_requests_sent_without_waiting_are_answered_in_order(connection: socket.socket) -> None:
    texts = ["a" * number for number in range(20)]
    connection.sendall(
        b"".join(
            head(f"Content-Length: {len(text) + 2}") + json.dumps(text).encode() for text in texts
        )
    )

    assert [read_answer(connection)[2] for _ in texts] == list(range(20))


def test_an_odd_path_is_answered_in_one_shape(connection: socket.socket) -> None:
    for path in ("/v1/models/%00/predict", "/%ff%fe", "//", "/v1/models/a%2fb/predict", "/a?%00"):
        connection.sendall(head("Content-Length: 0", path=path))

        status, headers, body = read_answer(connection)

        assert status == 404, path
        assert body["error"]["request_id"] == headers["x-request-id"], path


def test_a_slow_body_is_read_while_others_are_answered(
    client: httpx2.Client, connection: socket.socket
) -> None:
    connection.sendall(head("Content-Length: 5") + b'"a')
    other = client.post("/v1/models/m/predict", json="abc")
    connection.sendall(b'bc"')

    assert other.json() == 3
    assert read_answer(connection)[2] == 3
    assert threading.active_count() < 50
