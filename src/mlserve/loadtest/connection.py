"""
One connection of a load test: a request at a time, and the moments of its answer.

Written for speed, since a client that is slower than the server measures itself: `httptools` reads
the answers, and one object is made for each.
"""

import asyncio
import itertools
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

import httptools

from mlserve.errors import ConfigurationError

__all__ = ["LOST", "Answer", "Connection", "Target"]

LOST = 0
"""The status of what was not answered: the connection was refused, or broke."""

_EVENT = b"data:"
_DONE = b"data: [DONE]"


@dataclass(frozen=True, slots=True)
class Target:
    """
    What is asked again and again.

    Args:
        url: Where, as `http://127.0.0.1:8000/v1/models/reviews/predict`.
        body: What is sent; `None` = a GET.
        headers: Further headers.
        more: Further bodies, which are sent in turn with the first.

    Raises:
        ConfigurationError: If the URL is not one of HTTP.
    """

    url: str
    body: bytes | None = None
    headers: tuple[tuple[str, str], ...] = ()
    more: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        if urlsplit(self.url).scheme not in ("http", "https") or not self.host:
            raise ConfigurationError(
                f"The URL must look like http://127.0.0.1:8000/path, got {self.url!r}."
            )

    @property
    def host(self) -> str:
        """The name or address."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """The port."""
        parts = urlsplit(self.url)
        return parts.port or (443 if parts.scheme == "https" else 80)

    @property
    def tls(self) -> ssl.SSLContext | None:
        """How to encrypt, if at all."""
        is_secure = urlsplit(self.url).scheme == "https"
        return ssl.create_default_context() if is_secure else None

    def requests(self) -> Iterator[bytes]:
        """Give the bytes of whole requests, without end."""
        return itertools.cycle([self._request(body) for body in (self.body, *self.more)])

    def _request(self, body: bytes | None) -> bytes:
        parts = urlsplit(self.url)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        lines = [
            f"{'GET' if body is None else 'POST'} {path} HTTP/1.1",
            f"Host: {parts.netloc}",
        ]
        if body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


@dataclass(slots=True)
class Answer:
    """What became of one request; times in seconds of `time.perf_counter`."""

    due_at: float
    """When it should have been sent."""
    status: int = LOST
    ended_at: float = 0.0
    n_bytes: int = 0
    chunks_at: list[float] = field(default_factory=list)
    """When each event of a stream came."""

    @property
    def latency_s(self) -> float:
        """From when it was due to the end of its answer."""
        return self.ended_at - self.due_at


class Connection(asyncio.Protocol):
    """A connection that is kept alive. Event loop only."""

    def __init__(self) -> None:
        self.is_lost = False
        """Whether it has ended."""
        self._answer: Answer | None = None
        self._future: asyncio.Future[Answer] | None = None
        self._is_stream = self._closes = False
        self._parser = httptools.HttpResponseParser(self)

    @classmethod
    async def open(cls, target: Target) -> "Connection":
        """
        Connect.

        Raises:
            OSError: If nobody answers.
        """
        _, protocol = await asyncio.get_running_loop().create_connection(
            cls, target.host, target.port, ssl=target.tls
        )
        return protocol

    def ask(self, request: bytes, due_at: float) -> asyncio.Future[Answer]:
        """Send a request; the future never fails: what is lost has the status `LOST`."""
        self._answer = Answer(due_at)
        self._future = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._is_stream = self._closes = False
        if self.is_lost:
            self._end()
        else:
            self._transport.write(request)
        return self._future

    def close(self) -> None:
        """End the connection."""
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to write."""
        self._transport = cast("asyncio.Transport", transport)
        self._time = time.perf_counter

    def data_received(self, data: bytes) -> None:
        """Read a part of an answer."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that nothing more comes."""
        self.is_lost = True
        self._end()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Look for what says how the answer goes on."""
        lower = name.lower()
        if lower == b"content-type":
            self._is_stream = value.startswith(b"text/event-stream")
        elif lower == b"connection":
            self._closes = value.lower() == b"close"

    def on_body(self, body: bytes) -> None:
        """Count a part of a body."""
        answer = self._answer
        if answer is None:
            return
        answer.n_bytes += len(body)
        if self._is_stream:
            n = body.count(_EVENT) - body.count(_DONE)
            answer.chunks_at += [self._time()] * n

    def on_message_complete(self) -> None:
        """Note that an answer is whole."""
        if self._answer is not None:
            self._answer.status = self._parser.get_status_code()
        self._end()
        if self._closes:
            self._transport.close()

    def _end(self) -> None:
        answer, future = self._answer, self._future
        self._answer = self._future = None
        if answer is not None and future is not None and not future.done():
            answer.ended_at = self._time()
            future.set_result(answer)

    def __repr__(self) -> str:
        return f"<Connection {'lost' if self.is_lost else 'open'}>"
