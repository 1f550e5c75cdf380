"""
`/admin/…`: what whoever runs the server may see and change while it runs.

There only with a dependency of its own. What would reach only one of several HTTP processes is
refused, since the others would go on as before.
"""

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from fastapi.params import Depends
from fastapi.routing import get_request_handler
from pydantic import BaseModel, ConfigDict, TypeAdapter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from mlserve.access.flags import Flags
from mlserve.errors import ConfigurationError, InvalidInputError, MLServeError, ModelError
from mlserve.http.body import parse_json, read_body, require_json
from mlserve.http.deprecation import Deprecation
from mlserve.http.errors import documented_errors
from mlserve.http.route import ServerRoute
from mlserve.http.schemas import ErrorBody
from mlserve.http.versioning import ModelRoutes
from mlserve.model import Model
from mlserve.observability.loggers import get_logger
from mlserve.registry import Registry
from mlserve.traffic import Shadow

__all__ = ["AdminRoutes"]

logger = get_logger(__name__)

_CONFLICT: dict[int | str, Any] = {
    409: {"model": ErrorBody, "description": "The server, as it runs, cannot do this."}
}


class ShadowBody(BaseModel):
    """Which version gets copies, and how."""

    model_config = ConfigDict(extra="forbid")

    version: str
    share: float = 1.0
    relative: float = 0.0
    absolute: float = 0.0
    timeout_s: float | None = None
    max_running: int = 2
    max_waiting: int = 32


class TrafficBody(BaseModel):
    """How requests that name no version are divided; without `shadow` that stays as it is."""

    model_config = ConfigDict(extra="forbid")

    weights: dict[str, float]
    shadow: ShadowBody | None = None


class VersionBody(BaseModel):
    """One version of a model."""

    version: str
    state: str
    reason: str | None
    weight: float
    is_deprecated: bool
    statistics: dict[str, Any]


class ModelBody(BaseModel):
    """One model in all its versions."""

    name: str
    versions: list[VersionBody]
    shadow: ShadowBody | None


class ModelsBody(BaseModel):
    """All models."""

    is_draining: bool
    models: list[ModelBody]


class ReloadBody(BaseModel):
    """A model that was loaded anew."""

    name: str
    version: str
    state: str


class DrainBody(BaseModel):
    """A server that takes no new work."""

    status: str = "draining"
    in_flight: int


class FlagBody(BaseModel):
    """The value of a flag: on, off, or a share of callers such as `25%`."""

    model_config = ConfigDict(extra="forbid")

    value: bool | str


class FlagsBody(BaseModel):
    """All flags."""

    flags: dict[str, bool | str]


