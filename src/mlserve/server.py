"""`ModelServer`: collects handlers, builds the application, runs it. Nothing else."""

import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import date
from typing import Any, Self

from fastapi import FastAPI
from starlette.middleware import Middleware

from mlserve.access.flags import Flags
from mlserve.cache import Cache
from mlserve.contract import read_contract
from mlserve.engine import Engine
from mlserve.errors import ConfigurationError
from mlserve.http.app import AppPlan, Lifespan, build_app, install_into
from mlserve.http.dependencies import (
    checked_admin,
    checked_dependencies,
    checked_middleware,
    make_model_dependency,
)
from mlserve.http.deprecation import Deprecation
from mlserve.http.found import find_variable
from mlserve.http.protocol import ServingProtocol
from mlserve.http.runner import run_server
from mlserve.http.versioning import Mounted
from mlserve.http.workers import run_workers
from mlserve.model import Model
from mlserve.records.sink import Sink
from mlserve.registry import Registry
from mlserve.settings import Batching, Limits, Replicas, ServerSettings
from mlserve.spec import (
    HandlerSource,
    ModelSpec,
    as_factory,
    limits_of,
    option_of,
    replicas_of,
)
from mlserve.traffic import Shadow

__all__ = ["ModelServer"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_VERSION = re.compile(r"v[1-9][0-9]*")


class ModelServer:
    """
    Collects models and turns them into a FastAPI application.

    Args:
        title: The application's title.
        version: The application's version, as OpenAPI shows it.
        description: The application's description, in Markdown.
        settings: The server's settings; `None` = from the environment.
        dependencies: FastAPI dependencies of every route but the probes.
        middleware: Further ASGI middleware of the built application, outermost first.
        sinks: Who gets a record of every request of every model, such as `SqlSink(…)`.
        lifespan: Entered before the models load and left after they are unloaded, for pools and
            clients; takes the application, as FastAPI's.
        admin: FastAPI dependencies of `/admin/…`, which is not there without any.

    Raises:
        ConfigurationError: If a setting is unknown, or a flag malformed.

    Example:
        >>> class Double(ModelHandler[float, float]):
        ...     def infer(self, inputs: list[float]) -> list[float]:
        ...         return [2 * value for value in inputs]
        >>> ModelServer(title="Numbers").add("double", Double)
        <ModelServer 'Numbers': double/v1>
    """

    def __init__(  # noqa: PLR0913 - one keyword per aspect of a server
        self,
        *,
        title: str = "mlserve",
        version: str = "0.1.0",
        description: str | None = None,
        settings: ServerSettings | None = None,
        dependencies: Sequence[Any] = (),
        middleware: Sequence[Middleware] = (),
        sinks: Sequence[Sink] = (),
        lifespan: Lifespan | None = None,
        admin: Sequence[Any] | None = None,
    ) -> None:
        self.settings = settings if settings is not None else ServerSettings()
        self.registry = Registry(self.settings, sinks)
        """The models by name and version."""
        self.flags = Flags(self.settings.flags, self.settings.flags_file)
        """The feature flags, which code may list and switch while the server runs."""
        self._plan = AppPlan(
            title=title,
            version=version,
            description=description,
            settings=self.settings,
            registry=self.registry,
            flags=self.flags,
            dependencies=checked_dependencies(dependencies),
            middleware=checked_middleware(middleware),
            lifespan=lifespan,
            admin=None if admin is None else checked_admin(admin),
        )
        self._app: FastAPI | None = None
        self._is_installed = False

    def add(  # noqa: PLR0913 - one keyword per aspect of a model
        self,
        name: str,
        handler: HandlerSource,
        *,
        version: str = "v1",
        batching: Batching | None = None,
        replicas: Replicas | None = None,
        limits: Limits | None = None,
        dependencies: Sequence[Any] = (),
        path: str | None = None,
        tags: Sequence[str] | None = None,
        cache: Cache | None = None,
        sinks: Sequence[Sink] = (),
        changes: str | None = None,
    ) -> Self:
        """
        Add a model.

        Args:
            name: Its name in paths: letters, digits, `.`, `_`, `-`.
            handler: A `ModelHandler` class, a callable that gives a handler, or a handler.
            version: `v1`, `v2`, …; the highest one is the newest.
            batching: How requests are gathered; `None` = the handler's own, else the default.
            replicas: How many copies run and where; `None` likewise.
            limits: What its requests may take.
            dependencies: FastAPI dependencies of its routes.
            path: Its predict path below the version, instead of `/models/{name}/predict`.
            tags: Under which OpenAPI shows its routes.
            cache: How its answers are kept for equal requests; `None` = not at all.
            sinks: Who gets a record of each of its requests, besides those of the server.
            changes: What is other than in the version before, in Markdown; stands in OpenAPI.

        Raises:
            ConfigurationError: If anything of it cannot work; the message says what to do.
        """
        self._require_open()
        if not _NAME.fullmatch(str(name)):
            raise ConfigurationError(
                f"A model's name must be 1 to 64 letters, digits, '.', '_' or '-', beginning with"
                f" a letter or digit, got {name!r}."
            )
        if not _VERSION.fullmatch(str(version)):
            raise ConfigurationError(f"`version` must be 'v1', 'v2' and so on, got {version!r}.")
        if path is not None and not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", path):
            raise ConfigurationError(f"`path` must look like '/classify', got {path!r}.")
        factory, example, is_instance = as_factory(handler)
        options = replicas_of(replicas, example, is_instance=is_instance)
        spec = ModelSpec(
            name=name,
            version=version,
            contract=read_contract(type(example)),
            factory=factory,
            example=example,
            batching=option_of("batching", batching, example.batching, Batching),
            replicas=options,
            limits=limits_of(limits, options),
            cache=cache,
        )
        model = Model(Engine(spec))
        self.registry.recording.record(model.engine.listeners, sinks)
        self.registry.add(model)
        guards = checked_dependencies(dependencies)
        mount = Mounted(model, dependencies=guards, path=path, tags=tags, changes=changes)
        self._plan.mounted.append(mount)
        return self

    def deprecate(
        self,
        version: str,
        *,
        name: str | None = None,
        since: date | None = None,
        sunset: date | None = None,
        successor: str | None = None,
        note: str | None = None,
    ) -> Self:
        """
        Advise against a version: in the headers of all its answers, and in OpenAPI.

        Args:
            version: Such as `v1`.
            name: Of which model; `None` = of all.
            since: Since when; `None` = now.
            sunset: From when on it may be gone.
            successor: Which version to use instead.
            note: What users should know, in Markdown.

        Raises:
            ConfigurationError: If there are no such versions, or the dates cannot be.
        """
        self._require_open()
        deprecation = Deprecation.checked(
            version,
            self.models(),
            name=name,
            since=since,
            sunset=sunset,
            successor=successor,
            note=note,
        )
        self._plan.deprecations.append(deprecation)
        self._plan.deprecations.sort(key=lambda each: each.name is None)  # one model's go first
        return self

    def route(
        self,
        name: str,
        weights: Mapping[str, float],
        shadow: Shadow | str | tuple[str, float] | None = None,
    ) -> Self:
        """
        Divide the requests that name no version among the versions of a model.

        It may be called again while the server runs, on its event loop, and holds from the next
        request on; with several HTTP processes it reaches only its own.

        Args:
            name: The model's name.
            weights: Which part each version gets, such as `{"v1": 0.9, "v2": 0.1}`; they sum to
                one.
            shadow: Which version gets copies of what the others have answered: a version, one
                with the share that is copied, or `Shadow(…)`.

        Raises:
            ConfigurationError: If that cannot be done; the message says what to do.
        """
        self.registry.route(name, weights, Shadow.of(shadow))
        return self

    def use(self, protocol: ServingProtocol) -> Self:
        """
        Serve the models by a further protocol, beside their own routes.

        Args:
            protocol: Such as `mlserve.protocols.openai.OpenAIProtocol()`; it serves those models
                that it can, also those that are added later.

        Raises:
            ConfigurationError: If it is no protocol, or the application is built already.
        """
        self._require_open()
        if isinstance(protocol, type) or not isinstance(protocol, ServingProtocol):
            raise ConfigurationError(
                f"`protocol` must be a protocol such as `OpenAIProtocol()`, got {protocol!r}."
            )
        self._plan.protocols.append(protocol)
        return self

    def build(self) -> FastAPI:
        """
        Give the application; each call gives the same one.

        Raises:
            ConfigurationError: If two models claim one path, or the models are installed already.
        """
        if self._app is None:
            if self._is_installed:
                raise ConfigurationError("The models are installed in another application.")
            self._app = build_app(self._plan)
        return self._app

    def install(self, app: FastAPI, prefix: str = "") -> None:
        """
        Add the models to an application that has its own routes, lifespan and error handlers.

        Args:
            app: The application; it must not have started.
            prefix: What stands before every path, such as `/ml`.

        Raises:
            ConfigurationError: If a path is taken, or the models are in an application already.
        """
        self._require_open()
        if prefix and not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", prefix):
            raise ConfigurationError(f"`prefix` must look like '/ml', got {prefix!r}.")
        install_into(app, self._plan, prefix)
        self._is_installed = True

    def model(self, name: str, version: str | None = None) -> Callable[[], Awaitable[Model]]:
        """
        Make a FastAPI dependency that gives a model.

        Args:
            name: The model's name.
            version: Its version; `None` = its newest.

        Example:
            >>> server = ModelServer()
            >>> app = FastAPI()
            >>> @app.get("/state")
            ... async def state(model: Annotated[Model, Depends(server.model("double"))]) -> str:
            ...     return model.state
        """
        return make_model_dependency(self.registry, name, version)

    def model_for(self, name: str, version: str | None = None) -> Model:
        """
        Give a model.

        Raises:
            ModelNotFoundError: If there is none.
        """
        return self.registry.get(name, version)

    def models(self) -> list[Model]:
        """Give every model in every version."""
        return list(self.registry)

    @asynccontextmanager
    async def started(self) -> AsyncIterator[None]:
        """
        Load the models without HTTP, and unload them.

        Waits until they are loaded, however long that takes.

        Raises:
            Exception: What a model's loading raised.
        """
        if self.registry.is_running:
            raise ConfigurationError("The models are running already.")
        async with AsyncExitStack() as stack:
            if self._plan.lifespan is not None:
                app = FastAPI() if self._is_installed else self.build()
                await stack.enter_async_context(self._plan.lifespan(app))
            await stack.enter_async_context(self.registry.running(wait_s=math.inf))
            yield

    def run(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        workers: int = 1,
        log_level: str = "info",
        timeout_keep_alive_s: int = 5,
    ) -> None:
        """
        Serve until SIGINT or SIGTERM; ends the process with 3 if the start fails.

        Args:
            host: The address to listen on.
            port: The port to listen on; 0 = any free one.
            workers: How many processes serve HTTP. With several, this one starts them, and they
                share the replicas that are in processes of their own; the server must be a
                variable of a module, which each of them imports.
            log_level: `debug`, `info`, `warning` or `error`.
            timeout_keep_alive_s: After how many idle seconds a connection is closed.

        Raises:
            ConfigurationError: If `workers` is less than 1 or other processes cannot find this
                server, or if one of them calls this when it imports its main module.
        """
        if workers < 1:
            raise ConfigurationError(f"`workers` must be at least 1, got {workers!r}.")
        app = self.build()
        if workers > 1:
            run_workers(
                find_variable(self),
                self.registry,
                workers=workers,
                host=host,
                port=port,
                log_level=log_level,
                timeout_keep_alive_s=timeout_keep_alive_s,
            )
            return
        run_server(
            app,
            self.registry,
            host=host,
            port=port,
            log_level=log_level,
            timeout_keep_alive_s=timeout_keep_alive_s,
        )

    def _require_open(self) -> None:
        if self._app is not None or self._is_installed:
            raise ConfigurationError(
                "The application is built or installed already: `add`, `use` and `install` come"
                " before."
            )

    def __repr__(self) -> str:
        models = ", ".join(f"{model.name}/{model.version}" for model in self.registry)
        return f"<ModelServer {self._plan.title!r}: {models}>"
