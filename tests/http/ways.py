"""One application in three places, and all that can be seen of a request there."""

import json
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import httpx2
import pytest
from starlette.middleware import Middleware
from tests.http.test_middleware_matrix import PassThrough, foreign
from tests.http.waiting import until

from mlserve import ModelServer
from mlserve.records import InferenceRecord
from mlserve.testing import running

__all__ = [
    "DIRECT",
    "FOREIGN",
    "ORDINARY",
    "Answer",
    "Place",
    "Seen",
    "lines_of",
    "places",
    "read_answer",
]

DIRECT, ORDINARY, FOREIGN = "direct", "ordinary", "foreign"
"""`mlserve run`, the same with a middleware that nothing may pass by, and plain uvicorn."""

Make = Callable[[list[InferenceRecord], list[Middleware]], ModelServer]
"""Makes a server, given what its sink fills and its middleware."""

_IDS = re.compile(rb"[0-9a-f]{12}-[0-9a-f]+")
_DURATION = re.compile(r"dur=[0-9.]+")
_SAMPLE = re.compile(r"^(mlserve_\w+\{.*\bmodel=.*\}) (\S+)$", re.M)
_TIMED = re.compile(r"mlserve_\w+_seconds_(bucket|sum)\b")
_NOT_REACHED = (0, 401, 403, 405, 429, 499, 503)