class _BodyRoute(ServerRoute):
    """
    Reads its body once the dependencies have let a request pass; FastAPI would read it before.

    Args:
        path: The full path.
        endpoint: Has one parameter for the body, called `body`.
        body_timeout_s: How long the body may take to arrive, in seconds.
        options: What FastAPI's route takes.
    """

    def __init__(
        self, path: str, endpoint: Callable[..., Any], *, body_timeout_s: float, **options: Any
    ) -> None:
        self._body_timeout_s = body_timeout_s
        super().__init__(path, endpoint, **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Give FastAPI's handler, in which the body belongs to the endpoint."""
        endpoint: Callable[..., Any] = self.endpoint
        (field,) = self.dependant.body_params
        kind: Any = field.field_info.annotation
        adapter = TypeAdapter[Any](kind)

        async def answer(request: Request, **values: Any) -> Any:
            require_json(request.headers)
            content = await read_body(request, self._body_timeout_s)
            return await endpoint(**values, body=parse_json(adapter, content))

        dependant = replace(
            self.dependant, call=answer, body_params=[], request_param_name="request"
        )
        return get_request_handler(
            dependant,
            response_field=self.response_field,
            dependency_overrides_provider=self.dependency_overrides_provider,
        )


class AdminRoutes:
    """
    The administrator's routes.

    Args:
        registry: The models.
        flags: The feature flags.
        deprecations: Which versions should not be used any more.
    """

    def __init__(
        self, registry: Registry, flags: Flags, deprecations: Sequence[Deprecation]
    ) -> None:
        self._registry = registry
        self._flags = flags
        self._deprecations = deprecations

    def add_to(self, routes: ModelRoutes, dependencies: Sequence[Depends]) -> None:
        """
        Add the routes, behind dependencies.

        Raises:
            ConfigurationError: If a path is taken.
        """
        with_body = partial(_BodyRoute, body_timeout_s=routes.settings.body_timeout_s)
        not_found = documented_errors(ErrorBody, (404,))
        put = documented_errors(ErrorBody, (400, 404, 408, 413, 415)) | _CONFLICT
        weights, flag = "/admin/models/{name}/weights", "/admin/flags/{name}"
        reload = "/admin/models/{name}/{version}/reload"
        for method, path, endpoint, responses in (
            ("GET", "/admin/models", self.list_models, {}),
            ("GET", weights, self.get_weights, not_found),
            ("PUT", weights, self.put_weights, put),
            ("POST", reload, self.reload, documented_errors(ErrorBody, (404, 500)) | _CONFLICT),
            ("POST", "/admin/drain", self.drain, _CONFLICT),
            ("GET", "/admin/flags", self.list_flags, {}),
            ("GET", flag, self.get_flag, not_found),
            ("PUT", flag, self.put_flag, put),
        ):
            routes.add_plain(
                path,
                endpoint,
                method=method,
                route_class=with_body if method == "PUT" else ServerRoute,
                responses=responses,
                dependencies=list(dependencies),
                tags=["admin"],
            )

    async def list_models(self) -> ModelsBody:
        """List the models: states, weights, deprecations, statistics."""
        names = self._registry.newest()
        return ModelsBody(
            is_draining=self._registry.is_draining,
            models=[self._described(name) for name in names],
        )

    async def get_weights(self, name: str) -> TrafficBody:
        """Say how requests that name no version are divided."""
        traffic = self._registry.traffic(name)
        return TrafficBody(weights=dict(traffic.weights), shadow=_shown(traffic.shadow))

    async def put_weights(self, name: str, body: TrafficBody) -> TrafficBody:
        """Divide requests that name no version anew, from the next one on."""
        before = self._registry.traffic(name)
        self._require_one_process("The weights")
        try:
            given = Shadow(**body.shadow.model_dump()) if body.shadow is not None else None
            shadow = given if "shadow" in body.model_fields_set else before.shadow
            traffic = self._registry.route(name, body.weights, shadow)
        except ConfigurationError as exc:
            raise InvalidInputError(str(exc), param="weights") from exc
        logger.warning(
            "admin.weights.changed", extra={"model": name, "weights": dict(traffic.weights)}
        )
        return await self.get_weights(name)

    async def reload(self, name: str, version: str) -> ReloadBody:
        """Load a model anew beside the old one, and swap them; answers once that is done."""
        model = self._registry.get(name, version)
        about = {"model": name, "version": version}
        try:
            await model.reload()
        except ConfigurationError as exc:
            raise HTTPException(409, str(exc)) from exc
        except MLServeError:
            raise
        except Exception as exc:
            logger.exception("admin.reload.failed", extra=about)
            raise ModelError(
                "The model could not be loaded anew, and goes on as before. The log says why."
            ) from exc
        logger.warning("admin.reload.completed", extra=about)
        return ReloadBody(name=name, version=version, state=model.state)

    async def drain(self) -> DrainBody:
        """Turn `/ready` false and refuse new work; what is in flight goes on."""
        self._require_one_process("A drain")
        self._registry.begin_drain()
        logger.warning("admin.drain.started")
        return DrainBody(in_flight=sum(model.statistics().in_flight for model in self._registry))

    async def list_flags(self) -> FlagsBody:
        """List the feature flags."""
        return FlagsBody(flags=self._flags.list())

    async def get_flag(self, name: str) -> FlagBody:
        """Give one feature flag."""
        flags = self._flags.list()
        if name not in flags:
            raise HTTPException(404, "There is no such flag. `GET /admin/flags` lists them.")
        return FlagBody(value=flags[name])

    async def put_flag(self, name: str, body: FlagBody) -> FlagBody:
        """Switch a feature flag, until the server ends."""
        await self.get_flag(name)
        self._require_one_process("A flag")
        try:
            self._flags.set(name, body.value)
        except ConfigurationError as exc:
            raise InvalidInputError(str(exc), param="value") from exc
        logger.warning("admin.flag.changed", extra={"flag": name, "value": body.value})
        return await self.get_flag(name)

    def _described(self, name: str) -> ModelBody:
        traffic = self._registry.traffic(name)
        models = [self._registry.get(name, v) for v in self._registry.versions(name)]
        return ModelBody(
            name=name,
            versions=[
                self._version(model, traffic.weights.get(model.version, 0)) for model in models
            ],
            shadow=_shown(traffic.shadow),
        )

    def _version(self, model: Model, weight: float) -> VersionBody:
        return VersionBody(
            version=model.version,
            state=model.state,
            reason=model.engine.lifecycle.reason,
            weight=weight,
            is_deprecated=any(each.covers(model) for each in self._deprecations),
            statistics=asdict(model.statistics()),
        )

    def _require_one_process(self, what: str) -> None:
        n = self._registry.n_processes
        if n > 1:
            raise HTTPException(
                409,
                f"{what} would reach only one of the {n} HTTP processes. Restart the server,"
                " or run it with `workers=1`.",
            )


def _shown(shadow: Shadow | None) -> ShadowBody | None:
    return None if shadow is None else ShadowBody(**asdict(shadow))
