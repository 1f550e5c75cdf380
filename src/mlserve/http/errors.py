"""
The only place where an exception becomes a response: one body for every status.

Texts of unknown exceptions, inputs, paths and tracebacks never get into a body; they are in the
log, under the same request id.
"""

import json
import logging
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from mlserve.errors import MLServeError, ModelNotReadyError, SchemaViolationError
from mlserve.http.exchange import request_id_of

__all__ = [
    "EXCEPTION_HANDLERS",
    "documented_errors",
    "error_body",
    "error_response",
    "handle_error",
]

logger = logging.getLogger(__name__)

_MAX_MESSAGE = 1000
_MAX_DETAILS = 10
_CODES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
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
    503: "The queue is full, or the model is not ready, draining or failed.",
    504: "The request did not finish in time.",
}


def error_response(error: Exception, request_id: str) -> Response:
    """Make the response of any exception; never raises."""
    status, info, extra, headers = _describe(error)
    info["request_id"] = request_id
    body = {"error": info, **extra}
    if info["retry_after_s"] is not None:
        headers.setdefault("Retry-After", str(max(1, math.ceil(info["retry_after_s"]))))
    if status == HTTPStatus.UNAUTHORIZED:
        headers.setdefault("WWW-Authenticate", "Bearer")
    if status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.REQUEST_ENTITY_TOO_LARGE):
        headers.setdefault("Connection", "close")  # the rest of the body is not wanted
    return Response(_as_json(body), status, headers, media_type="application/json")


def error_body(error: Exception, request_id: str) -> bytes:
    """Make the body alone, as JSON: what a stream sends as its error event."""
    _, info, _, _ = _describe(error)
    info["request_id"] = request_id
    return _as_json({"error": info})


async def handle_error(request: Request, error: Exception) -> Response:
    """Answer an exception of a route; unknown ones are logged with their traceback."""
    request_id = request_id_of(request.scope)
    if not isinstance(error, MLServeError | HTTPException | RequestValidationError):
        logger.error("request.handle.failed", exc_info=error, extra={"request_id": request_id})
    response = error_response(error, request_id)
    exchange = request.scope.get("mlserve.exchange")
    if exchange is not None:
        exchange.code = json.loads(bytes(response.body))["error"]["code"]
    return response


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


def _describe(
    error: Exception,
) -> tuple[int, dict[str, Any], dict[str, Any], dict[str, str]]:
    """Give status, error info, further body members and headers."""
    if isinstance(error, MLServeError):
        return _describe_own(error)
    if isinstance(error, RequestValidationError):
        details = safe_request_details(error)
        violation = SchemaViolationError(details, len(error.errors()))
        return _describe_own(violation)
    if isinstance(error, HTTPException):
        return _describe_http(error)
    message = "The server failed on this request. Its log says more under this request id."
    return 500, _info("internal_error", "ServerError", message), {}, {}


def _describe_own(
    error: MLServeError,
) -> tuple[int, dict[str, Any], dict[str, Any], dict[str, str]]:
    info = _info(error.code, error.kind, str(error), error.retry_after_s, error.param)
    extra = {"detail": error.details} if isinstance(error, SchemaViolationError) else {}
    return error.status, info, extra, {}


def _describe_http(
    error: HTTPException,
) -> tuple[int, dict[str, Any], dict[str, Any], dict[str, str]]:
    status = error.status_code
    code = _CODES.get(status, "error" if status < 500 else "internal_error")
    kind = "RequestError" if status < 500 else "ServerError"
    if status in (429, 503, 504):
        kind = "CapacityError"
    detail: Any = error.detail  # FastAPI's may be any JSON value
    text = detail if isinstance(detail, str) else HTTPStatus(status).phrase
    headers = dict(error.headers) if isinstance(error.headers, Mapping) else {}
    retry = headers.get("Retry-After", "")
    retry_after_s = float(retry) if retry.isdigit() else None
    return status, _info(code, kind, text, retry_after_s), {}, headers


def _info(
    code: str,
    kind: str,
    message: str,
    retry_after_s: float | None = None,
    param: str | None = None,
) -> dict[str, Any]:
    return {
        "code": code,
        "type": kind,
        "message": message[:_MAX_MESSAGE],
        "request_id": "",
        "retry_after_s": retry_after_s,
        "param": param,
    }


def safe_request_details(error: RequestValidationError) -> list[dict[str, object]]:
    """List what FastAPI found wrong, at most ten entries, without the input's values."""
    return [
        {
            "type": entry.get("type", "value_error"),
            "loc": [str(part)[:64] for part in entry.get("loc", ())],
            "msg": str(entry.get("msg", ""))[:200],
        }
        for entry in error.errors()[:_MAX_DETAILS]
    ]


def not_ready_info(error: MLServeError | None) -> dict[str, Any]:
    """Give the error member of a `/ready` that says no."""
    error = error or ModelNotReadyError("any", "none is registered")
    return _info(error.code, error.kind, str(error), error.retry_after_s)


def _as_json(body: dict[str, Any]) -> bytes:
    # ASCII only: a lone surrogate in a message must not break the answer.
    return json.dumps(body, ensure_ascii=True).encode()
