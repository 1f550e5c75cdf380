"""
The access log: one line per inference, on the logger `mlserve.access`.

The line is a JSON object; `AccessLogFormatter` writes the same facts for a person at a terminal.
No body, header, key or query string ever gets here.
"""

import json
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from operator import itemgetter
from typing import Any, Protocol, TypedDict

__all__ = [
    "AccessLogFormatter",
    "InferenceLine",
    "InferenceLogRecord",
    "JsonFormatter",
    "LineHandler",
    "Noted",
    "Times",
    "as_ms",
    "inference_line",
    "log_inferences",
    "n_tokens",
    "tokens_of_all",
]

logger = logging.getLogger("mlserve.access")

_TOKENS = ("prompt_tokens", "completion_tokens")
_OWN_KEYS = frozenset(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {
    "asctime",
    "color_message",
    "message",
    "taskName",
}


class InferenceLine(TypedDict):
    """The facts of one inference; times are in milliseconds, as the field writes them."""

    request_id: str
    model: str
    version: str
    status: int
    code: str | None
    bytes_in: int
    bytes_out: int
    total_ms: float
    queue_ms: float
    preprocess_ms: float
    infer_ms: float
    postprocess_ms: float
    batch_size: int
    chunks: int
    tokens: int


Noted = tuple[InferenceLine, Mapping[str, Any]]
"""The facts of one inference, and what hooks have noted."""


class Times(Protocol):
    """How long the stages of a request took, in seconds, and in what company."""

    queue_s: float
    preprocess_s: float
    infer_s: float
    postprocess_s: float
    batch_size: int
    chunks: int


def inference_line(  # noqa: PLR0913 - the facts of a line
    *,
    request_id: str,
    model: str,
    version: str,
    status: int,
    code: str | None,
    total_s: float,
    times: Times,
    annotations: Mapping[str, Any],
    bytes_in: int = 0,
    bytes_out: int = 0,
) -> InferenceLine:
    """Put together the facts of one inference."""
    # Milliseconds to a microsecond, as `as_ms` gives them, in a third of the time.
    return {
        "request_id": request_id,
        "model": model,
        "version": version,
        "status": status,
        "code": code,
        "bytes_in": bytes_in,
        "bytes_out": bytes_out,
        "total_ms": int(total_s * 1e6 + 0.5) / 1e3,
        "queue_ms": int(times.queue_s * 1e6 + 0.5) / 1e3,
        "preprocess_ms": int(times.preprocess_s * 1e6 + 0.5) / 1e3,
        "infer_ms": int(times.infer_s * 1e6 + 0.5) / 1e3,
        "postprocess_ms": int(times.postprocess_s * 1e6 + 0.5) / 1e3,
        "batch_size": times.batch_size,
        "chunks": times.chunks,
        "tokens": n_tokens(annotations) if annotations else 0,
    }


def as_ms(seconds: float) -> float:
    """Give milliseconds, to a microsecond."""
    return round(seconds * 1000, 3)


def n_tokens(annotations: Mapping[str, Any]) -> int:
    """Give how many tokens a request has read and written, as its hooks have noted."""
    counts = [annotations.get(kind) for kind in _TOKENS]
    return sum(n for n in counts if type(n) is int)


def tokens_of_all(noted: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Add up the tokens that were noted for the parts of one request, by their kind."""
    counts = {kind: [n for one in noted if type(n := one.get(kind)) is int] for kind in _TOKENS}
    return {kind: sum(found) for kind, found in counts.items() if found}


class InferenceLogRecord(logging.LogRecord):
    """
    One line of the access log; its message is a JSON object, made when somebody reads it.

    Args:
        facts: The facts; not changed from here on.
        annotations: What hooks have noted; what is named as a fact is left out.
    """

    def __init__(self, facts: InferenceLine, annotations: Mapping[str, Any]) -> None:
        # Not the base's: it looks for a caller and names of thread and process, which say nothing
        # here and cost more than all else that is done for the line.
        vars(self).update(_BLANK)
        self.created = time.time()  # noqa: TID251 - the date that a record has
        self.msecs = self.created % 1 * 1000
        self.thread = threading.get_ident()
        self.inference: dict[str, Any] = {**annotations, **facts} if annotations else {**facts}

    def getMessage(self) -> str:  # noqa: N802 - the library's name
        """Give the facts as a JSON object, those first that every line has."""
        return self.as_json()

    def as_json(self, head: Mapping[str, Any] | None = None) -> str:
        """
        Give the facts as a JSON object.

        Args:
            head: What stands before them.
        """
        if len(self.inference) == len(_FACTS):
            return _plain_json(self.inference, _opened(head))
        facts = {name: self.inference[name] for name in _FACTS}
        try:
            return _as_json({**(head or {}), **facts, **self.inference})
        except Exception:  # noqa: BLE001 - hooks annotate what they like
            return _as_json({**(head or {}), **facts})


_notes_of = itemgetter(1)
_FACTS = tuple(InferenceLine.__annotations__)
_TEXTS = ("request_id", "model", "version", "code")
# As `json.dumps` writes it, in a third of the time.
_TEMPLATE = "%s" + ", ".join(f'"{name}": %s' for name in _FACTS) + "}"
_quoted = json.encoder.encode_basestring_ascii  # the values of the template stand in its order
_numbers_of = itemgetter(*(name for name in _FACTS if name not in _TEXTS))
_as_text = cache(json.dumps)
_BLANK = vars(logging.LogRecord(logger.name, logging.INFO, __file__, 0, "", (), None)) | {
    "processName": None,
    "threadName": None,
    "taskName": None,
}


class LineHandler(logging.Handler):
    """A handler that may take lines of the access log without a record of them."""

    def line_formatter(self) -> "JsonFormatter | None":
        """Give what writes its lines; `None` = it looks at the record."""
        return None

    def take_lines(self, lines: Sequence[str]) -> None:
        """Take lines that its formatter has written. Never blocks."""


def _plain_json(facts: Mapping[str, Any], before: str) -> str:
    """Give the facts of an inference for which no hook has noted anything."""
    status, *others = _numbers_of(facts)
    return _TEMPLATE % (
        before,
        _quoted(facts["request_id"]),
        _as_text(facts["model"]),
        _as_text(facts["version"]),
        status,
        _as_text(facts["code"]),
        *others,
    )


def _opened(head: Mapping[str, Any] | None) -> str:
    return f"{_as_json({**head})[:-1]}, " if head else "{"


def log_inferences(noted: Sequence[Noted]) -> None:
    """Write a line for each; costs nothing when the logger is off, and raises nothing."""
    if not noted or not logger.isEnabledFor(logging.INFO):
        return
    with suppress(Exception):  # a handler of the user may raise anything
        handler = _only_handler()
        formatter = handler.line_formatter() if handler is not None else None
        if handler is not None and formatter is not None and not any(map(_notes_of, noted)):
            handler.take_lines(formatter.lines([facts for facts, _ in noted]))
            return
    for facts, annotations in noted:  # also where one of them could not be written
        with suppress(Exception):
            logger.handle(InferenceLogRecord(facts, annotations))


def _only_handler() -> LineHandler | None:
    """Give the handler that the lines come to, if it is the only one and of ours."""
    place = logger
    while not place.handlers and place.propagate and place.parent is not None:
        place = place.parent
    others = place.propagate and place.parent is not None
    if len(place.handlers) != 1 or others or logger.filters:
        return None
    handler = place.handlers[0]
    return handler if isinstance(handler, LineHandler) else None


class AccessLogFormatter(logging.Formatter):
    """Writes log records for a person at a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Write one record as readable text."""
        if not isinstance(record, InferenceLogRecord):
            text = super().format(record)
            extra = _extra_of(record)
            return f"{text} {extra}" if extra else text
        facts = record.inference
        stages = ", ".join(
            f"{name} {facts[f'{name}_ms']:.1f}"
            for name in ("queue", "preprocess", "infer", "postprocess")
        )
        shape = f"{facts['chunks']} chunks" if facts["chunks"] else f"batch {facts['batch_size']}"
        code = f" {facts['code']}" if facts["code"] else ""
        return (
            f"{self.formatTime(record, '%H:%M:%S')} {facts['status']}{code}"
            f" {facts['model']}/{facts['version']} {facts['total_ms']:.1f} ms ({stages}; {shape})"
            f" {facts['request_id']}"
        )


class JsonFormatter(logging.Formatter):
    """Writes log records as one JSON object a line."""

    _second = -1
    _time = ""
    _before = ""

    def lines(self, of: Sequence[InferenceLine]) -> list[str]:
        """Write lines of the access log, for which no hook has noted anything."""
        self._note_time(time.time())  # noqa: TID251 - the date that a line has
        before = self._before
        return [_plain_json(facts, before) for facts in of]

    def _note_time(self, seconds: float) -> str:
        """Write a time, to a second; many lines have the same."""
        second = int(seconds)
        if second != self._second:
            at = logging.makeLogRecord({"created": seconds})
            self._time = self.formatTime(at, "%Y-%m-%dT%H:%M:%S%z")
            head = {"time": self._time, "level": "info", "logger": logger.name}
            self._before = _opened(head)  # all lines of a second begin alike
            self._second = second
        return self._time

    def format(self, record: logging.LogRecord) -> str:
        """Write one record as JSON; what was given as `extra` stands beside the message."""
        line: dict[str, Any] = {
            "time": self._note_time(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        if isinstance(record, InferenceLogRecord):
            return record.as_json(line)
        line["message"] = record.getMessage()
        line |= _extra_of(record)
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        if record.exc_text:
            line["exception"] = record.exc_text
        return _as_json(line)


def _extra_of(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _OWN_KEYS}


def _as_json(values: dict[str, Any]) -> str:
    return json.dumps(values, default=str)
