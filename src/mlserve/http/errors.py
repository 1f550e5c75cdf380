"""
The only place where an exception becomes a response: one body for every status.

Texts of unknown exceptions, inputs, paths and tracebacks never get into a body; they are in the
log, under the same request id.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from http import HTTPStatus
from json.encoder import encode_basestring_ascii as _quoted
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from mlserve.errors import CapacityError, MLServeError, SchemaViolationError
from mlserve.http.exchange import EXCHANGE, request_id_of
from mlserve.model import safe_details
from mlserve.observability.loggers import get_logger

__all__ = [
    "ERROR_SHAPE",
    "EXCEPTION_HANDLERS",
    "ErrorShape",
    "Failure",
    "RawAnswer",
    "answer_of",
    "documented_errors",
    "error_body",
    "error_info",
    "error_response",
    "handle_error",
    "raw_answer_of",
    "refusal_body",
    "whole_seconds",
]

logger = get_logger(__name__)

ERROR_SHAPE = "mlserve.error_shape"
"""Where the scope of a protocol's route holds its `ErrorShape`."""

RawAnswer = tuple[int, list[tuple[bytes, bytes]], bytes]
"""Status, headers with lower-case names, and body."""

# ASCII only: a lone surrogate in a message must not break the answer.
_encoder = json.JSONEncoder(ensure_ascii=True, default=str)
# As the encoder writes it, in a third of the time.
_BEGIN = '{"error": {"code": %s, "type": %s, "message": %s, "request_id": '
_INFO = _BEGIN + '%s, "retry_after_s": %s, "param": %s}}'
_OURS = (MLServeError, HTTPException, RequestValidationError)
_WITHOUT_BODY = (204, 304)
_CLOSING = (408, 413)
_MAX_BODY_BYTES = 4096
_MAX_MESSAGE = 1000
_MAX_PARAM = 128
_FAILED = "The server failed on this request. Its log says more under this request id."
_CODES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    409: "conflict",
    413: "body_too_large",
    415: "unsupported_media_type",
    422: "validation_error",
    429: "rate_limited",
    431: "headers_too_large",
    503: "unavailable",
    504: "deadline_exceeded",
}
_DESCRIPTIONS = {
    400: "The body is not JSON, or a header is malformed.",
    404: "There is no such model.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body's content type or encoding is not supported.",
    422: "The body does not fit the schema, or the model cannot take this input.",
    500: "The model failed on this request.",
    502: "The process that ran the request ended; it may or may not have had an effect.",
    503: "The queue is full or too long, or the model is not ready, draining or failed.",
    504: "The request did not finish in time.",
    507: "There is not enough memory for this request, even alone.",
}


@dataclass(slots=True)
class Failure:
    """What is said of an error."""

    status: int
    code: str
    kind: str
    message: str
    retry_after_s: float | None = None
    param: str | None = None
    detail: list[dict[str, object]] | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def info(self, request_id: str) -> dict[str, Any]:
        """Give the error member of a body."""
        return {
            "code": self.code,
            "type": self.kind,
            "message": self.message[:_MAX_MESSAGE],
            "request_id": request_id,
            "retry_after_s": self.retry_after_s,
            "param": None if self.param is None else str(self.param)[:_MAX_PARAM],
        }

    def raw_answer(self, request_id: str) -> RawAnswer:
        """Make the answer, as it goes over the wire."""
        headers = {
            name.lower().encode("latin-1"): value.encode("latin-1")
            for name, value in self.headers.items()
        }
        if self.status in _WITHOUT_BODY:
            return self.status, list(headers.items()), b""  # HTTP allows no body there
        body = _as_json(self, request_id)
        if self.retry_after_s is not None:
            headers.setdefault(b"retry-after", b"%d" % whole_seconds(self.retry_after_s))
        if self.status == 401:
            headers.setdefault(b"www-authenticate", b"Bearer")
        if self.status in _CLOSING:
            headers.setdefault(b"connection", b"close")  # the rest of the body is not wanted
        headers[b"content-length"] = b"%d" % len(body)
        headers.setdefault(b"content-type", b"application/json")
        return self.status, list(headers.items()), body

    def response(self, request_id: str) -> Response:
        """Make the response."""
        status, headers, body = self.raw_answer(request_id)
        response = Response(body, status)
        response.raw_headers = headers
        return response


def whole_seconds(retry_after_s: float) -> int:
    """Say in whole seconds, at least one, when to come back: `Retry-After` takes no others."""
    return max(1, math.ceil(retry_after_s))


ErrorShape = Callable[[Failure], Failure]
"""Says of an error what a protocol says of it: another status, type or header."""


def error_info(error: Exception, request_id: str) -> dict[str, Any]:
    """Make the error member alone: for a body that says more than the error."""
    return _describe(error).info(request_id)


def error_response(error: Exception, request_id: str) -> Response:
    """Make the response of an exception, for who does not send it through an application."""
    return _describe(error).response(request_id)


def error_body(error: Exception, request_id: str, shape: ErrorShape | None = None) -> bytes:
    """Make the body alone, as JSON: what a stream sends as its error event."""
    answer = _describe(error)
    shaped = answer if shape is None else shape(answer)
    return _as_json(replace(shaped, detail=None), request_id)


