"""
What of an OpenAPI schema could break clients of an older one. Pure.

A request that was good must stay good, and an answer must be one that the old schema allows: so a
new request schema may only take more, and a new response schema may only give less.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from mlserve.cli.schemas import Document, Schemas, narrowed

__all__ = ["breaking_changes"]

_METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")


def breaking_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """
    List what a client of the old schema could trip over, one sentence each.

    Args:
        old: An OpenAPI 3.1 document.
        new: The one that is to take its place.

    Source:
        OpenAPI Specification 3.1; JSON Schema 2020-12.
    """
    schemas = Schemas(old, new)
    found: list[str] = []
    there = {_plain(path): item for path, item in new.get("paths", {}).items()}
    for path, item in old.get("paths", {}).items():
        other = there.get(_plain(path), {})
        for method in _METHODS:
            if method not in item:
                continue
            where = f"{method.upper()} {path}"
            if method not in other:
                found.append(f"{where} is gone.")
                continue
            # What stands at the path holds for each of its operations.
            before = {"parameters": item.get("parameters", ())}, item[method]
            after = {"parameters": other.get("parameters", ())}, other[method]
            found += [f"{where}: {change}" for change in _in_operation(schemas, before, after)]
    return list(dict.fromkeys(found))


Operation = tuple[Mapping[str, Any], Mapping[str, Any]]


def _in_operation(schemas: Schemas, old: Operation, new: Operation) -> Iterator[str]:
    before = _parameters(schemas.old, old)
    yield from _in_parameters(schemas, before, _parameters(schemas.new, new))
    yield from _in_body(schemas, old[1].get("requestBody"), new[1].get("requestBody"))
    yield from _in_responses(schemas, old[1].get("responses", {}), new[1].get("responses", {}))


Parameters = Mapping[tuple[str, str], Mapping[str, Any]]


def _parameters(document: Document, operation: Operation) -> Parameters:
    """Give the parameters of an operation by their place and name."""
    every = [document.resolved(each) for part in operation for each in part.get("parameters", ())]
    return {(each.get("in", ""), each.get("name", "")): each for each in every}


def _in_parameters(schemas: Schemas, old: Parameters, new: Parameters) -> Iterator[str]:
    for key, parameter in new.items():
        kind, name = key
        before = old.get(key)
        is_new = parameter.get("required") and not (before and before.get("required"))
        if is_new and kind != "path":  # the names of a path's parameters are not sent
            yield f"the {kind} parameter `{name}` must be sent now."
        if before is not None:
            changes = narrowed(schemas, before.get("schema", {}), parameter.get("schema", {}))
            yield from (f"the {kind} parameter `{name}`{change}" for change in changes)


def _in_body(schemas: Schemas, old: Any, new: Any) -> Iterator[str]:
    if not new:
        return
    old, new = schemas.old.resolved(old or {}), schemas.new.resolved(new)
    if new.get("required") and not old.get("required"):
        yield "a body must be sent now."
    for media_type, content in old.get("content", {}).items():
        other = new.get("content", {}).get(media_type)
        if other is None:
            yield f"the body may no longer be `{media_type}`."
            continue
        changes = narrowed(schemas, content.get("schema", {}), other.get("schema", {}))
        yield from (f"the body{change}" for change in changes)


def _in_responses(
    schemas: Schemas, old: Mapping[str, Any], new: Mapping[str, Any]
) -> Iterator[str]:
    for status, response in old.items():
        if not str(status).startswith("2"):
            continue
        if status not in new:
            yield f"the status {status} is gone."
            continue
        before, after = schemas.old.resolved(response), schemas.new.resolved(new[status])
        for media_type, content in before.get("content", {}).items():
            other = after.get("content", {}).get(media_type)
            if other is None:
                yield f"the answer {status} is no longer `{media_type}`."
                continue
            # The other way round: what the new schema gives, the old one must take.
            changes = narrowed(
                schemas.swapped, other.get("schema", {}), content.get("schema", {}), answers=True
            )
            yield from (f"the answer {status}{change}" for change in changes)


def _plain(path: str) -> str:
    """Give a path without the names of its parameters, which clients do not send."""
    parts = path.split("/")
    return "/".join("{}" if part.startswith("{") else part for part in parts)
