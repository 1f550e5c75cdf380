"""The routes of all models: one group per version, and the unversioned alias of the newest."""

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, cast

from fastapi import FastAPI
from fastapi.params import Depends
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from mlserve.errors import ConfigurationError, RequestError
from mlserve.http.documented import (
    EventStreamDocument,
    body_signature,
    example_values,
    query_signature,
    stream_responses,
    takes_query,
)
from mlserve.http.errors import ErrorShape, documented_errors
from mlserve.http.guard import NOTHING, Guard
from mlserve.http.predict import PredictEndpoint, require_room
from mlserve.http.route import NO_MODEL, Answer, ModelRoute, ServerRoute
from mlserve.http.schemas import ErrorBody
from mlserve.http.stream import StreamEndpoint
from mlserve.model import Model
from mlserve.payloads import Binary
from mlserve.registry import Registry
from mlserve.settings import ServerSettings

__all__ = ["ModelRoutes", "Mounted"]

_VERSION = re.compile(r"v[1-9][0-9]*")


class Mounted:
    """
    One model as it stands in the application.

    Args:
        model: The model.
        dependencies: The user's, run before its requests are read.
        path: Its predict path below the version, instead of `/models/{name}/predict`.
        tags: Under which OpenAPI shows it.
    """

    def __init__(
        self,
        model: Model,
        *,
        dependencies: Sequence[Depends] = (),
        path: str | None = None,
        tags: Sequence[str] | None = None,
    ) -> None:
        self.model = model
        self.dependencies = list(dependencies)
        self.predict_path = path or f"/models/{model.name}/predict"
        self.stream_path = f"/models/{model.name}/stream"
        self.examples = example_values(model.engine.spec)
        """The handler's examples as JSON values."""
        self.request_schema = model.engine.spec.contract.request.json_schema()
        """The request type as JSON schema."""
        self.tags = list(tags) if tags is not None else [f"{model.name} {model.version}"]


