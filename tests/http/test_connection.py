"""What reaches the socket of `mlserve run` and is no request is refused, and disturbs nobody."""

import json
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import httpx2
import pytest
from tests.http.malformed import MALFORMED, POST, VALID
from tests.http.waiting import until
from tests.http.wire import TALLY

from mlserve import Call, ModelHandler, ModelServer, ServerSettings
from mlserve.testing import EchoHandler, running

pytestmark = pytest.mark.slow

HEALTH = b"GET /health HTTP/1.1\r\nHost: test\r\n\r\n"
LARGEST_REFUSAL = 4096 + 512  # body and head


@pytest.fixture(scope="module")
def client() -> Iterator[httpx2.Client]:
    settings = ServerSettings(head_timeout_s=0.3, send_timeout_s=0.3, body_timeout_s=0.5)
    server = ModelServer(settings=settings).add("echo", EchoHandler).add("big", Big)
    server.add("waiting", Waiting)
    with running(server) as client:
        yield client


class Waiting(ModelHandler[dict[str, str], str]):
    """Waits until its client has left."""

    begun: ClassVar[threading.Event] = threading.Event()
    cancelled: ClassVar[threading.Event] = threading.Event()

    def infer(self, inputs: list[dict[str, str]], calls: list[Call]) -> list[str]:
        self.begun.set()
        until(lambda: calls[0].cancelled)
        self.cancelled.set()
        return ["nobody reads this"]


class Big(ModelHandler[int, str]):
    def infer(self, inputs: list[int]) -> list[str]:
        return ["x" * n for n in inputs]


@contextmanager
def connected(client: httpx2.Client, receive_buffer: int | None = None) -> Iterator[socket.socket]:
    with socket.socket() as connection:
        if receive_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.settimeout(10)
        connection.connect((client.base_url.host, client.base_url.port or 0))
        yield connection


def read_all(connection: socket.socket) -> bytes:
    """Read until the server closes."""
    received = b""
    while piece := connection.recv(65_536):
        received += piece
    return received


def answers_of(received: bytes) -> list[tuple[int, dict[str, str], Any]]:
    """Split what was received into answers, each with a `Content-Length`."""
    answers = []
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in lines)
        }
        length = int(headers["content-length"])
        body, received = received[:length], received[length:]
        answers.append((int(first.split()[1]), headers, json.loads(body)))
    return answers


def test_the_corpus_is_large() -> None:
    assert len(MALFORMED) >= 120


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_no_http_gets_one_refusal_and_the_connection_ends(
    client: httpx2.Client, name: str
) -> None:
    with connected(client) as connection:
        connection.sendall(MALFORMED[name])
        received = read_all(connection)

    (status, headers, body), *more = answers_of(received)
    TALLY.count(MALFORMED[name], status, int(headers["content-length"]))
    assert more == []
    assert status in (400, 408, 413, 431)
    assert headers["content-type"] == "application/json"
    assert headers["connection"] == "close"
    assert body["error"]["request_id"] == headers["x-request-id"]
    assert len(received) < LARGEST_REFUSAL
    assert client.get("/health").status_code == 200


