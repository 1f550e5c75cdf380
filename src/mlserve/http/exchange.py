"""
One request and its answer on a model's route: id, sizes, timings and the line in the log.

It wraps `send`, so it sees every answer, those of error handlers and of streams included.
"""

import itertools
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from starlette.types import Message, Scope, Send

from mlserve.errors import AbandonedError
from mlserve.job import Job, StageTimes
from mlserve.observability.access_log import (
    InferenceLine,
    Noted,
    inference_line,
    log_inferences,
    n_tokens,
    tokens_of_all,
)
from mlserve.observability.listeners import Ended, Listeners
from mlserve.observability.loggers import get_logger
from mlserve.observability.metrics import model_metrics
from mlserve.observability.tracing import current_span, hide_query, trace_request
from mlserve.settings import ServerSettings

__all__ = [
    "EXCHANGE",
    "NOTHING",
    "NO_TIMES",
    "REQUEST_ID",
    "Exchange",
    "headers_of",
    "new_request_id",
    "request_id_of",
]

logger = get_logger(__name__)

EXCHANGE = "mlserve.exchange"
"""Where the scope holds the exchange of a model's route."""
REQUEST_ID = "mlserve.request_id"
"""Where the scope holds the request id, on every route."""
NO_TIMES = StageTimes()
"""The times of a request that came to no stage."""
NOTHING: Mapping[str, Any] = MappingProxyType({})
"""What hooks have noted for it."""
_HEADERS = "mlserve.headers"

_MAX_REQUEST_ID = 128
_process = os.urandom(6).hex()
_numbers = itertools.count(1)
_LEFT = 499  # as nginx has it: the client has left before there was an answer
_NOT_REACHED = (401, 403, 405, 429, 499, 503)
_LONGEST_KEPT = 2**20
_EVENT_STREAM = (b"content-type", b"text/event-stream; charset=utf-8")
_JSON = (b"content-type", b"application/json")
_EVENT_END, _PING, _DONE = b"\n\n", b": ping\n\n", b"data: [DONE]\n\n"


def request_id_of(scope: Scope, header: str = "x-request-id") -> str:
    """Give the request's id: the client's if it is sane, else a new one; stays the same."""
    request_id = scope.get(REQUEST_ID)
    if request_id is None:
        request_id = scope[REQUEST_ID] = new_request_id(header_of(scope, _as_header(header)))
    return str(request_id)


def new_request_id(given: bytes = b"") -> str:
    """Give the id that a client has sent if it is sane, else a new one."""
    if given:
        is_sane = len(given) <= _MAX_REQUEST_ID and all(0x21 <= byte <= 0x7E for byte in given)
        if is_sane:
            return given.decode("ascii")
    return f"{_process}-{next(_numbers):x}"


@lru_cache(maxsize=8)
def _as_header(name: str) -> bytes:
    return name.lower().encode()


