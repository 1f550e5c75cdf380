"""`/health` and `/ready`."""

from collections.abc import Callable, Iterable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mlserve.engine import Engine
from mlserve.errors import (
    CapacityError,
    DrainingError,
    MLServeError,
    ModelFailedError,
    ModelNotReadyError,
)
from mlserve.http.errors import error_info
from mlserve.http.exchange import request_id_of
from mlserve.http.schemas import HealthBody
from mlserve.lifecycle import ModelState
from mlserve.records.outlet import Outlet
from mlserve.registry import Registry

__all__ = ["make_health", "make_ready"]


def make_health() -> Callable[..., Any]:
    """Make the endpoint of `GET /health`: 200 as soon as the process accepts connections."""

    async def health() -> HealthBody:
        return HealthBody()

    return health


def make_ready(registry: Registry) -> Callable[..., Any]:
    """Make the endpoint of `GET /ready`: 200 only when every model is loaded and warm."""

    async def ready(request: Request) -> Response:
        engines = [model.engine for model in registry]
        models = [_readiness(engine) for engine in engines]
        sinks = _sinks(registry.recording)
        is_ready = (
            bool(engines)
            and not registry.is_draining
            and all(engine.lifecycle.is_ready for engine in engines)
            and not any(outlet.is_missed for outlet in registry.recording)
        )
        detail = {"troubles": dict(registry.troubles)} if registry.troubles else {}
        if is_ready:
            return JSONResponse({"status": "ready", "models": models, **sinks, **detail})
        reason = DrainingError() if registry.is_draining else _why_not(engines, registry.recording)
        error = error_info(reason, request_id_of(request.scope))
        body = {"status": "not_ready", "models": models, "error": error, **sinks, **detail}
        return JSONResponse(body, 503, {"Retry-After": "1"})

    return ready


def _readiness(engine: Engine) -> dict[str, Any]:
    life = engine.lifecycle
    progress = 1.0 if life.is_ready else _mean_progress(engine)
    notes = [note for _, note in engine.progress.values() if note]
    return {
        "name": engine.spec.name,
        "version": engine.spec.version,
        "state": life.state,
        "reason": life.reason,
        "progress": round(progress, 3),
        "note": notes[-1] if notes and not life.is_ready else None,
    }


def _sinks(outlets: Iterable[Outlet]) -> dict[str, Any]:
    sinks = [
        {"name": outlet.name, "state": outlet.state, "waiting": outlet.n_waiting, **outlet.counts}
        for outlet in outlets
    ]
    return {"sinks": sinks} if sinks else {}


def _mean_progress(engine: Engine) -> float:
    fractions = [fraction for fraction, _ in engine.progress.values()]
    return sum(fractions) / max(engine.spec.replicas.min_count, len(fractions))


def _why_not(engines: list[Engine], outlets: Iterable[Outlet]) -> MLServeError:
    """Give the worst reason."""
    for engine in engines:
        name, life = engine.spec.name, engine.lifecycle
        if life.state in (ModelState.DRAINING, ModelState.STOPPED):
            return DrainingError(name)
        if life.state is ModelState.FAILED:
            return ModelFailedError(name, life.reason or "it broke down")
    for engine in engines:
        if not engine.lifecycle.is_ready:
            return ModelNotReadyError(engine.spec.name, engine.lifecycle.state)
    for outlet in outlets:
        if outlet.is_missed:
            return CapacityError(f"Sink `{outlet.name}` does not write, and the server needs it.")
    return ModelNotReadyError("any", "none is registered")