@pytest.mark.parametrize("name", MALFORMED)
def test_a_refusal_is_not_taken_for_the_answer_to_the_request_before(
    client: httpx2.Client, name: str
) -> None:
    with connected(client) as connection:
        connection.sendall(VALID + MALFORMED[name])
        received = read_all(connection)

    first, *more = answers_of(received)
    assert (first[0], first[2]) == (200, {"text": "a"})
    assert [status // 100 for status, _, _ in more] in ([], [4])


@pytest.mark.parametrize("step", [1, 7, 64])
def test_a_request_may_come_in_pieces_of_any_size(client: httpx2.Client, step: int) -> None:
    with connected(client) as connection:
        for start in range(0, len(VALID), step):
            connection.sendall(VALID[start : start + step])
        connection.sendall(HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        received = read_all(connection)

    assert [body for _, _, body in answers_of(received)] == [{"text": "a"}, {"status": "ok"}]


def test_requests_sent_at_once_are_answered_in_their_order(client: httpx2.Client) -> None:
    bodies = [json.dumps({"text": f"number {n}"}).encode() for n in range(20)]
    requests = [b"%sContent-Length: %d\r\n\r\n%s" % (POST, len(body), body) for body in bodies]
    last = HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")

    with connected(client) as connection:
        connection.sendall(b"".join(requests) + last)
        received = read_all(connection)

    texts = [body.get("text") for _, _, body in answers_of(received)]
    assert texts == [f"number {n}" for n in range(20)] + [None]


def test_head_and_body_of_an_answer_arrive_together(client: httpx2.Client) -> None:
    with connected(client) as connection:
        connection.sendall(VALID)
        received = connection.recv(65_536)

    assert received.startswith(b"HTTP/1.1 200")
    assert received.endswith(b'{"text":"a"}')


@pytest.mark.parametrize("beginning", [HEALTH[:10], HEALTH[:-2], VALID + HEALTH[:-2]])
def test_a_head_that_does_not_end_in_time_is_refused(
    client: httpx2.Client, beginning: bytes
) -> None:
    with connected(client) as connection:
        connection.sendall(beginning)
        received = read_all(connection)

    status, _, body = answers_of(received)[-1]
    assert (status, body["error"]["code"]) == (408, "request_timeout")


def test_a_client_that_says_nothing_is_not_waited_for(client: httpx2.Client) -> None:
    with connected(client) as connection:
        assert read_all(connection) == b""


def test_a_client_that_does_not_read_is_not_waited_for(
    client: httpx2.Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    request = b"10000000"
    head = POST.replace(b"echo", b"big") + b"Content-Length: %d\r\n\r\n" % len(request)

    with connected(client, receive_buffer=4096) as connection:
        connection.sendall(head + request)
        until(lambda: "connection.send.timed_out" in caplog.text)

    assert client.get("/health").status_code == 200


def test_a_client_that_reads_slowly_gets_all_of_its_answer(client: httpx2.Client) -> None:
    request = b"3000000"
    head = POST.replace(b"echo", b"big") + b"Content-Length: %d\r\n\r\n" % len(request)
    received = 0

    with connected(client, receive_buffer=65_536) as connection:
        connection.sendall(head + request)
        pause = threading.Event()
        while received < 3_000_000:
            received += len(connection.recv(65_536))
            pause.wait(0.02)  # a slow client: over a second in all, and never still for long

    assert received > 3_000_000


def test_a_client_that_sends_a_refused_body_still_reads_why(client: httpx2.Client) -> None:
    head = POST + b"Content-Length: 100000000\r\n\r\n"

    with connected(client) as connection:
        connection.sendall(head + b"x" * 1_000_000)
        received = read_all(connection)

    ((status, _, body),) = answers_of(received)
    assert (status, body["error"]["code"]) == (413, "body_too_large")


def test_an_upgrade_that_is_not_taken_changes_nothing(client: httpx2.Client) -> None:
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    request = VALID.replace(b"Host: test\r\n", b"Host: test\r\n" + offer)

    with connected(client) as connection:
        connection.sendall(request * 300 + b"nonsense\r\n\r\n")
        received = read_all(connection)

    bodies = [body for _, _, body in answers_of(received)]
    assert bodies[:300] == [{"text": "a"}] * 300


def test_trailers_are_not_read_as_headers(client: httpx2.Client) -> None:
    chunked = POST + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    trailer = b"0\r\nX-Request-Id: smuggled\r\n\r\n"

    with connected(client) as connection:
        connection.sendall(chunked + b'c\r\n{"text":"a"}\r\n' + trailer)
        received = read_all(connection)

    ((status, headers, _),) = answers_of(received)
    assert status == 200
    assert headers["x-request-id"] != "smuggled"


@pytest.mark.parametrize("sent", [HEALTH[:20], POST, VALID[:-3]])
def test_a_client_that_closes_its_half_amid_a_request_is_let_go(
    client: httpx2.Client, sent: bytes
) -> None:
    with connected(client) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        received = read_all(connection)

    assert received == b""
    assert client.get("/health").status_code == 200


def test_a_client_that_closes_its_half_behind_a_request_counts_as_one_that_left(
    client: httpx2.Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    request = VALID.replace(b"echo", b"waiting")

    with connected(client) as connection:
        connection.sendall(request)
        assert Waiting.begun.wait(5)
        connection.shutdown(socket.SHUT_WR)
        received = read_all(connection)

    assert received == b""
    assert Waiting.cancelled.wait(5)
    until(lambda: "client_closed_request" in caplog.text)
