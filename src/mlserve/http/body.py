"""Reading a request's body: bounded, timed, and parsed straight from its bytes."""

import asyncio
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive, Scope

from mlserve.contract import Contract
from mlserve.errors import (
    AbandonedError,
    BodyTimeoutError,
    InvalidJSONError,
    RequestError,
    SchemaViolationError,
    UnsupportedMediaTypeError,
)
from mlserve.http.connection import connection_of
from mlserve.http.exchange import header_of
from mlserve.http.fail_fast import fail_fast_validator
from mlserve.http.form import parse_form
from mlserve.model import safe_details
from mlserve.payloads import Upload

__all__ = ["BodyLimit", "parse_json", "parse_query", "read_body", "read_upload"]

_LIMIT = "mlserve.body_limit"
_CONSTANT = re.compile(
    rb'(?:[^"NI]++|"(?:[^"\\]++|\\.)*+"|N(?!aN)|I(?!nfinity))*+(?:NaN|Infinity)', re.DOTALL
)
"""Matches a body that holds what is not a JSON number, outside all texts; never goes back."""
_NOT_FINITE = "The body holds a number that is not finite, which JSON has not."
_KINDS = frozenset({"type", "$ref", "anyOf", "oneOf", "allOf", "enum", "const"})
_ATOMS = frozenset({str, int, bool, bytes, type(None)})
_COLLECTIONS = (list, tuple, set, frozenset)
_LARGE_BYTES = 2**19  # from here on, noting every wrong item would cost more than it tells
_FLATTENED_LEVELS = 4  # a list may hold itself: nested ones are not joined without end
_holding_floats: WeakKeyDictionary[TypeAdapter[Any], bool] = WeakKeyDictionary()


