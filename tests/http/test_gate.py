"""A crowded model's refusals under `mlserve run`: given before the application is asked."""

import json
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, ClassVar

import httpx2
import pytest
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send
from tests.http.answers import error_of
from tests.http.waiting import until
from tests.http.ways import read_answer

from mlserve import Batching, Limits, ModelHandler, ModelServer, ServerSettings
from mlserve.http.connection import Connection
from mlserve.http.direct import DirectPrediction
from mlserve.http.gate import Gate
from mlserve.testing import running

pytestmark = pytest.mark.slow

PREDICT = "/v1/models/m/predict"
HEAD = (
    b"POST /v1/models/m/predict HTTP/1.1\r\nHost: test\r\n"
    b"Content-Type: application/json\r\nContent-Length: 3\r\n"
)
ANSWER = re.compile(rb"HTTP/1\.1 (\d{3}).*?\r\n\r\n", re.S)


class Holding(ModelHandler[str, str]):
    """Holds "hold" until it may go."""

    batching = Batching(max_size=1)
    may_go: ClassVar[threading.Event] = threading.Event()
    holds: ClassVar[threading.Event] = threading.Event()

    def infer(self, inputs: list[str]) -> list[str]:
        if inputs == ["hold"]:
            self.holds.set()
            assert self.may_go.wait(15)
        return inputs

    def stream(self, item: str) -> Iterator[str]:
        yield item


