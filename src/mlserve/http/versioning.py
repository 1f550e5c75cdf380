"""The routes of all models: one group per version, and those that name no version."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

from fastapi import FastAPI
from fastapi.params import Depends
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from mlserve.errors import ConfigurationError
from mlserve.http.aliases import Alias, served_by
from mlserve.http.deprecation import Deprecation
from mlserve.http.documented import (
    EventStreamDocument,
    body_signature,
    query_signature,
    stream_responses,
    takes_query,
)
from mlserve.http.errors import ErrorShape, documented_errors
from mlserve.http.guard import NOTHING, Guard
from mlserve.http.mounted import Entrance, Mounted, as_function, entrance_of
from mlserve.http.route import NO_MODEL, Answer, ModelRoute, ServerRoute
from mlserve.http.schemas import ErrorBody
from mlserve.payloads import Binary
from mlserve.registry import Registry
from mlserve.settings import ServerSettings

__all__ = ["ModelRoutes", "Mounted"]

_VERSION = re.compile(r"v[1-9][0-9]*")
_ACTIONS = ("predict", "stream")


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

    def add_all(
        self,
        mounted: list[Mounted],
        registry: Registry,
        deprecations: Sequence[Deprecation] = (),
    ) -> None:
        """
        Add the routes of all versions, and those that name no version.

        Raises:
            ConfigurationError: If a path is taken.
        """
        for mount in mounted:
            for action in _ACTIONS:
                if mount.can(action):
                    entrance = self._entrance(mount, action, deprecations, mounted)
                    self._add_model(mount, f"/{mount.model.version}", action, entrance)
        for name in registry.newest():
            versions_of = {m.model.version: m for m in mounted if m.model.name == name}
            for action in _ACTIONS:
                self._add_alias([versions_of[v] for v in registry.versions(name)], action, registry)
        versions = sorted({mount.model.version for mount in mounted} | {"v1"})
        for action in _ACTIONS:
            for version in versions:
                self._add_fallback(f"/{version}/models/{{name}}/{action}", registry, version)
            self._add_fallback(f"/models/{{name}}/{action}", registry, None)
            self._add_fallback(f"/{{version}}/models/{{name}}/{action}", registry, None)

    def paths_of(self, mount: Mounted) -> dict[str, str]:
        """Give the versioned paths of a model, by what they do."""
        base = f"{self._prefix}/{mount.model.version}"
        return {action: base + mount.path(action) for action in _ACTIONS if mount.can(action)}

    def add_plain(
        self,
        path: str,
        endpoint: Callable[..., Any],
        *,
        method: str = "GET",
        route_class: Any = ServerRoute,
        **options: Any,
    ) -> None:
        """
        Add a route that belongs to no model.

        Raises:
            ConfigurationError: If the path is taken.
        """
        self.require_free(self._prefix + path, method)
        self._app.router.add_api_route(
            self._prefix + path,
            endpoint,
            methods=[method],
            route_class_override=route_class,
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
            answer=as_function(answer),
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

    def _entrance(
        self,
        mount: Mounted,
        action: str,
        deprecations: Sequence[Deprecation],
        mounted: list[Mounted],
    ) -> Entrance:
        """Give what stands behind a path that names a version."""
        entrance = entrance_of(mount, action, self.settings)
        deprecation = next((d for d in deprecations if d.covers(mount.model)), None)
        if deprecation is None:
            return entrance
        successors = [
            self.paths_of(other).get(action)
            for other in mounted
            if other.model.name == mount.model.name and other.model.version == deprecation.successor
        ]
        return replace(
            entrance,
            opened=(deprecation.teller(next(iter(successors), None)),),
            notes=[deprecation.text, *entrance.notes],
            is_deprecated=True,
        )

    def _add_alias(self, mounts: list[Mounted], action: str, registry: Registry) -> None:
        """Add a path without a version, which stands where the newest version has its own."""
        able = {mount.model.version: mount for mount in mounts if mount.can(action)}
        if not able:
            return
        newest = mounts[-1]
        if len(mounts) == 1:
            header = served_by(newest.model.version)
            entrance = replace(
                entrance_of(newest, action, self.settings),
                opened=(lambda exchange, _: exchange.headers.append(header),),
            )
            self._add_model(newest, "", action, entrance)
            return
        entrances = {
            version: entrance_of(mount, action, self.settings) for version, mount in able.items()
        }
        entrance = Alias(entrances, registry, self.settings, self._app).entrance()
        main = registry.traffic(newest.model.name).main
        shown = able.get(main) or able[next(reversed(able))]
        self._add_model(shown, "", action, entrance, path=newest.path(action))

    def _add_model(
        self, mount: Mounted, base: str, action: str, entrance: Entrance, path: str | None = None
    ) -> None:
        """Add a path, with the documents of one model."""
        contract = mount.model.engine.spec.contract
        path = base + (path or mount.path(action))
        note = "" if base else ", no version named"
        if action == "predict":
            is_binary = contract.response.is_binary
            summary = f"Predict with {mount.model.name}{note}"
            self._add(
                mount,
                path,
                body_signature(contract, mount.examples, "predict", summary),
                entrance,
                "POST",
                response_model=None if is_binary else contract.response.declared,
                responses=_responses(contract.response.declared),
            )
            return
        documents: dict[str, Any] = {
            "response_model": contract.chunk.declared,
            "response_class": EventStreamDocument,
            "responses": stream_responses(),
        }
        summary = f"Stream from {mount.model.name}{note}"
        shown = body_signature(contract, mount.examples, "stream", summary)
        self._add(mount, path, shown, entrance, "POST", **documents)
        if takes_query(contract):
            shown = query_signature(contract, "stream_get", summary)
            self._add(mount, path, shown, entrance, "GET", **documents)

    def _add(
        self,
        mount: Mounted,
        path: str,
        endpoint: Callable[..., Any],
        entrance: Entrance,
        method: str,
        **documents: Any,
    ) -> None:
        full_path = self._prefix + path
        self.require_free(full_path, method)
        self._methods.setdefault(full_path, []).append(method)
        route_class = partial(
            ModelRoute,
            answer=entrance.answer,
            settings=self.settings,
            model=entrance.name,
            version=entrance.version,
            max_body_bytes=entrance.max_body_bytes,
            require_room=entrance.require_room,
            listeners=entrance.listeners,
            opened=entrance.opened,
            predicts=entrance.predicts,
        )
        self._app.router.add_api_route(
            full_path,
            endpoint,
            methods=[method],
            dependencies=[*self._dependencies, *entrance.dependencies],
            tags=list(mount.tags),
            summary=endpoint.__doc__,
            description="\n\n".join(entrance.notes) or None,
            deprecated=entrance.is_deprecated or None,
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


def _responses(declared: Any) -> dict[int | str, Any]:
    responses = documented_errors(ErrorBody)
    if declared is Binary:
        responses[200] = {"content": {"*/*": {"schema": {"type": "string", "format": "binary"}}}}
    return responses
