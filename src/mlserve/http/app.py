"""Building the application, and installing the models into one that a user already has."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.params import Depends
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse
from starlette.routing import Route
from starlette.types import Scope

from mlserve.access.flags import Flags
from mlserve.http.admin import AdminRoutes
from mlserve.http.deprecation import Deprecation
from mlserve.http.errors import EXCEPTION_HANDLERS, documented_errors
from mlserve.http.guards.documents import document_refusals
from mlserve.http.guards.flags import require_known_flags
from mlserve.http.guards.tree import has_security
from mlserve.http.health import make_health, make_ready
from mlserve.http.lean import ServingApp
from mlserve.http.listing import ModelListing
from mlserve.http.metrics import make_metrics, publishing
from mlserve.http.middleware import ServingMiddleware
from mlserve.http.playground import make_playground
from mlserve.http.protocol import ServingProtocol
from mlserve.http.route import ServerRoute
from mlserve.http.schemas import ErrorBody, HealthBody, ModelInfo, ModelList, ReadyBody
from mlserve.http.shutdown import draining_on_signals
from mlserve.http.versioning import ModelRoutes, Mounted
from mlserve.model import Model
from mlserve.registry import Registry
from mlserve.settings import ServerSettings

__all__ = ["AppPlan", "Lifespan", "build_app", "install_into"]

_PROBES = ("/health", "/ready", "/metrics")

Lifespan = Callable[[Any], AbstractAsyncContextManager[Any]]
"""What Starlette takes as `lifespan=`: entered before, left after everything else."""


@dataclass(slots=True, kw_only=True)
class AppPlan:
    """Everything that an application is built of."""

    title: str
    version: str
    description: str | None
    settings: ServerSettings
    registry: Registry
    flags: Flags
    mounted: list[Mounted] = field(default_factory=list)
    protocols: list[ServingProtocol] = field(default_factory=list)
    deprecations: list[Deprecation] = field(default_factory=list)
    dependencies: Sequence[Depends] = ()
    middleware: Sequence[Middleware] = ()
    lifespan: Lifespan | None = None
    admin: Sequence[Depends] | None = None


def build_app(plan: AppPlan) -> FastAPI:
    """
    Build the application.

    Raises:
        ConfigurationError: If two models claim one path.
    """
    settings = plan.settings
    app = ServingApp(
        title=plan.title,
        version=plan.version,
        description=plan.description or "",
        lifespan=_lifespan_around(plan, plan.lifespan),
        middleware=[*_own_middleware(settings), *plan.middleware],
        exception_handlers=dict(EXCEPTION_HANDLERS),
        openapi_url="/openapi.json" if settings.expose_docs else None,
        docs_url="/docs" if settings.expose_docs and not settings.swagger_assets_url else None,
        redoc_url=None,
        telemetry={"exclude": _is_probe},
    )
    if settings.expose_docs and settings.swagger_assets_url:
        app.add_route("/docs", _own_docs(plan), include_in_schema=False)
    _guard_docs(app, plan.dependencies)
    _add_routes(app, plan, "")
    return app


def install_into(app: FastAPI, plan: AppPlan, prefix: str) -> None:
    """
    Add routes and lifespan to an application that has its own.

    Its middleware, error handlers and routes stay as they are.

    Raises:
        ConfigurationError: If a path is taken.
    """
    _add_routes(app, plan, prefix)
    theirs = app.router.lifespan_context
    inner = _lifespan_around(plan, plan.lifespan)

    @asynccontextmanager
    async def merged(app: Any) -> AsyncIterator[Any]:
        async with theirs(app) as state, inner(app) as ours:
            yield state if ours is None else {**(state or {}), **ours}

    app.router.lifespan_context = merged


def _guard_docs(app: FastAPI, dependencies: Sequence[Depends]) -> None:
    """Put the server's dependencies before FastAPI's own routes of the documentation."""
    for index, route in enumerate(app.router.routes):
        own = (app.openapi_url, "/docs", app.swagger_ui_oauth2_redirect_url)
        if type(route) is Route and route.path in own:
            app.router.routes[index] = ServerRoute(
                route.path,
                route.endpoint,
                methods=["GET", "HEAD"],
                include_in_schema=False,
                dependencies=list(dependencies),
                dependency_overrides_provider=app,
            )


def _add_routes(app: FastAPI, plan: AppPlan, prefix: str) -> None:
    routes = ModelRoutes(app, plan.settings, prefix, plan.dependencies)
    registry = plan.registry
    registry.is_guarded = _is_guarded(plan, app)
    # First: the router looks at routes in their order.
    routes.add_all(plan.mounted, registry, plan.deprecations)
    for protocol in plan.protocols:
        protocol.add_routes(routes, plan.mounted, registry)
    routes.add_probe("/health", make_health(), response_model=HealthBody, tags=["server"])
    not_ready = {503: {"model": ReadyBody, "description": "Not every model is loaded and warm."}}
    routes.add_probe(
        "/ready",
        make_ready(registry),
        response_model=ReadyBody,
        responses=not_ready,
        tags=["server"],
    )
    _add_lists(routes, plan)
    if plan.admin is not None:
        admin = AdminRoutes(registry, plan.flags, plan.deprecations)
        admin.add_to(routes, [*plan.dependencies, *plan.admin])
    if plan.settings.expose_metrics:
        routes.add_plain(
            "/metrics",
            make_metrics(registry),
            response_class=PlainTextResponse,
            dependencies=list(plan.dependencies),
            tags=["server"],
        )
    if plan.settings.expose_docs:
        routes.add_plain(
            "/playground",
            make_playground(plan.title, prefix=prefix, versions=_versions(plan)),
            include_in_schema=False,
            dependencies=list(plan.dependencies),
        )
    newest = registry.newest()
    others = getattr(app.state, "models", {})
    app.state.models = {**others, **newest}
    app.state.mlserve_registry = registry
    app.state.flags = plan.flags
    require_known_flags(app, plan.flags)
    document_refusals(app.router.routes)
    if len(newest) == 1 and not others:
        app.state.model = next(iter(newest.values()))
    elif newest and isinstance(getattr(app.state, "model", None), Model):
        del app.state.model  # it is not the only one any more


def _is_guarded(plan: AppPlan, app: FastAPI) -> bool:
    """Say whether every request that reaches a model comes past what asks for credentials."""
    if has_security([*app.router.dependencies, *plan.dependencies]):
        return True
    return bool(plan.mounted) and all(has_security(m.dependencies) for m in plan.mounted)


def _add_lists(routes: ModelRoutes, plan: AppPlan) -> None:
    """Add `/v1/models` and `/v1/models/{name}` for each version in use."""
    for version in _versions(plan):
        lists_all = version == "v1" and any(p.lists_every_version for p in plan.protocols)
        listing = ModelListing(
            routes, plan.mounted, plan.registry, version, lists_every_version=lists_all
        )
        options: dict[str, Any] = {
            "dependencies": list(plan.dependencies),
            "tags": ["server"],
        }
        routes.add_plain(
            f"/{version}/models", listing.list_models, response_model=ModelList, **options
        )
        routes.add_plain(
            f"/{version}/models/{{name}}",
            listing.get_model,
            response_model=ModelInfo,
            responses=documented_errors(ErrorBody, (404,)),
            **options,
        )


def _versions(plan: AppPlan) -> list[str]:
    """Give the versions that have a list of models."""
    return sorted({mount.model.version for mount in plan.mounted} | {"v1"})


def _lifespan_around(plan: AppPlan, theirs: Lifespan | None) -> Lifespan:
    """Enter the user's lifespan before the models load, and leave it after they are unloaded."""

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[Any]:
        async with AsyncExitStack() as stack:
            require_known_flags(app, plan.flags)  # also those of routes that were added since
            state = None if theirs is None else await stack.enter_async_context(theirs(app))
            await stack.enter_async_context(draining_on_signals(plan.registry))
            if plan.settings.expose_metrics:
                await stack.enter_async_context(publishing(plan.registry))
            await stack.enter_async_context(plan.registry.running())
            yield state

    return lifespan


def _is_probe(scope: Scope) -> bool:
    """Say whether nobody wants a trace of a request: those who ask do so every few seconds."""
    return scope["path"] in _PROBES


def _own_middleware(settings: ServerSettings) -> list[Middleware]:
    """Give the stack, outermost first; CORS is outside so that error answers have its headers."""
    stack = []
    if settings.cors is not None:
        options = settings.cors.model_dump()
        options["max_age"] = options.pop("max_age_s")
        stack.append(Middleware(CORSMiddleware, **options))
    stack.append(
        Middleware(
            ServingMiddleware,
            request_id_header=settings.request_id_header,
            max_body_bytes=settings.max_body_bytes,
        )
    )
    if settings.gzip_min_bytes is not None:
        stack.append(Middleware(GZipMiddleware, minimum_size=settings.gzip_min_bytes))
    return stack


def _own_docs(plan: AppPlan) -> Callable[..., Any]:
    base = (plan.settings.swagger_assets_url or "").rstrip("/")

    async def docs(request: Request) -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title=plan.title,
            swagger_js_url=f"{base}/swagger-ui-bundle.js",
            swagger_css_url=f"{base}/swagger-ui.css",
        )

    return docs
