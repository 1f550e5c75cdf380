"""FastAPI dependencies for users' own endpoints."""

from collections.abc import Awaitable, Callable

from mlserve.model import Model
from mlserve.registry import Registry

__all__ = ["make_model_dependency"]


def make_model_dependency(
    registry: Registry, name: str, version: str | None
) -> Callable[[], Awaitable[Model]]:
    """Make the dependency that injects a model; `None` as version is the newest."""

    async def model() -> Model:
        return registry.get(name, version)

    return model
