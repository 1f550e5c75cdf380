"""`GET /metrics`, and what keeps its gauges true when several processes serve."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mlserve.engine import Engine
from mlserve.execution.worker import TaskSet
from mlserve.observability.exposition import exposed
from mlserve.observability.gathering import is_sharing, write_gathered
from mlserve.observability.metrics import batch_metrics, model_metrics, note_figures
from mlserve.processes.placement import ProcessPlacement
from mlserve.registry import Registry

__all__ = ["make_metrics", "open_families", "publishing"]

_PERIOD_S = 1.0


def make_metrics(registry: Registry) -> Callable[..., Any]:
    """Make the endpoint of `GET /metrics`: all families, in the format of Prometheus."""
    open_families(registry)

    async def metrics(request: Request) -> Response:
        _publish(registry)
        # In a thread, since it takes milliseconds where there are many models and processes.
        body, content_type = await asyncio.to_thread(exposed, request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})

    return metrics


def open_families(registry: Registry) -> None:
    """Have every family of every model stand there from the start."""
    for model in registry:
        model_metrics(model.name, model.version)
        batch_metrics(model.name, model.version)


@asynccontextmanager
async def publishing(registry: Registry) -> AsyncIterator[None]:
    """Set the gauges of this process every second, if another one may be asked for them."""
    tasks = TaskSet()
    if is_sharing():
        tasks.spawn(_keep_publishing(registry))
    try:
        yield
    finally:
        await tasks.close()
        write_gathered()


async def _keep_publishing(registry: Registry) -> None:
    while True:
        _publish(registry)
        await asyncio.sleep(_PERIOD_S)


def _publish(registry: Registry) -> None:
    for model in registry:
        engine = model.engine
        if _speaks_for(engine):
            figures = engine.statistics()
            note_figures(
                model.name,
                model.version,
                in_flight=figures.in_flight,
                queued=figures.queued,
                queue_capacity=figures.queue_capacity,
                replicas=figures.replicas,
                is_ready=engine.lifecycle.is_ready,
            )


def _speaks_for(engine: Engine) -> bool:
    """Say whether this process tells of a model: of replicas that all processes share, only one."""
    placement = engine.placement
    return not isinstance(placement, ProcessPlacement) or placement.index == 0
