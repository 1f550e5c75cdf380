"""`POST …/predict`: JSON or files in, JSON or bytes out."""

import math
import re
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mlserve.cache import wish_of
from mlserve.errors import InvalidInputError, InvalidTimeoutError, ModelOutputError
from mlserve.handler import NO_HEADERS, Call
from mlserve.http.body import parse_json, parse_query, read_body, read_upload, require_json
from mlserve.http.disconnect import DisconnectWatch
from mlserve.http.exchange import EXCHANGE, Exchange
from mlserve.job import Job
from mlserve.model import Model
from mlserve.observability.tracing import traceparent_of
from mlserve.payloads import Binary
from mlserve.settings import ServerSettings

__all__ = [
    "PredictEndpoint",
    "binary_response",
    "cache_headers",
    "forwarded",
    "job_of",
    "new_job",
    "require_room",
    "wishes_of",
]

_IN_NO_HEADER = re.compile("[^\t -~\x80-\xff]")


class PredictEndpoint:
    """
    Answers predictions of one model.

    Args:
        model: Gives the model; called for each request.
        settings: The server's settings.
    """

    def __init__(self, model: Model, settings: ServerSettings) -> None:
        self._model = model
        self._settings = settings

    async def __call__(self, request: Request) -> Response:
        """Read, run and answer one request."""
        engine = self._model.engine
        job = await new_job(request, self._model, self._settings, is_stream=False)
        with DisconnectWatch(request, lambda: engine.abandon(job)):
            if engine.answers is not None:
                kept = await engine.answers.answer(job)
                request.scope[EXCHANGE].headers += cache_headers(job)
                return Response(kept.body, media_type=kept.media_type)
            value = await engine.predict(job)
        if isinstance(value, Binary):
            return binary_response(value)
        return Response(engine.spec.contract.response.encode(value), media_type="application/json")


def binary_response(value: Binary) -> Response:
    """
    Send what a handler gives instead of JSON.

    Raises:
        ModelOutputError: If its media type cannot stand in a header.
    """
    if _IN_NO_HEADER.search(value.media_type):
        raise ModelOutputError(
            "The handler's output has a media type with characters that no header may hold."
            " Return a `Binary` with one such as `image/png`."
        )
    return Response(value.content, media_type=value.media_type)


async def new_job(
    request: Request, model: Model, settings: ServerSettings, *, is_stream: bool
) -> Job:
    """
    Read and validate a request and make the job of it.

    Args:
        request: The request; its body has not been read.
        model: Whose request it is.
        settings: The server's settings.
        is_stream: Whether it asks for a stream.

    Raises:
        RequestError: If it is malformed.
        CapacityError: If there is no room for it; its body has not been read then.
    """
    contract = model.engine.spec.contract
    exchange: Exchange = request.scope[EXCHANGE]
    budget_s, priority = require_room(
        request.headers, model, is_stream=is_stream, tenant=exchange.key
    )
    if request.method == "GET":
        await read_body(request, settings.body_timeout_s)  # discarded: the query says it all
        payload = parse_query(contract.request, request)
    elif contract.upload_fields:
        payload = await read_upload(request, contract, settings.body_timeout_s)
    else:
        require_json(request.headers)
        body = await read_body(request, settings.body_timeout_s)
        if exchange.keeps_payloads:
            exchange.body = body
        payload = parse_json(contract.request, body)
    exchange.job = job_of(request, model, settings, payload, budget_s=budget_s, priority=priority)
    return exchange.job


def job_of(
    request: Request,
    model: Model,
    settings: ServerSettings,
    payload: Any,
    *,
    budget_s: float,
    priority: int,
) -> Job:
    """
    Make a job of what a request asks for.

    Args:
        request: The request.
        model: Whose request it is.
        settings: The server's settings.
        payload: An instance of the model's request type.
        budget_s: The job's whole time in seconds.
        priority: 0 is served first, 9 last.
    """
    exchange: Exchange = request.scope[EXCHANGE]
    call = Call(
        exchange.request_id,
        timeout_s=budget_s,
        headers=forwarded(request.headers, settings),
        clock=model.engine.clock,
    )
    call.traceparent = traceparent_of(exchange.span)
    job = Job(payload, call, timeout_s=budget_s, priority=priority, tenant=exchange.key)
    if model.engine.answers is not None:
        job.wish = wish_of(request.headers.get("cache-control", ""))
    return job


def cache_headers(job: Job) -> list[tuple[bytes, bytes]]:
    """
    Say in an answer what the cache had to do with it.

    Source:
        RFC 9211: `Cache-Status`; RFC 9111, section 5.1: `Age`.
    """
    use = job.cache_use
    if use is None:
        return []
    if use.kind == "hit":
        left = "" if use.left_s is None else f"; ttl={math.floor(use.left_s)}"
        return [
            (b"cache-status", f"mlserve; hit{left}".encode()),
            (b"age", str(math.floor(use.age_s)).encode()),
        ]
    reason = "request" if use.is_wished else "bypass" if use.kind == "bypass" else "uri-miss"
    notes = "; collapsed" if use.kind == "coalesced" else ""
    notes += "; stored" if use.is_stored else ""
    return [(b"cache-status", f"mlserve; fwd={reason}{notes}".encode())]


def require_room(
    headers: Mapping[str, str], model: Model, *, is_stream: bool, tenant: str | None = None
) -> tuple[float, int]:
    """
    Refuse a request that there is no room for, by what its head says.

    Args:
        headers: The request's; its body has not been read.
        model: Whose request it is.
        is_stream: Whether it asks for a stream.
        tenant: Whose it is, if that is known.

    Returns:
        Its whole time in seconds, and its priority.

    Raises:
        RequestError: If a header is malformed.
        CapacityError: If there is no room for it.
    """
    budget_s, priority = wishes_of(headers, model, is_stream=is_stream)
    model.engine.require_room(math.inf if is_stream else budget_s, priority, tenant)
    return budget_s, priority


def wishes_of(
    headers: Mapping[str, str], model: Model, *, is_stream: bool = False
) -> tuple[float, int]:
    """
    Say how much time a request has, in seconds, and its priority.

    Raises:
        RequestError: If a header is malformed.
    """
    limits = model.engine.spec.limits
    budget_s = _budget_s(headers, limits.stream_timeout_s if is_stream else limits.timeout_s)
    return budget_s, _priority(headers) if limits.priorities else 0


def _budget_s(headers: Mapping[str, str], longest_s: float) -> float:
    text = headers.get("x-request-timeout")
    if text is None:
        return longest_s
    try:
        wanted_s = float(text.replace("_", "x"))  # digits may be grouped in Python only
    except ValueError:
        raise InvalidTimeoutError from None
    if not (math.isfinite(wanted_s) and wanted_s > 0):
        raise InvalidTimeoutError
    return min(wanted_s, longest_s)


def _priority(headers: Mapping[str, str]) -> int:
    text = headers.get("x-request-priority", "0")
    if len(text) != 1 or text not in "0123456789":
        raise InvalidInputError(
            "The header `X-Request-Priority` must be a digit from 0 (first) to 9.",
            param="X-Request-Priority",
        )
    return int(text)


def forwarded(headers: Mapping[str, str], settings: ServerSettings) -> Mapping[str, str]:
    """Give those of a request's headers that hooks may see."""
    if not settings.forward_headers:
        return NO_HEADERS
    names = (name.lower() for name in settings.forward_headers)
    return {name: headers[name] for name in names if name in headers}