def refusal_body(error: CapacityError, request_id: str) -> bytes:
    """Make the body of one of many refusals, as `error_body` does."""
    retry_after_s = error.retry_after_s
    number = "null" if retry_after_s is None else _number(retry_after_s)
    begin = _refusal_begin(error.code, error.kind, str(error))
    return f'{begin}{_quoted(request_id)}, "retry_after_s": {number}, "param": null}}}}'.encode()


@lru_cache(maxsize=256)
def _refusal_begin(code: str, kind: str, message: str) -> str:
    return _BEGIN % (_quoted(code), _quoted(kind), _quoted(message[:_MAX_MESSAGE]))


async def handle_error(request: Request, error: Exception) -> Response:
    """Answer an exception of a route; unknown ones are logged with their traceback."""
    return answer_of(request.scope, error)


def answer_of(scope: Scope, error: Exception) -> Response:
    """Make the answer to a request that ended in an exception, as `handle_error` does."""
    return _failure_of(scope, error).response(request_id_of(scope))


def raw_answer_of(scope: Scope, error: Exception) -> RawAnswer:
    """Make the same answer for who sends it without a response."""
    return _failure_of(scope, error).raw_answer(request_id_of(scope))


def _failure_of(scope: Scope, error: Exception) -> Failure:
    """Say what is said of an exception that ended a request, and note its code."""
    if not isinstance(error, _OURS):
        request_id = request_id_of(scope)
        logger.error("request.handle.failed", exc_info=error, extra={"request_id": request_id})
    answer = _describe(error)
    shape: ErrorShape | None = scope.get(ERROR_SHAPE)
    if shape is not None:
        answer = shape(answer)
    exchange = scope.get(EXCHANGE)
    if exchange is not None:
        exchange.code = answer.code
    return answer


EXCEPTION_HANDLERS: dict[Any, Any] = {
    RequestValidationError: handle_error,
    HTTPException: handle_error,
    MLServeError: handle_error,
}
"""What a built application answers; `Exception` is left to the middleware around it."""


def documented_errors(model: Any, statuses: tuple[int, ...] = ()) -> dict[int | str, Any]:
    """Give the `responses` of a route for OpenAPI."""
    return {
        status: {"model": model, "description": text}
        for status, text in _DESCRIPTIONS.items()
        if not statuses or status in statuses
    }


def _describe(error: Exception) -> Failure:
    if isinstance(error, RequestValidationError):
        found = error.errors()
        error = SchemaViolationError(safe_details(found), len(found))
    if isinstance(error, MLServeError):
        detail = error.details if isinstance(error, SchemaViolationError) else None
        return Failure(
            error.status,
            error.code,
            error.kind,
            _text_of(error),
            error.retry_after_s,
            error.param,
            detail,
        )
    if isinstance(error, HTTPException):
        return _describe_http(error)
    return Failure(500, "internal_error", "ServerError", _FAILED)


def _text_of(error: Exception) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - an error that cannot say itself is answered all the same
        return _FAILED


def _describe_http(error: HTTPException) -> Failure:
    status = error.status_code
    kind = "RequestError" if status < 500 else "ServerError"
    if status in (429, 503, 504):
        kind = "CapacityError"
    detail: Any = error.detail  # FastAPI's may be any JSON value
    headers = dict(error.headers or {})
    retry = headers.get("Retry-After", "")
    return Failure(
        status,
        _CODES.get(status, "error" if status < 500 else "internal_error"),
        kind,
        detail if isinstance(detail, str) else _phrase_of(status),
        retry_after_s=float(retry) if retry.isdecimal() and len(retry) < 10 else None,
        headers=headers,
    )


def _phrase_of(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "The request failed."


def _as_json(answer: Failure, request_id: str) -> bytes:
    """Write a body of at most 4 KB: details are left out first, then the message is cut."""
    try:
        error = answer.info(request_id)
        detail = answer.detail
        body = _dump(error, detail)
        while len(body) > _MAX_BODY_BYTES and detail:
            detail = detail[:-1]
            body = _dump(error, detail)
        while len(body) > _MAX_BODY_BYTES and error["message"]:
            error["message"] = error["message"][: len(error["message"]) // 2]
            body = _dump(error, detail)
    except Exception:  # noqa: BLE001 - whatever stands in an error, the client gets an answer
        logger.warning("error.body.failed", extra={"request_id": request_id})
        return _dump(Failure(500, "internal_error", "ServerError", _FAILED).info(request_id), None)
    return body


def _text(value: Any) -> str:
    return _quoted(value) if isinstance(value, str) else _encoder.encode(value)


def _number(value: Any) -> str:
    return float.__repr__(value) if isinstance(value, float) else _encoder.encode(value)


def _dump(error: dict[str, Any], detail: list[dict[str, object]] | None) -> bytes:
    if detail is not None:
        return _encoder.encode({"error": error, "detail": detail}).encode()
    *texts, retry_after_s, param = error.values()
    return (
        _INFO
        % (
            *map(_text, texts),
            "null" if retry_after_s is None else _number(retry_after_s),
            "null" if param is None else _quoted(param),
        )
    ).encode()
