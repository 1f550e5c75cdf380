"""One kept-alive connection as bytes, and what every answer to a bad input must be like."""

import json
import socket
from collections.abc import Container
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import httpx2
from tests.figures import note
from tests.http.answers import MAX_BYTES, MEMBERS

__all__ = [
    "CANARY",
    "REDIRECT",
    "STATUSES",
    "TAKEN_OR_REFUSED",
    "TALLY",
    "Answered",
    "Line",
    "answers_of",
    "complaint_of",
    "request_of",
]

CANARY = "canary-4711"
"""Stands in values only: names of fields and of models may be shown, cut."""
STATUSES = frozenset({400, 404, 405, 408, 413, 415, 422, 431})
"""What a bad input may be answered with; all but 405 and 431 stand in OpenAPI."""
TAKEN_OR_REFUSED = STATUSES | {200}
REDIRECT = 307
"""What a path with a slash too many is answered with, if there is one without."""
LAST_CHUNK = b"0\r\n\r\n"


@dataclass(slots=True)
class Tally:
    """Counts the bad inputs of a whole session."""

    seen: set[int] = field(default_factory=set)
    status_5xx: int = 0
    crashes: int = 0
    largest_answer_bytes: int = 0

    def count(self, sent: bytes, status: int, n_bytes: int) -> None:
        """Count an input, unless it was taken; status 0 = there was no answer."""
        if 200 <= status < 300:
            return
        self.seen.add(hash(sent))
        self.status_5xx += status >= 500
        self.crashes += status == 0
        self.largest_answer_bytes = max(self.largest_answer_bytes, n_bytes)

    def note(self) -> None:
        """Note what was counted until now."""
        note(
            "bad inputs",
            tried=len(self.seen),
            status_5xx=self.status_5xx,
            crashes=self.crashes,
            largest_answer_bytes=self.largest_answer_bytes,
        )


TALLY = Tally()


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer; status 0 = the connection ended without one."""

    status: int
    headers: dict[str, str]
    body: bytes


def request_of(
    method: str, target: str | bytes, body: bytes = b"", *lines: bytes, length: bool = True
) -> bytes:
    """Write a request; `lines` are whole header lines without their ends."""
    wanted = target if isinstance(target, bytes) else target.encode()
    head = [b"%s %s HTTP/1.1" % (method.encode(), wanted), b"Host: test", *lines]
    if length:
        head.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*head, b"", b""]) + body


class Line:
    """
    A connection that stays open as long as the server says so.

    Args:
        client: Of the server that is asked.
        healthy: A request that is answered with 200.
    """

    def __init__(self, client: httpx2.Client, healthy: bytes) -> None:
        self._address = client.base_url.host, client.base_url.port or 0
        self._healthy = healthy
        self._socket: socket.socket | None = None

    def __enter__(self) -> "Line":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._hang_up()

    def ask(self, request: bytes) -> Answered:
        """Send bytes and read one answer."""
        if self._socket is None:
            self._socket = socket.create_connection(self._address, 10)
        with suppress(BrokenPipeError, ConnectionResetError):
            self._socket.sendall(request)  # it may be refused before its end: the answer says why
        try:
            return self._read(self._socket)
        except ConnectionResetError:
            self._hang_up()
            return Answered(0, {}, b"")

    def complaint(
        self, request: bytes, statuses: Container[int] = TAKEN_OR_REFUSED, canary: str = CANARY
    ) -> str | None:
        """
        Send a bad input, then a healthy request; say what was wrong with the answers.

        Args:
            request: What is sent.
            statuses: How it may be answered.
            canary: What must not be seen again.
        """
        answer = self.ask(request)
        TALLY.count(request, answer.status, len(answer.body))
        if answer.status == REDIRECT:  # of a path with a slash at its end: what is there, then?
            answer = self.ask(_redirected(request, answer.headers["location"]))
        found = complaint_of(answer, statuses, canary)
        if answer.headers.get("connection") == "close" or answer.status == 0:
            found = found or self._complaint_of_close()
        health = self.ask(self._healthy)
        if health.status != 200:
            self._hang_up()
            found = found or f"the next request was answered with {health.status}"
        return found

    def _complaint_of_close(self) -> str | None:
        connection, self._socket = self._socket, None
        if connection is None:
            return None
        with connection:
            try:
                return "there is more than one answer" if connection.recv(1) else None
            except ConnectionResetError:
                return None

    def _read(self, connection: socket.socket) -> Answered:
        received = b""
        while b"\r\n\r\n" not in received:
            piece = connection.recv(65_536)
            if not piece:
                self._hang_up()
                return Answered(0, {}, received)
            received += piece
        head, _, body = received.partition(b"\r\n\r\n")
        status, headers = _read_head(head)
        is_chunked = "transfer-encoding" in headers
        length = int(headers.get("content-length", 0))
        while not body.endswith(LAST_CHUNK) if is_chunked else len(body) < length:
            piece = connection.recv(65_536)
            if not piece:
                break
            body += piece
        return Answered(status, headers, body)

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def answers_of(received: bytes) -> list[Answered]:
    """Split all that was received on a connection into answers; chunked ones keep their chunks."""
    answers = []
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        status, headers = _read_head(head)
        if "transfer-encoding" in headers:
            body, end, received = received.partition(LAST_CHUNK)
            body += end
        else:
            length = int(headers.get("content-length", 0))
            body, received = received[:length], received[length:]
        answers.append(Answered(status, headers, body))
    return answers


def _read_head(head: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(": ") for line in lines)
    return int(first.split()[1]), {name.lower(): value for name, _, value in pairs}


def _redirected(request: bytes, location: str) -> bytes:
    first, _, rest = request.partition(b"\r\n")
    method, _, version = first.split()
    path = "/" + location.split("/", 3)[3]
    return b"%s %s %s\r\n%s" % (method, path.encode("latin-1"), version, rest)


def complaint_of(
    answer: Answered, statuses: Container[int] = TAKEN_OR_REFUSED, canary: str = CANARY
) -> str | None:
    """Say what is wrong with the answer to an input that may be bad; `None` = nothing."""
    if answer.status not in statuses:
        return f"status {answer.status}: {answer.body[:200]!r}"
    if answer.status in (HTTPStatus.OK, REDIRECT):
        return None
    try:
        body = json.loads(answer.body)
    except ValueError:
        return f"no JSON: {answer.body[:200]!r}"
    return _complaint_of_body(body, answer, canary)


def _complaint_of_body(body: Any, answer: Answered, canary: str) -> str | None:
    error = body.get("error")
    found = {
        "another content type": answer.headers.get("content-type") != "application/json",
        "another length": len(answer.body) != int(answer.headers.get("content-length", -1)),
        "too large": len(answer.body) > MAX_BYTES,
        "other members": not body.keys() <= {"error", "detail"} or error.keys() != MEMBERS,
        "no message": not error.get("message"),
        "another id": error.get("request_id") != answer.headers.get("x-request-id"),
        "too many details": len(body.get("detail", ())) > 10,
        "the input is shown": canary.encode() in answer.body,
        "a header was injected": "x-injected" in answer.headers,
    }
    wrong = [name for name, is_wrong in found.items() if is_wrong]
    return f"{', '.join(wrong)}: {answer.body[:300]!r}" if wrong else None
