"""`/v1/models` and `/v1/models/{name}`: what there is, in the shape of OpenAI's list."""

import time
from collections.abc import Sequence
from dataclasses import asdict

from mlserve.http.schemas import ModelInfo, ModelList
from mlserve.http.versioning import ModelRoutes, Mounted
from mlserve.model import Model
from mlserve.registry import Registry

__all__ = ["ModelListing", "find_model", "model_id"]


def model_id(model: Model) -> str:
    """Name a model and its version in one word, such as `chat:v2`; pure."""
    return f"{model.name}:{model.version}"


def find_model(registry: Registry, name: str) -> Model:
    """
    Find a model by its name, which is its newest version, or by name and version: `chat:v2`.

    Raises:
        ModelNotFoundError: If there is none.
    """
    name, _, version = name.partition(":")
    return registry.get(name, version or None)


class ModelListing:
    """
    Describes the models of one version.

    Args:
        routes: Knows the models' paths.
        mounted: All models of the server.
        registry: Finds them by name.
        version: The version that is described.
        lists_every_version: Whether the list goes on with the other versions, as `name:v2`.
    """

    def __init__(
        self,
        routes: ModelRoutes,
        mounted: Sequence[Mounted],
        registry: Registry,
        version: str,
        *,
        lists_every_version: bool = False,
    ) -> None:
        self._routes = routes
        self._mounted = mounted
        self._registry = registry
        self._version = version
        self._lists_every_version = lists_every_version
        self._created = int(time.clock_gettime(time.CLOCK_REALTIME))

    async def list_models(self) -> ModelList:
        """List the models of this version, and perhaps the others by their longer names."""
        mine = [mount for mount in self._mounted if mount.model.version == self._version]
        others = [mount for mount in self._mounted if mount not in mine]
        data = [self._describe(mount, mount.model.name) for mount in mine]
        if self._lists_every_version:
            data += [self._describe(mount, model_id(mount.model)) for mount in others]
        return ModelList(data=data)

    async def get_model(self, name: str) -> ModelInfo:
        """Describe one model of this version: state, routes, schema, example, statistics."""
        if self._lists_every_version and ":" in name:
            model = find_model(self._registry, name)
        else:
            model = self._registry.get(name, self._version)
        return next(self._describe(mount, name) for mount in self._mounted if mount.model is model)

    def _describe(self, mount: Mounted, name: str) -> ModelInfo:
        model = mount.model
        return ModelInfo(
            id=name,
            created=self._created,
            version=model.version,
            versions=[m.model.version for m in self._mounted if m.model.name == model.name],
            state=model.state,
            routes=self._routes.paths_of(mount),
            request_schema=mount.request_schema,
            example=mount.examples[0] if mount.examples else None,
            statistics=asdict(model.statistics()),
        )
