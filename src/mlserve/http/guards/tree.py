"""What stands in a tree of FastAPI's dependencies."""

from collections.abc import Iterator, Sequence
from typing import Any

from fastapi.dependencies.models import Dependant
from fastapi.params import Depends
from fastapi.routing import APIRoute
from fastapi.security.base import SecurityBase
from starlette.routing import BaseRoute

__all__ = ["calls_of_routes", "has_security"]


def calls_of_routes(routes: Sequence[BaseRoute]) -> Iterator[Any]:
    """Give everything that routes depend on, the dependencies of dependencies included."""
    for route in routes:
        if isinstance(route, APIRoute):
            yield from _calls_of(route.dependant)


def has_security(dependencies: Sequence[Depends]) -> bool:
    """Say whether one of them asks for credentials, as `api_keys` and FastAPI's schemes do."""

    async def nothing() -> None:
        """Never called."""

    if not dependencies:
        return False
    dependant = APIRoute("/", nothing, dependencies=dependencies).dependant
    return any(isinstance(call, SecurityBase) for call in _calls_of(dependant))


def _calls_of(dependant: Dependant) -> Iterator[Any]:
    for inner in dependant.dependencies:
        yield inner.call
        yield from _calls_of(inner)