class ModelRoutes:
    """
    Adds the models' routes to an application, under a prefix.

    Args:
        app: The application.
        settings: The server's settings.
        prefix: What stands before every path.
        dependencies: The server's, run before those of each model.
    """

    def __init__(
        self,
        app: FastAPI,
        settings: ServerSettings,
        prefix: str,
        dependencies: Sequence[Depends],
    ) -> None:
        self._app = app
        self.settings = settings
        """The server's settings."""
        self._prefix = prefix
        self._dependencies = list(dependencies)
        self._methods: dict[str, list[str]] = {}

    def add_all(self, mounted: list[Mounted], registry: Registry) -> None:
        """
        Add the versioned routes and the aliases of the newest versions.

        Raises:
            ConfigurationError: If a path is taken.
        """
        newest = {id(model) for model in registry.newest().values()}
        for mount in mounted:
            self._add_model(mount, f"/{mount.model.version}")
        for mount in mounted:
            if id(mount.model) in newest:
                self._add_model(mount, "")
        versions = sorted({mount.model.version for mount in mounted} | {"v1"})
        for action in ("predict", "stream"):
            for version in versions:
                self._add_fallback(f"/{version}/models/{{name}}/{action}", registry, version)
            self._add_fallback(f"/models/{{name}}/{action}", registry, None)
            self._add_fallback(f"/{{version}}/models/{{name}}/{action}", registry, None)

    def paths_of(self, mount: Mounted) -> dict[str, str]:
        """Give the versioned paths of a model, by what they do."""
        contract = mount.model.engine.spec.contract
        base = f"{self._prefix}/{mount.model.version}"
        paths = {"predict": base + mount.predict_path} if contract.can_infer else {}
        return paths | ({"stream": base + mount.stream_path} if contract.can_stream else {})

    def add_plain(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        """
        Add a route that belongs to no model.

        Raises:
            ConfigurationError: If the path is taken.
        """
        self.require_free(self._prefix + path, "GET")
        self._app.router.add_api_route(
            self._prefix + path,
            endpoint,
            methods=["GET"],
            route_class_override=ServerRoute,
            **options,
        )

    def add_shared(
        self,
        path: str,
        endpoint: Callable[..., Any],
        answer: Answer,
        mounted: Sequence[Mounted],
        *,
        shape: ErrorShape,
        **documents: Any,
    ) -> None:
        """
        Add a `POST` route whose requests name, in their bodies, the model that they are for.

        Args:
            path: The path, below the prefix.
            endpoint: Never called: its signature is what OpenAPI shows.
            answer: Called with the request; it asks `guard_of` the model before it answers.
            mounted: The models that it serves.
            shape: What its protocol says of errors.
            documents: What else OpenAPI shows, as FastAPI's route takes it.

        Raises:
            ConfigurationError: If the path is taken.
        """
        full_path = self._prefix + path
        self.require_free(full_path, "POST")
        limits = [mount.model.engine.spec.limits.max_body_bytes for mount in mounted]
        route_class = partial(
            ModelRoute,
            answer=_as_function(answer),
            settings=self.settings,
            model=NO_MODEL,
            version=NO_MODEL,
            max_body_bytes=max(limits, default=self.settings.max_body_bytes),
            shape=shape,
        )
        # Dependencies are solved within FastAPI's stack, which a route without any is not behind.
        has_guards = any(mount.dependencies for mount in mounted)
        self._app.router.add_api_route(
            full_path,
            endpoint,
            methods=["POST"],
            dependencies=[*self._dependencies, *([NOTHING] if has_guards else [])],
            summary=endpoint.__doc__,
            route_class_override=cast("type[APIRoute]", route_class),
            **documents,
        )

    def guard_of(self, mount: Mounted) -> Guard:
        """Give what a model's own dependencies have to say to a request on a shared route."""
        return Guard(mount.dependencies, self._app)

    def add_probe(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        """Add a plain route that load balancers may ask with `HEAD` as well."""
        self.add_plain(path, endpoint, **options)
        self._app.router.add_api_route(
            self._prefix + path,
            endpoint,
            methods=["HEAD"],
            include_in_schema=False,
            route_class_override=ServerRoute,
        )

    def require_free(self, path: str, method: str) -> None:
        """
        Refuse a path that the application answers already.

        Raises:
            ConfigurationError: If it does.
        """
        scope = {
            "type": "http",
            "path": path,
            "root_path": "",
            "method": method,
            "headers": [],
            "app": self._app,
        }
        for route in self._app.router.routes:
            match, _ = route.matches(dict(scope))
            if match is Match.FULL:
                raise ConfigurationError(
                    f"The path `{path}` is taken in the application. Use another `prefix`,"
                    " another `path` or another model name."
                )

    def _add_model(self, mount: Mounted, base: str) -> None:
        contract = mount.model.engine.spec.contract
        note = "" if base else ", newest version"
        if contract.can_infer:
            is_binary = contract.response.is_binary
            self._add(
                mount,
                base + mount.predict_path,
                body_signature(
                    contract, mount.examples, "predict", f"Predict with {mount.model.name}{note}"
                ),
                PredictEndpoint(mount.model, self.settings),
                "POST",
                response_model=None if is_binary else contract.response.declared,
                responses=_responses(contract.response.declared),
            )
        if not contract.can_stream:
            return
        answer = StreamEndpoint(mount.model, self.settings)
        documents: dict[str, Any] = {
            "response_model": contract.chunk.declared,
            "response_class": EventStreamDocument,
            "responses": stream_responses(),
        }
        path, summary = base + mount.stream_path, f"Stream from {mount.model.name}{note}"
        shown = body_signature(contract, mount.examples, "stream", summary)
        self._add(mount, path, shown, answer, "POST", **documents)
        if takes_query(contract):
            shown = query_signature(contract, "stream_get", summary)
            self._add(mount, path, shown, answer, "GET", **documents)

    def _add(
        self,
        mount: Mounted,
        path: str,
        endpoint: Callable[..., Any],
        answer: Answer,
        method: str,
        **documents: Any,
    ) -> None:
        full_path = self._prefix + path
        self.require_free(full_path, method)
        self._methods.setdefault(full_path, []).append(method)
        spec = mount.model.engine.spec
        route_class = partial(
            ModelRoute,
            answer=_as_function(answer),
            settings=self.settings,
            model=spec.name,
            version=spec.version,
            max_body_bytes=spec.limits.max_body_bytes,
            require_room=_door_of(mount.model, is_stream=isinstance(answer, StreamEndpoint)),
            listeners=mount.model.engine.listeners,
        )
        self._app.router.add_api_route(
            full_path,
            endpoint,
            methods=[method],
            dependencies=[*self._dependencies, *mount.dependencies],
            tags=list(mount.tags),
            summary=endpoint.__doc__,
            route_class_override=cast("type[APIRoute]", route_class),
            operation_id=f"{endpoint.__name__}{full_path.replace('/', '_')}_{method.lower()}",
            **documents,
        )

    def _add_fallback(self, path: str, registry: Registry, version: str | None) -> None:
        """Answer what names no model, or one that cannot do this."""

        async def missing(request: Request) -> Response:
            wanted = request.path_params.get("version", version)
            model = registry.get(request.path_params["name"], wanted)
            allowed = self._methods.get((self._prefix + path).replace("{name}", model.name))
            if allowed is None:
                raise HTTPException(404)
            raise HTTPException(405, headers={"Allow": ", ".join(allowed)})

        route_class = partial(
            _FallbackRoute,
            answer=missing,
            settings=self.settings.model_copy(update={"access_log": False}),
            model=NO_MODEL,
            version=version or NO_MODEL,
            max_body_bytes=self.settings.max_body_bytes,
        )
        self._app.router.add_api_route(
            self._prefix + path,
            _no_such_model,
            methods=["DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"],
            include_in_schema=False,
            dependencies=list(self._dependencies),
            route_class_override=cast("type[APIRoute]", route_class),
        )


class _FallbackRoute(ModelRoute):
    """Takes no path whose first part only stands where a version would: it is the user's."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match as any route does, but versions only as versions."""
        match, child = super().matches(scope)
        version = child.get("path_params", {}).get("version")
        if version is not None and not _VERSION.fullmatch(version):
            return Match.NONE, {}
        return match, child


async def _no_such_model(name: str) -> None:
    """Never called: its signature names the path's parameter."""


def _door_of(model: Model, *, is_stream: bool) -> Callable[[Scope], None]:
    """Make what refuses a request by its head where the model is crowded."""

    def require(scope: Scope) -> None:
        if model.engine.is_crowded:
            with suppress(RequestError):  # a header that is malformed is the route's to refuse
                require_room(Headers(scope=scope), model, is_stream=is_stream)

    return require


def _as_function(answer: Answer) -> Answer:
    """Wrap a callable object in a coroutine function, which is what FastAPI looks for."""

    async def call(request: Request) -> Response:
        return await answer(request)

    return call


def _responses(declared: Any) -> dict[int | str, Any]:
    responses = documented_errors(ErrorBody)
    if declared is Binary:
        responses[200] = {"content": {"*/*": {"schema": {"type": "string", "format": "binary"}}}}
    return responses
