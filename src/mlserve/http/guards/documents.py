"""What OpenAPI says of the refusals of guards."""

from collections.abc import Sequence

from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from mlserve.http.guards.keys import ApiKeys
from mlserve.http.guards.rates import RateLimit
from mlserve.http.guards.tree import calls_of_routes
from mlserve.http.schemas import ErrorBody

__all__ = ["document_refusals"]

_REFUSALS: tuple[tuple[type, int, str], ...] = (
    (ApiKeys, 401, "The API key is missing or wrong."),
    (ApiKeys, 403, "The API key is not for this."),
    (RateLimit, 429, "The caller has reached a rate limit."),
)


def document_refusals(routes: Sequence[BaseRoute]) -> None:
    """Add the answers of their guards to what OpenAPI says of routes."""
    for route in routes:
        if not isinstance(route, APIRoute):
            continue
        calls = list(calls_of_routes([route]))
        shown = next(
            (
                field
                for field in route.response_fields.values()
                if field.field_info.annotation is ErrorBody
            ),
            None,
        )
        for kind, status, text in _REFUSALS:
            if status not in route.responses and any(isinstance(call, kind) for call in calls):
                route.responses = {**route.responses, status: {"description": text}}
                if shown is not None:
                    route.response_fields[status] = shown