@dataclass(frozen=True)
class Answer:
    """One answer as it stood on the wire; status 0 = the connection ended without one."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    is_last: bool = True
    """Whether the connection ended behind it, which its head said."""

    @property
    def id(self) -> str:
        return dict(self.headers)["x-request-id"]

    def comparable(self) -> "Answer":
        """Leave out what is never the same twice."""
        headers = sorted(
            (
                name,
                _DURATION.sub("dur=", _IDS.sub(b"ID", value.encode("latin-1")).decode("latin-1")),
            )
            for name, value in self.headers
            if name not in ("date", "server")
        )
        return Answer(self.status, headers, _IDS.sub(b"ID", self.body), self.is_last)


def read_answer(connection: socket.socket) -> Answer:
    """Read one answer, whose head says how long it is; nothing else may be on its way."""
    received = b""
    while not (b"\r\n\r\n" in received and len(received) >= _n_bytes(received)):
        piece = connection.recv(65_536)
        if not piece:
            break
        received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    if not received:
        return Answer(0, [], b"")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = [(name, value) for name, _, value in (line.partition(": ") for line in lines)]
    assert len(received) == _n_bytes(received), received
    is_last = ("connection", "close") in headers
    if is_last:
        assert connection.recv(1) == b""
    return Answer(int(first.split()[1]), headers, body, is_last)


def _n_bytes(received: bytes) -> int:
    """Say how long an answer is, whose head is here."""
    head = received.partition(b"\r\n\r\n")[0]
    length = re.search(rb"\r\ncontent-length: (\d+)", head)
    assert length is not None, received
    return len(head) + 4 + int(length[1])


@dataclass
class Seen:
    """What was seen of requests that were sent twice each; but for ids, timings and the date."""

    answers: dict[str, list[Answer]] = field(default_factory=dict)
    lines: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """The lines in the access log."""
    records: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """What the sink got."""
    counted: dict[str, float] = field(default_factory=dict)
    """By how much the samples of all models went up."""

    def differing(self, other: "Seen") -> list[str]:
        """Say what is not the same elsewhere."""
        return [
            f"{what} of {name}: {ours.get(name)!r}, elsewhere {theirs.get(name)!r}"
            for what in ("answers", "lines", "records", "counted")
            for ours, theirs in [(getattr(self, what), getattr(other, what))]
            for name in ours.keys() | theirs.keys()
            if ours.get(name) != theirs.get(name)
        ]


@dataclass
class Place:
    """One of the servers, running."""

    models: ModelServer
    client: httpx2.Client
    records: list[InferenceRecord] = field(default_factory=list)

    def connected(self) -> socket.socket:
        """Connect; a `with` closes it."""
        address = self.client.base_url.host, self.client.base_url.port or 0
        return socket.create_connection(address, 10)

    def ask(self, *pieces: bytes) -> Answer:
        """Send one request on a connection of its own."""
        with self.connected() as connection:
            for piece in pieces:
                connection.sendall(piece)
            return read_answer(connection)

    def ask_twice(self, request: bytes) -> list[Answer]:
        """Send a request twice: the second time, the server may know its head."""
        with self.connected() as connection:
            connection.sendall(request)
            answers = [read_answer(connection)]
            if not answers[0].is_last:
                connection.sendall(request)
                answers.append(read_answer(connection))
        return answers

    def see(self, requests: dict[str, bytes], caplog: pytest.LogCaptureFixture) -> Seen:
        """Ask everything twice, and look at all of it; nobody else may ask meanwhile."""
        before = self._samples()
        caplog.clear()
        answers = {name: self.ask_twice(request) for name, request in requests.items()}
        n_answers = sum(map(len, answers.values()))
        until(lambda: len(lines_of(caplog)) >= n_answers)  # an answer is sent before its line
        lines = lines_of(caplog)
        assert len(lines) == n_answers
        reached = {a.id for found in answers.values() for a in found if _has_reached_the_model(a)}
        until(lambda: reached <= {record.request_id for record in self.records})
        seen = Seen()
        for name, found in answers.items():
            ids = {answer.id for answer in found}
            seen.answers[name] = [answer.comparable() for answer in found]
            ours = [line for line in lines if line["request_id"] in ids]
            seen.lines[name] = [_without_timings(line) for line in ours]
            records = [record for record in self.records if record.request_id in ids]
            seen.records[name] = [_facts_of(record) for record in records]
        changed = self._samples().items() - before.items()
        seen.counted = {name: n - before.get(name, 0) for name, n in changed}
        return seen

    def _samples(self) -> dict[str, float]:
        """Give the samples of all models that do not depend on how long something took."""
        text = self.client.get("/metrics").text
        return {name: float(n) for name, n in _SAMPLE.findall(text) if not _TIMED.match(name)}


def _has_reached_the_model(answer: Answer) -> bool:
    """Say whether a sink is told of it: there was a job, or what was asked for was malformed."""
    has_job = any(name == "server-timing" for name, _ in answer.headers)
    return has_job or answer.status not in _NOT_REACHED


def lines_of(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """Give the lines of the access log."""
    records = [record for record in list(caplog.records) if record.name == "mlserve.access"]
    return [json.loads(record.getMessage()) for record in records]


def _without_timings(line: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in line.items() if not name.endswith("_ms")}
    return {**kept, "request_id": _IDS.sub(b"ID", line["request_id"].encode())}


def _facts_of(record: InferenceRecord) -> dict[str, Any]:
    left_out = {"id", "request_id", "time"}
    names = [member.name for member in fields(record) if not member.name.endswith("_ms")]
    facts = {name: getattr(record, name) for name in names if name not in left_out}
    response = record.response and _IDS.sub(b"ID", record.response.encode())
    return {**facts, "annotations": dict(record.annotations), "response": response}


@contextmanager
def places(make: Make, *names: str, wait_ready: bool = True) -> Iterator[dict[str, Place]]:
    """
    Run the same server in several places at once.

    Args:
        make: Makes it.
        names: Where; everywhere if left out.
        wait_ready: Whether to wait until its models are loaded.
    """
    with ExitStack() as stack:
        found: dict[str, Place] = {}
        for name in names or (DIRECT, ORDINARY, FOREIGN):
            records: list[InferenceRecord] = []
            models = make(records, [Middleware(PassThrough)] if name == ORDINARY else [])
            app = models.build()
            runs = foreign(app, "httptools") if name == FOREIGN else running(app, wait_ready=False)
            found[name] = Place(models, stack.enter_context(runs), records)
        if wait_ready:
            loaded = [model for place in found.values() for model in place.models.registry]
            until(lambda: all(model.state == "ready" for model in loaded), 30)
        yield found