def header_of(scope: Scope, name: bytes) -> bytes:
    """Give the first value of a header, or nothing."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return b""


def headers_of(scope: Scope) -> list[tuple[bytes, bytes]]:
    """Give the list of what the answer to a request is to have, too, whoever makes the answer."""
    headers: list[tuple[bytes, bytes]] = scope.setdefault(_HEADERS, [])
    return headers


class Exchange:
    """
    What is known of one request while it is answered.

    Args:
        scope: The ASGI scope.
        send: The ASGI send of the connection; `None` = the answer is sent in one piece, by who
            asks `respond` for its headers, and nothing is traced.
        settings: The server's settings.
        model: The model's name.
        version: The model's version.
        listeners: Who is told of it once it has ended.
    """

    # What most requests leave as it is stands here, once for all of them.
    job: Job | None = None
    """The job, once there is one."""
    jobs: Sequence[Job] = ()
    """All jobs, where the request is several."""
    code: str | None = None
    """The error's code, once there is one."""
    on_end: Callable[[], Awaitable[None]] | None = None
    """Ends what still runs for the answer, whether or not it was ever sent."""
    bytes_in = 0
    key: str | None = None
    """The name of the API key that the request came with."""
    body: bytes | None = None
    """The request's body, if it is to be kept."""
    afterwards: Sequence[Callable[[int], Awaitable[None]]] = ()
    """Told of the tokens that hooks have noted, once the request has ended."""
    operation: str | None = None
    """What generative AI it is for, if its route says so."""
    _took_s: float | None = None
    _answer: list[bytes] | None = None
    _status = 0
    _bytes_out = 0
    _is_stream = False
    _last_chunk_at = 0.0

    def __init__(
        self,
        scope: Scope,
        send: Send | None,
        settings: ServerSettings,
        model: str,
        version: str,
        listeners: Listeners | None = None,
    ) -> None:
        self.request_id = request_id_of(scope, settings.request_id_header)
        self.headers = headers_of(scope)
        """What its answer has besides, whatever it is."""
        self.span = None if send is None else current_span()
        """The request's span, if it is traced."""
        if self.span is not None and scope.get("query_string"):
            hide_query(self.span)
        self.name_model(model, version, listeners)
        self._send = send
        self._settings = settings
        self._started = time.perf_counter()
        scope[EXCHANGE] = self

    def name_model(self, model: str, version: str, listeners: Listeners | None) -> None:
        """Say whose request it is."""
        self.model = model
        self.version = version
        self.metrics = model_metrics(model, version)
        self._listeners = listeners
        self.keeps_payloads = listeners is not None and listeners.keeps_payloads
        """Whether somebody wants the bodies."""

    @property
    def id_header(self) -> tuple[bytes, bytes]:
        """The header that carries the request id."""
        return _as_header(self._settings.request_id_header), self.request_id.encode()

    async def send(self, message: Message) -> None:
        """Send on, adding the headers that every answer has."""
        if message["type"] == "http.response.start":
            headers = self._begin_answer(message["status"], list(message.get("headers", ())))
            message = {**message, "headers": headers}
        elif message["type"] == "http.response.body" and (body := message.get("body")):
            self._note_body(body)
        if self.span is not None and _is_last(message):  # which ends the span
            self._trace()
        if self._send is not None:
            await self._send(message)

    def _note_body(self, body: bytes) -> None:
        self._bytes_out += len(body)
        if self.keeps_payloads and self._bytes_out <= _LONGEST_KEPT:
            if self._answer is None:
                self._answer = []
            self._answer.append(body)
        if self._is_stream and self.code is None:
            n = body.count(_EVENT_END) - body.count(_PING) - body.endswith(_DONE)
            if n:
                now, last = time.perf_counter(), self._last_chunk_at
                self.metrics.note_chunk(now - (last or self._started), is_first=not last, n=n)
                self._last_chunk_at = now

    async def end(self, scope: Scope) -> None:
        """End and log a request that was answered, and let go of it with its payload."""
        on_end, self.on_end = self.on_end, None
        if on_end is not None:
            await on_end()
        log_inferences(self.settle())
        scope.pop(EXCHANGE, None)
        for tell in self.afterwards:
            jobs = self.jobs or ((self.job,) if self.job is not None else ())
            await tell(sum(n_tokens(job.call.annotations) for job in jobs))

    def respond(
        self, status: int, headers: list[tuple[bytes, bytes]], body: bytes
    ) -> list[tuple[bytes, bytes]]:
        """Note a whole answer that somebody else sends, and give all headers that it is to have."""
        if self.keeps_payloads:
            headers = self._begin_answer(status, headers)
            self._note_body(body)
        else:
            self._status = status
            self._bytes_out = len(body)
            headers = self._completed(headers)
        self._took_s = time.perf_counter() - self._started
        return headers

    def _begin_answer(
        self, status: int, headers: list[tuple[bytes, bytes]]
    ) -> list[tuple[bytes, bytes]]:
        self._status = status
        self._is_stream = _EVENT_STREAM in headers
        self.keeps_payloads &= self._is_stream or _JSON in headers
        return self._completed(headers)

    def _completed(self, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        headers.append(self.id_header)
        if self.headers:
            headers += [header for header in self.headers if header not in headers]
        if self.job is not None:
            headers.append((b"server-timing", _server_timing(self.job)))
        return headers

    def settle(self) -> Sequence[Noted]:
        """Tell the metrics, the listeners, and who traces it; give what is to be logged."""
        job, annotations = self.job, self._annotations()
        line = self._line(annotations)
        self.metrics.note_request(line, annotations)
        if self.span is not None:
            self._trace()
        # Those who found no room, or had no right, have not reached the model.
        if self._listeners and (job is not None or line["status"] not in _NOT_REACHED):
            self._listeners.tell(self._ended(line, annotations))
        return ((line, annotations),) if self._settings.access_log else ()

    def _annotations(self) -> Mapping[str, Any]:
        """Give what hooks have noted; of a request that is several, the tokens of all."""
        if self.job is None:
            return NOTHING
        annotations = self.job.call.annotations
        if len(self.jobs) > 1:
            annotations = annotations | tokens_of_all([job.call.annotations for job in self.jobs])
        return annotations

    def _line(self, annotations: Mapping[str, Any]) -> InferenceLine:
        job, took_s = self.job, self._took_s
        return inference_line(
            request_id=self.request_id,
            model=self.model,
            version=self.version,
            status=self._status or _LEFT,
            code=self.code or (None if self._status else AbandonedError.code),
            total_s=time.perf_counter() - self._started if took_s is None else took_s,
            times=job.times if job is not None else NO_TIMES,
            annotations=annotations,
            bytes_in=self.bytes_in,
            bytes_out=self._bytes_out,
        )

    def _trace(self) -> None:
        """Make the spans of the stages, once."""
        span, self.span = self.span, None
        if span is not None:
            times = self.job.times if self.job is not None else None
            annotations = self._annotations()
            try:
                trace_request(span, self._line(annotations), times, annotations, self.operation)
            except Exception:  # what exports them is the user's
                logger.exception("request.trace.failed", extra={"request_id": self.request_id})

    def _ended(self, line: InferenceLine, annotations: Mapping[str, Any]) -> Ended:
        return Ended(
            line=line,
            annotations=annotations,
            at=time.time(),  # noqa: TID251 - the date that a record has
            is_stream=self._is_stream,
            key=self.key,
            request=self.body,
            response=b"".join(self._answer or ()) if self._has_whole_answer else None,
        )

    @property
    def _has_whole_answer(self) -> bool:
        return self.keeps_payloads and self._bytes_out <= _LONGEST_KEPT


def _is_last(message: Message) -> bool:
    return message["type"] == "http.response.body" and not message.get("more_body", False)


def _server_timing(job: Job) -> bytes:
    times = job.times
    return b"queue;dur=%.3f, preprocess;dur=%.3f, infer;dur=%.3f, postprocess;dur=%.3f" % (
        times.queue_s * 1e3,
        times.preprocess_s * 1e3,
        times.infer_s * 1e3,
        times.postprocess_s * 1e3,
    )
