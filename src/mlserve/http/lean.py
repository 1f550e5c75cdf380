"""
The application class of a built server: FastAPI with a short way to its models.

A request of a model's route that neither a dependency nor a middleware of the user looks at needs
nothing of FastAPI's stack, and nor do our own guards: a table of exact paths leads straight to the
route, which stays in router and OpenAPI like any other. Where OpenTelemetry's SDK is configured,
FastAPI's stack is gone through, since it makes the spans of requests.
"""

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from mlserve.http.foreign import RECEIVE
from mlserve.http.middleware import ServingMiddleware
from mlserve.http.route import ModelRoute

__all__ = ["ServingApp"]


class ServingApp(FastAPI):
    """A FastAPI application whose models are reached without its stack where that is the same."""

    _lean_routes: dict[tuple[str, str], ModelRoute] | None = None
    _is_observed: bool | None = None

    def build_middleware_stack(self) -> ASGIApp:
        """Build FastAPI's stack, and the table beside it: both know all middleware now."""
        # What the serving middleware does for other routes, these routes do themselves.
        kinds: set[object] = {entry.cls for entry in self.user_middleware}
        if kinds <= {ServingMiddleware}:
            self._lean_routes = {
                (method, route.path): route
                for route in self.router.routes
                if isinstance(route, ModelRoute) and route.is_lean
                for method in route.methods or ()
            }
        return super().build_middleware_stack()

    def lean_route(self, scope: Scope) -> ModelRoute | None:
        """Give the route that may answer a request past FastAPI's stack, if one does."""
        # Where a root path stands before the routes' own paths, the router knows what is left.
        is_plain = scope["type"] == "http" and not (scope.get("root_path") or self.root_path)
        if self._lean_routes is None or not is_plain:
            return None
        if self._is_observed is None:  # at the first request, as asking costs too much for each
            self._is_observed = self._native_telemetry.enabled()
        if self._is_observed:
            return None
        route = self._lean_routes.get((scope["method"], scope["path"]))
        return route if route is not None and route.is_lean else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        route = self.lean_route(scope)
        if route is not None:
            scope["app"] = self
            await route.handle(scope, receive, send)
            return
        scope[RECEIVE] = receive
        try:
            await super().__call__(scope, receive, send)
        finally:
            scope.pop(RECEIVE, None)  # scope and receive would hold each other
