"""
One request and its answer on a model's route: id, sizes, timings and the line in the log.

It wraps `send`, so it sees every answer, those of error handlers and of streams included.
"""

import itertools
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.types import Message, Scope, Send

from mlserve.job import Job, StageTimes
from mlserve.observability.access_log import InferenceLine, log_inference
from mlserve.settings import ServerSettings

__all__ = ["EXCHANGE", "Exchange", "request_id_of"]

EXCHANGE = "mlserve.exchange"
"""Where the scope holds the exchange of a model's route."""
REQUEST_ID = "mlserve.request_id"
"""Where the scope holds the request id, on every route."""

_MAX_REQUEST_ID = 128
_process = os.urandom(6).hex()
_numbers = itertools.count(1)
_NO_TIMES = StageTimes()


def request_id_of(scope: Scope, header: str = "x-request-id") -> str:
    """Give the request's id: the client's if it is sane, else a new one; stays the same."""
    request_id = scope.get(REQUEST_ID)
    if request_id is None:
        given = header_of(scope, header.lower().encode())
        is_sane = 0 < len(given) <= _MAX_REQUEST_ID and all(0x21 <= byte <= 0x7E for byte in given)
        request_id = given.decode("ascii") if is_sane else f"{_process}-{next(_numbers):x}"
        scope[REQUEST_ID] = request_id
    return str(request_id)


def header_of(scope: Scope, name: bytes) -> bytes:
    """Give the first value of a header, or nothing."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return b""


class Exchange:
    """
    What is known of one request while it is answered.

    Args:
        scope: The ASGI scope.
        send: The ASGI send of the connection.
        settings: The server's settings.
        model: The model's name; may be changed once the request has named it.
        version: The model's version; likewise.
    """

    def __init__(
        self, scope: Scope, send: Send, settings: ServerSettings, model: str, version: str
    ) -> None:
        self.request_id = request_id_of(scope, settings.request_id_header)
        self.job: Job | None = None
        """The job, once there is one."""
        self.code: str | None = None
        """The error's code, once there is one."""
        self.on_end: Callable[[], Awaitable[None]] | None = None
        """Ends what still runs for the answer, whether or not it was ever sent."""
        self.bytes_in = 0
        self.model = model
        self.version = version
        self._send = send
        self._settings = settings
        self._started = time.perf_counter()
        self._status = 0
        self._bytes_out = 0
        scope[EXCHANGE] = self

    @property
    def id_header(self) -> tuple[bytes, bytes]:
        """The header that carries the request id."""
        return self._settings.request_id_header.lower().encode(), self.request_id.encode()

    async def send(self, message: Message) -> None:
        """Send on, adding the headers that every answer has."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = list(message.get("headers", ()))
            headers.append(self.id_header)
            if self.job is not None:
                headers.append((b"server-timing", _server_timing(self.job)))
            message = {**message, "headers": headers}
        elif message["type"] == "http.response.body":
            self._bytes_out += len(message.get("body", b""))
        await self._send(message)

    async def end(self, scope: Scope) -> None:
        """End and log a request that was answered, and let go of it with its payload."""
        on_end, self.on_end = self.on_end, None
        if on_end is not None:
            await on_end()
        self.finish()
        scope.pop(EXCHANGE, None)

    def close(self, status: int, code: str, bytes_out: int) -> None:
        """Finish an exchange whose whole answer is sent by somebody else."""
        self._status, self.code, self._bytes_out = status, code, bytes_out
        self.finish()

    def finish(self) -> None:
        """Write the line of the access log."""
        if not self._settings.access_log:
            return
        job = self.job
        times = job.times if job is not None else _NO_TIMES
        facts: InferenceLine = {
            "request_id": self.request_id,
            "model": self.model,
            "version": self.version,
            "status": self._status or 499,
            "code": self.code,
            "bytes_in": self.bytes_in,
            "bytes_out": self._bytes_out,
            "total_ms": _ms(time.perf_counter() - self._started),
            "queue_ms": _ms(times.queue_s),
            "preprocess_ms": _ms(times.preprocess_s),
            "infer_ms": _ms(times.infer_s),
            "postprocess_ms": _ms(times.postprocess_s),
            "batch_size": times.batch_size,
            "chunks": times.chunks,
        }
        log_inference(facts, job.call.annotations if job is not None else {})


def _server_timing(job: Job) -> bytes:
    times = job.times
    stages: dict[str, Any] = {
        "queue": times.queue_s,
        "preprocess": times.preprocess_s,
        "infer": times.infer_s,
        "postprocess": times.postprocess_s,
    }
    return ", ".join(f"{name};dur={_ms(value)}" for name, value in stages.items()).encode()


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
