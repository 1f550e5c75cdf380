"""
The paths that name a model and no version: which version answers, and who gets a copy.

The version is known with the head of a request, but for requests whose API key a dependency
finds: those are led anew once it has.
"""

from collections.abc import Collection

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from mlserve.http.body import BodyLimit
from mlserve.http.exchange import EXCHANGE, Exchange, header_of, request_id_of
from mlserve.http.guard import NOTHING, Guard
from mlserve.http.mounted import Entrance, as_function
from mlserve.model import Model
from mlserve.observability.listeners import Listener
from mlserve.registry import Registry
from mlserve.settings import ServerSettings

__all__ = ["Alias", "choose_model", "note_served", "served_by"]

_ROUTING_KEY = b"x-routing-key"
_SERVED_BY = b"x-model-version"


def choose_model(
    registry: Registry,
    name: str,
    scope: Scope,
    settings: ServerSettings,
    among: Collection[str] | None = None,
) -> Model | None:
    """
    Give the version that a request is for which names none.

    The same client keeps its version while the weights stay: it is known by the name of its API
    key, else by the header `X-Routing-Key`, else each request is by itself.

    Args:
        registry: The models.
        name: The model's name.
        scope: The request's.
        settings: The server's.
        among: The versions that can answer it; `None` = all.

    Returns:
        The version; `None` if those that get requests cannot answer this one.

    Raises:
        ModelNotFoundError: If there is no such model.
    """
    exchange: Exchange | None = scope.get(EXCHANGE)
    if exchange is not None and exchange.key is not None:
        key = exchange.key
    elif given := header_of(scope, _ROUTING_KEY):
        key = given.decode("latin-1")
    else:
        key = request_id_of(scope, settings.request_id_header)
    return registry.choose(name, key, among)


def note_served(exchange: Exchange, model: Model, also: Listener | None = None) -> None:
    """
    Note which version answers a request that names none; the answer says it too.

    Args:
        exchange: The request.
        model: The version.
        also: Who is told of this request, beside those who are told of all.
    """
    listeners = model.engine.listeners
    # A guard may have added headers of its own meanwhile.
    others = [header for header in exchange.headers if header[0] != _SERVED_BY]
    exchange.headers[:] = [*others, served_by(model.version)]
    exchange.name_model(model.name, model.version, listeners.also(also) if also else listeners)


def served_by(version: str) -> tuple[bytes, bytes]:
    """Give the header that says which version answers."""
    return _SERVED_BY, version.encode()


class Alias:
    """
    Leads the requests of one path to the versions of a model.

    Args:
        entrances: What stands behind the same path of each version that has it.
        registry: Knows how requests are divided.
        settings: The server's settings.
        app: The application, which may override dependencies.
    """

    def __init__(
        self,
        entrances: dict[str, Entrance],
        registry: Registry,
        settings: ServerSettings,
        app: FastAPI,
    ) -> None:
        self._entrances = entrances
        self._registry = registry
        self._settings = settings
        first, *others = entrances.values()
        self._name = first.name
        self._dependencies = first.dependencies
        self._guards: dict[str, Guard] = {}
        if any(other.dependencies != first.dependencies for other in others):
            # Each version asks its own, once it is chosen.
            self._dependencies = [NOTHING]
            self._guards = {
                version: Guard(entrance.dependencies, app)
                for version, entrance in entrances.items()
            }

    def entrance(self) -> Entrance:
        """Give what stands behind the path."""
        limits = [entrance.max_body_bytes for entrance in self._entrances.values()]
        versions = ", ".join(f"`{version}`" for version in self._entrances)
        note = (
            f"Answered by one of the versions {versions}, by its own schema; the header"
            " `X-Model-Version` names it. The same API key, or else the same `X-Routing-Key`, is"
            " answered by the same version while the weights stay."
        )
        return Entrance(
            name=self._name,
            version=next(reversed(self._entrances)),  # until it is led
            answer=as_function(self._answer),
            require_room=self._require_room,
            max_body_bytes=max(limits),
            dependencies=self._dependencies,
            opened=(self._lead,),
            notes=[note],
        )

    async def _answer(self, request: Request) -> Response:
        exchange: Exchange = request.scope[EXCHANGE]
        if exchange.key is not None:  # it was not known before
            self._lead(exchange, request.scope)
        version = exchange.version
        if all(name != _SERVED_BY for name, _ in exchange.headers):  # it was led nowhere
            raise HTTPException(
                404,
                f"The versions of model `{self._name}` that get requests without a version do not"
                " do this. Name another version in the path.",
            )
        entrance = self._entrances[version]
        BodyLimit.of(request.scope, request.receive, entrance.max_body_bytes)
        if version in self._guards:
            return await self._guards[version](request, entrance.answer)
        return await entrance.answer(request)

    def _lead(self, exchange: Exchange, scope: Scope) -> None:
        model = self._choose(scope)
        if model is not None:
            note_served(exchange, model, self._registry.shadow_of(model, exchange.request_id))

    def _require_room(self, scope: Scope) -> None:
        model = self._choose(scope)
        if model is not None:
            self._entrances[model.version].require_room(scope)

    def _choose(self, scope: Scope) -> Model | None:
        return choose_model(self._registry, self._name, scope, self._settings, self._entrances)