class BodyLimit:
    """
    An ASGI receive that refuses bodies over a limit, before they are read where that is known.

    Args:
        scope: The request's scope.
        receive: The receive to read from.
        limit_bytes: How large the body may be; a route may change it before it reads.
    """

    def __init__(self, scope: Scope, receive: Receive, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._receive = receive
        self._announced = header_of(scope, b"content-length")
        self.n_bytes = 0
        """How many have been received."""
        scope[_LIMIT] = self

    @classmethod
    def of(cls, scope: Scope, receive: Receive, limit_bytes: int) -> Receive:
        """Set the limit of a request that already has one, or begin to limit it."""
        limit = scope.get(_LIMIT)
        if limit is None:
            return cls(scope, receive, limit_bytes)
        limit.limit_bytes = limit_bytes
        return receive

    @staticmethod
    def n_received(scope: Scope) -> int:
        """Say how many bytes of a request's body have been received."""
        limit = scope.get(_LIMIT)
        return limit.n_bytes if isinstance(limit, BodyLimit) else 0

    @staticmethod
    def forget(scope: Scope) -> None:
        """Let go of a request that was answered: scope and receive would hold each other."""
        scope.pop(_LIMIT, None)

    async def __call__(self) -> Message:
        """Receive a message; raises `HTTPException` 413 once the body is too large."""
        if self._announced.isdigit() and int(self._announced[:20]) > self.limit_bytes:
            raise self._too_large()
        message = await self._receive()
        if message["type"] == "http.request":
            self.n_bytes += len(message.get("body", b""))
            if self.n_bytes > self.limit_bytes:
                raise self._too_large()
        return message

    def _too_large(self) -> HTTPException:
        self._announced = b""
        text = f"The body is larger than {self.limit_bytes} bytes. Send less at once."
        return HTTPException(413, text)


async def read_body(request: Request, timeout_s: float) -> bytes:
    """
    Read the whole body.

    Raises:
        BodyTimeoutError: If it did not arrive in time.
        AbandonedError: If the client left meanwhile.
    """
    connection = connection_of(request.scope)
    try:
        if connection is not None and connection.has_whole_body:
            return await request.body()  # it is here already: there is nothing to time
        async with asyncio.timeout(timeout_s):
            return await request.body()
    except TimeoutError:
        raise BodyTimeoutError(timeout_s) from None
    except ClientDisconnect:
        raise AbandonedError from None


def require_json(headers: Headers) -> None:
    """
    Refuse what is not declared as plain JSON.

    Raises:
        UnsupportedMediaTypeError: If it is not.
    """
    _require_identity(headers)
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (
        kind.startswith("application/") and kind.endswith("+json")
    ):
        raise UnsupportedMediaTypeError(
            "The body must be sent with `Content-Type: application/json`. With curl, use `--json`."
        )


def parse_json(adapter: TypeAdapter[Any], body: bytes) -> Any:
    """
    Validate a JSON body straight from its bytes.

    Raises:
        InvalidJSONError: If it is not JSON as RFC 8259 has it.
        SchemaViolationError: If it does not fit the schema.
    """
    if (b"NaN" in body or b"Infinity" in body) and _CONSTANT.match(body):
        raise InvalidJSONError(_NOT_FINITE)
    is_large = len(body) > _LARGE_BYTES
    validator = fail_fast_validator(adapter) if is_large else adapter.validator
    try:
        value = validator.validate_json(body)
    except ValidationError as exc:
        raise _as_request_error(exc, "body") from exc
    if not _is_finite(adapter, value):
        raise InvalidJSONError(_NOT_FINITE)
    return value


def parse_query(adapter: TypeAdapter[Any], request: Request) -> Any:
    """
    Validate the query parameters as the fields of a request.

    Raises:
        SchemaViolationError: If they do not fit the schema.
    """
    try:
        value = adapter.validate_strings(dict(request.query_params))
    except ValidationError as exc:
        raise _as_request_error(exc, "query") from exc
    return _require_finite(adapter, value, "query")


async def read_upload(request: Request, contract: Contract, timeout_s: float) -> Any:
    """
    Read a request with files: a multipart form, or the raw body where it has one field only.

    Raises:
        UnsupportedMediaTypeError: If it is neither.
        SchemaViolationError: If the form's fields do not fit the schema.
        BodyTimeoutError: If it did not arrive in time.
    """
    _require_identity(request.headers)
    media_type = request.headers.get("content-type", "")
    kind = media_type.partition(";")[0].strip().lower()
    fields = contract.request_type.model_fields
    values: dict[str, Any]
    if kind == "multipart/form-data":
        values = await _read_form(request, timeout_s, len(fields))
    elif len(fields) == 1 and kind and kind != "application/x-www-form-urlencoded":
        content = await read_body(request, timeout_s)
        values = {next(iter(fields)): Upload(content, media_type)}
    else:
        raw = " or the raw file with its own content type" if len(fields) == 1 else ""
        raise UnsupportedMediaTypeError(f"Send `multipart/form-data`{raw}.")
    try:
        value = contract.request.validate_python(values)
    except ValidationError as exc:
        raise _as_request_error(exc, "body") from exc
    return _require_finite(contract.request, value, "body")


async def _read_form(request: Request, timeout_s: float, n_fields: int) -> dict[str, Any]:
    try:
        async with asyncio.timeout(timeout_s):
            form = await parse_form(request, 16 * max(1, n_fields))
            try:
                return {name: await _parts(form.getlist(name)) for name in form}
            finally:
                await form.close()
    except TimeoutError:
        raise BodyTimeoutError(timeout_s) from None
    except ClientDisconnect:
        raise AbandonedError from None


async def _parts(values: list[UploadFile | str]) -> Any:
    """Give the one value of a field, or the list of them."""
    parts = [await _part(value) for value in values]
    return parts[0] if len(parts) == 1 else parts


async def _part(value: UploadFile | str) -> Upload | str:
    if isinstance(value, str):
        return value
    content_type = value.content_type or "application/octet-stream"
    return Upload(await value.read(), content_type, value.filename)


def _require_identity(headers: Headers) -> None:
    if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise UnsupportedMediaTypeError("The body must be sent without `Content-Encoding`.")


def _require_finite(adapter: TypeAdapter[Any], value: Any, source: str) -> Any:
    if _is_finite(adapter, value):
        return value
    message = "Input should be a finite number"
    raise SchemaViolationError([{"type": "finite_number", "loc": [source], "msg": message}], 1)


def _is_finite(adapter: TypeAdapter[Any], value: Any) -> bool:
    """Say whether no float of a validated value is NaN or infinite."""
    can_hold_floats = _holding_floats.get(adapter)
    if can_hold_floats is None:
        try:
            can_hold_floats = _may_hold_floats(adapter.json_schema())
        except Exception:  # noqa: BLE001 - a type without a schema may hold anything
            can_hold_floats = True
        _holding_floats[adapter] = can_hold_floats
    try:
        return not (can_hold_floats and _has_non_finite(value))
    except RecursionError:  # a validator has linked the value to itself
        return True


def _may_hold_floats(schema: Any) -> bool:
    """Say whether a JSON schema has a number or a value of any type."""
    if not isinstance(schema, dict):
        return schema is True
    if schema.get("type") == "number" or not schema.keys() & _KINDS:
        return True
    below: list[Any] = [
        schema[name]
        for name in ("items", "additionalProperties", "contentSchema")
        if name in schema
    ]
    for name in ("properties", "patternProperties", "$defs"):
        below.extend(schema.get(name, {}).values())
    for name in ("anyOf", "oneOf", "allOf", "prefixItems"):
        below.extend(schema.get(name, ()))
    return any(map(_may_hold_floats, below))


def _has_non_finite(value: Any) -> bool:
    if isinstance(value, BaseModel):
        extra = value.__pydantic_extra__
        return _any_non_finite(vars(value).values()) or bool(
            extra and _any_non_finite(extra.values())
        )
    if isinstance(value, float):
        return not math.isfinite(value)
    if type(value) in _ATOMS:
        return False
    if isinstance(value, _COLLECTIONS):
        return _any_non_finite(value)
    if isinstance(value, Mapping):
        return _any_non_finite(value.values())
    return _any_non_finite(_fields_of(value))


def _fields_of(value: Any) -> list[Any]:
    if is_dataclass(value):
        return [getattr(value, field.name, None) for field in fields(value)]
    return []


def _any_non_finite(values: Iterable[Any], level: int = 0) -> bool:
    kinds = set(map(type, values))
    if kinds <= _ATOMS:
        return False
    if kinds == {float}:  # at the speed of C: a request may be a million of them
        return not all(map(math.isfinite, values))
    if kinds == {list} and level < _FLATTENED_LEVELS:  # so may a list of vectors
        return _any_non_finite(list(chain.from_iterable(values)), level + 1)
    return any(map(_has_non_finite, values))


def _as_request_error(error: ValidationError, source: str) -> RequestError:
    details = safe_details(error, source)
    if details and details[0]["type"] == "json_invalid":
        reason = str(details[0]["msg"]).removeprefix("Invalid JSON: ")
        return InvalidJSONError(f"The body is not valid JSON: {reason}.")
    return SchemaViolationError(details, error.error_count())