class PassOn:
    """A middleware of the user: what it sees must not be answered before it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


def server_with(*middleware: Middleware, **settings: Any) -> ModelServer:
    server = ModelServer(middleware=middleware, settings=ServerSettings(**settings))
    return server.add("m", Holding, limits=Limits(max_queue_size=2))


@contextmanager
def crowded(server: ModelServer, *before: bytes) -> Iterator[httpx2.Client]:
    """
    Serve with a model that runs one request and whose queue is full, until the block's end.

    Args:
        server: Which.
        before: Requests that are answered before it is crowded, each on a connection of its own.
    """
    Holding.may_go.clear()
    Holding.holds.clear()
    model = server.model_for("m")
    with running(server, timeout_s=15) as client, ThreadPoolExecutor(3) as pool:
        for request in before:
            with connected(client) as connection:
                connection.sendall(request)
                read_answers(connection, 1)
        try:
            answers = [pool.submit(client.post, PREDICT, json="hold")]
            assert Holding.holds.wait(10)
            answers += [pool.submit(client.post, PREDICT, json="w") for _ in range(2)]
            until(lambda: model.statistics().queued == 2)
            yield client
        finally:
            Holding.may_go.set()
        assert [answer.result(10).status_code for answer in answers] == [200] * 3


@pytest.fixture
def refusals(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """List whether the gate has refused what came."""
    given: list[bool] = []
    enter = Gate.enter

    def noted(gate: Gate, scope: Scope, connection: Connection) -> DirectPrediction | None:
        direct = enter(gate, scope, connection)
        given.append(connection.cycle.response_complete)
        return direct

    monkeypatch.setattr(Gate, "enter", noted)
    return given


@contextmanager
def connected(client: httpx2.Client) -> Iterator[socket.socket]:
    address = client.base_url.host, client.base_url.port or 0
    with socket.create_connection(address, 10) as connection:
        yield connection


def read_answers(connection: socket.socket, n: int) -> list[bytes]:
    received = b""
    while len(found := ANSWER.findall(received)) < n:
        piece = connection.recv(65_536)
        assert piece, f"{len(found)} of {n} answers"
        received += piece
    return found


@pytest.mark.parametrize("path", [PREDICT, "/models/m/predict", "/v1/models/m/stream"])
def test_a_refusal_is_the_same_before_the_application_and_within_it(
    path: str, refusals: list[bool]
) -> None:
    with crowded(server_with()) as client:
        before = client.post(path, json="x", headers={"X-Request-Id": "mine"})
    assert refusals[-1]
    with crowded(server_with(Middleware(PassOn))) as client:
        within = client.post(path, json="x", headers={"X-Request-Id": "mine"})
    assert not refusals[-1]

    assert error_of(before, 503, "queue_full").keys() == error_of(within, 503, "queue_full").keys()
    assert before.json()["error"]["message"] == within.json()["error"]["message"]
    assert before.headers.keys() == within.headers.keys()
    assert before.headers["x-request-id"] == "mine"


def test_a_refusal_is_counted_and_logged_once(
    caplog: pytest.LogCaptureFixture, refusals: list[bool]
) -> None:
    caplog.set_level(logging.INFO)
    server = server_with()

    with crowded(server) as client:
        refused = client.post(PREDICT, json="x")
        n_refused = server.model_for("m").statistics().refused

    lines = [json.loads(r.getMessage()) for r in caplog.records if r.name == "mlserve.access"]
    [line] = [line for line in lines if line["status"] == 503]
    assert line["request_id"] == refused.headers["x-request-id"]
    assert (line["code"], line["model"], line["bytes_out"]) == (
        "queue_full",
        "m",
        len(refused.content),
    )
    assert n_refused == 1


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[Connection]:
    """List the connection of each head that was parsed, since it was not known."""
    given: list[Connection] = []
    original = Connection.on_headers_complete

    def noted(connection: Connection) -> None:
        given.append(connection)
        original(connection)

    monkeypatch.setattr(Connection, "on_headers_complete", noted)
    return given


def test_a_known_head_is_not_parsed_again_on_a_new_connection_or_one_that_was_refused(
    parsed: list[Connection],
) -> None:
    known, other = HEAD + b'\r\n"x"', HEAD + b'Accept: x\r\n\r\n"x"'
    with crowded(server_with(), known) as client:
        parsed.clear()
        with connected(client) as fresh, connected(client) as refused:
            fresh.sendall(known)
            statuses = read_answers(fresh, 1)
            for request in (other, known, known):
                refused.sendall(request)
                statuses += read_answers(refused, 1)

    assert statuses == [b"503"] * 4
    assert len(parsed) == 1


def test_a_request_behind_a_body_that_is_still_to_come_belongs_to_that_body(
    parsed: list[Connection],
) -> None:
    with crowded(server_with()) as client, connected(client) as connection:
        whole = HEAD + b'\r\n"x"'
        connection.sendall(HEAD.replace(b"th: 3", b"th: %d" % len(whole)) + b"\r\n")
        first = read_answers(connection, 1)
        connection.sendall(whole)
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: test\r\n\r\n")
        second = read_answers(connection, 1)

    assert (first, second) == ([b"503"], [b"200"])


def test_what_is_shed_is_answered_logged_and_counted_as_what_is_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    known, other = HEAD + b'\r\n"x"', HEAD + b'Accept: x\r\n\r\n"x"'
    server = server_with()
    with crowded(server, known) as client:
        answers = []
        for request in (known, other):
            with connected(client) as connection:
                connection.sendall(request)
                answers.append(read_answer(connection))
        n_refused = server.model_for("m").statistics().refused

    shed, refused = answers
    lines = [json.loads(r.getMessage()) for r in caplog.records if r.name == "mlserve.access"]
    first, second = [line for line in lines if line["status"] == 503]
    varying = ("request_id", "total_ms", "bytes_out")
    assert shed.status == refused.status == 503
    assert [name for name, _ in shed.headers] == [name for name, _ in refused.headers]
    assert json.loads(shed.body)["error"].keys() == json.loads(refused.body)["error"].keys()
    assert json.loads(shed.body)["error"]["request_id"] == shed.id == first["request_id"]
    assert first["bytes_out"] == len(shed.body)
    assert list(first) == list(second)
    assert {k: v for k, v in first.items() if k not in varying} == {
        k: v for k, v in second.items() if k not in varying
    }
    assert n_refused == 2


def test_a_connection_is_not_closed_for_a_body_that_came_after_its_refusal() -> None:
    known = HEAD + b'\r\n"x"'
    server = server_with(head_timeout_s=0.3)
    with crowded(server, known) as client, connected(client) as connection:
        connection.sendall(HEAD + b"\r\n")
        statuses = read_answers(connection, 1)
        connection.sendall(b'"x"')
        end = time.monotonic() + 1.0
        while time.monotonic() < end:  # much longer than a head may take
            connection.sendall(known)
            statuses += read_answers(connection, 1)

    assert set(statuses) == {b"503"}


def test_a_head_is_not_learnt_together_with_the_end_of_a_body_before_it() -> None:
    rest = b"POST /b HTTP/1.1\r\nTransfer-Encoding: chunked\r\nfoo: "
    whole = HEAD + b'\r\n"x"'
    wrong = HEAD.replace(b"application/json", b"text/plain").replace(b"3", b"%d" % len(rest))
    with running(server_with(), timeout_s=15) as client:
        Holding.may_go.set()
        with connected(client) as connection:
            connection.sendall(wrong + b"\r\n")
            assert read_answers(connection, 1) == [b"415"]
            connection.sendall(rest + whole)
            assert read_answers(connection, 1) == [b"200"]
        with connected(client) as connection:
            connection.sendall(rest + whole)
            assert read_answers(connection, 1) == [b"400"]


def test_the_body_of_what_was_refused_is_not_read_as_the_next_request() -> None:
    with crowded(server_with()) as client, connected(client) as connection:
        connection.sendall(HEAD + b"\r\n")
        first = read_answers(connection, 1)
        connection.sendall(b'"x"GET /health HTTP/1.1\r\nHost: test\r\n\r\n')
        second = read_answers(connection, 1)

    assert (first, second) == ([b"503"], [b"200"])


def test_many_requests_sent_at_once_are_each_refused() -> None:
    n = 2000

    with crowded(server_with()) as client, connected(client) as connection:
        connection.sendall((HEAD + b'\r\n"x"') * n)
        statuses = read_answers(connection, n)

    assert statuses == [b"503"] * n


@pytest.mark.parametrize("line", [b"Connection: close\r\n", b"X-Request-Timeout: nonsense\r\n"])
def test_what_its_head_says_is_heeded(line: bytes) -> None:
    with crowded(server_with()) as client, connected(client) as connection:
        connection.sendall(HEAD + line + b'\r\n"x"')
        received = connection.recv(65_536)
        is_closed = b"close" in line and connection.recv(1) == b""

    if b"close" in line:
        assert received.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nconnection: close\r\n" in received
        assert is_closed
    else:
        assert received.startswith(b"HTTP/1.1 400 ")


def test_who_waits_for_leave_to_send_a_body_is_refused_without_it() -> None:
    with crowded(server_with()) as client, connected(client) as connection:
        connection.sendall(HEAD + b"Expect: 100-continue\r\n\r\n")
        received: Any = connection.recv(65_536)

    assert received.startswith(b"HTTP/1.1 503 ")


def test_a_model_with_room_refuses_nothing(refusals: list[bool]) -> None:
    Holding.may_go.set()

    with running(server_with(), timeout_s=15) as client:
        answer = client.post(PREDICT, json="hold")

    assert (answer.status_code, refusals) == (200, [False])
