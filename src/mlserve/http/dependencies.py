"""FastAPI dependencies: those that users give, and those for their own endpoints."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from fastapi.params import Depends
from starlette.middleware import Middleware

from mlserve.errors import ConfigurationError
from mlserve.model import Model
from mlserve.registry import Registry

__all__ = ["checked_admin", "checked_dependencies", "checked_middleware", "make_model_dependency"]


def make_model_dependency(
    registry: Registry, name: str, version: str | None
) -> Callable[[], Awaitable[Model]]:
    """Make the dependency that injects a model; `None` as version is the newest."""

    async def model() -> Model:
        return registry.get(name, version)

    return model


def checked_dependencies(dependencies: Sequence[Any]) -> list[Depends]:
    """
    Give dependencies as a list.

    Raises:
        ConfigurationError: If one is none.
    """
    for dependency in dependencies:
        if not isinstance(dependency, Depends):
            raise ConfigurationError(
                f"`dependencies` must hold `Depends(…)` objects, got {dependency!r}."
            )
    return list(dependencies)


def checked_admin(dependencies: Sequence[Any]) -> list[Depends]:
    """
    Give the dependencies of the administrator's routes as a list.

    Raises:
        ConfigurationError: If one is none, or there are none.
    """
    if not dependencies:
        raise ConfigurationError(
            "`admin` needs a dependency that asks who is there, such as"
            " `admin=[Depends(api_keys(scope='admin'))]`: anybody could drain the server."
        )
    return checked_dependencies(dependencies)


def checked_middleware(middleware: Sequence[Any]) -> list[Middleware]:
    """
    Give middleware as a list.

    Raises:
        ConfigurationError: If one is none.
    """
    for entry in middleware:
        if not isinstance(entry, Middleware):
            raise ConfigurationError(
                f"`middleware` must hold `starlette.middleware.Middleware(…)` objects,"
                f" got {entry!r}."
            )
    return list(middleware)
