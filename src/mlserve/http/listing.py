"""`/v1/models` and `/v1/models/{name}`: what there is, in the shape of OpenAI's list."""

import time
from collections.abc import Sequence
from dataclasses import asdict

from mlserve.http.schemas import ModelInfo, ModelList
from mlserve.http.versioning import ModelRoutes, Mounted
from mlserve.registry import Registry

__all__ = ["ModelListing"]


class ModelListing:
    """
    Describes the models of one version.

    Args:
        routes: Knows the models' paths.
        mounted: All models of the server.
        registry: Finds them by name.
        version: The version that is described.
    """

    def __init__(
        self,
        routes: ModelRoutes,
        mounted: Sequence[Mounted],
        registry: Registry,
        version: str,
    ) -> None:
        self._routes = routes
        self._mounted = mounted
        self._registry = registry
        self._version = version
        self._created = int(time.clock_gettime(time.CLOCK_REALTIME))

    async def list_models(self) -> ModelList:
        """List the models of this version."""
        mine = [mount for mount in self._mounted if mount.model.version == self._version]
        return ModelList(data=[self._describe(mount) for mount in mine])

    async def get_model(self, name: str) -> ModelInfo:
        """Describe one model of this version: state, routes, schema, example, statistics."""
        model = self._registry.get(name, self._version)
        return next(self._describe(mount) for mount in self._mounted if mount.model is model)

    def _describe(self, mount: Mounted) -> ModelInfo:
        model = mount.model
        return ModelInfo(
            id=model.name,
            created=self._created,
            version=model.version,
            versions=[m.model.version for m in self._mounted if m.model.name == model.name],
            state=model.state,
            routes=self._routes.paths_of(mount),
            request_schema=mount.request_schema,
            example=mount.examples[0] if mount.examples else None,
            statistics=asdict(model.statistics()),
        )
