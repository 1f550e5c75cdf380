"""What a protocol is to the application: an object that adds routes for models it can serve."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from mlserve.http.versioning import ModelRoutes, Mounted
from mlserve.registry import Registry

__all__ = ["ServingProtocol"]


@runtime_checkable
class ServingProtocol(Protocol):
    """
    A further way to ask the models of a server, given to `ModelServer.use`.

    It translates: what comes in becomes the request type of a model, and its answers become what
    the protocol says. It knows the types of `mlserve.tasks`, never the handlers.
    """

    lists_every_version: bool
    """Whether its clients read `/v1/models`, which then lists other versions too: `name:v2`."""

    def add_routes(
        self, routes: ModelRoutes, mounted: Sequence[Mounted], registry: Registry
    ) -> None:
        """
        Add the protocol's routes; called once, when the application is built.

        Args:
            routes: Takes the routes.
            mounted: All models of the server.
            registry: Finds them by name.

        Raises:
            ConfigurationError: If a path is taken, or a model cannot be served as it claims.
        """
