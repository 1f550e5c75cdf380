"""
What OpenAPI shows of a model's routes: signatures made of the handler's types, examples, errors.

The functions made here are never called; FastAPI reads their signatures.
"""

import inspect
from collections.abc import Callable, Set
from dataclasses import is_dataclass
from enum import Enum
from types import UnionType
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

from fastapi import Body, Query
from pydantic import BaseModel
from starlette.responses import JSONResponse
from typing_extensions import get_type_hints, is_typeddict

from mlserve.contract import Contract
from mlserve.http.errors import documented_errors
from mlserve.http.schemas import ErrorBody
from mlserve.observability.loggers import get_logger
from mlserve.spec import ModelSpec

__all__ = [
    "EventStreamDocument",
    "body_signature",
    "example_values",
    "query_signature",
    "stream_responses",
    "takes_query",
]

logger = get_logger(__name__)

_SCALARS = (str, int, float, bool)


class EventStreamDocument(JSONResponse):
    """Shows a chunk's schema under `text/event-stream`."""

    media_type = "text/event-stream"


def body_signature(
    contract: Contract, examples: list[Any], name: str, summary: str
) -> Callable[..., Any]:
    """Make a function whose body parameter is the model's request."""
    if contract.upload_fields:
        body = Body(media_type="multipart/form-data")
    else:
        shown = {
            f"example {number}": {"value": value} for number, value in enumerate(examples, start=1)
        }
        body = Body(openapi_examples=cast("Any", shown)) if shown else Body()
    return _signature(name, summary, {"body": Annotated[contract.request_type, body]})


def query_signature(contract: Contract, name: str, summary: str) -> Callable[..., Any]:
    """Make a function whose query parameters are the fields of the model's request."""
    request = contract.request_type
    if issubclass(request, BaseModel):
        return _signature(name, summary, {"fields": Annotated[request, Query()]})
    required = set(contract.request.json_schema().get("required", ()))
    annotations = {
        field: annotation if field in required else annotation | None
        for field, annotation in _fields_of(request).items()
    }
    return _signature(
        name,
        summary,
        {field: Annotated[annotation, Query()] for field, annotation in annotations.items()},
        optional=annotations.keys() - required,
    )


def stream_responses() -> dict[int | str, Any]:
    """
    Give the errors of a stream's route for OpenAPI, as JSON beside the events.

    FastAPI shows every model of such a route as events, so this body's schema is written out.
    """
    schema = ErrorBody.model_json_schema()
    schema["properties"]["error"] = schema.pop("$defs")["ErrorInfo"]
    content = {"application/json": {"schema": schema}}
    return {
        status: {"description": response["description"], "content": content}
        for status, response in documented_errors(ErrorBody).items()
    }


def takes_query(contract: Contract) -> bool:
    """Whether every field of the request is a scalar, so that a query string can carry it."""
    fields = _fields_of(contract.request_type)
    return bool(fields) and all(_is_scalar(annotation) for annotation in fields.values())


def example_values(spec: ModelSpec) -> list[Any]:
    """Give the handler's examples as JSON values; none if it has none or they cannot be made."""
    contract = spec.contract
    hook = contract.hooks["examples"]
    if not hook.overridden or hook.is_async or contract.upload_fields:
        return []
    try:
        examples = list(spec.example.examples())
        return [contract.request.dump_python(example, mode="json") for example in examples]
    except Exception:
        logger.exception("hook.examples.failed", extra={"model": spec.name})
        return []


def _fields_of(request: Any) -> dict[str, Any]:
    """Give the annotations of a request's fields; nothing for what is not made of fields."""
    if not isinstance(request, type):
        return {}
    if issubclass(request, BaseModel):
        return {name: info.annotation for name, info in request.model_fields.items()}
    if is_dataclass(request) or is_typeddict(request):
        hints = get_type_hints(request)  # leaves out Required and NotRequired
        return {name: hints[name] for name in request.__annotations__}
    return {}


def _signature(
    name: str, summary: str, annotations: dict[str, Any], optional: Set[str] = frozenset()
) -> Callable[..., Any]:
    def endpoint() -> None:
        raise AssertionError("This function only documents a route.")

    endpoint.__name__ = name
    endpoint.__doc__ = summary
    shown = [
        inspect.Parameter(
            parameter,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=annotation,
            default=None if parameter in optional else inspect.Parameter.empty,
        )
        for parameter, annotation in annotations.items()
    ]
    endpoint.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]  # read by FastAPI
    return endpoint


def _is_scalar(annotation: Any) -> bool:
    if annotation in _SCALARS or annotation is type(None) or get_origin(annotation) is Literal:
        return True
    if get_origin(annotation) in (Union, UnionType):
        return all(_is_scalar(member) for member in get_args(annotation))
    return isinstance(annotation, type) and issubclass(annotation, Enum)
